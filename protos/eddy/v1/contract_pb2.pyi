from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    DATA_TYPE_FLOAT32: _ClassVar[DataType]
    DATA_TYPE_FLOAT64: _ClassVar[DataType]
    DATA_TYPE_FLOAT16: _ClassVar[DataType]
    DATA_TYPE_INT32: _ClassVar[DataType]
    DATA_TYPE_INT64: _ClassVar[DataType]
    DATA_TYPE_UINT8: _ClassVar[DataType]
    DATA_TYPE_BOOL: _ClassVar[DataType]

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_NEXT_TOKEN: _ClassVar[Task]
    TASK_FORECAST: _ClassVar[Task]
    TASK_CLASSIFICATION: _ClassVar[Task]
    TASK_TAGGING: _ClassVar[Task]
    TASK_TRANSLATION: _ClassVar[Task]
    TASK_OTHER: _ClassVar[Task]
DATA_TYPE_UNSPECIFIED: DataType
DATA_TYPE_FLOAT32: DataType
DATA_TYPE_FLOAT64: DataType
DATA_TYPE_FLOAT16: DataType
DATA_TYPE_INT32: DataType
DATA_TYPE_INT64: DataType
DATA_TYPE_UINT8: DataType
DATA_TYPE_BOOL: DataType
TASK_UNSPECIFIED: Task
TASK_NEXT_TOKEN: Task
TASK_FORECAST: Task
TASK_CLASSIFICATION: Task
TASK_TAGGING: Task
TASK_TRANSLATION: Task
TASK_OTHER: Task

class ValueRange(_message.Message):
    __slots__ = ("minimum", "maximum")
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    minimum: float
    maximum: float
    def __init__(self, minimum: _Optional[float] = ..., maximum: _Optional[float] = ...) -> None: ...

class Normalization(_message.Message):
    __slots__ = ("mean", "scale", "inside_graph")
    MEAN_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    INSIDE_GRAPH_FIELD_NUMBER: _ClassVar[int]
    mean: _containers.RepeatedScalarFieldContainer[float]
    scale: _containers.RepeatedScalarFieldContainer[float]
    inside_graph: bool
    def __init__(self, mean: _Optional[_Iterable[float]] = ..., scale: _Optional[_Iterable[float]] = ..., inside_graph: _Optional[bool] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "dtype", "shape", "meaning", "unit", "range", "normalization", "axes", "no_time_axis")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    MEANING_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    NORMALIZATION_FIELD_NUMBER: _ClassVar[int]
    AXES_FIELD_NUMBER: _ClassVar[int]
    NO_TIME_AXIS_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    meaning: str
    unit: str
    range: ValueRange
    normalization: Normalization
    axes: _containers.RepeatedCompositeFieldContainer[AxisLabels]
    no_time_axis: bool
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., meaning: _Optional[str] = ..., unit: _Optional[str] = ..., range: _Optional[_Union[ValueRange, _Mapping]] = ..., normalization: _Optional[_Union[Normalization, _Mapping]] = ..., axes: _Optional[_Iterable[_Union[AxisLabels, _Mapping]]] = ..., no_time_axis: _Optional[bool] = ...) -> None: ...

class AxisLabels(_message.Message):
    __slots__ = ("name", "labels")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    name: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class InitialState(_message.Message):
    __slots__ = ("constant", "data")
    CONSTANT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    constant: float
    data: bytes
    def __init__(self, constant: _Optional[float] = ..., data: _Optional[bytes] = ...) -> None: ...

class StateSpec(_message.Message):
    __slots__ = ("name", "next_name", "dtype", "shape", "initial", "immutable", "meaning", "range")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NEXT_NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    INITIAL_FIELD_NUMBER: _ClassVar[int]
    IMMUTABLE_FIELD_NUMBER: _ClassVar[int]
    MEANING_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    next_name: str
    dtype: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    initial: InitialState
    immutable: bool
    meaning: str
    range: ValueRange
    def __init__(self, name: _Optional[str] = ..., next_name: _Optional[str] = ..., dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., initial: _Optional[_Union[InitialState, _Mapping]] = ..., immutable: _Optional[bool] = ..., meaning: _Optional[str] = ..., range: _Optional[_Union[ValueRange, _Mapping]] = ...) -> None: ...

class Graphs(_message.Message):
    __slots__ = ("step", "prime", "whole")
    STEP_FIELD_NUMBER: _ClassVar[int]
    PRIME_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    step: str
    prime: str
    whole: str
    def __init__(self, step: _Optional[str] = ..., prime: _Optional[str] = ..., whole: _Optional[str] = ...) -> None: ...

class Ports(_message.Message):
    __slots__ = ("length", "flush", "emitted", "prime_length")
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    FLUSH_FIELD_NUMBER: _ClassVar[int]
    EMITTED_FIELD_NUMBER: _ClassVar[int]
    PRIME_LENGTH_FIELD_NUMBER: _ClassVar[int]
    length: str
    flush: str
    emitted: str
    prime_length: str
    def __init__(self, length: _Optional[str] = ..., flush: _Optional[str] = ..., emitted: _Optional[str] = ..., prime_length: _Optional[str] = ...) -> None: ...

