"""Packed throughput: 4 streams x 256 sessions, as a share of what ONNX Runtime alone does at the same tick size.

Every stream has a connection of its own, as four gateways have. Order of a repetition: bare, packed, bare. The share
is the packed rate over the mean of the two bare rates around it, so that a machine that slows down for a second slows
both. The first packed run only finds the tick size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.figure import Figure, Measurement, Note, figure
from benchmarks.plan import Plan
from benchmarks.server import EddyServer
from benchmarks.shape import LSTM_128, LSTM_512, Shape
from benchmarks.worker import Worker

NUM_STREAMS = 4
NUM_ROWS = 256
_SHAPES = {"128": LSTM_128, "512": LSTM_512}


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of the load: steps/s, CPU of both processes in cores, mean rows of a tick."""

    steps_per_second: float
    server_cores: float
    load_cores: float
    tick_rows: int


class _Bench:
    """One model under the packed load."""

    def __init__(self, server: EddyServer, load: Worker, ceiling: Worker, shape: Shape, plan: Plan) -> None:
        self._server = server
        self._load = load
        self._ceiling = ceiling
        self._shape = shape
        self._plan = plan

    def measure(self, size: str) -> tuple[tuple[Figure, Figure], Note]:
        """`ceiling_<size>` and `packed_<size>`."""
        ceilings, runs = [], []
        rows = self._packed(self._plan.warm_up_seconds).tick_rows
        for _ in range(self._plan.repetitions):
            before = self._bare(rows)
            runs.append(self._packed(self._plan.packed_seconds))
            rows = runs[-1].tick_rows
            ceilings.append((before + self._bare(rows)) / 2)
        shares = [run.steps_per_second / rate for run, rate in zip(runs, ceilings, strict=True)]
        wrap = self._ceiling.ask("wrap", model=self._shape.name, rows=rows, seconds=2 * self._plan.ceiling_seconds)
        text = (
            f"{median(run.steps_per_second for run in runs):,.0f} steps/s in ticks of {rows} rows; server "
            f"{median(run.server_cores for run in runs):.2f} cores, load generator "
            f"{median(run.load_cores for run in runs):.2f}; "
            f"the engine alone, without gRPC, reaches {wrap['share']:.3f} of the ceiling"
        )
        figures = (figure(f"ceiling_{size}", ceilings), figure(f"packed_{size}", shares))
        return figures, Note(f"packed_{size}", text)

    def _packed(self, seconds: float) -> _Run:
        before = self._totals()
        answer = self._load.ask(
            "throughput",
            server="eddy",
            target=self._server.target,
            pid=self._server.pid,
            model=self._shape.name,
            streams=NUM_STREAMS,
            rows=NUM_ROWS,
            warm_up_seconds=self._plan.warm_up_seconds,
            seconds=seconds,
        )
        steps, ticks = (now - then for now, then in zip(self._totals(), before, strict=True))
        return _Run(
            answer["steps_per_second"], answer["server_cpu_share"], answer["load_cpu_share"], round(steps / ticks)
        )

    def _totals(self) -> tuple[float, float]:
        return (
            self._server.metric("eddy_steps_total", self._shape.name),
            self._server.metric("eddy_ticks_total", self._shape.name),
        )

    def _bare(self, rows: int) -> float:
        answer = self._ceiling.ask("bare", model=self._shape.name, rows=rows, seconds=self._plan.ceiling_seconds)
        return float(answer["steps_per_second"])


def measure(repository: Path, names: Sequence[str], plan: Plan) -> Measurement:
    """`ceiling_*` and `packed_*` of the sizes asked for."""
    figures: list[Figure] = []
    notes: list[Note] = []
    with (
        EddyServer(repository) as server,
        Worker("benchmarks.load") as load,
        Worker("benchmarks.ceiling", str(repository)) as ceiling,
    ):
        for size, shape in _SHAPES.items():
            if {f"ceiling_{size}", f"packed_{size}"} & set(names):
                found, note = _Bench(server, load, ceiling, shape, plan).measure(size)
                figures += [each for each in found if each.definition.name in names]
                notes.append(note)
    return Measurement(tuple(figures), tuple(notes))
