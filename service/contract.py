"""The model contract as the service uses it.

Owns reading the contract out of an ONNX file and checking it against the file's graph. Must not know how models are
run (`engine`), found (`repository`) or trained. The schema is `protos/eddy/v1/contract.proto`.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from google.protobuf import json_format

from eddy.service.errors import ModelError, Reason
from eddy.v1 import contract_pb2

METADATA_KEY = "eddy.contract"
SCHEMA_VERSION = 1

_DTYPES: dict[int, np.dtype] = {
    contract_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    contract_pb2.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    contract_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    contract_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
    contract_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    contract_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
    contract_pb2.DATA_TYPE_BOOL: np.dtype("?"),
}


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of the step graph, [B, T, *shape].

    Attributes:
        dtype: numpy dtype; wire_dtype: its number in `eddy.v1.DataType`.
        shape: one row's one step.
        step_bytes: bytes of one row's one step.
        minimum, maximum: the inclusive range of accepted values, None when unchecked.
    """

    name: str
    dtype: np.dtype
    wire_dtype: int
    shape: tuple[int, ...]
    step_bytes: int
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class State:
    """One state tensor, [B, *shape].

    Attributes:
        next_name: the graph output that replaces it, empty when immutable.
        initial: one row, shape `shape`: the value before the first step.
        row_bytes: bytes of one row.
    """

    name: str
    next_name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    initial: np.ndarray
    row_bytes: int


@dataclass(frozen=True, slots=True)
class Contract:
    """A checked contract. `message` is the wire form, for GetModel."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[State, ...]
    tolerance: float
    message: contract_pb2.ModelContract
    # Bytes of one row's one step over all outputs.
    output_step_bytes: int

    @property
    def state_bytes(self) -> int:
        """Bytes of one session's state."""
        return sum(state.row_bytes for state in self.states)


def _refuse(message: str) -> ModelError:
    return ModelError(Reason.MODEL_NOT_READY, message)


