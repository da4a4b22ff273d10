"""Verification: does an exported model compute what it should, however its calls are cut and batched?

Owns: the schedule of comparisons and its verdict, which goes into the contract as `numerics`. Works on any model file
that carries a contract; torch is needed only to compare with a checkpoint. ONNX Runtime appears only in `runtime`.

The reference is one call: every row, all steps. Against it stand runs over batches and chunk lengths, outputs and
final states, bit for bit. A single row travels with a neighbour row, because a service never runs fewer than two
rows in a call: ONNX Runtime's plain RNN differs in the last bits at one row alone.

In int8, a hidden state halfway between two levels may be rounded either way: PyTorch is shown the graph's states and
takes the graph's level there, and only there.

Models that emit later than they read are ended at last, and must then have emitted one output per step; where rows may
read different numbers of steps in one call, they do in one run of three. Sources that a prime graph reads are of all
lengths; each run cuts them to the longest of its rows and fills the others up with something else, so that padding
shows. A whole graph must agree with itself over batches, and with the step graph as far as the look-ahead of the first
block reaches.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eddy.training.comparison import Comparison, check_finite, compare, same_bits
from eddy.training.contract import read_contract, write_contract
from eddy.training.drawing import draw_inputs, pad_again
from eddy.training.errors import ContractError, VerificationError
from eddy.training.runtime import Runtime, cpu_name, runtime_name
from eddy.training.spec import INT8
from eddy.v1 import contract_pb2 as pb

BATCHES = (1, 2, 3, 5, 8, 31, 64)
CHUNK_STEPS = (1, 2, 3, 5, 8)
# 19 divides by none of the chunk lengths, so that every schedule but the first ends in a shorter chunk.
STEPS = 19
# Different rows share each run; three runs of a batch size put a row at several places in memory.
RUNS_PER_SCHEDULE = 3
THREADS = (1, 2)
# Largest difference allowed, relative to the reference or to its tensor's root mean square where these are above 1: one
# unit in the last place of a float32 near 300 is 3e-5, so a fixed bound would measure the physical unit instead of the
# model, and so would the value alone where a sum of large terms happens to come out near 0.
LIMIT = 1e-5
# A stated tolerance is this many times the largest difference seen: a live schedule meets more cases than these.
MARGIN = 4.0

Array = npt.NDArray[np.generic]
Tensors = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Report:
    """What verification found. bitwise: all schedules agree bit for bit. tolerance: 0 when bitwise.

    own: the model against itself, over all schedules. parity: ONNX Runtime against PyTorch, None without a
    checkpoint. runs: runs compared.
    """

    bitwise: bool
    tolerance: float
    own: Comparison
    parity: Comparison | None
    runs: int

    def __str__(self) -> str:
        verdict = "bitwise" if self.bitwise else f"within {self.tolerance:.1e} (worst: {self.own.worst})"
        against = "" if self.parity is None else f"; PyTorch differs by at most {self.parity.largest:.1e}"
        return f"{verdict} over {self.runs} runs{against}"


def verify(
    model_path: Path,
    checkpoint: Path | None = None,
    *,
    reference: Callable[[Tensors], Tensors] | None = None,
    limit: float = LIMIT,
) -> Report:
    """Prove a model file and write the verdict into its contract (`numerics`).

    With a checkpoint every run is also compared with PyTorch; so it is with a `reference`, which answers to inputs
    [B, T, ...] with outputs and final states, or some of them, by the step graph's names. Raises ContractError where
    the file carries no usable contract or the graph does not keep it, and VerificationError, naming the worst element,
    where a difference is above `limit`; the file stays as it was then.
    """
    # 1. The reference, and what PyTorch says.
    contract = read_contract(model_path)
    if not contract.streaming.streamable:
        reason = contract.streaming.reason
        raise ContractError(f"{model_path}: the contract says not streamable ({reason}), nothing to cut")
    runtimes = [Runtime(model_path, contract, threads) for threads in THREADS]
    inputs = draw_inputs(contract, max(BATCHES), count_steps(contract))
    expected_all = runtimes[0].run(inputs, _longest(contract))
    whole = runtimes[0].run_whole(inputs) if contract.graphs.whole else {}
    check_finite(expected_all)
    check_finite(whole)
    torch_says, torch_says_whole = _run_torch(checkpoint, runtimes[0], inputs) if checkpoint is not None else ({}, {})
    if reference is not None:
        torch_says = reference(inputs)
    # 2. Every schedule against both.
    own: Comparison | None = None
    parity: Comparison | None = None
    bitwise, runs = True, 0
    streams = ((name, rows, found, expected_all, torch_says) for name, rows, found in _all_runs(runtimes, inputs))
    alone = _all_wholes(runtimes, inputs) if whole else iter(())
    wholes = ((name, rows, found, whole, torch_says_whole) for name, rows, found in alone)
    for schedule, rows, found, same, torch_says_same in chain(streams, wholes):
        expected = {name: value[rows] for name, value in same.items()}
        bitwise = bitwise and all(same_bits(found[name], expected[name]) for name in expected)
        own = compare(found, expected, schedule).merge(own)
        if torch_says_same:
            wanted = {name: value[rows] for name, value in torch_says_same.items()}
            parity = compare(found, wanted, f"PyTorch, {schedule}").merge(parity)
        runs += 1
    assert own is not None, "there is at least one schedule"
    # 3. The verdict.
    covered = _compare_covered(contract, runtimes[0], inputs, whole) if whole else None
    sides = (parity, "PyTorch"), (own, "the same model run whole"), (covered, "its whole graph")
    for comparison, against in sides:
        if comparison is not None and comparison.worst.relative > limit:
            raise VerificationError(f"{model_path}: differs from {against} by more than {limit:g}: {comparison.worst}")
    report = Report(bitwise, 0.0 if bitwise else own.largest * MARGIN, own, parity, runs)
    _write_numerics(model_path, contract, report)
    return report


def count_steps(contract: pb.ModelContract) -> int:
    """Steps of a run: STEPS, and where outputs come later than inputs so many more that several blocks are emitted."""
    return STEPS + 2 * contract.streaming.block_steps + contract.streaming.look_ahead_steps


def _longest(contract: pb.ModelContract) -> int:
    """The most steps of one call."""
    return min(count_steps(contract), contract.streaming.max_run_steps or count_steps(contract))


def _all_runs(runtimes: Sequence[Runtime], inputs: Tensors) -> Iterator[tuple[str, list[int], Tensors]]:
    """Every schedule's runs: its name, the rows that took part (in their order) and what came out."""
    contract = runtimes[0].contract
    longest = _longest(contract)
    chunks = [chunk for chunk in (*CHUNK_STEPS, count_steps(contract)) if chunk <= longest]
    for runtime in runtimes:
        for batch in BATCHES:
            rng = np.random.default_rng(batch)
            for chunk in chunks:
                for number in range(RUNS_PER_SCHEDULE):
                    rows = rng.permutation(max(BATCHES))[:batch].tolist()
                    padded = rows if batch > 1 else [*rows, int(rng.integers(max(BATCHES)))]
                    is_ragged = number == 0 and bool(contract.ports.length)
                    given = pad_again(contract, {name: value[padded] for name, value in inputs.items()})
                    found = runtime.run(given, chunk, rng=rng if is_ragged else None)
                    cut = f"chunks of up to {chunk}" if is_ragged else f"chunks of {chunk}"
                    name = f"batch {batch}, {cut}, {runtime.threads} threads"
                    yield name, rows, {key: value[:batch] for key, value in found.items()}


