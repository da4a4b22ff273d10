"""The model contract as the service uses it.

Owns reading the contract out of an ONNX file, checking it, and what follows from it: which tensors the engine feeds
and fetches. Must not know graphs' insides (`graph` checks them), how models are run (`engine`), found (`repository`)
or trained. The schema is `protos/eddy/v1/contract.proto`.

The optional ports of a step graph become plain tensors: a model that wants to know where streams end is fed one more
input, `END` uint8 [B, T], 1 at the step that stands for the end; one that says how much it emitted gives one more
output. So whoever cuts, batches, keeps and repeats chunks need not know of them.

Dimension key: B batch, T steps, S source steps of a prime graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from google.protobuf import json_format

from eddy.service.errors import ModelError, Reason
from eddy.service.ports import Port, State, step_bytes
from eddy.service.runs import Runs
from eddy.v1 import contract_pb2

METADATA_KEY = "eddy.contract"
SCHEMA_VERSION = 1

# The input that marks ends.
END = "eddy_end"
_END_PORT = Port(END, np.dtype("u1"), contract_pb2.DATA_TYPE_UINT8, (), 1)

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
class Contract:
    """A checked contract. `message` is the wire form, for GetModel.

    Attributes:
        inputs, outputs: what clients send and receive.
        feeds, results: what a tick takes and gives: `inputs`, and `END` where the model wants it; `outputs`, and the
            steps emitted, int64 [B], where the model says them.
        states: all of them; has_immutable: some are only read.
        prime_inputs: of the prime graph, [B, S, ...], empty where there is none; max_prime_steps: the most S.
        runs: what one run of the model's graphs takes; None: any number of rows and steps.
        answer_step_bytes, answer_row_bytes: a row's results have `answer_row_bytes + T * answer_step_bytes` bytes.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    feeds: tuple[Port, ...]
    results: tuple[Port, ...]
    states: tuple[State, ...]
    has_immutable: bool
    prime_inputs: tuple[Port, ...]
    max_prime_steps: int
    tolerance: float
    runs: Runs | None
    message: contract_pb2.ModelContract
    answer_step_bytes: int
    answer_row_bytes: int

    @property
    def state_bytes(self) -> int:
        """Bytes of one session's state."""
        return sum(state.row_bytes for state in self.states)

    @property
    def has_end(self) -> bool:
        """The model is told where streams end."""
        return len(self.feeds) > len(self.inputs)

    @property
    def emits(self) -> bool:
        """The model looks ahead: a call's outputs are not those of its steps, and it says how many there are."""
        return len(self.results) > len(self.outputs)

    @property
    def is_primed(self) -> bool:
        """Sessions begin with what the prime graph reads."""
        return bool(self.prime_inputs)

    @property
    def is_streamable(self) -> bool:
        """Sessions can be opened; else there is a whole graph, and no other."""
        return self.message.streaming.streamable

    @property
    def has_whole(self) -> bool:
        """A whole graph gives exact results of whole sequences."""
        return bool(self.message.graphs.whole)

    def answer_bytes(self, num_rows: int, num_steps: int) -> int:
        """Bytes of the results of B rows of T steps."""
        return num_rows * (self.answer_row_bytes + num_steps * self.answer_step_bytes)

    def feed(self, inputs: tuple[bytes, ...], num_rows: int, num_steps: int) -> tuple[bytes, ...]:
        """The feeds of B rows of T steps none of which is an end, from raw `inputs` [B, T, ...]."""
        return (*inputs, bytes(num_rows * num_steps)) if self.has_end else inputs

    def feed_end(self, num_rows: int) -> tuple[bytes, ...]:
        """The feeds of the end of B streams, which has T = 1."""
        assert self.has_end, "only a model that is told of ends is fed one"
        return (*(port.blank_step() * num_rows for port in self.inputs), b"\1" * num_rows)


def refuse(message: str) -> ModelError:
    """The error for a model that is not served."""
    return ModelError(Reason.MODEL_NOT_READY, message)