class Streaming(_message.Message):
    __slots__ = ("streamable", "reason", "block_steps", "look_ahead_steps", "run_rows", "max_run_steps")
    STREAMABLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BLOCK_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOOK_AHEAD_STEPS_FIELD_NUMBER: _ClassVar[int]
    RUN_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUN_STEPS_FIELD_NUMBER: _ClassVar[int]
    streamable: bool
    reason: str
    block_steps: int
    look_ahead_steps: int
    run_rows: int
    max_run_steps: int
    def __init__(self, streamable: _Optional[bool] = ..., reason: _Optional[str] = ..., block_steps: _Optional[int] = ..., look_ahead_steps: _Optional[int] = ..., run_rows: _Optional[int] = ..., max_run_steps: _Optional[int] = ...) -> None: ...

class Numerics(_message.Message):
    __slots__ = ("bitwise", "tolerance", "parity_max_difference", "runtime", "cpu", "batches", "chunk_steps")
    BITWISE_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    PARITY_MAX_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_STEPS_FIELD_NUMBER: _ClassVar[int]
    bitwise: bool
    tolerance: float
    parity_max_difference: float
    runtime: str
    cpu: str
    batches: _containers.RepeatedScalarFieldContainer[int]
    chunk_steps: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, bitwise: _Optional[bool] = ..., tolerance: _Optional[float] = ..., parity_max_difference: _Optional[float] = ..., runtime: _Optional[str] = ..., cpu: _Optional[str] = ..., batches: _Optional[_Iterable[int]] = ..., chunk_steps: _Optional[_Iterable[int]] = ...) -> None: ...

class Vocabulary(_message.Message):
    __slots__ = ("symbols", "unknown_id", "unit", "start_id", "end_id")
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_ID_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    START_ID_FIELD_NUMBER: _ClassVar[int]
    END_ID_FIELD_NUMBER: _ClassVar[int]
    symbols: _containers.RepeatedScalarFieldContainer[str]
    unknown_id: int
    unit: str
    start_id: int
    end_id: int
    def __init__(self, symbols: _Optional[_Iterable[str]] = ..., unknown_id: _Optional[int] = ..., unit: _Optional[str] = ..., start_id: _Optional[int] = ..., end_id: _Optional[int] = ...) -> None: ...

class Figure(_message.Message):
    __slots__ = ("name", "value", "unit")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    unit: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., unit: _Optional[str] = ...) -> None: ...

class Training(_message.Message):
    __slots__ = ("recipe", "data", "data_licence", "seed", "parameters", "framework", "figures")
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DATA_LICENCE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    FRAMEWORK_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    recipe: str
    data: str
    data_licence: str
    seed: int
    parameters: int
    framework: str
    figures: _containers.RepeatedCompositeFieldContainer[Figure]
    def __init__(self, recipe: _Optional[str] = ..., data: _Optional[str] = ..., data_licence: _Optional[str] = ..., seed: _Optional[int] = ..., parameters: _Optional[int] = ..., framework: _Optional[str] = ..., figures: _Optional[_Iterable[_Union[Figure, _Mapping]]] = ...) -> None: ...

class ModelContract(_message.Message):
    __slots__ = ("schema_version", "name", "task", "description", "inputs", "outputs", "states", "graphs", "ports", "streaming", "numerics", "vocabulary", "training", "family", "prime_inputs", "max_prime_steps", "source_vocabulary", "precision", "idle_timeout_seconds", "adopts")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    GRAPHS_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    STREAMING_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    PRIME_INPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_PRIME_STEPS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ADOPTS_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    name: str
    task: Task
    description: str
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    states: _containers.RepeatedCompositeFieldContainer[StateSpec]
    graphs: Graphs
    ports: Ports
    streaming: Streaming
    numerics: Numerics
    vocabulary: Vocabulary
    training: Training
    family: str
    prime_inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    max_prime_steps: int
    source_vocabulary: Vocabulary
    precision: str
    idle_timeout_seconds: float
    adopts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, schema_version: _Optional[int] = ..., name: _Optional[str] = ..., task: _Optional[_Union[Task, str]] = ..., description: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., states: _Optional[_Iterable[_Union[StateSpec, _Mapping]]] = ..., graphs: _Optional[_Union[Graphs, _Mapping]] = ..., ports: _Optional[_Union[Ports, _Mapping]] = ..., streaming: _Optional[_Union[Streaming, _Mapping]] = ..., numerics: _Optional[_Union[Numerics, _Mapping]] = ..., vocabulary: _Optional[_Union[Vocabulary, _Mapping]] = ..., training: _Optional[_Union[Training, _Mapping]] = ..., family: _Optional[str] = ..., prime_inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., max_prime_steps: _Optional[int] = ..., source_vocabulary: _Optional[_Union[Vocabulary, _Mapping]] = ..., precision: _Optional[str] = ..., idle_timeout_seconds: _Optional[float] = ..., adopts: _Optional[_Iterable[str]] = ...) -> None: ...
