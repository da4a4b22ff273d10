from eddy.v1 import contract_pb2 as _contract_pb2
from eddy.v1 import errors_pb2 as _errors_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: _contract_pb2.DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[_contract_pb2.DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class StreamRequest(_message.Message):
    __slots__ = ("tag", "step", "open", "attach", "close", "reset", "fork")
    TAG_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    FORK_FIELD_NUMBER: _ClassVar[int]
    tag: int
    step: StepChunk
    open: OpenSessions
    attach: AttachSession
    close: CloseSessions
    reset: ResetSessions
    fork: ForkSessions
    def __init__(self, tag: _Optional[int] = ..., step: _Optional[_Union[StepChunk, _Mapping]] = ..., open: _Optional[_Union[OpenSessions, _Mapping]] = ..., attach: _Optional[_Union[AttachSession, _Mapping]] = ..., close: _Optional[_Union[CloseSessions, _Mapping]] = ..., reset: _Optional[_Union[ResetSessions, _Mapping]] = ..., fork: _Optional[_Union[ForkSessions, _Mapping]] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("tag", "step", "opened", "attached", "closed", "reset", "error", "ended", "draining", "forked")
    TAG_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    FORKED_FIELD_NUMBER: _ClassVar[int]
    tag: int
    step: StepResult
    opened: SessionsOpened
    attached: SessionAttached
    closed: SessionsClosed
    reset: SessionsReset
    error: _errors_pb2.ErrorDetail
    ended: SessionsEnded
    draining: Draining
    forked: SessionsForked
    def __init__(self, tag: _Optional[int] = ..., step: _Optional[_Union[StepResult, _Mapping]] = ..., opened: _Optional[_Union[SessionsOpened, _Mapping]] = ..., attached: _Optional[_Union[SessionAttached, _Mapping]] = ..., closed: _Optional[_Union[SessionsClosed, _Mapping]] = ..., reset: _Optional[_Union[SessionsReset, _Mapping]] = ..., error: _Optional[_Union[_errors_pb2.ErrorDetail, _Mapping]] = ..., ended: _Optional[_Union[SessionsEnded, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ..., forked: _Optional[_Union[SessionsForked, _Mapping]] = ...) -> None: ...

class StepChunk(_message.Message):
    __slots__ = ("handles", "positions", "num_steps", "inputs", "timeout_milliseconds", "flush")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    FLUSH_FIELD_NUMBER: _ClassVar[int]
    handles: bytes
    positions: bytes
    num_steps: int
    inputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    timeout_milliseconds: int
    flush: bool
    def __init__(self, handles: _Optional[bytes] = ..., positions: _Optional[bytes] = ..., num_steps: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., timeout_milliseconds: _Optional[int] = ..., flush: _Optional[bool] = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("outputs", "errors", "replayed_rows", "emitted", "durable_positions")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_ROWS_FIELD_NUMBER: _ClassVar[int]
    EMITTED_FIELD_NUMBER: _ClassVar[int]
    DURABLE_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    errors: _containers.RepeatedCompositeFieldContainer[RowError]
    replayed_rows: bytes
    emitted: bytes
    durable_positions: bytes
    def __init__(self, outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[RowError, _Mapping]]] = ..., replayed_rows: _Optional[bytes] = ..., emitted: _Optional[bytes] = ..., durable_positions: _Optional[bytes] = ...) -> None: ...

class RowError(_message.Message):
    __slots__ = ("row", "error")
    ROW_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    row: int
    error: _errors_pb2.ErrorDetail
    def __init__(self, row: _Optional[int] = ..., error: _Optional[_Union[_errors_pb2.ErrorDetail, _Mapping]] = ...) -> None: ...

class Prime(_message.Message):
    __slots__ = ("inputs", "lengths")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    lengths: bytes
    def __init__(self, inputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., lengths: _Optional[bytes] = ...) -> None: ...

class OpenSessions(_message.Message):
    __slots__ = ("model", "version", "count", "max_in_flight", "idle_timeout_seconds", "prime", "initial_states", "package_digest", "holder")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PRIME_FIELD_NUMBER: _ClassVar[int]
    INITIAL_STATES_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    count: int
    max_in_flight: int
    idle_timeout_seconds: float
    prime: Prime
    initial_states: _containers.RepeatedCompositeFieldContainer[Tensor]
    package_digest: str
    holder: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., count: _Optional[int] = ..., max_in_flight: _Optional[int] = ..., idle_timeout_seconds: _Optional[float] = ..., prime: _Optional[_Union[Prime, _Mapping]] = ..., initial_states: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., package_digest: _Optional[str] = ..., holder: _Optional[int] = ...) -> None: ...

class SessionsOpened(_message.Message):
    __slots__ = ("session_ids", "handles", "epochs", "model", "version", "max_in_flight", "idle_timeout_seconds", "limits", "package_digest", "resume_tokens", "durable")
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    session_ids: _containers.RepeatedScalarFieldContainer[bytes]
    handles: bytes
    epochs: bytes
    model: str
    version: str
    max_in_flight: int
    idle_timeout_seconds: float
    limits: Limits
    package_digest: str
    resume_tokens: bytes
    durable: bool
    def __init__(self, session_ids: _Optional[_Iterable[bytes]] = ..., handles: _Optional[bytes] = ..., epochs: _Optional[bytes] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., max_in_flight: _Optional[int] = ..., idle_timeout_seconds: _Optional[float] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., package_digest: _Optional[str] = ..., resume_tokens: _Optional[bytes] = ..., durable: _Optional[bool] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_rows", "max_steps", "max_message_bytes")
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_rows: int
    max_steps: int
    max_message_bytes: int
    def __init__(self, max_rows: _Optional[int] = ..., max_steps: _Optional[int] = ..., max_message_bytes: _Optional[int] = ...) -> None: ...

class AttachSession(_message.Message):
    __slots__ = ("session_id", "resume_token", "holder", "resumes")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    RESUMES_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    resume_token: bytes
    holder: int
    resumes: bool
    def __init__(self, session_id: _Optional[bytes] = ..., resume_token: _Optional[bytes] = ..., holder: _Optional[int] = ..., resumes: _Optional[bool] = ...) -> None: ...

class SessionAttached(_message.Message):
    __slots__ = ("handle", "epoch", "next_position", "model", "version", "max_in_flight", "limits", "package_digest", "durable_position", "durable")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NEXT_POSITION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DURABLE_POSITION_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    handle: int
    epoch: int
    next_position: int
    model: str
    version: str
    max_in_flight: int
    limits: Limits
    package_digest: str
    durable_position: int
    durable: bool
    def __init__(self, handle: _Optional[int] = ..., epoch: _Optional[int] = ..., next_position: _Optional[int] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., max_in_flight: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., package_digest: _Optional[str] = ..., durable_position: _Optional[int] = ..., durable: _Optional[bool] = ...) -> None: ...

class CloseSessions(_message.Message):
    __slots__ = ("handles",)
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    handles: bytes
    def __init__(self, handles: _Optional[bytes] = ...) -> None: ...

class SessionsClosed(_message.Message):
    __slots__ = ("errors",)
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    errors: _containers.RepeatedCompositeFieldContainer[RowError]
    def __init__(self, errors: _Optional[_Iterable[_Union[RowError, _Mapping]]] = ...) -> None: ...

class ResetSessions(_message.Message):
    __slots__ = ("handles",)
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    handles: bytes
    def __init__(self, handles: _Optional[bytes] = ...) -> None: ...

class SessionsReset(_message.Message):
    __slots__ = ("handles", "errors")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    handles: bytes
    errors: _containers.RepeatedCompositeFieldContainer[RowError]
    def __init__(self, handles: _Optional[bytes] = ..., errors: _Optional[_Iterable[_Union[RowError, _Mapping]]] = ...) -> None: ...

class ForkSessions(_message.Message):
    __slots__ = ("handles",)
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    handles: bytes
    def __init__(self, handles: _Optional[bytes] = ...) -> None: ...

class SessionsForked(_message.Message):
    __slots__ = ("session_ids", "handles", "epochs", "resume_tokens", "next_positions", "errors", "durable")
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEXT_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    session_ids: _containers.RepeatedScalarFieldContainer[bytes]
    handles: bytes
    epochs: bytes
    resume_tokens: bytes
    next_positions: bytes
    errors: _containers.RepeatedCompositeFieldContainer[RowError]
    durable: bool
    def __init__(self, session_ids: _Optional[_Iterable[bytes]] = ..., handles: _Optional[bytes] = ..., epochs: _Optional[bytes] = ..., resume_tokens: _Optional[bytes] = ..., next_positions: _Optional[bytes] = ..., errors: _Optional[_Iterable[_Union[RowError, _Mapping]]] = ..., durable: _Optional[bool] = ...) -> None: ...

class SessionsEnded(_message.Message):
    __slots__ = ("handles", "error")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    handles: bytes
    error: _errors_pb2.ErrorDetail
    def __init__(self, handles: _Optional[bytes] = ..., error: _Optional[_Union[_errors_pb2.ErrorDetail, _Mapping]] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ("grace_seconds",)
    GRACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    grace_seconds: float
    def __init__(self, grace_seconds: _Optional[float] = ...) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ("session_id", "epoch", "position", "num_steps", "inputs", "flush")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    FLUSH_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    epoch: int
    position: int
    num_steps: int
    inputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    flush: bool
    def __init__(self, session_id: _Optional[bytes] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ..., num_steps: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., flush: _Optional[bool] = ...) -> None: ...

class StepResponse(_message.Message):
    __slots__ = ("outputs", "next_position", "replayed", "emitted", "durable_position", "epoch")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_POSITION_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    EMITTED_FIELD_NUMBER: _ClassVar[int]
    DURABLE_POSITION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    next_position: int
    replayed: bool
    emitted: bytes
    durable_position: int
    epoch: int
    def __init__(self, outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., next_position: _Optional[int] = ..., replayed: _Optional[bool] = ..., emitted: _Optional[bytes] = ..., durable_position: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class InferRequest(_message.Message):
    __slots__ = ("model", "version", "lengths", "inputs", "prime", "initial_states", "package_digest")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    PRIME_FIELD_NUMBER: _ClassVar[int]
    INITIAL_STATES_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    lengths: bytes
    inputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    prime: Prime
    initial_states: _containers.RepeatedCompositeFieldContainer[Tensor]
    package_digest: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., lengths: _Optional[bytes] = ..., inputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., prime: _Optional[_Union[Prime, _Mapping]] = ..., initial_states: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., package_digest: _Optional[str] = ...) -> None: ...

class InferResponse(_message.Message):
    __slots__ = ("model", "version", "outputs", "package_digest", "output_lengths")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    package_digest: str
    output_lengths: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., package_digest: _Optional[str] = ..., output_lengths: _Optional[_Iterable[bytes]] = ...) -> None: ...
