from eddy.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_DEVICE: _ClassVar[Tier]
    TIER_HOST: _ClassVar[Tier]
    TIER_STORE: _ClassVar[Tier]
    TIER_INITIAL: _ClassVar[Tier]
TIER_UNSPECIFIED: Tier
TIER_DEVICE: Tier
TIER_HOST: Tier
TIER_STORE: Tier
TIER_INITIAL: Tier

class Session(_message.Message):
    __slots__ = ("session_id", "fingerprint", "model", "version", "epoch", "next_position", "max_in_flight", "idle_seconds", "idle_timeout_seconds", "attached", "package_digest", "resume_token", "durable_position", "durable", "tier")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NEXT_POSITION_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DURABLE_POSITION_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    fingerprint: str
    model: str
    version: str
    epoch: int
    next_position: int
    max_in_flight: int
    idle_seconds: float
    idle_timeout_seconds: float
    attached: bool
    package_digest: str
    resume_token: bytes
    durable_position: int
    durable: bool
    tier: Tier
    def __init__(self, session_id: _Optional[bytes] = ..., fingerprint: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., epoch: _Optional[int] = ..., next_position: _Optional[int] = ..., max_in_flight: _Optional[int] = ..., idle_seconds: _Optional[float] = ..., idle_timeout_seconds: _Optional[float] = ..., attached: _Optional[bool] = ..., package_digest: _Optional[str] = ..., resume_token: _Optional[bytes] = ..., durable_position: _Optional[int] = ..., durable: _Optional[bool] = ..., tier: _Optional[_Union[Tier, str]] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("model", "version", "max_in_flight", "idle_timeout_seconds", "prime", "initial_states")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PRIME_FIELD_NUMBER: _ClassVar[int]
    INITIAL_STATES_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    max_in_flight: int
    idle_timeout_seconds: float
    prime: _inference_pb2.Prime
    initial_states: _containers.RepeatedCompositeFieldContainer[_inference_pb2.Tensor]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., max_in_flight: _Optional[int] = ..., idle_timeout_seconds: _Optional[float] = ..., prime: _Optional[_Union[_inference_pb2.Prime, _Mapping]] = ..., initial_states: _Optional[_Iterable[_Union[_inference_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class OpenSessionResponse(_message.Message):
    __slots__ = ("session", "limits")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    session: Session
    limits: _inference_pb2.Limits
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., limits: _Optional[_Union[_inference_pb2.Limits, _Mapping]] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    def __init__(self, session_id: _Optional[bytes] = ...) -> None: ...

class GetSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("model", "page_size", "page_token")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model: str
    page_size: int
    page_token: str
    def __init__(self, model: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "next_page_token", "total")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    next_page_token: str
    total: int
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total: _Optional[int] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    def __init__(self, session_id: _Optional[bytes] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResetSessionRequest(_message.Message):
    __slots__ = ("session_id", "initial_states")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INITIAL_STATES_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    initial_states: _containers.RepeatedCompositeFieldContainer[_inference_pb2.Tensor]
    def __init__(self, session_id: _Optional[bytes] = ..., initial_states: _Optional[_Iterable[_Union[_inference_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class ResetSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class SnapshotSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    def __init__(self, session_id: _Optional[bytes] = ...) -> None: ...

class SnapshotSessionResponse(_message.Message):
    __slots__ = ("snapshot", "session")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    snapshot: bytes
    session: Session
    def __init__(self, snapshot: _Optional[bytes] = ..., session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class RestoreSessionRequest(_message.Message):
    __slots__ = ("snapshot", "model", "version", "max_in_flight", "idle_timeout_seconds")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    snapshot: bytes
    model: str
    version: str
    max_in_flight: int
    idle_timeout_seconds: float
    def __init__(self, snapshot: _Optional[bytes] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., max_in_flight: _Optional[int] = ..., idle_timeout_seconds: _Optional[float] = ...) -> None: ...

class RestoreSessionResponse(_message.Message):
    __slots__ = ("session", "limits", "notes")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    session: Session
    limits: _inference_pb2.Limits
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., limits: _Optional[_Union[_inference_pb2.Limits, _Mapping]] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class ForkSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    def __init__(self, session_id: _Optional[bytes] = ...) -> None: ...

class ForkSessionResponse(_message.Message):
    __slots__ = ("session", "limits")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    session: Session
    limits: _inference_pb2.Limits
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., limits: _Optional[_Union[_inference_pb2.Limits, _Mapping]] = ...) -> None: ...