def read_contract(model: onnx.ModelProto) -> Contract:
    """Reads and checks the contract in `model`'s metadata, by itself: `graph` compares it with the graphs.

    Raises:
        ModelError: there is no contract, it is not readable, or it contradicts itself; the message says how.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    if text is None:
        raise refuse(f"the file carries no contract (metadata key {METADATA_KEY!r} is missing)")
    message = contract_pb2.ModelContract()
    try:
        json_format.Parse(text, message)
    except json_format.ParseError as error:
        raise refuse(f"the contract in metadata key {METADATA_KEY!r} is not readable: {error}") from error
    if message.schema_version != SCHEMA_VERSION:
        raise refuse(f"the contract's schema_version is {message.schema_version}, this server reads {SCHEMA_VERSION}")
    _check_ports(message)
    _check_streaming(message)
    _check_names(message)
    inputs = tuple(_port(spec, "inputs") for spec in message.inputs)
    outputs = tuple(_port(spec, "outputs") for spec in message.outputs)
    states = tuple(_state(spec) for spec in message.states)
    if not (inputs and outputs):
        raise refuse("the contract must name at least one input and one output")
    _check_vocabulary(message, outputs)
    results = outputs
    if not 0 <= message.idle_timeout_seconds < float("inf"):
        raise refuse(
            f"the contract's idle_timeout_seconds is {message.idle_timeout_seconds}, it must be finite, 0 or more"
        )
    if message.ports.emitted:
        extra = max(0, message.streaming.block_steps - 1) + message.streaming.look_ahead_steps
        outputs = tuple(replace(port, extra_steps=extra) for port in outputs)
        counts = Port(message.ports.emitted, np.dtype("<i8"), contract_pb2.DATA_TYPE_INT64, (), 8, is_per_row=True)
        results = (*outputs, counts)
    wants_end = bool(message.ports.length or message.ports.flush)
    return Contract(
        name=message.name,
        inputs=inputs,
        outputs=outputs,
        feeds=(*inputs, _END_PORT) if wants_end else inputs,
        results=results,
        states=states,
        has_immutable=any(not state.next_name for state in states),
        prime_inputs=tuple(_port(spec, "prime_inputs") for spec in message.prime_inputs),
        max_prime_steps=message.max_prime_steps,
        tolerance=0.0 if message.numerics.bitwise else message.numerics.tolerance,
        runs=_runs(message.streaming),
        message=message,
        answer_step_bytes=sum(port.step_bytes for port in outputs),
        answer_row_bytes=sum(port.row_bytes(0) for port in results),
    )


def dtype_of(number: int, where: str) -> np.dtype:
    """The numpy dtype of an `eddy.v1.DataType`."""
    if number not in _DTYPES:
        raise refuse(f"{where}: unknown dtype number {number}")
    return _DTYPES[number]


def _check_ports(message: contract_pb2.ModelContract) -> None:
    """The optional ports and graphs make sense together."""
    ports, graphs = message.ports, message.graphs
    if ports.emitted and not (ports.flush and ports.length):
        raise refuse("the contract's port 'emitted' needs the ports 'flush' and 'length': what is held back must end")
    if bool(graphs.prime) != bool(message.prime_inputs) or bool(graphs.prime) != bool(message.max_prime_steps):
        raise refuse("the contract must name a prime graph, its inputs and max_prime_steps together, or none of them")
    if graphs.prime and graphs.whole:
        raise refuse("the contract names a prime graph and a whole graph: a whole sequence would have no source")
    if ports.prime_length and not graphs.prime:
        raise refuse("the contract's port 'prime_length' needs a prime graph")
    for name in (graphs.prime, graphs.whole):
        if name and (name in (".", "..") or any(mark in name for mark in "/\\:\0")):
            raise refuse(f"the contract's graph {name!r} is not the plain name of a file beside the step graph")


def _check_streaming(message: contract_pb2.ModelContract) -> None:
    """A model that does not stream has a whole graph, and nothing that belongs to a session."""
    if message.streaming.streamable:
        return
    why = message.streaming.reason or "no reason given"
    if not message.graphs.whole:
        raise refuse(f"the contract says the model is not streamable ({why}), and names no whole graph")
    ports = message.ports
    given = {
        "states": message.states,
        "ports": ports.length or ports.flush or ports.emitted,
        "a prime graph": message.graphs.prime,
    }
    if found := [name for name, value in given.items() if value]:
        raise refuse(f"the contract says the model is not streamable ({why}), and gives it {', '.join(found)}")


def _runs(streaming: contract_pb2.Streaming) -> Runs | None:
    # A whole graph takes all steps at once.
    steps = streaming.max_run_steps if streaming.streamable else 0
    return Runs(streaming.run_rows, steps) if streaming.run_rows or steps else None


def _check_names(message: contract_pb2.ModelContract) -> None:
    """No tensor of a graph has two duties."""
    ports, states = message.ports, message.states
    sides = {
        "step graph's inputs": (message.inputs, [ports.length, ports.flush, *(state.name for state in states)]),
        "step graph's outputs": (message.outputs, [ports.emitted, *(state.next_name for state in states)]),
        "prime graph's inputs": (message.prime_inputs, [ports.prime_length]),
    }
    for side, (specs, others) in sides.items():
        names = [spec.name for spec in specs] + [name for name in others if name]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise refuse(f"the contract names {repeated} twice among the {side}")


def _sizes(shape: Sequence[int], where: str) -> tuple[int, ...]:
    if any(size < 1 for size in shape):
        raise refuse(f"{where}: shape {tuple(shape)} must be positive throughout")
    return tuple(shape)


def _port(spec: contract_pb2.TensorSpec, kind: str) -> Port:
    where = f"{kind} {spec.name!r}"
    dtype, shape = dtype_of(spec.dtype, where), _sizes(spec.shape, where)
    has_range = spec.HasField("range")
    return Port(
        name=spec.name,
        dtype=dtype,
        wire_dtype=spec.dtype,
        shape=shape,
        step_bytes=step_bytes(dtype, shape),
        minimum=spec.range.minimum if has_range else None,
        maximum=spec.range.maximum if has_range else None,
    )


def _state(spec: contract_pb2.StateSpec) -> State:
    where = f"state {spec.name!r}"
    dtype, shape = dtype_of(spec.dtype, where), _sizes(spec.shape, where)
    if spec.immutable == bool(spec.next_name):
        raise refuse(f"{where}: exactly one of `immutable` and `next_name` must be given")
    row_bytes = step_bytes(dtype, shape)
    if spec.initial.WhichOneof("kind") == "data":
        if len(spec.initial.data) != row_bytes:
            raise refuse(f"{where}: initial data has {len(spec.initial.data)} bytes, expected {row_bytes}")
        initial = np.frombuffer(spec.initial.data, dtype).reshape(shape)
    else:
        initial = np.full(shape, spec.initial.constant, dtype)
    if dtype.kind == "f" and not np.isfinite(initial).all():
        raise refuse(f"{where}: the initial value is not finite")
    has_range = spec.HasField("range")
    return State(
        name=spec.name,
        next_name=spec.next_name,
        dtype=dtype,
        wire_dtype=spec.dtype,
        shape=shape,
        initial=initial,
        row_bytes=row_bytes,
        minimum=spec.range.minimum if has_range else None,
        maximum=spec.range.maximum if has_range else None,
    )


def _check_vocabulary(message: contract_pb2.ModelContract, outputs: tuple[Port, ...]) -> None:
    """Every token that can be drawn has a symbol, and every symbol is a token; those of the source are there."""
    if message.source_vocabulary.symbols:
        num_symbols = len(message.source_vocabulary.symbols)
        _check_ids(message.source_vocabulary, "source vocabulary", num_symbols, f"it has {num_symbols} symbols")
    if message.task not in (contract_pb2.TASK_NEXT_TOKEN, contract_pb2.TASK_TRANSLATION) or len(outputs[0].shape) != 1:
        return
    vocabulary, [num_tokens] = message.vocabulary, outputs[0].shape
    if vocabulary.symbols and len(vocabulary.symbols) != num_tokens:
        raise refuse(
            f"the contract's vocabulary has {len(vocabulary.symbols)} symbols, the model has scores for {num_tokens}"
        )
    _check_ids(vocabulary, "vocabulary", num_tokens, f"the model has scores for {num_tokens} tokens")


def _check_ids(vocabulary: contract_pb2.Vocabulary, where: str, num_tokens: int, why: str) -> None:
    for name in ("unknown_id", "start_id", "end_id"):
        if vocabulary.HasField(name) and getattr(vocabulary, name) >= num_tokens:
            raise refuse(f"the {where}'s {name} is {getattr(vocabulary, name)}, {why}")
