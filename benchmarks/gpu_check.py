"""`make gpu-check`: the laws and the cost of ticks on a CUDA device, against the CPU.

Owns the check of what only a GPU can show: that states stay on the device, that the wrapped graph on CUDA agrees with
the plain graph on the CPU within tolerance however calls are cut and batched, that slots do not leak into each other,
and what a tick costs. Says plainly that there is no GPU where there is none.

Dimension key: B rows of a tick, T steps.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.models import write_repository
from eddy.service.arena import INITIAL_SLOT, NUM_RESERVED_SLOTS
from eddy.service.contract import Contract
from eddy.service.engine import Engine
from eddy.service.example import example, example_feeds
from eddy.service.package import read_package
from eddy.service.runtime import available_providers, runtime_version

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# TF32 is off; cuDNN sums in another order than the CPU.
TOLERANCE = 1e-4
_NUM_SLOTS = 4096
_NUM_STEPS = 24
_MARKER = 1e30


def main() -> int:
    """Checks every model; 0 when all laws hold or there is no GPU, 1 otherwise."""
    console = Console(width=120)
    if CUDA not in available_providers():
        console.print(
            f"no GPU: ONNX Runtime {runtime_version()} here offers {', '.join(available_providers())}; "
            "nothing was checked. Install the extra `gpu` instead of `cpu` on a machine with CUDA 13 and cuDNN 9."
        )
        return 0
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        paths = sorted(write_repository(Path(folder)).glob("*/*/model.onnx"))
        paths += sorted(Path("models").glob("*/*/model.onnx"))
        for path in paths:
            failures += not check_model(console, path, CUDA)
    console.print("all laws hold" if not failures else f"{failures} models break a law")
    return 1 if failures else 0


def check_model(console: Console, path: Path, provider: str) -> bool:
    """Shows the laws and the cost of a model's ticks on `provider`, against the CPU; whether all laws hold."""
    package = read_package(path.parent)
    contract, graphs = package.contract, package.graphs
    name = f"{path.parent.parent.name}/{path.parent.name}"
    device, cpu = (Engine(graphs, contract, num_slots=_NUM_SLOTS, provider=each) for each in (provider, CPU))
    table = Table("law", "largest difference", "allowed", "holds", title=name)
    holds = True
    for law, difference, allowed in _differences(device, cpu, contract):
        fine = difference <= allowed
        holds &= fine
        table.add_row(law, f"{difference:.3g}", f"{allowed:.3g}", "yes" if fine else "NO")
    console.print(table)
    if not contract.is_streamable:
        return holds
    costs = Table("B", "device us", "CPU us", "device steps/s", title=f"{name}: one tick, T = 1")
    for rows in (2, 16, 64, 256, 1024):
        ours, theirs = (_tick_seconds(engine, contract, rows) for engine in (device, cpu))
        costs.add_row(str(rows), f"{ours * 1e6:.0f}", f"{theirs * 1e6:.0f}", f"{rows / ours:,.0f}")
    console.print(costs)
    return holds


def _differences(device: Engine, cpu: Engine, contract: Contract) -> list[tuple[str, float, float]]:
    """(law, largest absolute difference, allowed) for each law that an engine alone can show."""
    rows = 8
    if not contract.is_streamable:
        return [("whole sequences: device = CPU", _whole_difference(device, cpu, contract, rows), TOLERANCE)]
    feeds = example_feeds(contract, rows, _NUM_STEPS)
    reference = _run(cpu, contract, feeds, [_NUM_STEPS])
    whole = _run(device, contract, feeds, [_NUM_STEPS])
    results = [("parity: device = CPU, outputs and final state", _worst(whole, reference), TOLERANCE)]
    chunked = max(
        _worst(_run(device, contract, feeds, cuts), whole) for cuts in ([1] * _NUM_STEPS, [5, 3, 8, 8], [16, 4, 4])
    )
    results.append(("chunk: however calls are cut", chunked, TOLERANCE))
    alone = 0.0
    for row in range(rows):
        got = _run(device, contract, feeds, [_NUM_STEPS], rows=np.array([row]))
        alone = max(alone, _worst(got, [part[row : row + 1] for part in whole]))
    results.append(("batch: alone = among others", alone, TOLERANCE))
    # Marked neighbours: every other slot holds a large finite number, and must still hold it afterwards.
    slots = np.arange(2 * rows) + NUM_RESERVED_SLOTS
    marked = [
        np.full((2 * rows, *state.shape), _MARKER if state.dtype.kind == "f" else 1, state.dtype)
        for state in contract.states
    ]
    device.write_states(slots, marked)
    among = _run(device, contract, feeds, [_NUM_STEPS], slots=slots[::2])
    neighbours = _worst(device.read_states(slots[1::2]), [part[1::2] for part in marked])
    results.append(("isolation: marked neighbours do not show", _worst(among, whole), 0.0))
    results.append(("isolation: neighbours are not touched", neighbours, 0.0))
    if contract.has_whole:
        results.append(("whole sequences: device = CPU", _whole_difference(device, cpu, contract, rows), TOLERANCE))
    return results


