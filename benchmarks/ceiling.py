"""The ceiling: ONNX Runtime alone, on the unwrapped step graph, with one thread, in a loop.

`python -m benchmarks.ceiling REPOSITORY` is a worker. `wrap` measures the engine's tick (state arena, gather, scatter,
copies of inputs and outputs) against the bare graph, turn by turn.

Dimension key: B rows, one step each (T = 1).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bare import BareModel
from benchmarks.models import model_path
from benchmarks.values import draw_inputs
from benchmarks.worker import run_commands
from eddy.service.arena import NUM_RESERVED_SLOTS
from eddy.service.engine import Engine

_NUM_SLOTS = 4096


class Ceiling:
    """Both ways to run the measured models, in one process.

    Args:
        repository: folder of models.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        # Changed only by `_model` and `_engine`.
        self._models: dict[str, BareModel] = {}
        self._engines: dict[str, Engine] = {}

    async def bare(self, model: str, rows: int, seconds: float) -> Mapping[str, Any]:
        """Steps/s of `InferenceSession.run` at B = `rows`, and the median of one call."""
        return _timed(self.step_of(model, rows), rows, seconds)

    def step_of(self, model: str, rows: int) -> Callable[[], None]:
        """Runs one step of B = `rows` on the bare graph."""
        return self._model(model).step_of(rows)

    async def wrap(self, model: str, rows: int, seconds: float, turns: int = 10) -> Mapping[str, Any]:
        """Steps/s of the engine as a share of the bare graph's, in turns."""
        bare, engine = self.step_of(model, rows), self._wrapped(model, rows)
        slices = [[_timed(run, rows, seconds / turns / 2) for run in (bare, engine)] for _ in range(turns)]
        rates = [sum(turn[way]["steps_per_second"] for turn in slices) / turns for way in range(2)]
        return {"bare_steps_per_second": rates[0], "engine_steps_per_second": rates[1], "share": rates[1] / rates[0]}

    def _wrapped(self, name: str, rows: int) -> Callable[[], None]:
        model, engine = self._model(name), self._engine(name)
        contract = model.contract
        slots = np.arange(rows) + NUM_RESERVED_SLOTS
        states = model.begin(rows)
        engine.write_states(slots, [states[state.name] for state in contract.states])
        feeds = contract.feed(tuple(values.tobytes() for values in draw_inputs(contract, rows)), rows, 1)
        return lambda: _drop(engine.run(feeds, slots, slots, rows, 1, slots))

    def _model(self, name: str) -> BareModel:
        if name not in self._models:
            self._models[name] = BareModel(model_path(self._repository, name))
        return self._models[name]

    def _engine(self, name: str) -> Engine:
        if name not in self._engines:
            model = self._model(name)
            self._engines[name] = Engine(model.graphs, model.contract, num_slots=_NUM_SLOTS)
        return self._engines[name]


def _drop(_: object) -> None:
    return


def _timed(run: Callable[[], None], rows: int, seconds: float) -> dict[str, float]:
    for _ in range(3):
        run()
    durations = []
    begin = now = time.perf_counter()
    while now - begin < seconds:
        run()
        before, now = now, time.perf_counter()
        durations.append(now - before)
    return {
        "steps_per_second": rows * len(durations) / (now - begin),
        "call_seconds": float(np.median(durations)),
    }


if __name__ == "__main__":
    ceiling = Ceiling(Path(sys.argv[1]))
    asyncio.run(run_commands({"bare": ceiling.bare, "wrap": ceiling.wrap}))