def _all_wholes(runtimes: Sequence[Runtime], inputs: Tensors) -> Iterator[tuple[str, list[int], Tensors]]:
    """The same of the whole graph, which has nothing to cut."""
    for runtime in runtimes:
        for batch in BATCHES:
            rows = np.random.default_rng(batch).permutation(max(BATCHES))[: max(batch, 2)].tolist()
            found = runtime.run_whole({name: value[rows] for name, value in inputs.items()})
            yield f"whole graph, batch {len(rows)}, {runtime.threads} threads", rows, found


def _compare_covered(contract: pb.ModelContract, runtime: Runtime, inputs: Tensors, whole: Tensors) -> Comparison:
    """Sequences that the first block and its look-ahead cover: there the step graph is exact as well.

    Without ports for outputs that come later, it is exact everywhere.
    """
    steps = count_steps(contract)
    if contract.ports.emitted:
        steps = min(steps, contract.streaming.block_steps + contract.streaming.look_ahead_steps)
    short = inputs | {port.name: inputs[port.name][:, :steps] for port in contract.inputs}
    found = runtime.run(short, steps)
    return compare({name: found[name] for name in whole}, runtime.run_whole(short), "whole sequences")


def _run_torch(checkpoint: Path, runtime: Runtime, inputs: Tensors) -> tuple[Tensors, Tensors]:
    """PyTorch's answers to the same input: the step graph's outputs and final states, and the whole graph's outputs."""
    from eddy.training.reference import run_reference

    contract = runtime.contract
    return run_reference(checkpoint, inputs, contract, runtime.trace(inputs) if contract.precision == INT8 else None)


def _write_numerics(path: Path, contract: pb.ModelContract, report: Report) -> None:
    """Put the verdict into the file. A parity measured earlier stays where none was measured now."""
    parity = contract.numerics.parity_max_difference if report.parity is None else report.parity.largest
    contract.numerics.CopyFrom(
        pb.Numerics(
            bitwise=report.bitwise,
            tolerance=report.tolerance,
            parity_max_difference=parity,
            runtime=runtime_name(),
            cpu=cpu_name(),
            batches=BATCHES,
            chunk_steps=[chunk for chunk in CHUNK_STEPS if chunk <= _longest(contract)],
        )
    )
    write_contract(path, contract)
