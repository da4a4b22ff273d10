"""Speed: steps per second of a model in ONNX Runtime, one step a call, as a stream asks for them.

Owns: how time is taken: many short bursts, of which the quickest counts, since whatever else the machine does only
adds time. Must not know what is compared.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from eddy.training.contract import STEP_FILE
from eddy.training.drawing import draw_inputs
from eddy.training.families.family import Model, count_parameters
from eddy.training.families.registry import build_contract, write_graphs
from eddy.training.runtime import Runtime
from eddy.training.study.result import Measured

BATCHES = (1, 64)
# A burst is long enough for the clock and short enough to fall between two interruptions now and then.
BURST_SECONDS = 0.002
BURSTS = 600
# Single calls before them, by which a burst's number of calls is chosen.
WARM_UP_CALLS = 30


def measure_speed(model: Model) -> Measured:
    """Microseconds a call and steps per second, batch 1 and 64, one thread, one step a call, states handed back in."""
    contract = build_contract(model, "study")
    values = {"parameters": float(count_parameters(model))}
    with TemporaryDirectory(prefix="eddy-") as folder:
        write_graphs(model, Path(folder), contract)
        runtime = Runtime(Path(folder) / STEP_FILE, contract, threads=1)
        for batch in BATCHES:
            seconds = _seconds_per_call(runtime, batch)
            values[f"microseconds_{batch}"] = seconds * 1e6
            values[f"steps_per_second_{batch}"] = batch / seconds
    return Measured(values)


def _seconds_per_call(runtime: Runtime, batch: int) -> float:
    inputs = draw_inputs(runtime.contract, batch, 1)
    states = runtime.start(batch)
    best, calls = float("inf"), 1
    for burst in range(WARM_UP_CALLS + BURSTS):
        if burst == WARM_UP_CALLS:
            calls = max(1, round(BURST_SECONDS / best))
        started = time.perf_counter()
        for _ in range(calls):
            _, states = runtime.advance(inputs, states)
        best = min(best, (time.perf_counter() - started) / calls)
    return best
