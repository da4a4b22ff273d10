"""The model contract: ports described, written into an ONNX file's metadata and read back.

Owns: the metadata key and the JSON mapping. Knows the shape of models (`spec`) but neither torch nor ONNX Runtime.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from eddy.training.errors import ContractError
from eddy.training.spec import (
    FLOAT32,
    ClassHead,
    FrameInput,
    Head,
    Input,
    QuantileHead,
    TokenHead,
    TokenInput,
    head_shape,
)
from eddy.training.storage import write_whole
from eddy.v1 import contract_pb2 as pb

METADATA_KEY = "eddy.contract"
SCHEMA_VERSION = 1
STEP_FILE = "model.onnx"


def sample_path(path: Path, contract: pb.ModelContract) -> Path:
    """Where unseen input lies beside a model file: text for a model of tokens, CSV for others."""
    return path.with_name("sample.txt" if contract.vocabulary.symbols else "sample.csv")


def precision_of(contract: pb.ModelContract) -> str:
    """What the recurrent layers compute with, one of PRECISIONS where training wrote it."""
    return contract.precision or FLOAT32


def streaming_contract(name: str, description: str, family: str) -> pb.ModelContract:
    """A contract of a streamable model with a step graph, without ports and states yet."""
    return pb.ModelContract(
        schema_version=SCHEMA_VERSION,
        name=name,
        description=description,
        family=family,
        graphs=pb.Graphs(step=STEP_FILE),
        streaming=pb.Streaming(streamable=True),
    )


def task_of(heads: Sequence[Head]) -> pb.Task:
    """The task that heads stand for; other where they do not agree."""
    tasks = {_task(head) for head in heads}
    return tasks.pop() if len(tasks) == 1 else pb.TASK_OTHER


def _task(head: Head) -> pb.Task:
    if isinstance(head, ClassHead):
        return pb.TASK_CLASSIFICATION if head.task == "classification" else pb.TASK_TAGGING
    if isinstance(head, TokenHead):
        return pb.TASK_NEXT_TOKEN
    return pb.TASK_FORECAST if isinstance(head, QuantileHead) else pb.TASK_OTHER


def describe_characters(contract: pb.ModelContract, symbols: Sequence[str]) -> None:
    """The vocabulary of a model of characters, whose first symbol stands for all that are not in it."""
    contract.vocabulary.symbols.extend(symbols)
    contract.vocabulary.unknown_id = 0
    contract.vocabulary.unit = "character"


def describe_input(given: Input) -> pb.TensorSpec:
    """An input's port."""
    if isinstance(given, TokenInput):
        last = given.vocabulary_size - 1
        return pb.TensorSpec(
            name=given.name,
            dtype=pb.DATA_TYPE_INT64,
            meaning="token id, an index into the vocabulary's symbols",
            range=pb.ValueRange(minimum=0, maximum=last),
        )
    if isinstance(given, FrameInput):
        return pb.TensorSpec(
            name=given.name,
            dtype=pb.DATA_TYPE_FLOAT32,
            shape=given.shape,
            meaning="video frame, rows by columns of brightness",
            range=pb.ValueRange(minimum=0, maximum=1),
        )
    port = pb.TensorSpec(name=given.name, dtype=pb.DATA_TYPE_FLOAT32, shape=[given.width])
    if not given.is_identity:
        port.normalization.mean.extend(given.mean)
        port.normalization.scale.extend(given.scale)
        port.normalization.inside_graph = True
    return port


def describe_head(head: Head) -> pb.TensorSpec:
    """A head's port."""
    port = pb.TensorSpec(name=head.name, dtype=pb.DATA_TYPE_FLOAT32, shape=head_shape(head))
    if isinstance(head, TokenHead):
        port.meaning = "unnormalised log-probability of each symbol coming next"
    elif isinstance(head, ClassHead):
        port.meaning = "unnormalised log-probability of each class"
        port.axes.add(name="classes", labels=head.labels)
    elif isinstance(head, QuantileHead):
        port.axes.add(name="horizons", labels=[str(h) for h in head.horizons])
        port.axes.add(name="quantiles", labels=[f"{q:g}" for q in head.quantiles])
    return port


