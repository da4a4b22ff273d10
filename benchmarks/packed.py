"""Packed throughput: 4 streams x 256 sessions, as a share of what ONNX Runtime alone does at the same tick size.

Every stream has a connection of its own, as four gateways have. Order of a repetition: bare, packed, bare. The share
is the packed rate over the mean of the two bare rates around it, so that a machine that slows down for a second slows
both. The first packed run only finds the tick size.

The families' models are served by one server and measured one after the other.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.figure import Figure, Measurement, Note, figure
from benchmarks.plan import Plan
from benchmarks.server import EddyServer
from benchmarks.shape import LSTM_128, LSTM_512
from benchmarks.worker import ROOT, Worker, WorkerError

NUM_STREAMS = 4
NUM_ROWS = 256
_SHAPES = {"128": LSTM_128.name, "512": LSTM_512.name}
_PREFIX = "packed_"


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of the load: steps/s, CPU of both processes in cores, mean rows of a tick."""

    steps_per_second: float
    server_cores: float
    load_cores: float
    tick_rows: int


class _Bench:
    """One model under the packed load."""

    def __init__(self, server: EddyServer, load: Worker, ceiling: Worker, model: str, plan: Plan) -> None:
        self._server = server
        self._load = load
        self._ceiling = ceiling
        self._model = model
        self._plan = plan

    def measure(self) -> tuple[list[float], list[float], str]:
        """Ceilings in steps/s and shares of them, one a repetition; and what was seen besides."""
        ceilings, runs = [], []
        rows = self._packed(self._plan.warm_up_seconds).tick_rows
        for _ in range(self._plan.repetitions):
            before = self._bare(rows)
            runs.append(self._packed(self._plan.packed_seconds))
            rows = runs[-1].tick_rows
            ceilings.append((before + self._bare(rows)) / 2)
        shares = [run.steps_per_second / rate for run, rate in zip(runs, ceilings, strict=True)]
        wrap = self._ceiling.ask("wrap", model=self._model, rows=rows, seconds=2 * self._plan.ceiling_seconds)
        text = (
            f"{median(run.steps_per_second for run in runs):,.0f} of {median(ceilings):,.0f} steps/s in ticks of "
            f"{rows} rows; server "
            f"{median(run.server_cores for run in runs):.2f} cores, load generator "
            f"{median(run.load_cores for run in runs):.2f}; "
            f"the engine alone, without gRPC, reaches {wrap['share']:.3f} of the ceiling"
        )
        return ceilings, shares, text

    def _packed(self, seconds: float) -> _Run:
        before = self._totals()
        answer = throughput(self._load, self._server, self._model, self._plan, seconds)
        steps, ticks = (now - then for now, then in zip(self._totals(), before, strict=True))
        return _Run(
            answer["steps_per_second"], answer["server_cpu_share"], answer["load_cpu_share"], round(steps / ticks)
        )

    def _totals(self) -> tuple[float, float]:
        return (
            self._server.metric("eddy_steps_total", self._model),
            self._server.metric("eddy_ticks_total", self._model),
        )

    def _bare(self, rows: int) -> float:
        answer = self._ceiling.ask("bare", model=self._model, rows=rows, seconds=self._plan.ceiling_seconds)
        return float(answer["steps_per_second"])


def throughput(
    load: Worker, server: EddyServer, model: str, plan: Plan, seconds: float, *, rows: int = NUM_ROWS, turns: int = 1
) -> dict[str, float]:
    """What the load generator says of 4 streams with messages of `rows` sessions, `turns` of them in turn."""
    return load.ask(
        "throughput",
        server="eddy",
        target=server.target,
        pid=server.pid,
        model=model,
        streams=NUM_STREAMS,
        rows=rows,
        turns=turns,
        warm_up_seconds=plan.warm_up_seconds,
        seconds=seconds,
    )


def measure(repository: Path, names: Sequence[str], plan: Plan) -> Measurement:
    """`ceiling_*` and `packed_*` of the sizes asked for."""
    figures: list[Figure] = []
    models = {
        model: f"{_PREFIX}{size}"
        for size, model in _SHAPES.items()
        if {f"ceiling_{size}", f"{_PREFIX}{size}"} & set(names)
    }
    notes = []
    for name, ceilings, shares, note in _measure(repository, models, plan):
        figures += [figure(name.replace(_PREFIX, "ceiling_"), ceilings), figure(name, shares)]
        notes.append(note)
    return Measurement(tuple(each for each in figures if each.definition.name in names), tuple(notes))


def measure_families(repository: Path, names: Sequence[str], plan: Plan) -> Measurement:
    """`packed_<family>` of the families asked for.

    Raises:
        WorkerError: their models could not be written.
    """
    root = repository.parent / "families"
    models = {name.removeprefix(_PREFIX): name for name in names}
    command = [sys.executable, "-m", "benchmarks.families", str(root), *models]
    written = subprocess.run(command, cwd=ROOT, check=False)  # noqa: S603  (our own module)
    if written.returncode:
        raise WorkerError(f"benchmarks.families ended with exit code {written.returncode}")
    found = _measure(root, models, replace(plan, repetitions=min(plan.repetitions, plan.family_repetitions)))
    return Measurement(tuple(figure(name, shares) for name, _, shares, _ in found), tuple(note for *_, note in found))


def _measure(
    repository: Path, models: Mapping[str, str], plan: Plan
) -> list[tuple[str, list[float], list[float], Note]]:
    """Figure, ceilings, shares and note of each of `models`, which are figures by the models' names."""
    found = []
    with (
        EddyServer(repository) as server,
        Worker("benchmarks.load", str(repository)) as load,
        Worker("benchmarks.ceiling", str(repository)) as ceiling,
    ):
        for model, name in models.items():
            ceilings, shares, text = _Bench(server, load, ceiling, model, plan).measure()
            found.append((name, ceilings, shares, Note(name, text)))
    return found
