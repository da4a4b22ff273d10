"""What a step of a model takes.

Owns the measurement. Must not know the service: what it adds to a step is measured there.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence

import numpy as np
import onnx

from eddy.inspection.program import Loader
from eddy.inspection.report import Cost
from eddy.v1 import contract_pb2

# Alone, a few devices, a full server.
ROWS = (1, 16, 256)
# More runs than the second are not waited for, and one after a first that does not count is enough.
_MAX_RUNS = 50
_MAX_SECONDS = 0.5

_DTYPES: dict[int, type[np.generic]] = {
    contract_pb2.DATA_TYPE_FLOAT32: np.float32,
    contract_pb2.DATA_TYPE_FLOAT64: np.float64,
    contract_pb2.DATA_TYPE_FLOAT16: np.float16,
    contract_pb2.DATA_TYPE_INT32: np.int32,
    contract_pb2.DATA_TYPE_INT64: np.int64,
    contract_pb2.DATA_TYPE_UINT8: np.uint8,
    contract_pb2.DATA_TYPE_BOOL: np.bool_,
}


def measure(
    step: onnx.ModelProto, contract: contract_pb2.ModelContract, load: Loader, rows: Sequence[int] = ROWS
) -> tuple[Cost, ...]:
    """The median time of a step of so many rows of `step`, which goes with `contract`; one entry each of `rows`.

    A graph of a fixed number of rows is run as often as they need. Raises whatever the runtime raises.
    """
    program = load(step)
    run_rows = contract.streaming.run_rows
    names = [port.name for port in contract.outputs]
    costs = []
    for count in rows:
        feed = dict(_feed(contract, run_rows or count))
        repeats = -(-count // run_rows) if run_rows else 1
        program.run(names, feed)
        durations: list[float] = []
        while not durations or (len(durations) < _MAX_RUNS and sum(durations) < _MAX_SECONDS):
            start = time.perf_counter()
            for _ in range(repeats):
                program.run(names, feed)
            durations.append(time.perf_counter() - start)
        costs.append(Cost(count, statistics.median(durations)))
    return tuple(costs)


def _feed(contract: contract_pb2.ModelContract, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """One step of `count` rows: zeros, or the least of what a tensor may hold."""
    for port in contract.inputs:
        lowest = port.range.minimum if port.HasField("range") else 0
        yield port.name, np.full((count, 1, *port.shape), lowest, _DTYPES[port.dtype])
    for state in contract.states:
        dtype = _DTYPES[state.dtype]
        initial = np.full(tuple(state.shape), state.initial.constant, dtype)
        if state.initial.WhichOneof("kind") == "data":
            initial = np.frombuffer(state.initial.data, dtype).reshape(tuple(state.shape))
        yield state.name, np.repeat(initial[None], count, axis=0)
