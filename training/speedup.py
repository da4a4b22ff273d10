"""Speedup: how many times as fast one model file answers as another with the same ports.

Owns: how the two are compared: one thread, one step a call, in turns, so that whatever else the machine does meets
both; the median of the ratios. Must not know why they differ.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from eddy.training.contract import read_contract
from eddy.training.drawing import draw_inputs
from eddy.training.figures import SPEEDUP, Figure
from eddy.training.runtime import Runtime

# Rows of a call: a lone session, a few, a busy server.
ROWS = (1, 16, 256)
_ROUNDS = 15
# A burst is long enough for the clock; of three the quickest counts, since others only ever slow it down.
_BURST_SECONDS = 0.004
_BURSTS = 3


def measure_speedup(before: Path, after: Path) -> list[Figure]:
    """Steps per second of `after` over those of `before`, for each of ROWS. Raises ContractError."""
    runtimes = [Runtime(path, read_contract(path)) for path in (before, after)]
    found = []
    for rows in ROWS:
        runs = [_stepper(runtime, rows) for runtime in runtimes]
        ratios = []
        for _ in range(_ROUNDS):
            first, mine, last = _seconds(runs[0]), _seconds(runs[1]), _seconds(runs[0])
            ratios.append((first + last) / 2 / mine)
        found.append(Figure(f"{SPEEDUP}{rows}", median(ratios), "times"))
    return found


def _stepper(runtime: Runtime, rows: int) -> Callable[[], object]:
    drawn, states = draw_inputs(runtime.contract, rows, 1), runtime.start(rows)
    inputs = {port.name: drawn[port.name] for port in runtime.contract.inputs}
    return lambda: runtime.advance(inputs, states)


def _seconds(run: Callable[[], object]) -> float:
    """Seconds of a call."""
    run()
    best = float("inf")
    for _ in range(_BURSTS):
        begin, calls = time.perf_counter(), 0
        while (spent := time.perf_counter() - begin) < _BURST_SECONDS or not calls:
            run()
            calls += 1
        best = min(best, spent / calls)
    return best
