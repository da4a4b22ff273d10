"""ONNX Runtime, as training uses it: a model on the CPU, driven from its contract with states kept by hand.

Owns: the only import of ONNX Runtime in training, and the joining of what a cut stream answers. Must not know what the
results are for.
"""

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx

# Set before the import below, which reads it: wheels from 1.29 on report usage over the network by default on Linux.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from eddy.inspection.program import Program
from eddy.training.contract import numpy_dtype
from eddy.training.errors import ContractError
from eddy.v1 import contract_pb2 as pb

Array = npt.NDArray[np.generic]
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Tensors = dict[str, Array]

# The widest vector instructions decide which kernels run, and so which bits come out; widest first.
_INSTRUCTION_SETS = ("amx_tile", "avx512f", "avx2", "avx", "sve", "asimd")


# ONNX Runtime gives every status code an exception class of its own, and they share no base but Exception.
RUNTIME_ERRORS = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
)


class Runtime:
    """One model, all its graphs, ready to run. Nothing in it changes after construction; states travel."""

    def __init__(self, path: Path, contract: pb.ModelContract, threads: int = 1) -> None:
        """Load a model by its step graph's path. Raises ContractError where ONNX Runtime refuses a file."""
        self.threads = threads
        self._path, self.contract = path, contract
        self._step = _load(path, threads)
        graphs = contract.graphs
        self._prime = _load(path.with_name(graphs.prime), threads) if graphs.prime else None
        self._whole = _load(path.with_name(graphs.whole), threads) if graphs.whole else None
        self._moving = [state for state in contract.states if not state.immutable]

    def run(self, inputs: Tensors, chunk: int, *, rng: np.random.Generator | None = None) -> Tensors:
        """Feed [B, T, ...] inputs `chunk` steps at a time from the initial states, then end the streams.

        inputs: also the prime graph's, which is run first if they are there. rng: let every row read another number of
        steps in each call, where the model has a port for lengths.
        Returns every output, [B, T, ...], its pieces joined, and every state [B, ...] as it was before the end, by
        graph output name. Raises ContractError where outputs do not come as `ports.emitted` promises.
        """
        steps_inputs = {port.name: inputs[port.name] for port in self.contract.inputs}
        batch, steps = next(iter(steps_inputs.values())).shape[:2]
        is_primed = all(port.name in inputs for port in self.contract.prime_inputs)
        states = self.start(batch) | (self.prime(inputs) if self._prime and is_primed else {})
        pieces: list[list[Tensors]] = [[] for _ in range(batch)]
        lengths_of = _ragged(batch, steps, chunk, rng) if rng and self.contract.ports.length else None
        for starts, lengths in lengths_of or _even(batch, steps, chunk):
            call = {name: _cut(value, starts, int(lengths.max())) for name, value in steps_inputs.items()}
            outputs, states = self.advance(call, states, lengths=lengths)
            self._collect(pieces, outputs)
        finals = {state.next_name: states[state.name] for state in self._moving}
        if self.contract.ports.flush:
            self._collect(pieces, self._end(steps_inputs, states))
        names = [port.name for port in self.contract.outputs]
        counts = [sum(len(piece[names[0]]) for piece in row) for row in pieces]
        if counts != [steps] * batch:
            raise ContractError(f"{self._path}: rows emitted {counts} outputs, expected {steps} each")
        return {n: np.stack([np.concatenate([p[n] for p in row]) for row in pieces]) for n in names} | finals

    def trace(self, inputs: Tensors) -> Tensors:
        """Every state after each single step of [B, T, ...] inputs, [B, T, ...], by graph output name.

        Only for models whose outputs come with their inputs and that begin without a source.
        """
        batch, steps = next(iter(inputs.values())).shape[:2]
        states, found = self.start(batch), []
        for step in range(steps):
            _, states = self.advance({name: value[:, step : step + 1] for name, value in inputs.items()}, states)
            found.append(states)
        return {state.next_name: np.stack([one[state.name] for one in found], axis=1) for state in self._moving}

    def run_whole(self, inputs: Tensors) -> Tensors:
        """The whole graph over [B, T, ...] inputs: every output, [B, T, ...]. Raises ContractError without one."""
        if self._whole is None:
            raise ContractError(f"{self._path}: graphs.whole: got none, expected a file")
        names = [port.name for port in self.contract.outputs]
        feeds = {port.name: inputs[port.name] for port in self.contract.inputs}
        return dict(zip(names, map(np.asarray, self._whole.run(names, feeds)), strict=True))

    def start(self, batch: int) -> Tensors:
        """Every state before the first step, [B, ...], by graph input name, as the contract has it."""
        return {state.name: initial_rows(state, batch) for state in self.contract.states}

    def prime(self, inputs: Tensors) -> Tensors:
        """The states that the prime graph writes, [B, ...], by graph input name.

        inputs: [B, S, ...] by name, and the lengths int64 [B] by the name of their port. Raises ContractError where a
        state is missing from the graph's outputs, or comes in another shape.
        """
        contract = self.contract
        assert self._prime is not None, "only contracts with a prime graph name inputs of it"
        names = [port.name for port in contract.prime_inputs]
        names += [contract.ports.prime_length] if contract.ports.prime_length else []
        written = [output.name for output in self._prime.get_outputs()]
        found = dict(zip(written, self._prime.run(written, {name: inputs[name] for name in names}), strict=True))
        known = {state.name: state for state in contract.states}
        for name, value in found.items():
            wanted = (len(inputs[names[0]]), *known[name].shape) if name in known else "the name of a state"
            if np.shape(value) != wanted:
                raise ContractError(f"{self._path}: prime graph: {name!r} has shape {value.shape}, expected {wanted}")
        return found

    def advance(
        self, inputs: Tensors, states: Tensors, *, lengths: Counts | None = None, ends: Flags | None = None
    ) -> tuple[Tensors, Tensors]:
        """One run of the step graph: [B, T, ...] inputs and the states before them.

        lengths: int64 [B], the steps that count; left out, all. ends: bool [B], the streams that end with them; left
        out, none.
        Returns the outputs, with the counts of `ports.emitted` under that name, and the states after them.
        """
        ports = self.contract.ports
        names = [port.name for port in self.contract.outputs] + ([ports.emitted] if ports.emitted else [])
        batch, steps = next(iter(inputs.values())).shape[:2]
        feeds = inputs | states
        if ports.length:
            feeds[ports.length] = np.full(batch, steps, np.int64) if lengths is None else lengths
        if ports.flush:
            feeds[ports.flush] = np.zeros(batch, np.bool_) if ends is None else ends
        wanted = names + [state.next_name for state in self._moving]
        answers = [np.asarray(answer) for answer in self._step.run(wanted, feeds)]
        after = {state.name: new for state, new in zip(self._moving, answers[len(names) :], strict=True)}
        return dict(zip(names, answers, strict=False)), states | after

    def _end(self, inputs: Tensors, states: Tensors) -> Tensors:
        """End all streams without further steps. Raises ContractError unless that leaves them as they began."""
        call = {name: value[:, :1] for name, value in inputs.items()}
        none = np.zeros(len(next(iter(call.values()))), np.int64)
        all_rows = np.ones(len(none), np.bool_)
        outputs, states = self.advance(call, states, lengths=none, ends=all_rows)
        begun = self.start(len(none))
        for port in self._moving:
            name = port.name
            if not np.array_equal(states[name], begun[name]):
                raise ContractError(f"{self._path}: state {name!r} after a flush: got another than the initial value")
        again, _ = self.advance(call, states, lengths=none, ends=all_rows)
        if self.contract.ports.emitted and again[self.contract.ports.emitted].any():
            raise ContractError(f"{self._path}: a second flush emitted outputs, expected none")
        return outputs

    def _collect(self, pieces: list[list[Tensors]], outputs: Tensors) -> None:
        """Add what each row emitted, [E, ...]. Raises ContractError for values beyond, which must be zero."""
        emitted, names = self.contract.ports.emitted, [port.name for port in self.contract.outputs]
        for row, kept in enumerate(pieces):
            count = int(outputs[emitted][row]) if emitted else None
            for name in names:
                if count is not None and outputs[name][row, count:].any():
                    raise ContractError(f"{self._path}: {name!r} holds values beyond the {count} emitted, expected 0")
            kept.append({name: outputs[name][row, :count] for name in names})


