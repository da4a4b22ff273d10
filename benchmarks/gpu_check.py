"""`make gpu-check`: the laws and the cost of ticks on a CUDA device, against the CPU.

Owns the check of what only a GPU can show: that states stay on the device, that the wrapped graph on CUDA agrees with
the plain graph on the CPU within tolerance however calls are cut and batched, that slots do not leak into each other,
and what a tick costs. Says plainly that there is no GPU where there is none.

Dimension key: B rows of a tick, T steps.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from benchmarks.models import write_repository
from eddy.service.arena import INITIAL_SLOT, NUM_RESERVED_SLOTS
from eddy.service.contract import Contract, read_contract
from eddy.service.engine import Engine
from eddy.service.graph import ModelGraphs
from eddy.service.ports import Port
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
            failures += not _check_model(console, path)
    console.print("all laws hold" if not failures else f"{failures} models break a law")
    return 1 if failures else 0


def _check_model(console: Console, path: Path) -> bool:
    model = onnx.load(path)
    contract = read_contract(model)
    name = f"{path.parent.parent.name}/{path.parent.name}"
    engines = {
        provider: Engine(ModelGraphs(model), contract, num_slots=_NUM_SLOTS, provider=provider)
        for provider in (CUDA, CPU)
    }
    table = Table("law", "largest difference", "allowed", "holds", title=name)
    holds = True
    for law, difference, allowed in _differences(engines[CUDA], engines[CPU], contract):
        fine = difference <= allowed
        holds &= fine
        table.add_row(law, f"{difference:.3g}", f"{allowed:.3g}", "yes" if fine else "NO")
    console.print(table)
    costs = Table("B", "CUDA us", "CPU us", "CUDA steps/s", title=f"{name}: one tick, T = 1")
    for rows in (2, 16, 64, 256, 1024):
        cuda, cpu = (_tick_seconds(engines[provider], contract, rows) for provider in (CUDA, CPU))
        costs.add_row(str(rows), f"{cuda * 1e6:.0f}", f"{cpu * 1e6:.0f}", f"{rows / cuda:,.0f}")
    console.print(costs)
    return holds


def _differences(cuda: Engine, cpu: Engine, contract: Contract) -> list[tuple[str, float, float]]:
    """(law, largest absolute difference, allowed) for each law that an engine alone can show."""
    generator = np.random.default_rng(0)
    rows = 8
    inputs = [_values(port, rows, _NUM_STEPS, generator) for port in contract.inputs]
    reference = _run(cpu, contract, inputs, [_NUM_STEPS])
    whole = _run(cuda, contract, inputs, [_NUM_STEPS])
    results = [("parity: CUDA = CPU, outputs and final state", _worst(whole, reference), TOLERANCE)]
    chunked = max(
        _worst(_run(cuda, contract, inputs, cuts), whole) for cuts in ([1] * _NUM_STEPS, [5, 3, 8, 8], [16, 4, 4])
    )
    results.append(("chunk: however calls are cut", chunked, TOLERANCE))
    alone = 0.0
    for row in range(rows):
        mine = [values[row : row + 1] for values in inputs]
        got = _run(cuda, contract, mine, [_NUM_STEPS])
        alone = max(alone, _worst(got, [part[row : row + 1] for part in whole]))
    results.append(("batch: alone = among others", alone, TOLERANCE))
    # Marked neighbours: every other slot holds a large finite number, and must still hold it afterwards.
    slots = np.arange(2 * rows) + NUM_RESERVED_SLOTS
    marked = [np.full((2 * rows, *state.shape), _MARKER, state.dtype) for state in contract.states]
    cuda.write_states(slots, marked)
    among = _run(cuda, contract, inputs, [_NUM_STEPS], slots[::2])
    neighbours = max(
        float(np.abs(got.astype(np.float64) - want).max())
        for got, want in zip(cuda.read_states(slots[1::2]), [part[1::2] for part in marked], strict=True)
    )
    results.append(("isolation: marked neighbours do not show", _worst(among, whole), 0.0))
    results.append(("isolation: neighbours are not touched", neighbours, 0.0))
    return results


def _run(
    engine: Engine,
    contract: Contract,
    inputs: Sequence[np.ndarray],
    cuts: Sequence[int],
    slots: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Outputs [B, T, ...] and final states [B, ...] of fresh sessions, in calls of `cuts` steps."""
    rows = len(inputs[0])
    write = np.arange(rows) + NUM_RESERVED_SLOTS + 100 if slots is None else slots
    read = np.full(rows, INITIAL_SLOT)
    parts: list[list[np.ndarray]] = [[] for _ in contract.outputs]
    done = 0
    for steps in cuts:
        chunk = [values[:, done : done + steps].tobytes() for values in inputs]
        blocks = engine.run(chunk, read, write, rows, steps)
        for port, part, block in zip(contract.outputs, parts, blocks, strict=True):
            part.append(np.frombuffer(block, port.dtype).reshape(rows, steps, *port.shape))
        read = write
        done += steps
    return [np.concatenate(part, axis=1) for part in parts] + engine.read_states(write)


def _worst(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    return max(
        float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()) for a, b in zip(got, wanted, strict=True)
    )


def _tick_seconds(engine: Engine, contract: Contract, rows: int, repeats: int = 30) -> float:
    generator = np.random.default_rng(1)
    inputs = [_values(port, rows, 1, generator).tobytes() for port in contract.inputs]
    slots = np.arange(rows) + NUM_RESERVED_SLOTS
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        engine.run(inputs, slots, slots, rows, 1)
        durations.append(time.perf_counter() - start)
    return float(np.median(durations))


def _values(port: Port, rows: int, num_steps: int, generator: np.random.Generator) -> np.ndarray:
    shape = (rows, num_steps, *port.shape)
    if port.dtype.kind == "f":
        return generator.standard_normal(shape).astype(port.dtype)
    low, high = int(port.minimum or 0), int(port.maximum or 1)
    return generator.integers(low, high, shape, endpoint=True).astype(port.dtype)


if __name__ == "__main__":
    sys.exit(main())