def attach_contract(model: onnx.ModelProto, contract: pb.ModelContract) -> None:
    """Put the contract into the model's metadata, in place of one that may be there."""
    text = json_format.MessageToJson(contract, preserving_proto_field_name=True)
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = text
            return
    model.metadata_props.add(key=METADATA_KEY, value=text)


def extract_contract(model: onnx.ModelProto, name: str) -> pb.ModelContract:
    """The contract in a model's metadata; `name` stands for the model in messages. Raises ContractError."""
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    if text is None:
        raise ContractError(f"{name}: no metadata entry {METADATA_KEY!r}, expected the model's contract there")
    try:
        contract = json_format.Parse(text, pb.ModelContract())
    except json_format.ParseError as error:
        raise ContractError(f"{name}: metadata entry {METADATA_KEY!r} is not a contract: {error}") from error
    if contract.schema_version != SCHEMA_VERSION:
        raise ContractError(f"{name}: schema_version is {contract.schema_version}, expected {SCHEMA_VERSION}")
    _check_ports(model, contract, name)
    return contract


def _check_ports(model: onnx.ModelProto, contract: pb.ModelContract, name: str) -> None:
    """Every tensor that the contract names is a port of the graph."""
    inputs = {port.name for port in model.graph.input}
    outputs = {port.name for port in model.graph.output}
    states_in = [state.name for state in contract.states]
    states_out = [state.next_name for state in contract.states if not state.immutable]
    states_in += [port for port in (contract.ports.length, contract.ports.flush) if port]
    states_out += [port for port in (contract.ports.emitted,) if port]
    _require_ports(inputs, [port.name for port in contract.inputs] + states_in, f"{name}: graph input")
    _require_ports(outputs, [port.name for port in contract.outputs] + states_out, f"{name}: graph output")


def _require_ports(have: set[str], wanted: Sequence[str], what: str) -> None:
    missing = [port for port in wanted if port not in have]
    if missing:
        raise ContractError(f"{what} {missing[0]!r} is in the contract but not in the graph, which has {sorted(have)}")


def numpy_dtype(dtype: int, name: str) -> np.dtype[np.generic]:
    """The numpy dtype of a contract's data type; `name` stands for the tensor in the ContractError."""
    known = {
        pb.DATA_TYPE_FLOAT32: "float32",
        pb.DATA_TYPE_FLOAT64: "float64",
        pb.DATA_TYPE_FLOAT16: "float16",
        pb.DATA_TYPE_INT32: "int32",
        pb.DATA_TYPE_INT64: "int64",
        pb.DATA_TYPE_UINT8: "uint8",
        pb.DATA_TYPE_BOOL: "bool",
    }
    if dtype not in known:
        raise ContractError(f"{name}: dtype is {dtype}, expected one of {sorted(known)}")
    return np.dtype(known[dtype])  # type: ignore[index]  # membership is checked above


def load_model(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file; external data stays outside. Raises ContractError where it is not one."""
    try:
        return onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise ContractError(f"{path}: not readable as an ONNX model: {error}") from error


def read_contract(path: Path) -> pb.ModelContract:
    """The contract inside a model file. Raises ContractError."""
    return extract_contract(load_model(path), str(path))


def write_contract(path: Path, contract: pb.ModelContract) -> None:
    """Replace the contract inside a model file; the file is swapped whole, never half written."""
    model = load_model(path)
    attach_contract(model, contract)
    save_model(path, model)


def save_model(path: Path, model: onnx.ModelProto) -> None:
    """Write an ONNX file; its name never stands for a half-written one. Raises StorageError."""
    write_whole(path, model.SerializeToString())
