"""Verification: does an exported model compute what it should, however its calls are cut and batched?

Owns: the schedule of comparisons and its verdict, which goes into the contract as `numerics`. Works on any model file
that carries a contract; torch is needed only to compare with a checkpoint. ONNX Runtime appears only in `runtime`.

The reference is one call: every row, all steps. Against it stand runs over batches and chunk lengths, outputs and
final states, bit for bit. Sources that a prime graph reads are of all lengths; each run cuts them to the longest of
its rows and fills the others up with something else, so that padding shows. A single row travels with a neighbour row,
because a service never runs fewer than two rows in a call: ONNX Runtime's plain RNN differs in the last bits at one row
alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eddy.training.contract import numpy_dtype, read_contract, write_contract
from eddy.training.errors import ContractError, VerificationError
from eddy.training.runtime import Runtime, cpu_name, runtime_name
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
class Difference:
    """The worst element of a comparison, by difference over max(1, |expected|, the tensor's root mean square).

    schedule: which run. index: row, then step or layer, and so on. relative: the difference that counts.
    """

    schedule: str
    tensor: str
    index: tuple[int, ...]
    got: float
    expected: float
    relative: float

    def __str__(self) -> str:
        place = ", ".join(map(str, self.index))
        return f"{self.tensor}[{place}] is {self.got!r}, expected {self.expected!r} ({self.schedule})"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One or more comparisons: the worst element, and the largest absolute difference of all elements."""

    worst: Difference
    largest: float

    def merge(self, earlier: "Comparison | None") -> "Comparison":
        """Both together; of two equally bad elements the earlier one stays."""
        if earlier is None:
            return self
        worst = self.worst if self.worst.relative > earlier.worst.relative else earlier.worst
        return Comparison(worst, max(self.largest, earlier.largest))


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


def verify(model_path: Path, checkpoint: Path | None = None, *, limit: float = LIMIT) -> Report:
    """Prove a model file and write the verdict into its contract (`numerics`).

    With a checkpoint every run is also compared with PyTorch. Raises ContractError where the file carries no usable
    contract or the graph does not keep it, and VerificationError, naming the worst element, where a difference is
    above `limit`; the file stays as it was then.
    """
    contract = read_contract(model_path)
    _refuse_unsupported(contract, model_path)
    runtimes = [Runtime(model_path, contract, threads) for threads in THREADS]
    inputs = draw_inputs(contract, max(BATCHES), STEPS)
    reference = runtimes[0].run(inputs, STEPS)
    _check_finite(reference)
    torch_says = _run_torch(checkpoint, inputs) if checkpoint is not None else None
    own: Comparison | None = None
    parity: Comparison | None = None
    bitwise, runs = True, 0
    for schedule, rows, found in _all_runs(runtimes, contract, inputs):
        expected = {name: value[rows] for name, value in reference.items()}
        bitwise = bitwise and all(same_bits(found[name], expected[name]) for name in expected)
        own = compare(found, expected, schedule).merge(own)
        if torch_says is not None:
            wanted = {name: value[rows] for name, value in torch_says.items()}
            parity = compare(found, wanted, f"PyTorch, {schedule}").merge(parity)
        runs += 1
    assert own is not None, "there is at least one schedule"
    for comparison, against in ((parity, "PyTorch"), (own, "the same model run whole")):
        if comparison is not None and comparison.worst.relative > limit:
            raise VerificationError(f"{model_path}: differs from {against} by more than {limit:g}: {comparison.worst}")
    report = Report(bitwise, 0.0 if bitwise else own.largest * MARGIN, own, parity, runs)
    _write_numerics(model_path, contract, report)
    return report


def draw_inputs(contract: pb.ModelContract, batch: int, steps: int) -> Tensors:
    """Random input of the right kind for every declared input, [batch, steps, ...], the same every time.

    Integers are drawn from the declared range; real values spread around the declared mean or within the range. A prime
    graph's inputs are as long as they may be, [batch, max_prime_steps, ...], their lengths anything from 1 on.
    """
    rng = np.random.default_rng(20240229)
    drawn = {port.name: _draw(rng, port, (batch, steps, *port.shape)) for port in contract.inputs}
    most = contract.max_prime_steps
    drawn |= {port.name: _draw(rng, port, (batch, most, *port.shape)) for port in contract.prime_inputs}
    if contract.ports.prime_length:
        drawn[contract.ports.prime_length] = rng.integers(1, most, batch, endpoint=True)
    return drawn


def pad_again(contract: pb.ModelContract, inputs: Tensors) -> Tensors:
    """The same inputs with a prime graph's cut to the longest row, and other values beyond each row's length."""
    if not contract.ports.prime_length:
        return inputs
    lengths = inputs[contract.ports.prime_length]
    longest = int(np.max(lengths))
    beyond = np.arange(longest) >= lengths.astype(np.int64)[:, None]
    padded = dict(inputs)
    for port in contract.prime_inputs:
        value = inputs[port.name][:, :longest].copy()
        # The first step of a row is a value that the port accepts.
        value[beyond] = np.repeat(value[:, :1], longest, axis=1)[beyond]
        padded[port.name] = value
    return padded


def _draw(rng: np.random.Generator, port: pb.TensorSpec, shape: tuple[int, ...]) -> Array:
    dtype = numpy_dtype(port.dtype, port.name)
    low, high = (port.range.minimum, port.range.maximum) if port.HasField("range") else (0.0, 1.0)
    if dtype.kind in "iub":
        return rng.integers(int(low), int(high), shape, endpoint=True).astype(dtype)
    if port.HasField("normalization") and port.normalization.inside_graph:
        mean, scale = np.array(port.normalization.mean), np.array(port.normalization.scale)
        return (mean + scale * rng.standard_normal(shape)).astype(dtype)
    if port.HasField("range"):
        return rng.uniform(low, high, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _all_runs(
    runtimes: Sequence[Runtime], contract: pb.ModelContract, inputs: Tensors
) -> Iterator[tuple[str, list[int], Tensors]]:
    """Every schedule's runs: its name, the rows that took part (in their order) and what came out."""
    for runtime in runtimes:
        for batch in BATCHES:
            rng = np.random.default_rng(batch)
            for chunk in (*CHUNK_STEPS, STEPS):
                for _ in range(RUNS_PER_SCHEDULE):
                    rows = rng.permutation(max(BATCHES))[:batch].tolist()
                    padded = rows if batch > 1 else [*rows, int(rng.integers(max(BATCHES)))]
                    given = pad_again(contract, {name: value[padded] for name, value in inputs.items()})
                    found = runtime.run(given, chunk)
                    name = f"batch {batch}, chunks of {chunk}, {runtime.threads} threads"
                    yield name, rows, {key: value[:batch] for key, value in found.items()}


def compare(found: Mapping[str, Array], expected: Mapping[str, Array], schedule: str) -> Comparison:
    """Compare all expected tensors. Raises VerificationError on other shape or dtype.

    A NaN or an infinity on either side counts as infinitely far.
    """
    total: Comparison | None = None
    for name, wanted in expected.items():
        got = found[name]
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            came, hoped = f"{got.dtype} {list(got.shape)}", f"{wanted.dtype} {list(wanted.shape)}"
            raise VerificationError(f"{name}: got {came}, expected {hoped} ({schedule})")
        wide, wanted_wide = got.astype(np.float64), wanted.astype(np.float64)
        known = np.isfinite(wide) & np.isfinite(wanted_wide)
        absolute = np.full(wide.shape, np.inf)
        np.subtract(wide, wanted_wide, out=absolute, where=known)
        absolute = np.abs(absolute)
        size = float(np.sqrt(np.mean(np.square(wanted_wide[known])))) if known.any() else 0.0
        relative = np.full(wide.shape, np.inf)
        np.divide(absolute, np.maximum(max(1.0, size), np.abs(wanted_wide)), out=relative, where=known)
        index = tuple(map(int, np.unravel_index(np.argmax(relative), relative.shape)))
        worst = Difference(schedule, name, index, float(wide[index]), float(wanted_wide[index]), float(relative[index]))
        total = Comparison(worst, float(absolute.max())).merge(total)
    assert total is not None, "a model has at least one output"
    return total


def same_bits(one: Array, other: Array) -> bool:
    """True when two arrays hold the same bytes (so 0.0 and -0.0 differ, and a NaN equals itself)."""
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def _check_finite(tensors: Tensors) -> None:
    """A reference with NaN or infinity in it proves nothing."""
    for name, value in tensors.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            index = tuple(map(int, np.argwhere(~np.isfinite(value))[0]))
            raise VerificationError(f"{name}{list(index)} is {value[index]}, expected finite values")


def _run_torch(checkpoint: Path, inputs: Tensors) -> Tensors:
    """PyTorch's answer to the same input, whole: outputs and final states by the graph's names."""
    from eddy.training.reference import run_reference

    return run_reference(checkpoint, inputs)


def _refuse_unsupported(contract: pb.ModelContract, path: Path) -> None:
    """Say plainly which models this schedule cannot drive."""
    if not contract.streaming.streamable:
        raise ContractError(f"{path}: the contract says not streamable ({contract.streaming.reason}), nothing to cut")
    if contract.ports.emitted:
        raise ContractError(
            f"{path}: ports.emitted is set; verification drives step graphs that emit one output per step"
        )


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
            chunk_steps=CHUNK_STEPS,
        )
    )
    write_contract(path, contract)
