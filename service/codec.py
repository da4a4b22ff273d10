"""The codec: between wire messages and chunks.

Owns the checks of a message that need no session state (sizes, dtypes, shapes, byte lengths), the building of
responses, and the table from reasons to gRPC status codes. Must not know gRPC itself, connections or queues.

Nothing here is done per row: a message of a thousand rows costs what a message of one does, but for copying bytes.

Dimension key: B rows of a message, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TypeVar

import numpy as np
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from eddy.service.chunk import ChunkResult
from eddy.service.config import ModelConfig
from eddy.service.contract import Contract
from eddy.service.errors import ClientError, Detail, EddyError, Reason, invalid
from eddy.service.fields import check_fields, leading_integer
from eddy.service.ports import Port
from eddy.service.tensors import check_tensor, in_order
from eddy.v1 import errors_pb2, inference_pb2

_Request = TypeVar("_Request", bound=Message)

# gRPC status code numbers, https://grpc.github.io/grpc/core/md_doc_statuscodes.html
_INVALID_ARGUMENT, _DEADLINE_EXCEEDED, _NOT_FOUND = 3, 4, 5
_PERMISSION_DENIED, _RESOURCE_EXHAUSTED, _FAILED_PRECONDITION, _ABORTED = 7, 8, 9, 10
_INTERNAL, _UNAVAILABLE, _DATA_LOSS = 13, 14, 15

GRPC_CODES: dict[Reason, int] = {
    Reason.MALFORMED_MESSAGE: _INVALID_ARGUMENT,
    Reason.MISSING_FIELD: _INVALID_ARGUMENT,
    Reason.INVALID_DTYPE: _INVALID_ARGUMENT,
    Reason.INVALID_SHAPE: _INVALID_ARGUMENT,
    Reason.INVALID_BYTE_LENGTH: _INVALID_ARGUMENT,
    Reason.NON_FINITE: _INVALID_ARGUMENT,
    Reason.OUT_OF_RANGE: _INVALID_ARGUMENT,
    Reason.EMPTY_BATCH: _INVALID_ARGUMENT,
    Reason.ZERO_STEPS: _INVALID_ARGUMENT,
    Reason.TOO_MANY_STEPS: _INVALID_ARGUMENT,
    Reason.TOO_MANY_ROWS: _INVALID_ARGUMENT,
    Reason.DUPLICATE_HANDLE: _INVALID_ARGUMENT,
    Reason.MIXED_MODELS: _INVALID_ARGUMENT,
    Reason.UNKNOWN_INPUT: _INVALID_ARGUMENT,
    Reason.INVALID_TEXT: _INVALID_ARGUMENT,
    Reason.UNKNOWN_SYMBOL: _INVALID_ARGUMENT,
    Reason.WRONG_TASK: _FAILED_PRECONDITION,
    Reason.NOT_STREAMABLE: _FAILED_PRECONDITION,
    Reason.UNKNOWN_MODEL: _NOT_FOUND,
    Reason.UNKNOWN_VERSION: _NOT_FOUND,
    Reason.UNKNOWN_SESSION: _NOT_FOUND,
    Reason.SESSION_EXPIRED: _NOT_FOUND,
    Reason.SESSION_CLOSED: _NOT_FOUND,
    Reason.MODEL_RETIRED: _NOT_FOUND,
    Reason.POSITION_AHEAD: _FAILED_PRECONDITION,
    Reason.POSITION_BEHIND: _FAILED_PRECONDITION,
    Reason.REPEAT_MISMATCH: _FAILED_PRECONDITION,
    Reason.REPLY_NOT_KEPT: _FAILED_PRECONDITION,
    Reason.FENCED: _ABORTED,
    Reason.OWN_START: _FAILED_PRECONDITION,
    Reason.WRONG_RESUME_TOKEN: _PERMISSION_DENIED,
    Reason.SNAPSHOT_CORRUPT: _INVALID_ARGUMENT,
    Reason.SNAPSHOT_VERSION: _FAILED_PRECONDITION,
    Reason.SNAPSHOT_MISMATCH: _FAILED_PRECONDITION,
    Reason.TOO_MANY_SESSIONS: _RESOURCE_EXHAUSTED,
    Reason.QUEUE_FULL: _RESOURCE_EXHAUSTED,
    Reason.MESSAGE_TOO_LARGE: _RESOURCE_EXHAUSTED,
    Reason.DRAINING: _UNAVAILABLE,
    Reason.STORE_UNAVAILABLE: _UNAVAILABLE,
    Reason.LOAD_CONTROL_OFF: _PERMISSION_DENIED,
    Reason.DEADLINE_EXCEEDED: _DEADLINE_EXCEEDED,
    Reason.MODEL_NOT_READY: _UNAVAILABLE,
    Reason.MODEL_FAILED: _INTERNAL,
    Reason.INTERNAL: _INTERNAL,
    Reason.QUARANTINED: _DATA_LOSS,
}

_ERROR_DOMAIN = "eddy.v1"

# An error quotes what came. On unary calls it travels in HTTP/2 trailers, percent-encoded, and the whole of them may
# have 16 KiB at most: a longer one would hide the error itself.
_MAX_QUOTE = 400
# About 100 bytes each; a stream that uses more shapes than this encodes some of them again.
_MAX_HEADS = 256

_TAG = inference_pb2.StreamRequest.DESCRIPTOR.fields_by_name["tag"].number
# Fields of bytes: of the answer, and of its step.
_STEP_KEY = bytes((inference_pb2.StreamResponse.DESCRIPTOR.fields_by_name["step"].number << 3 | 2,))
_DURABLE_KEY = bytes((inference_pb2.StepResult.DESCRIPTOR.fields_by_name["durable_positions"].number << 3 | 2,))
TAG_KEY = bytes((inference_pb2.StreamResponse.DESCRIPTOR.fields_by_name["tag"].number << 3,))

# Outputs may be larger than inputs (logits of a token), yet not without limit.
_MAX_ANSWER_RATIO = 4


# Errors


def error_detail(error: EddyError) -> errors_pb2.ErrorDetail:
    """The wire form of an error."""
    detail = error.detail
    return errors_pb2.ErrorDetail(
        reason=int(error.reason),  # type: ignore[arg-type]  # the stub wants its own enum type
        message=_clip(error.message),
        field=_clip(detail.field),
        received=_clip(detail.received),
        expected=_clip(detail.expected),
        next_position=detail.next_position,
        epoch=detail.epoch,
        grpc_code=GRPC_CODES[error.reason],
    )


def error_status(error: EddyError) -> status_pb2.Status:
    """The error as `google.rpc.Status`, with an `eddy.v1.ErrorDetail` and a `google.rpc.ErrorInfo` in its details."""
    details = [any_pb2.Any(), any_pb2.Any()]
    details[0].Pack(error_detail(error))
    details[1].Pack(error_details_pb2.ErrorInfo(reason=error.reason.name, domain=_ERROR_DOMAIN))
    return status_pb2.Status(code=GRPC_CODES[error.reason], message=_clip(error.message), details=details)


def _clip(text: str) -> str:
    return text if len(text) <= _MAX_QUOTE else f"{text[:_MAX_QUOTE]} ... ({len(text)} characters)"


def row_errors(errors: Mapping[int, EddyError]) -> list[inference_pb2.RowError]:
    """The wire form of refused rows."""
    return [inference_pb2.RowError(row=row, error=error_detail(error)) for row, error in sorted(errors.items())]


# Requests


def check_columns(
    handles: bytes, positions: bytes, num_steps: int, max_rows: int, max_steps: int, *, is_end: bool = False
) -> int:
    """B of a step message; the end of streams has no steps.

    Raises:
        ClientError: the columns disagree, or B or T is not allowed.
    """
    if not handles:
        raise invalid(Reason.EMPTY_BATCH, "step.handles", "no rows", "at least one")
    num_rows, rest = divmod(len(handles), 8)
    if rest:
        raise invalid(Reason.INVALID_BYTE_LENGTH, "step.handles", f"{len(handles)} bytes", "8 bytes a row (uint64)")
    if num_rows > max_rows:
        raise invalid(Reason.TOO_MANY_ROWS, "step.handles", f"{num_rows} rows", f"at most {max_rows}")
    if len(positions) != len(handles):
        raise invalid(
            Reason.INVALID_BYTE_LENGTH,
            "step.positions",
            f"{len(positions)} bytes",
            f"{len(handles)} bytes (uint64 [{num_rows}])",
        )
    if is_end:
        check_end(num_steps, "step.num_steps")
    else:
        check_steps(num_steps, max_steps, "step.num_steps")
    return num_rows


def check_end(num_steps: int, where: str) -> None:
    """The end of a stream has no steps.

    Raises:
        ClientError: OUT_OF_RANGE.
    """
    if num_steps:
        raise invalid(Reason.OUT_OF_RANGE, where, num_steps, "0, where `flush` is set")


def read_feeds(
    contract: Contract, tensors: Sequence[inference_pb2.Tensor], num_rows: int, num_steps: int, *, is_end: bool
) -> tuple[bytes, ...]:
    """Raw bytes a feed of the contract: the inputs [B, T, ...], or what stands for the end of B streams.

    Raises:
        ClientError: see `read_inputs`; WRONG_TASK, for the end of a model's streams that knows no ends.
    """
    if not is_end:
        return contract.feed(read_inputs(contract, tensors, (num_rows, num_steps)), num_rows, num_steps)
    if not contract.message.ports.flush:
        raise invalid(Reason.WRONG_TASK, "flush", "true", "false: the model does not look ahead")
    if tensors:
        raise invalid(Reason.UNKNOWN_INPUT, "inputs", f"{len(tensors)} inputs", "none, where `flush` is set")
    return contract.feed_end(num_rows)


def check_steps(num_steps: int, max_steps: int, where: str) -> None:
    """T is allowed.

    Raises:
        ClientError: ZERO_STEPS or TOO_MANY_STEPS.
    """
    if num_steps < 1:
        raise invalid(Reason.ZERO_STEPS, where, num_steps, "at least 1")
    if num_steps > max_steps:
        raise invalid(Reason.TOO_MANY_STEPS, where, num_steps, f"at most {max_steps}")


def check_answer(contract: Contract, num_rows: int, num_steps: int, max_message_bytes: int, where: str) -> None:
    """The outputs of B rows of T steps are not out of all proportion: a small message could ask for gigabytes.

    Raises:
        ClientError: MESSAGE_TOO_LARGE.
    """
    num_bytes, most = contract.answer_bytes(num_rows, num_steps), most_answer_bytes(max_message_bytes)
    if num_bytes > most:
        raise invalid(
            Reason.MESSAGE_TOO_LARGE,
            where,
            f"{num_rows} rows of {num_steps} steps, whose outputs have {num_bytes} bytes",
            f"outputs of at most {most} bytes",
        )


def most_answer_bytes(max_message_bytes: int) -> int:
    """Bytes that the outputs of a call may have."""
    return _MAX_ANSWER_RATIO * max_message_bytes


def tag_of(data: bytes) -> int:
    """The tag of a request that is refused unread: encoders write it first. 0 when there is none."""
    return leading_integer(data, _TAG)


def check_size(data: bytes, max_bytes: int) -> None:
    """A message is not larger than it may be.

    Raises:
        ClientError: MESSAGE_TOO_LARGE.
    """
    if len(data) > max_bytes:
        raise ClientError(
            Reason.MESSAGE_TOO_LARGE,
            f"the message has {len(data)} bytes, at most {max_bytes} are allowed",
            Detail("", f"{len(data)} bytes", f"at most {max_bytes} bytes"),
        )


def parse(request_type: type[_Request], data: bytes) -> _Request:
    """The message in `data`.

    Raises:
        ClientError: MALFORMED_MESSAGE.
    """
    check_fields(data, request_type.DESCRIPTOR)
    try:
        return request_type.FromString(data)
    except DecodeError as error:
        raise malformed(error, request_type.DESCRIPTOR.full_name) from error


def read_inputs(
    contract: Contract, tensors: Sequence[inference_pb2.Tensor], lead: tuple[int, ...]
) -> tuple[bytes, ...]:
    """Raw bytes an input port of the contract, [*lead, ...].

    Args:
        lead: the axes before a step's own: (B, T), or the sum of T for sequences one after the other.

    Raises:
        ClientError: an input is missing, unknown, twice there, or has the wrong dtype, shape or byte length.
    """
    ports = contract.inputs
    if len(tensors) != len(ports):
        tensors = in_order(tensors, ports, "inputs")
    raw = []
    num_steps = prod(lead)
    for port, tensor in zip(ports, tensors, strict=True):
        if tensor.name != port.name:
            return read_inputs(contract, in_order(tensors, ports, "inputs"), lead)
        data = tensor.data
        if (
            tensor.dtype != port.wire_dtype
            or len(data) != num_steps * port.step_bytes
            or len(tensor.shape) != len(lead) + len(port.shape)
            or tensor.shape != [*lead, *port.shape]
        ):
            check_tensor(tensor, port, (*lead, *port.shape), f"inputs[{port.name}]")
        raw.append(data)
    return tuple(raw)


def read_handles(raw: bytes, where: str) -> np.ndarray:
    """A column of handles, uint64 [n].

    Raises:
        ClientError: EMPTY_BATCH, INVALID_BYTE_LENGTH or DUPLICATE_HANDLE.
    """
    if not raw:
        raise invalid(Reason.EMPTY_BATCH, where, "no rows", "at least one")
    if len(raw) % 8:
        raise invalid(Reason.INVALID_BYTE_LENGTH, where, f"{len(raw)} bytes", "8 bytes a row (uint64)")
    handles = np.frombuffer(raw, "<u8")
    if len(np.unique(handles)) != len(handles):
        raise invalid(Reason.DUPLICATE_HANDLE, where, "a handle twice", "each session at most once in a message")
    return handles


# Responses


def limits_message(config: ModelConfig, max_message_bytes: int) -> inference_pb2.Limits:
    """The limits of one message, for packing clients."""
    return inference_pb2.Limits(
        max_rows=config.max_rows, max_steps=config.max_steps, max_message_bytes=max_message_bytes
    )


class StepResponses:
    """Encodes the answers to step messages.

    Everything but the tag and the data of an answer is the same for all messages of one model, B and T, so it is
    encoded once: protobuf fields may be encoded apart and joined, and a tensor's data comes last. That costs a third
    of building and serialising a message, which is what a stream of one session pays for every step.
    """

    def __init__(self) -> None:
        # (contract's identity, B, T) -> what stands between the tag and the data. Contracts live as long as the server.
        self._heads: dict[tuple[int, int, int], bytes] = {}
        # The same with durable positions: what stands before them, and what between them and the data.
        self._durable_heads: dict[tuple[int, int, int], tuple[bytes, bytes]] = {}

    def forget(self, contract: Contract) -> None:
        """The contract's model is freed; another contract may come to lie where it lay."""
        for key in [key for key in self._heads if key[0] == id(contract)]:
            del self._heads[key]
        for key in [key for key in self._durable_heads if key[0] == id(contract)]:
            del self._durable_heads[key]

    def encode(
        self,
        contract: Contract,
        tag: int,
        num_rows: int,
        num_steps: int,
        result: ChunkResult,
        durable_positions: bytes = b"",
    ) -> bytes:
        """The answer to a step message, as `eddy.v1.StreamResponse`.

        Args:
            durable_positions: int64 [B] raw; empty where there is nothing to tell.
        """
        outputs = result.outputs
        if len(outputs) == 1 and not result.errors and not result.replayed:
            if durable_positions:
                first, head = self.durable_head(contract, num_rows, num_steps)
                mark = TAG_KEY + _varint(tag) if tag else b""
                return mark + first + durable_positions + head + outputs[0]
            head = self.head(contract, num_rows, num_steps)
            return TAG_KEY + _varint(tag) + head + outputs[0] if tag else head + outputs[0]
        response = inference_pb2.StreamResponse(tag=tag)
        if result.failure is not None:
            response.error.CopyFrom(error_detail(result.failure))
        else:
            step = response.step
            write_results(contract, step, num_rows, num_steps, outputs)
            step.errors.extend(row_errors(result.errors))
            step.replayed_rows = np.array(result.replayed, "<u4").tobytes()
            step.durable_positions = durable_positions
        return response.SerializeToString()

    def head(self, contract: Contract, num_rows: int, num_steps: int) -> bytes:
        """What stands between the tag and the data in a good answer of a model with one output."""
        head = self._heads.get((id(contract), num_rows, num_steps))
        return self._learn_head(contract, num_rows, num_steps) if head is None else head

    def durable_head(self, contract: Contract, num_rows: int, num_steps: int) -> tuple[bytes, bytes]:
        """The same around the durable positions, which come before the outputs: what is before and behind them."""
        found = self._durable_heads.get((id(contract), num_rows, num_steps))
        return self._learn_durable_head(contract, num_rows, num_steps) if found is None else found

    def _learn_durable_head(self, contract: Contract, num_rows: int, num_steps: int) -> tuple[bytes, bytes]:
        # Fields may come in any order, so the positions go first: then the data is last as ever.
        data = bytes(contract.outputs[0].step_bytes * num_rows * num_steps)
        step = inference_pb2.StepResult()
        write_outputs(contract, step.outputs, (num_rows, num_steps), [data])
        encoded = step.SerializeToString()
        assert encoded.endswith(data), "a tensor's data is encoded last"
        first = _DURABLE_KEY + _varint(8 * num_rows)
        num_bytes = len(first) + 8 * num_rows + len(encoded)
        if len(self._durable_heads) >= _MAX_HEADS:
            self._durable_heads.clear()
        heads = _STEP_KEY + _varint(num_bytes) + first, encoded[: -len(data)]
        self._durable_heads[id(contract), num_rows, num_steps] = heads
        return heads

    def _learn_head(self, contract: Contract, num_rows: int, num_steps: int) -> bytes:
        data = bytes(contract.outputs[0].step_bytes * num_rows * num_steps)
        response = inference_pb2.StreamResponse()
        write_outputs(contract, response.step.outputs, (num_rows, num_steps), [data])
        encoded = response.SerializeToString()
        assert encoded.endswith(data), "a tensor's data is encoded last"
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
        head = self._heads[id(contract), num_rows, num_steps] = encoded[: -len(data)]
        return head