def _even(batch: int, steps: int, chunk: int) -> Iterator[tuple[Counts, Counts]]:
    """Where each call begins in every row, and how many steps it reads: `chunk`, and what is left at the end."""
    for start in range(0, steps, chunk):
        yield np.full(batch, start, np.int64), np.full(batch, min(chunk, steps - start), np.int64)


def _ragged(batch: int, steps: int, chunk: int, rng: np.random.Generator) -> Iterator[tuple[Counts, Counts]]:
    """The same with 0 to `chunk` steps, another number in every row."""
    starts = np.zeros(batch, np.int64)
    while (starts < steps).any():
        lengths = np.minimum(rng.integers(0, chunk, batch, endpoint=True), steps - starts)
        if lengths.any():  # a call of no steps at all is no call
            yield starts.copy(), lengths
        starts += lengths


def _cut(value: Array, starts: Counts, width: int) -> Array:
    """[B, T, ...] -> [B, width, ...] from each row's start; behind the row's end its last step stands again."""
    index = np.minimum(starts[:, None] + np.arange(width), value.shape[1] - 1)
    taken: Array = value[np.arange(len(value))[:, None], index]
    return taken


def _load(path: Path, threads: int) -> ort.InferenceSession:
    """A session over one file. Raises ContractError where ONNX Runtime refuses it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS as error:
        raise ContractError(f"{path}: ONNX Runtime refuses it: {error}") from error


def load_graph(model: onnx.ModelProto) -> Program:
    """A graph in memory, on one thread, as `eddy.inspection` wants it. Raises what ONNX Runtime raises."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return cast("Program", session)


def initial_rows(state: pb.StateSpec, batch: int) -> Array:
    """A state before the first step, [B, ...shape]. Raises ContractError where its data does not fit its shape."""
    dtype, shape = numpy_dtype(state.dtype, state.name), tuple(state.shape)
    if state.initial.WhichOneof("kind") != "data":
        return np.full((batch, *shape), state.initial.constant, dtype)
    row = np.frombuffer(state.initial.data, dtype.newbyteorder("<"))
    if row.size != int(np.prod(shape)):
        raise ContractError(f"{state.name}: initial data has {row.size} elements, expected {int(np.prod(shape))}")
    return np.repeat(row.reshape(1, *shape).astype(dtype), batch, axis=0)


def runtime_name() -> str:
    """ONNX Runtime's version, as the contract states it."""
    return f"onnxruntime {ort.__version__} CPUExecutionProvider"


def cpu_name() -> str:
    """The processor and its widest known vector instructions, as the contract states them."""
    model, flags = platform.processor(), ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            if key.strip() in ("flags", "Features"):
                flags = value
                break
    known = set(flags.split())
    widest = next((name for name in _INSTRUCTION_SETS if name in known), "")
    return " ".join(part for part in (platform.machine(), model, widest) if part)
