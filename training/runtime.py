"""ONNX Runtime, as training uses it: a model on the CPU, driven from its contract with states kept by hand.

Owns: the only import of ONNX Runtime in training. Must not know what the results are for.
"""

import os
import platform
from pathlib import Path

import numpy as np
import numpy.typing as npt

# Set before the import below, which reads it: wheels from 1.29 on report usage over the network by default on Linux.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from eddy.training.contract import numpy_dtype
from eddy.training.errors import ContractError
from eddy.v1 import contract_pb2 as pb

Tensors = dict[str, npt.NDArray[np.generic]]

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
    """One model file, ready to run. Nothing in it changes after construction; states travel through `advance`."""

    def __init__(self, path: Path, contract: pb.ModelContract, threads: int = 1) -> None:
        """Load a model. Raises ContractError where ONNX Runtime refuses the file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.threads = threads
        self._contract = contract
        self._session = _open(path, options)
        self._prime = _open(path.with_name(contract.graphs.prime), options) if contract.graphs.prime else None

    def run(self, inputs: Tensors, chunk: int) -> Tensors:
        """Feed [B, T, ...] inputs `chunk` steps at a time from the initial states.

        Inputs of the prime graph, where there are such, are read first. Returns every output, [B, T, ...], its pieces
        joined, and every final state [B, ...], by graph output name.
        """
        names = prime_names(self._contract)
        source = {name: value for name, value in inputs.items() if name in names}
        inputs = {name: value for name, value in inputs.items() if name not in names}
        batch, steps = next(iter(inputs.values())).shape[:2]
        states = self.start(batch) | (self.prime(source) if source else {})
        pieces: list[Tensors] = []
        for start in range(0, steps, chunk):
            outputs, states = self.advance({k: v[:, start : start + chunk] for k, v in inputs.items()}, states)
            pieces.append(outputs)
        joined = {port.name: np.concatenate([p[port.name] for p in pieces], 1) for port in self._contract.outputs}
        return joined | {state.next_name: states[state.name] for state in self._contract.states if not state.immutable}

    def start(self, batch: int) -> Tensors:
        """Every state before the first step, [B, ...], by graph input name."""
        return {state.name: initial_rows(state, batch) for state in self._contract.states}

    def prime(self, source: Tensors) -> Tensors:
        """The states that the prime graph writes, [B, ...], for its inputs [B, S, ...] and their lengths [B]."""
        assert self._prime is not None, "only contracts with a prime graph name inputs of it"
        names = [port.name for port in self._prime.get_outputs()]
        return dict(zip(names, map(np.asarray, self._prime.run(names, source)), strict=True))

    def advance(self, inputs: Tensors, states: Tensors) -> tuple[Tensors, Tensors]:
        """One run of the graph: [B, T, ...] inputs and the states before them; outputs and the states after them."""
        moving = [state for state in self._contract.states if not state.immutable]
        outputs = [port.name for port in self._contract.outputs]
        batch, steps = next(iter(inputs.values())).shape[:2]
        feeds = inputs | states | self._ports(batch, steps)
        answers = [np.asarray(a) for a in self._session.run(outputs + [state.next_name for state in moving], feeds)]
        after = {state.name: new for state, new in zip(moving, answers[len(outputs) :], strict=True)}
        return dict(zip(outputs, answers, strict=False)), states | after

    def _ports(self, batch: int, steps: int) -> Tensors:
        """The optional inputs: every step of every row counts, and no stream ends."""
        ports = self._contract.ports
        given: Tensors = {}
        if ports.length:
            given[ports.length] = np.full(batch, steps, np.int64)
        if ports.flush:
            given[ports.flush] = np.zeros(batch, np.bool_)
        return given


def _open(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS as error:
        raise ContractError(f"{path}: ONNX Runtime refuses it: {error}") from error


def prime_names(contract: pb.ModelContract) -> list[str]:
    """The prime graph's inputs and the one of their lengths; none where there is no prime graph."""
    length = [contract.ports.prime_length] if contract.ports.prime_length else []
    return [port.name for port in contract.prime_inputs] + length


def initial_rows(state: pb.StateSpec, batch: int) -> npt.NDArray[np.generic]:
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
