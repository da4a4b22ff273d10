"""Quantisation of model files: recurrent layers in 8 bits where there is no checkpoint, only an exported model.

Owns: which nodes of a graph are rewritten, and what of a model folder becomes of it. Must not know torch. How a layer
is written is `families.quantised`'s; a checkpoint is better exported in int8, which compares it with PyTorch as well.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import helper, numpy_helper

from eddy.training.builder import Array, GraphBuilder, check_structure
from eddy.training.contract import (
    STEP_FILE,
    attach_contract,
    extract_contract,
    load_model,
    precision_of,
    sample_path,
    save_model,
)
from eddy.training.drawing import draw_inputs
from eddy.training.errors import ExportError
from eddy.training.evaluation import KEPT
from eddy.training.families.quantised import Layer, write_quantised_layer
from eddy.training.figures import IN_FLOAT32, Figure, in_float32
from eddy.training.probe import probe
from eddy.training.runtime import Runtime
from eddy.training.spec import FLOAT32, INT8
from eddy.training.speedup import measure_speedup
from eddy.training.storage import make_folder
from eddy.training.tasks.registry import BASELINES
from eddy.training.verify import Report, verify
from eddy.v1 import contract_pb2 as pb

_CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}
# Blocks of ONNX's weights in torch's order: i, o, f, c -> i, f, g, o; z, r, h -> r, z, n.
_TORCH_ORDER = {"lstm": (0, 2, 3, 1), "gru": (1, 0, 2), "rnn_tanh": (0,)}
_STATES = {"LSTM": ("h", "c"), "GRU": ("h",), "RNN": ("h",)}
# Of the comparison with the model in float32.
_ROWS, _STEPS = 8, 64
_DIFFERENCE = IN_FLOAT32 + "largest_difference"


def quantize_model(path: Path, directory: Path) -> Report:
    """Write a model folder beside that of `path`, its step graph with 8-bit weights, other graphs as they are.

    The verdict on its own numbers goes into its contract, and among its figures those of the model at `path`, the
    largest difference from it and the gain in speed; `eddy evaluate` adds its own. Raises ContractError, ExportError
    where there is nothing to quantise, VerificationError.
    """
    model = load_model(path)
    contract = extract_contract(model, str(path))
    if precision_of(contract) != FLOAT32:
        raise ExportError(f"{path}: precision: got {contract.precision}, expected a model in {FLOAT32}")
    quantized = quantize_graph(model, contract)
    contract.name, contract.precision = f"{contract.name}-{INT8}", INT8
    contract.description += f", {INT8}"
    for state in contract.states:
        if state.name == "h" and not contract.graphs.prime:  # A source's states are not a client's to give.
            state.range.minimum, state.range.maximum = -1, 1
    contract.numerics.Clear()
    _move_figures(contract)
    attach_contract(quantized, contract)
    make_folder(directory)
    with TemporaryDirectory(prefix=".unproven-", dir=directory) as draft:
        step = Path(draft) / STEP_FILE
        for name in (contract.graphs.prime, contract.graphs.whole):
            if name:
                shutil.copyfile(path.with_name(name), step.with_name(name))
        save_model(step, quantized)
        probe(step)
        contract.training.figures.add(name=_DIFFERENCE, value=_difference(path, step, contract))
        for figure in measure_speedup(path, step):
            contract.training.figures.add(name=figure.name, value=figure.value, unit=figure.unit)
        attach_contract(quantized, contract)
        save_model(step, quantized)
        report = verify(step)
        for file in sorted(Path(draft).iterdir(), key=lambda file: file.name == STEP_FILE):
            file.replace(directory / file.name)
    sample = sample_path(path, contract)
    if sample.exists():
        shutil.copyfile(sample, directory / sample.name)
    return report


def _move_figures(contract: pb.ModelContract) -> None:
    """The figures of the model in float32, under the names that say so."""
    figures = [Figure(figure.name, figure.value, figure.unit) for figure in contract.training.figures]
    del contract.training.figures[:]
    for figure in in_float32(figures, KEPT, BASELINES):
        contract.training.figures.add(name=figure.name, value=figure.value, unit=figure.unit)


def quantize_graph(model: onnx.ModelProto, contract: pb.ModelContract) -> onnx.ModelProto:
    """A copy of a step graph with its recurrent layers rewritten. Raises ExportError where none can be."""
    for state in contract.states:
        begins = np.frombuffer(state.initial.data, "<f4") if state.dtype == pb.DATA_TYPE_FLOAT32 else np.zeros(0)
        if state.name == "h" and begins.size and np.abs(begins).max() > 1:
            raise ExportError(f"state {state.name!r}: begins with {np.abs(begins).max():g}, expected values in [-1, 1]")
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    build = GraphBuilder(graph.name)
    bounded = set(_bounded(graph.node))
    done = 0
    for node in graph.node:
        if node.op_type in _STATES and _is_plain(node):
            _write_layer(build, node, constants, node.input[0] in bounded)
            done += 1
        else:
            build.nodes.append(node)
    if not done:
        raise ExportError("graph: no layer of LSTM, GRU or tanh RNN that reads forward and whole calls, expected one")
    used = {name for node in build.nodes for name in _names(node)}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    del quantized.graph.node[:], quantized.graph.initializer[:]
    quantized.graph.node.extend(build.nodes)
    quantized.graph.initializer.extend([*kept, *build.initializers.values()])
    check_structure(quantized)
    return quantized


def _write_layer(build: GraphBuilder, node: onnx.NodeProto, constants: Mapping[str, Array], bounded: bool) -> None:
    """One recurrent node, written anew. bounded: its input is a hidden state itself, in [-1, 1]."""
    cell, name = _CELLS[node.op_type], f"int8_{node.output[0]}"
    weight_ih, weight_hh = (constants[weight][0] for weight in node.input[1:3])
    has_bias = len(node.input) > 3 and node.input[3]
    bias = constants[node.input[3]][0] if has_bias else np.zeros(2 * len(weight_hh), np.float32)
    weights = [_reorder(cell, part) for part in (weight_ih, weight_hh, *np.split(bias, 2))]
    before = dict(zip(_STATES[node.op_type], node.input[5:], strict=False))
    steps, after = write_quantised_layer(build, Layer(cell, weights, reads_levels=bounded), name, node.input[0], before)
    # The operator's outputs are [T, D, B, H] and [D, B, H] with D = 1.
    build.node("Unsqueeze", [steps, build.shape(1)], node.output[0])
    for end, wanted in zip(after.values(), node.output[1:], strict=False):
        build.node("Identity", [end], wanted)


def _reorder(cell: str, weight: Array) -> Array:
    """Blocks of H rows in ONNX's order -> in torch's."""
    blocks = np.split(weight, len(_TORCH_ORDER[cell]))
    return np.concatenate([blocks[block] for block in _TORCH_ORDER[cell]])


def _is_plain(node: onnx.NodeProto) -> bool:
    """It reads forward, whole calls, from given states, with the activations that bound h."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    own = node.op_type != "GRU" or attributes.get("linear_before_reset") == 1
    usual = set(attributes) <= {"hidden_size", "linear_before_reset", "direction"}
    is_forward = attributes.get("direction", b"forward") == b"forward"
    starts = list(node.input[5 : 5 + len(_STATES[node.op_type])])
    return (
        own and usual and is_forward and not node.input[4] and len(starts) == len(_STATES[node.op_type]) and all(starts)
    )


def _bounded(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Tensors that are the hidden states of a layer above which another may lie."""
    outputs = {node.output[0] for node in nodes if node.op_type in _STATES and _is_plain(node)}
    for node in nodes:
        if node.op_type == "Squeeze" and node.input[0] in outputs:
            yield node.output[0]


def _names(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, in bodies too."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from _names(inner)


def _difference(path: Path, quantized: Path, contract: pb.ModelContract) -> float:
    """The largest difference between two models' outputs and final states, over drawn input."""
    inputs = draw_inputs(contract, _ROWS, _STEPS)
    one, other = (Runtime(file, contract, 1).run(inputs, _STEPS) for file in (path, quantized))
    return max(float(np.abs(one[name].astype(np.float64) - other[name].astype(np.float64)).max()) for name in one)