def _whole_difference(device: Engine, cpu: Engine, contract: Contract, rows: int) -> float:
    """The largest difference between the outputs of the two for the same sequences."""
    num_steps = _NUM_STEPS if contract.is_streamable else cpu.shortest_whole()
    raw = [example(port, rows, num_steps).tobytes() for port in contract.inputs]
    ours, theirs = (
        [np.frombuffer(block, port.dtype) for port, block in zip(contract.outputs, blocks, strict=True)]
        for blocks in (engine.run_whole(raw, rows, num_steps) for engine in (device, cpu))
    )
    return _worst(ours, theirs)


def _run(
    engine: Engine,
    contract: Contract,
    feeds: Sequence[np.ndarray],
    cuts: Sequence[int],
    *,
    slots: np.ndarray | None = None,
    rows: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Outputs [B, T, ...] and final states [B, ...] of new sessions of some `rows`, in calls of `cuts` steps.

    The streams of a model that looks ahead are ended, so that they answer every step.
    """
    rows = np.arange(len(feeds[0])) if rows is None else rows
    count = len(rows)
    write = rows + NUM_RESERVED_SLOTS + 100 if slots is None else slots
    read = home = np.full(count, INITIAL_SLOT)
    if contract.is_primed:
        steps = min(5, contract.max_prime_steps)
        source = [example(port, len(feeds[0]), steps)[rows] for port in contract.prime_inputs]
        engine.begin(write, source, rows % steps + 1)
        read = home = write
    calls = [values[rows] for values in feeds]
    chunks = [
        (steps, [values[:, done : done + steps].tobytes() for values in calls])
        for done, steps in zip(accumulate(cuts, initial=0), cuts, strict=False)
    ]
    if contract.emits:
        chunks.append((1, list(contract.feed_end(count))))
    parts: list[list[list[np.ndarray]]] = [[[] for _ in rows] for _ in contract.outputs]
    for steps, raw in chunks:
        blocks = engine.run(raw, read, write, count, steps, home)
        read = write
        results = [port.view(block, count, steps) for port, block in zip(contract.results, blocks, strict=True)]
        emitted = results[-1] if contract.emits else [steps] * count
        for part, values in zip(parts, results, strict=False):
            for row in range(count):
                part[row].append(values[row, : emitted[row]])
    outputs = [np.stack([np.concatenate(pieces) for pieces in part]) for part in parts]
    states = zip(contract.states, engine.read_states(write), strict=True)
    return outputs + [value for state, value in states if state.next_name]


def _worst(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    differences = (
        float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0))
        for a, b in zip(got, wanted, strict=True)
    )
    # A model without states has nothing that could differ there.
    return max(differences, default=0.0)


def _tick_seconds(engine: Engine, contract: Contract, rows: int, repeats: int = 30) -> float:
    feeds = [values.tobytes() for values in example_feeds(contract, rows, 1)]
    slots = np.arange(rows) + NUM_RESERVED_SLOTS
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        engine.run(feeds, slots, slots, rows, 1, slots)
        durations.append(time.perf_counter() - start)
    return float(np.median(durations))
