from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_REASON_UNSPECIFIED: _ClassVar[ErrorReason]
    ERROR_REASON_MALFORMED_MESSAGE: _ClassVar[ErrorReason]
    ERROR_REASON_MISSING_FIELD: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_DTYPE: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_SHAPE: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_BYTE_LENGTH: _ClassVar[ErrorReason]
    ERROR_REASON_NON_FINITE: _ClassVar[ErrorReason]
    ERROR_REASON_OUT_OF_RANGE: _ClassVar[ErrorReason]
    ERROR_REASON_EMPTY_BATCH: _ClassVar[ErrorReason]
    ERROR_REASON_ZERO_STEPS: _ClassVar[ErrorReason]
    ERROR_REASON_TOO_MANY_STEPS: _ClassVar[ErrorReason]
    ERROR_REASON_TOO_MANY_ROWS: _ClassVar[ErrorReason]
    ERROR_REASON_DUPLICATE_HANDLE: _ClassVar[ErrorReason]
    ERROR_REASON_MIXED_MODELS: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_INPUT: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_TEXT: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_SYMBOL: _ClassVar[ErrorReason]
    ERROR_REASON_WRONG_TASK: _ClassVar[ErrorReason]
    ERROR_REASON_NOT_STREAMABLE: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_MODEL: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_VERSION: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_SESSION: _ClassVar[ErrorReason]
    ERROR_REASON_SESSION_EXPIRED: _ClassVar[ErrorReason]
    ERROR_REASON_SESSION_CLOSED: _ClassVar[ErrorReason]
    ERROR_REASON_MODEL_RETIRED: _ClassVar[ErrorReason]
    ERROR_REASON_POSITION_AHEAD: _ClassVar[ErrorReason]
    ERROR_REASON_POSITION_BEHIND: _ClassVar[ErrorReason]
    ERROR_REASON_REPEAT_MISMATCH: _ClassVar[ErrorReason]
    ERROR_REASON_REPLY_NOT_KEPT: _ClassVar[ErrorReason]
    ERROR_REASON_FENCED: _ClassVar[ErrorReason]
    ERROR_REASON_OWN_START: _ClassVar[ErrorReason]
    ERROR_REASON_TOO_MANY_SESSIONS: _ClassVar[ErrorReason]
    ERROR_REASON_QUEUE_FULL: _ClassVar[ErrorReason]
    ERROR_REASON_MESSAGE_TOO_LARGE: _ClassVar[ErrorReason]
    ERROR_REASON_DRAINING: _ClassVar[ErrorReason]
    ERROR_REASON_LOAD_CONTROL_OFF: _ClassVar[ErrorReason]
    ERROR_REASON_DEADLINE_EXCEEDED: _ClassVar[ErrorReason]
    ERROR_REASON_MODEL_NOT_READY: _ClassVar[ErrorReason]
    ERROR_REASON_MODEL_FAILED: _ClassVar[ErrorReason]
    ERROR_REASON_INTERNAL: _ClassVar[ErrorReason]
ERROR_REASON_UNSPECIFIED: ErrorReason
ERROR_REASON_MALFORMED_MESSAGE: ErrorReason
ERROR_REASON_MISSING_FIELD: ErrorReason
ERROR_REASON_INVALID_DTYPE: ErrorReason
ERROR_REASON_INVALID_SHAPE: ErrorReason
ERROR_REASON_INVALID_BYTE_LENGTH: ErrorReason
ERROR_REASON_NON_FINITE: ErrorReason
ERROR_REASON_OUT_OF_RANGE: ErrorReason
ERROR_REASON_EMPTY_BATCH: ErrorReason
ERROR_REASON_ZERO_STEPS: ErrorReason
ERROR_REASON_TOO_MANY_STEPS: ErrorReason
ERROR_REASON_TOO_MANY_ROWS: ErrorReason
ERROR_REASON_DUPLICATE_HANDLE: ErrorReason
ERROR_REASON_MIXED_MODELS: ErrorReason
ERROR_REASON_UNKNOWN_INPUT: ErrorReason
ERROR_REASON_INVALID_TEXT: ErrorReason
ERROR_REASON_UNKNOWN_SYMBOL: ErrorReason
ERROR_REASON_WRONG_TASK: ErrorReason
ERROR_REASON_NOT_STREAMABLE: ErrorReason
ERROR_REASON_UNKNOWN_MODEL: ErrorReason
ERROR_REASON_UNKNOWN_VERSION: ErrorReason
ERROR_REASON_UNKNOWN_SESSION: ErrorReason
ERROR_REASON_SESSION_EXPIRED: ErrorReason
ERROR_REASON_SESSION_CLOSED: ErrorReason
ERROR_REASON_MODEL_RETIRED: ErrorReason
ERROR_REASON_POSITION_AHEAD: ErrorReason
ERROR_REASON_POSITION_BEHIND: ErrorReason
ERROR_REASON_REPEAT_MISMATCH: ErrorReason
ERROR_REASON_REPLY_NOT_KEPT: ErrorReason
ERROR_REASON_FENCED: ErrorReason
ERROR_REASON_OWN_START: ErrorReason
ERROR_REASON_TOO_MANY_SESSIONS: ErrorReason
ERROR_REASON_QUEUE_FULL: ErrorReason
ERROR_REASON_MESSAGE_TOO_LARGE: ErrorReason
ERROR_REASON_DRAINING: ErrorReason
ERROR_REASON_LOAD_CONTROL_OFF: ErrorReason
ERROR_REASON_DEADLINE_EXCEEDED: ErrorReason
ERROR_REASON_MODEL_NOT_READY: ErrorReason
ERROR_REASON_MODEL_FAILED: ErrorReason
ERROR_REASON_INTERNAL: ErrorReason

class ErrorDetail(_message.Message):
    __slots__ = ("reason", "message", "field", "received", "expected", "next_position", "epoch", "grpc_code")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    NEXT_POSITION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GRPC_CODE_FIELD_NUMBER: _ClassVar[int]
    reason: ErrorReason
    message: str
    field: str
    received: str
    expected: str
    next_position: int
    epoch: int
    grpc_code: int
    def __init__(self, reason: _Optional[_Union[ErrorReason, str]] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., received: _Optional[str] = ..., expected: _Optional[str] = ..., next_position: _Optional[int] = ..., epoch: _Optional[int] = ..., grpc_code: _Optional[int] = ...) -> None: ...