def _varint(value: int) -> bytes:
    """Protobuf's base-128 encoding, https://protobuf.dev/programming-guides/encoding/."""
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def write_outputs(contract: Contract, outputs, lead, blocks) -> None:  # type: ignore[no-untyped-def]
    """Adds each output to a repeated field of `Tensor`: `blocks` raw bytes a port, [*lead, ...]."""
    # The stubs have no public name for such a field.
    for port, block in zip(contract.outputs, blocks, strict=True):
        write_output(port, outputs.add(), lead, block)


def write_output(port: Port, tensor: inference_pb2.Tensor, lead: Sequence[int], block: bytes) -> None:
    """Fills `tensor` with an output, raw bytes [*lead, ...]."""
    tensor.name = port.name
    tensor.dtype = port.wire_dtype  # type: ignore[assignment]  # the stub wants its own enum type
    tensor.shape.extend((*lead, *port.shape))
    tensor.data = block


def write_results(
    contract: Contract,
    message: inference_pb2.StepResult | inference_pb2.StepResponse,
    num_rows: int,
    num_steps: int,
    blocks: Sequence[bytes],
) -> None:
    """Puts a chunk's results into `message`: `blocks` raw bytes a result of the contract."""
    if not contract.emits:
        write_outputs(contract, message.outputs, (num_rows, num_steps), blocks)
        return
    *outputs, raw_counts = blocks
    most = int(np.frombuffer(raw_counts, "<i8").max(initial=0))
    cut = [
        port.view(block, num_rows, num_steps)[:, :most].tobytes()
        for port, block in zip(contract.outputs, outputs, strict=True)
    ]
    write_outputs(contract, message.outputs, (num_rows, most), cut)
    message.emitted = raw_counts


def unary_step_response(
    contract: Contract, request: inference_pb2.StepRequest, result: ChunkResult, durable_position: int, epoch: int
) -> inference_pb2.StepResponse:
    """The answer to a unary step that was taken in `epoch`.

    Raises:
        EddyError: the step was refused.
    """
    if result.failure is not None:
        raise result.failure
    if result.errors:
        raise result.errors[0]
    # An end takes one position.
    num_steps = 1 if request.flush else request.num_steps
    response = inference_pb2.StepResponse(
        next_position=request.position + num_steps,
        replayed=bool(result.replayed),
        durable_position=durable_position,
        epoch=epoch,
    )
    write_results(contract, response, 1, num_steps, result.outputs)
    return response


def malformed(error: Exception, what: str) -> ClientError:
    """The error for bytes that are not a message."""
    return ClientError(
        Reason.MALFORMED_MESSAGE,
        f"the bytes received are not a {what}: {error}",
        Detail(received="bytes that do not parse", expected=what),
    )
