"""The ceiling: ONNX Runtime alone, on the unwrapped step graph, with one thread, in a loop.

`python -m benchmarks.ceiling REPOSITORY` is a worker. Its loop carries the states from call to call by passing the
arrays on, as the simplest service would. `wrap` measures the engine's tick (state arena, gather, scatter, copies of
inputs and outputs) against it, turn by turn.

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
import onnx
import onnxruntime as ort

from benchmarks.models import model_path
from benchmarks.shape import INPUT, OUTPUT, SHAPES, Shape
from benchmarks.worker import run_commands
from eddy.service.arena import NUM_RESERVED_SLOTS
from eddy.service.contract import read_contract
from eddy.service.engine import Engine
from eddy.service.graph import ModelGraphs

_NUM_SLOTS = 4096
_OUTPUTS = [OUTPUT, "h_next", "c_next"]


class Ceiling:
    """Both ways to run the measured models, in one process.

    Args:
        repository: written by `models.write_repository`.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        # Changed only by `_session` and `_engine`.
        self._sessions: dict[str, Any] = {}
        self._engines: dict[str, Engine] = {}

    async def bare(self, model: str, rows: int, seconds: float) -> Mapping[str, Any]:
        """Steps/s of `InferenceSession.run` at B = `rows`, and the median of one call."""
        return _timed(self._bare(SHAPES[model], rows), rows, seconds)

    def step_of(self, model: str, rows: int) -> Callable[[], None]:
        """Runs one step of B = `rows` on the bare graph."""
        return self._bare(SHAPES[model], rows)

    async def wrap(self, model: str, rows: int, seconds: float, turns: int = 10) -> Mapping[str, Any]:
        """Steps/s of the engine as a share of the bare graph's, in turns."""
        bare, engine = self._bare(SHAPES[model], rows), self._wrapped(SHAPES[model], rows)
        slices = [[_timed(run, rows, seconds / turns / 2) for run in (bare, engine)] for _ in range(turns)]
        rates = [sum(turn[way]["steps_per_second"] for turn in slices) / turns for way in range(2)]
        return {"bare_steps_per_second": rates[0], "engine_steps_per_second": rates[1], "share": rates[1] / rates[0]}

    def _bare(self, shape: Shape, rows: int) -> Callable[[], None]:
        session = self._session(shape)
        state = np.zeros((rows, shape.layers, shape.hidden), np.float32)
        feed = {INPUT: _inputs(shape, rows), "h": state, "c": state}

        def run() -> None:
            _, feed["h"], feed["c"] = session.run(_OUTPUTS, feed)

        return run

    def _wrapped(self, shape: Shape, rows: int) -> Callable[[], None]:
        engine = self._engine(shape)
        slots = np.arange(rows) + NUM_RESERVED_SLOTS
        inputs = [_inputs(shape, rows).tobytes()]
        return lambda: _drop(engine.run(inputs, slots, slots, rows, 1))

    def _session(self, shape: Shape) -> Any:
        if shape.name not in self._sessions:
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            options.inter_op_num_threads = 1
            path = str(model_path(self._repository, shape))
            self._sessions[shape.name] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return self._sessions[shape.name]

    def _engine(self, shape: Shape) -> Engine:
        if shape.name not in self._engines:
            model = onnx.load(model_path(self._repository, shape))
            self._engines[shape.name] = Engine(ModelGraphs(model), read_contract(model), num_slots=_NUM_SLOTS)
        return self._engines[shape.name]


def _inputs(shape: Shape, rows: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, 1, shape.features), np.float32)


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
