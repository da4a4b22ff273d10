from eddy.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateRequest(_message.Message):
    __slots__ = ("open", "existing", "text", "tokens", "sampling", "max_tokens", "stop", "log_probabilities", "num_alternatives", "keep_session", "num_beams", "length_penalty", "outputs")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    EXISTING_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    NUM_ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    KEEP_SESSION_FIELD_NUMBER: _ClassVar[int]
    NUM_BEAMS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_PENALTY_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    open: NewSession
    existing: ExistingSession
    text: bytes
    tokens: TokenIds
    sampling: Sampling
    max_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    log_probabilities: bool
    num_alternatives: int
    keep_session: bool
    num_beams: int
    length_penalty: float
    outputs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, open: _Optional[_Union[NewSession, _Mapping]] = ..., existing: _Optional[_Union[ExistingSession, _Mapping]] = ..., text: _Optional[bytes] = ..., tokens: _Optional[_Union[TokenIds, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., max_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., log_probabilities: _Optional[bool] = ..., num_alternatives: _Optional[int] = ..., keep_session: _Optional[bool] = ..., num_beams: _Optional[int] = ..., length_penalty: _Optional[float] = ..., outputs: _Optional[_Iterable[str]] = ...) -> None: ...

class NewSession(_message.Message):
    __slots__ = ("model", "version", "idle_timeout_seconds", "source_text", "prime", "initial_states", "package_digest")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_TEXT_FIELD_NUMBER: _ClassVar[int]
    PRIME_FIELD_NUMBER: _ClassVar[int]
    INITIAL_STATES_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    idle_timeout_seconds: float
    source_text: bytes
    prime: _inference_pb2.Prime
    initial_states: _containers.RepeatedCompositeFieldContainer[_inference_pb2.Tensor]
    package_digest: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., idle_timeout_seconds: _Optional[float] = ..., source_text: _Optional[bytes] = ..., prime: _Optional[_Union[_inference_pb2.Prime, _Mapping]] = ..., initial_states: _Optional[_Iterable[_Union[_inference_pb2.Tensor, _Mapping]]] = ..., package_digest: _Optional[str] = ...) -> None: ...

class ExistingSession(_message.Message):
    __slots__ = ("session_id", "epoch", "position")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    epoch: int
    position: int
    def __init__(self, session_id: _Optional[bytes] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "seed")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("started", "tokens", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: GenerationStarted
    tokens: GeneratedTokens
    finished: GenerationFinished
    def __init__(self, started: _Optional[_Union[GenerationStarted, _Mapping]] = ..., tokens: _Optional[_Union[GeneratedTokens, _Mapping]] = ..., finished: _Optional[_Union[GenerationFinished, _Mapping]] = ...) -> None: ...

class GenerationStarted(_message.Message):
    __slots__ = ("session_id", "epoch", "model", "version", "seed", "num_prompt_tokens", "position", "resume_token", "num_cached_tokens")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    epoch: int
    model: str
    version: str
    seed: int
    num_prompt_tokens: int
    position: int
    resume_token: bytes
    num_cached_tokens: int
    def __init__(self, session_id: _Optional[bytes] = ..., epoch: _Optional[int] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., seed: _Optional[int] = ..., num_prompt_tokens: _Optional[int] = ..., position: _Optional[int] = ..., resume_token: _Optional[bytes] = ..., num_cached_tokens: _Optional[int] = ...) -> None: ...

class GeneratedTokens(_message.Message):
    __slots__ = ("tokens", "text")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[GeneratedToken]
    text: str
    def __init__(self, tokens: _Optional[_Iterable[_Union[GeneratedToken, _Mapping]]] = ..., text: _Optional[str] = ...) -> None: ...

class GeneratedToken(_message.Message):
    __slots__ = ("id", "log_probability", "alternatives", "outputs")
    ID_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    id: int
    log_probability: float
    alternatives: _containers.RepeatedCompositeFieldContainer[Alternative]
    outputs: _containers.RepeatedCompositeFieldContainer[_inference_pb2.Tensor]
    def __init__(self, id: _Optional[int] = ..., log_probability: _Optional[float] = ..., alternatives: _Optional[_Iterable[_Union[Alternative, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[_inference_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class Alternative(_message.Message):
    __slots__ = ("id", "log_probability")
    ID_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    id: int
    log_probability: float
    def __init__(self, id: _Optional[int] = ..., log_probability: _Optional[float] = ...) -> None: ...

class GenerationFinished(_message.Message):
    __slots__ = ("reason", "stop", "num_tokens", "next_position", "session_kept", "hypotheses", "durable_position")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[GenerationFinished.Reason]
        REASON_MAX_TOKENS: _ClassVar[GenerationFinished.Reason]
        REASON_STOP: _ClassVar[GenerationFinished.Reason]
        REASON_DRAINING: _ClassVar[GenerationFinished.Reason]
        REASON_END: _ClassVar[GenerationFinished.Reason]
    REASON_UNSPECIFIED: GenerationFinished.Reason
    REASON_MAX_TOKENS: GenerationFinished.Reason
    REASON_STOP: GenerationFinished.Reason
    REASON_DRAINING: GenerationFinished.Reason
    REASON_END: GenerationFinished.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEXT_POSITION_FIELD_NUMBER: _ClassVar[int]
    SESSION_KEPT_FIELD_NUMBER: _ClassVar[int]
    HYPOTHESES_FIELD_NUMBER: _ClassVar[int]
    DURABLE_POSITION_FIELD_NUMBER: _ClassVar[int]
    reason: GenerationFinished.Reason
    stop: str
    num_tokens: int
    next_position: int
    session_kept: bool
    hypotheses: _containers.RepeatedCompositeFieldContainer[Hypothesis]
    durable_position: int
    def __init__(self, reason: _Optional[_Union[GenerationFinished.Reason, str]] = ..., stop: _Optional[str] = ..., num_tokens: _Optional[int] = ..., next_position: _Optional[int] = ..., session_kept: _Optional[bool] = ..., hypotheses: _Optional[_Iterable[_Union[Hypothesis, _Mapping]]] = ..., durable_position: _Optional[int] = ...) -> None: ...

class Hypothesis(_message.Message):
    __slots__ = ("ids", "text", "log_probability")
    IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    log_probability: float
    def __init__(self, ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., log_probability: _Optional[float] = ...) -> None: ...
