"""The errors that the client raises, by what a caller can do about them.

Owns the classes and their making from `eddy.v1.ErrorDetail` and from gRPC errors.
"""

from __future__ import annotations

import grpc
import numpy as np
from grpc_status import rpc_status

from eddy.v1 import errors_pb2


class EddyError(Exception):
    """An error of the service.

    Attributes:
        reason: name of the `eddy.v1.ErrorReason`, such as "POSITION_AHEAD".
        field, received, expected: the offending field, what came, what was expected; empty where none is at fault.
        next_position: the position the session expects, for errors of order.
        epoch: the session's present epoch, when it was fenced.
    """

    def __init__(self, message: str, reason: str = "", detail: errors_pb2.ErrorDetail | None = None) -> None:
        super().__init__(message)
        detail = detail or errors_pb2.ErrorDetail()
        self.reason = reason
        self.field = detail.field
        self.received = detail.received
        self.expected = detail.expected
        self.next_position = detail.next_position if detail.HasField("next_position") else None
        self.epoch = detail.epoch if detail.HasField("epoch") else None


class InvalidInput(EddyError, ValueError):
    """The request is wrong: dtype, shape, values, sizes."""


class NotFound(EddyError, LookupError):
    """No such model, version or session."""


class SessionEnded(NotFound):
    """The session was closed, expired, or ended because its model failed."""


class OutOfOrder(EddyError):
    """The chunk is not the next one of its session; `next_position` says which is."""


class Fenced(EddyError):
    """Another client has taken the session over, or it was reset; this handle is void."""


class ServerBusy(EddyError):
    """The server is full, draining or too slow; the same request may succeed later or elsewhere."""


class NotAllowed(EddyError):
    """The operator of the server does not allow this call, or the session's resume token is another."""


class ModelUnavailable(EddyError):
    """The model is not ready, or failed."""


class Disconnected(EddyError):
    """The connection is gone, and did not come back in time.

    Sessions stay open on the server for their idle timeout: `Client.attach` resumes them.
    """


class StepsLost(EddyError):
    """The server has lost steps that it had answered, and this client does not have them any more.

    Attributes:
        first, end: the positions that are missing, `end` not among them.
    """

    def __init__(self, first: int, end: int) -> None:
        super().__init__(
            f"the server stands at position {first} and lost what came behind; steps {first} to {end - 1} are not kept"
            " here any more",
            "STEPS_LOST",
        )
        self.first = first
        self.end = end


class DivergedError(EddyError):
    """Steps that were run again, after the server had lost them, gave other outputs than before."""


class ReplayFull(ServerBusy):
    """As much is kept for the server's end as may be (`max_replay_bytes`), and nothing of it became durable in time."""


class BatchError(EddyError):
    """Some rows of a batch step failed; the others are done.

    Attributes:
        errors: row -> its error.
        outputs: every output by its name, rows in `errors` zero; of a ragged call none.
        ragged: every output by its name, of a ragged call: an array a row, of rows in `errors` empty.
    """

    def __init__(
        self,
        errors: dict[int, EddyError],
        outputs: dict[str, np.ndarray],
        ragged: dict[str, list[np.ndarray]] | None = None,
    ) -> None:
        first = min(errors)
        super().__init__(f"{len(errors)} rows failed, row {first}: {errors[first]}", errors[first].reason)
        self.errors = errors
        self.outputs = outputs
        self.ragged = ragged or {}


def invalid(reason: str, field: str, received: object, expected: object) -> InvalidInput:
    """An error of the client's own checks, as the service would word it."""
    detail = errors_pb2.ErrorDetail(field=field, received=str(received), expected=str(expected))
    return InvalidInput(f"{field}: got {received}, expected {expected}", reason, detail)


_PREFIX = "ERROR_REASON_"
_ENDED = {"SESSION_EXPIRED", "SESSION_CLOSED", "UNKNOWN_SESSION", "MODEL_FAILED", "MODEL_RETIRED", "QUARANTINED"}
_KINDS: dict[str, type[EddyError]] = {
    **dict.fromkeys(
        (
            "MALFORMED_MESSAGE",
            "MISSING_FIELD",
            "INVALID_DTYPE",
            "INVALID_SHAPE",
            "INVALID_BYTE_LENGTH",
            "NON_FINITE",
            "OUT_OF_RANGE",
            "EMPTY_BATCH",
            "ZERO_STEPS",
            "TOO_MANY_STEPS",
            "TOO_MANY_ROWS",
            "DUPLICATE_HANDLE",
            "MIXED_MODELS",
            "UNKNOWN_INPUT",
            "INVALID_TEXT",
            "UNKNOWN_SYMBOL",
            "WRONG_TASK",
            "NOT_STREAMABLE",
            "OWN_START",
            "MESSAGE_TOO_LARGE",
            "SNAPSHOT_CORRUPT",
            "SNAPSHOT_VERSION",
            "SNAPSHOT_MISMATCH",
        ),
        InvalidInput,
    ),
    **dict.fromkeys(("UNKNOWN_MODEL", "UNKNOWN_VERSION"), NotFound),
    **dict.fromkeys(_ENDED, SessionEnded),
    **dict.fromkeys(("POSITION_AHEAD", "POSITION_BEHIND", "REPEAT_MISMATCH", "REPLY_NOT_KEPT"), OutOfOrder),
    "FENCED": Fenced,
    **dict.fromkeys(
        ("TOO_MANY_SESSIONS", "QUEUE_FULL", "DRAINING", "DEADLINE_EXCEEDED", "STORE_UNAVAILABLE"), ServerBusy
    ),
    "MODEL_NOT_READY": ModelUnavailable,
    "LOAD_CONTROL_OFF": NotAllowed,
    "WRONG_RESUME_TOKEN": NotAllowed,
}


def from_detail(detail: errors_pb2.ErrorDetail) -> EddyError:
    """The error for an `ErrorDetail` of a response."""
    reason = errors_pb2.ErrorReason.Name(detail.reason).removeprefix(_PREFIX)
    return _KINDS.get(reason, EddyError)(detail.message, reason, detail)


def from_rpc(error: grpc.RpcError) -> EddyError:
    """The error for a failed call: from its status details, or `Disconnected` when it has none."""
    status = rpc_status.from_call(error) if isinstance(error, grpc.Call) else _status_of_aio(error)
    for packed in status.details if status is not None else ():
        detail = errors_pb2.ErrorDetail()
        if packed.Unpack(detail):
            return from_detail(detail)
    code = error.code() if isinstance(error, grpc.aio.AioRpcError) else None
    text = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
    name = code.name if code is not None else "UNKNOWN"
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:  # The call's own timeout, told by gRPC.
        return ServerBusy(f"{name}: {text}", name)
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return EddyError(f"{name}: the server does not have this call ({text})", name)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return InvalidInput(f"{name}: {text}", "MESSAGE_TOO_LARGE")
    return Disconnected(f"{name}: {text}", name)


def _status_of_aio(error: grpc.RpcError):  # type: ignore[no-untyped-def]  # google.rpc.Status
    if not isinstance(error, grpc.aio.AioRpcError):
        return None
    from google.rpc import status_pb2

    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return None


def can_pass(error: EddyError) -> bool:
    """It is about the connection, or a server that is going: the same may succeed later, or elsewhere."""
    is_network = isinstance(error, Disconnected) and error.reason not in _FINAL_CODES
    return is_network or (isinstance(error, ServerBusy) and error.reason == "DRAINING")


# What another attempt does not change; and what the client said itself.
_FINAL_CODES = {"UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT", "CLOSED"}