def read_contract(model: onnx.ModelProto) -> Contract:
    """Reads and checks the contract in `model`'s metadata.

    Raises:
        ModelError: there is no contract, it is not readable, or it disagrees with the graph; the message says which.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    if text is None:
        raise _refuse(f"the file carries no contract (metadata key {METADATA_KEY!r} is missing)")
    message = contract_pb2.ModelContract()
    try:
        json_format.Parse(text, message)
    except json_format.ParseError as error:
        raise _refuse(f"the contract in metadata key {METADATA_KEY!r} is not readable: {error}") from error
    if message.schema_version != SCHEMA_VERSION:
        raise _refuse(f"the contract's schema_version is {message.schema_version}, this server reads {SCHEMA_VERSION}")
    if not message.streaming.streamable:
        raise _refuse(f"the contract says the model is not streamable: {message.streaming.reason or 'no reason given'}")
    for port in ("length", "flush", "emitted"):
        if getattr(message.ports, port):
            raise _refuse(f"the contract's port {port!r} is not supported by this server")
    outputs = tuple(_port(spec, "outputs") for spec in message.outputs)
    contract = Contract(
        name=message.name,
        inputs=tuple(_port(spec, "inputs") for spec in message.inputs),
        outputs=outputs,
        states=tuple(_state(spec) for spec in message.states),
        tolerance=0.0 if message.numerics.bitwise else message.numerics.tolerance,
        message=message,
        output_step_bytes=sum(port.step_bytes for port in outputs),
    )
    if not (contract.inputs and contract.outputs and contract.states):
        raise _refuse("the contract must name at least one input, one output and one state")
    _check_vocabulary(message, outputs)
    _check_against_graph(contract, model.graph)
    return contract


def _dtype(number: int, where: str) -> np.dtype:
    if number not in _DTYPES:
        raise _refuse(f"{where}: unknown dtype number {number}")
    return _DTYPES[number]


def _port(spec: contract_pb2.TensorSpec, kind: str) -> Port:
    dtype = _dtype(spec.dtype, f"{kind} {spec.name!r}")
    shape = tuple(spec.shape)
    if any(size < 1 for size in shape):
        raise _refuse(f"{kind} {spec.name!r}: shape {shape} must be positive throughout")
    has_range = spec.HasField("range")
    return Port(
        name=spec.name,
        dtype=dtype,
        wire_dtype=spec.dtype,
        shape=shape,
        step_bytes=dtype.itemsize * prod(shape),
        minimum=spec.range.minimum if has_range else None,
        maximum=spec.range.maximum if has_range else None,
    )


def _state(spec: contract_pb2.StateSpec) -> State:
    where = f"state {spec.name!r}"
    dtype = _dtype(spec.dtype, where)
    shape = tuple(spec.shape)
    if any(size < 1 for size in shape):
        raise _refuse(f"{where}: shape {shape} must be positive throughout")
    if spec.immutable == bool(spec.next_name):
        raise _refuse(f"{where}: exactly one of `immutable` and `next_name` must be given")
    row_bytes = dtype.itemsize * prod(shape)
    if spec.initial.WhichOneof("kind") == "data":
        if len(spec.initial.data) != row_bytes:
            raise _refuse(f"{where}: initial data has {len(spec.initial.data)} bytes, expected {row_bytes}")
        initial = np.frombuffer(spec.initial.data, dtype).reshape(shape)
    else:
        initial = np.full(shape, spec.initial.constant, dtype)
    if dtype.kind == "f" and not np.isfinite(initial).all():
        raise _refuse(f"{where}: the initial value is not finite")
    return State(spec.name, spec.next_name, dtype, shape, initial, row_bytes)


def _check_vocabulary(message: contract_pb2.ModelContract, outputs: tuple[Port, ...]) -> None:
    """Every token that can be drawn has a symbol, and every symbol is a token."""
    if message.task != contract_pb2.TASK_NEXT_TOKEN or len(outputs) != 1 or len(outputs[0].shape) != 1:
        return
    vocabulary, [num_tokens] = message.vocabulary, outputs[0].shape
    if vocabulary.symbols and len(vocabulary.symbols) != num_tokens:
        raise _refuse(
            f"the contract's vocabulary has {len(vocabulary.symbols)} symbols, the model has scores for {num_tokens}"
        )
    if vocabulary.HasField("unknown_id") and vocabulary.unknown_id >= num_tokens:
        raise _refuse(
            f"the vocabulary's unknown_id is {vocabulary.unknown_id}, the model has scores for {num_tokens} tokens"
        )


def _check_against_graph(contract: Contract, graph: onnx.GraphProto) -> None:
    """The contract names every graph input and output, with the graph's dtypes and ranks."""
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in initializers}
    outputs = {value.name: value for value in graph.output}
    wanted_inputs = {port.name: (port.dtype, 2 + len(port.shape)) for port in contract.inputs}
    wanted_inputs |= {state.name: (state.dtype, 1 + len(state.shape)) for state in contract.states}
    wanted_outputs = {port.name: (port.dtype, 2 + len(port.shape)) for port in contract.outputs}
    wanted_outputs |= {
        state.next_name: (state.dtype, 1 + len(state.shape)) for state in contract.states if state.next_name
    }
    for kind, wanted, found in (("input", wanted_inputs, inputs), ("output", wanted_outputs, outputs)):
        if wanted.keys() != found.keys():
            raise _refuse(f"the contract names the graph {kind}s {sorted(wanted)}, the graph has {sorted(found)}")
        for name, (dtype, rank) in wanted.items():
            tensor_type = found[name].type.tensor_type
            if onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type) != dtype:
                raise _refuse(f"graph {kind} {name!r}: the contract's dtype {dtype} is not the graph's")
            if tensor_type.HasField("shape") and len(tensor_type.shape.dim) != rank:
                raise _refuse(f"graph {kind} {name!r}: the contract's rank {rank} is not the graph's")
