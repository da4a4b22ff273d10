from eddy.v1 import contract_pb2 as _contract_pb2
from eddy.v1 import errors_pb2 as _errors_pb2
from eddy.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_REFUSED: _ClassVar[ModelState]
    MODEL_STATE_RETIRING: _ClassVar[ModelState]
    MODEL_STATE_UNLOADED: _ClassVar[ModelState]
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_REFUSED: ModelState
MODEL_STATE_RETIRING: ModelState
MODEL_STATE_UNLOADED: ModelState

class RetiringModel(_message.Message):
    __slots__ = ("package_digest", "digest", "num_sessions")
    PACKAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    package_digest: str
    digest: str
    num_sessions: int
    def __init__(self, package_digest: _Optional[str] = ..., digest: _Optional[str] = ..., num_sessions: _Optional[int] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("name", "version", "ready", "error", "provider", "num_slots", "num_sessions", "state_bytes_per_session", "digest", "load_seconds", "state", "package_digest", "retiring")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    NUM_SLOTS_FIELD_NUMBER: _ClassVar[int]
    NUM_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_PER_SESSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RETIRING_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    ready: bool
    error: _errors_pb2.ErrorDetail
    provider: str
    num_slots: int
    num_sessions: int
    state_bytes_per_session: int
    digest: str
    load_seconds: float
    state: ModelState
    package_digest: str
    retiring: _containers.RepeatedCompositeFieldContainer[RetiringModel]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., ready: _Optional[bool] = ..., error: _Optional[_Union[_errors_pb2.ErrorDetail, _Mapping]] = ..., provider: _Optional[str] = ..., num_slots: _Optional[int] = ..., num_sessions: _Optional[int] = ..., state_bytes_per_session: _Optional[int] = ..., digest: _Optional[str] = ..., load_seconds: _Optional[float] = ..., state: _Optional[_Union[ModelState, str]] = ..., package_digest: _Optional[str] = ..., retiring: _Optional[_Iterable[_Union[RetiringModel, _Mapping]]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name", "version", "package_digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    package_digest: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., package_digest: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("status", "contract", "limits")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    status: ModelStatus
    contract: _contract_pb2.ModelContract
    limits: _inference_pb2.Limits
    def __init__(self, status: _Optional[_Union[ModelStatus, _Mapping]] = ..., contract: _Optional[_Union[_contract_pb2.ModelContract, _Mapping]] = ..., limits: _Optional[_Union[_inference_pb2.Limits, _Mapping]] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ...) -> None: ...
