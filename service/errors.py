"""Typed errors, by whose fault they are.

Owns the error tree and the reasons. Must not know transports: the table that maps a reason to a gRPC status code
is in `codec`, and `metrics` counts reasons by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from eddy.v1 import errors_pb2


# The wire's enumeration is the only definition; a typed IntEnum of the same numbers for use in arrays and tables.
class Reason(IntEnum):
    """Why something was refused or ended; numbers as in `eddy.v1.ErrorReason`."""

    MALFORMED_MESSAGE = errors_pb2.ERROR_REASON_MALFORMED_MESSAGE
    MISSING_FIELD = errors_pb2.ERROR_REASON_MISSING_FIELD
    INVALID_DTYPE = errors_pb2.ERROR_REASON_INVALID_DTYPE
    INVALID_SHAPE = errors_pb2.ERROR_REASON_INVALID_SHAPE
    INVALID_BYTE_LENGTH = errors_pb2.ERROR_REASON_INVALID_BYTE_LENGTH
    NON_FINITE = errors_pb2.ERROR_REASON_NON_FINITE
    OUT_OF_RANGE = errors_pb2.ERROR_REASON_OUT_OF_RANGE
    EMPTY_BATCH = errors_pb2.ERROR_REASON_EMPTY_BATCH
    ZERO_STEPS = errors_pb2.ERROR_REASON_ZERO_STEPS
    TOO_MANY_STEPS = errors_pb2.ERROR_REASON_TOO_MANY_STEPS
    TOO_MANY_ROWS = errors_pb2.ERROR_REASON_TOO_MANY_ROWS
    DUPLICATE_HANDLE = errors_pb2.ERROR_REASON_DUPLICATE_HANDLE
    MIXED_MODELS = errors_pb2.ERROR_REASON_MIXED_MODELS
    UNKNOWN_INPUT = errors_pb2.ERROR_REASON_UNKNOWN_INPUT
    INVALID_TEXT = errors_pb2.ERROR_REASON_INVALID_TEXT
    UNKNOWN_SYMBOL = errors_pb2.ERROR_REASON_UNKNOWN_SYMBOL
    WRONG_TASK = errors_pb2.ERROR_REASON_WRONG_TASK
    NOT_STREAMABLE = errors_pb2.ERROR_REASON_NOT_STREAMABLE
    UNKNOWN_MODEL = errors_pb2.ERROR_REASON_UNKNOWN_MODEL
    UNKNOWN_VERSION = errors_pb2.ERROR_REASON_UNKNOWN_VERSION
    UNKNOWN_SESSION = errors_pb2.ERROR_REASON_UNKNOWN_SESSION
    SESSION_EXPIRED = errors_pb2.ERROR_REASON_SESSION_EXPIRED
    SESSION_CLOSED = errors_pb2.ERROR_REASON_SESSION_CLOSED
    MODEL_RETIRED = errors_pb2.ERROR_REASON_MODEL_RETIRED
    POSITION_AHEAD = errors_pb2.ERROR_REASON_POSITION_AHEAD
    POSITION_BEHIND = errors_pb2.ERROR_REASON_POSITION_BEHIND
    REPEAT_MISMATCH = errors_pb2.ERROR_REASON_REPEAT_MISMATCH
    REPLY_NOT_KEPT = errors_pb2.ERROR_REASON_REPLY_NOT_KEPT
    FENCED = errors_pb2.ERROR_REASON_FENCED
    OWN_START = errors_pb2.ERROR_REASON_OWN_START
    WRONG_RESUME_TOKEN = errors_pb2.ERROR_REASON_WRONG_RESUME_TOKEN
    SNAPSHOT_CORRUPT = errors_pb2.ERROR_REASON_SNAPSHOT_CORRUPT
    SNAPSHOT_VERSION = errors_pb2.ERROR_REASON_SNAPSHOT_VERSION
    SNAPSHOT_MISMATCH = errors_pb2.ERROR_REASON_SNAPSHOT_MISMATCH
    TOO_MANY_SESSIONS = errors_pb2.ERROR_REASON_TOO_MANY_SESSIONS
    QUEUE_FULL = errors_pb2.ERROR_REASON_QUEUE_FULL
    MESSAGE_TOO_LARGE = errors_pb2.ERROR_REASON_MESSAGE_TOO_LARGE
    DRAINING = errors_pb2.ERROR_REASON_DRAINING
    STORE_UNAVAILABLE = errors_pb2.ERROR_REASON_STORE_UNAVAILABLE
    LOAD_CONTROL_OFF = errors_pb2.ERROR_REASON_LOAD_CONTROL_OFF
    DEADLINE_EXCEEDED = errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    MODEL_NOT_READY = errors_pb2.ERROR_REASON_MODEL_NOT_READY
    MODEL_FAILED = errors_pb2.ERROR_REASON_MODEL_FAILED
    INTERNAL = errors_pb2.ERROR_REASON_INTERNAL
    QUARANTINED = errors_pb2.ERROR_REASON_QUARANTINED


@dataclass(frozen=True, slots=True)
class Detail:
    """What a client needs in order to act on an error.

    Attributes:
        field: path of the offending field, empty when none is at fault.
        received: what came, for a person.
        expected: what was expected, for a person.
        next_position: the position the session expects next, for errors of order.
        epoch: the session's present epoch, for FENCED.
    """

    field: str = ""
    received: str = ""
    expected: str = ""
    next_position: int | None = None
    epoch: int | None = None


_NOTHING = Detail()


class EddyError(Exception):
    """An error with a reason. The subclasses say whose fault it is."""

    def __init__(self, reason: Reason, message: str, detail: Detail = _NOTHING) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.detail = detail


class ClientError(EddyError):
    """The request is wrong; sending it again unchanged fails again."""


class CapacityError(EddyError):
    """The server is full, draining, or out of time; the same request may succeed later."""


class ModelError(EddyError):
    """The model cannot serve: not ready, or its graph failed."""


class ServerBug(EddyError):
    """A broken invariant of ours."""


def invalid(reason: Reason, field: str, received: object, expected: object) -> ClientError:
    """A `ClientError` whose sentence names the field, what came and what was expected."""
    message = f"{field}: got {received}, expected {expected}"
    return ClientError(reason, message, Detail(field=field, received=str(received), expected=str(expected)))
