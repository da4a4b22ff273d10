"""Quantisation: a model file whose recurrent layers have weights of 8 bits, and keep every law.

Owns: the rewriting of recurrent nodes, and what of a model folder becomes of it. Must not know torch: it reads an
exported model. Which other ways there are, and what each costs and gains: docs/benchmarks/int8.md.

An LSTM's, GRU's or tanh RNN's hidden state lies in [-1, 1], so it is written in steps of 1/127 whatever the data are:
no scale is taken from a batch or a call, products of bytes are exact in integers, and so a row's bits depend on nothing
but the row. Weights have a scale a column. What has no such bound stays float32: the first layer's input, cell states,
gates, everything around the layers. A state that a client gives beyond [-1, 1] is clipped where it is read.

Dimension key: B batch, T steps, F features in, H hidden, G gates (4 in an LSTM, 3 in a GRU, 1 in an RNN).
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import helper, numpy_helper

from eddy.training.builder import Array, GraphBuilder, check_structure, floats
from eddy.training.contract import STEP_FILE, attach_contract, extract_contract, load_model, sample_path, save_model
from eddy.training.drawing import draw_inputs
from eddy.training.errors import ExportError
from eddy.training.probe import probe
from eddy.training.runtime import Runtime
from eddy.training.storage import make_folder
from eddy.training.verify import Report, verify
from eddy.v1 import contract_pb2 as pb

_DOMAIN = "com.microsoft"
# Bytes around 128: 127 of them on each side of 0.
_LEVELS, _ZERO = 127, 128
_STATES = {"LSTM": ("h", "c"), "GRU": ("h",), "RNN": ("h",)}
_PARITY_ROWS, _PARITY_STEPS = 8, 64


def quantize_model(path: Path, directory: Path) -> Report:
    """Write a model folder beside that of `path`, its step graph with 8-bit weights, other graphs as they are.

    The verdict on its own numbers goes into its contract, and, as parity, the largest difference from the model at
    `path`. Raises ContractError, ExportError where there is nothing to quantise, VerificationError.
    """
    model = load_model(path)
    contract = extract_contract(model, str(path))
    quantized = quantize_graph(model, contract)
    contract.description += "; hidden states and recurrent weights of 8 bits"
    contract.numerics.Clear()
    attach_contract(quantized, contract)
    make_folder(directory)
    with TemporaryDirectory(prefix=".unproven-", dir=directory) as draft:
        step = Path(draft) / STEP_FILE
        for name in (contract.graphs.prime, contract.graphs.whole):
            if name:
                shutil.copyfile(path.with_name(name), step.with_name(name))
        save_model(step, quantized)
        probe(step)
        contract.numerics.parity_max_difference = _difference(path, step, contract)
        attach_contract(quantized, contract)
        save_model(step, quantized)
        report = verify(step)
        for file in sorted(Path(draft).iterdir(), key=lambda file: file.name == STEP_FILE):
            file.replace(directory / file.name)
    sample = sample_path(path, contract)
    if sample.exists():
        shutil.copyfile(sample, directory / sample.name)
    return report


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
            _Layer(build, node, constants).write(is_bounded=node.input[0] in bounded)
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
    quantized.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    check_structure(quantized)
    return quantized


class _Layer:
    """One recurrent node, written anew: what comes of x for all steps at once, then a Scan with what comes of h.

    Args:
        build: where nodes and constants go; node: a recurrent node; constants: the graph's, by name.
    """

    def __init__(self, build: GraphBuilder, node: onnx.NodeProto, constants: dict[str, Array]) -> None:
        self._build, self._node, self._tag = build, node, f"int8_{node.output[0]}"
        # [F, G * H], [H, G * H], and the biases of both, [G * H].
        self._w, self._r = (np.asarray(constants[name][0], np.float32).T for name in node.input[1:3])
        self._hidden = len(self._r)
        bias = constants[node.input[3]][0] if len(node.input) > 3 and node.input[3] else np.zeros(2 * self._r.shape[1])
        self._w_bias, self._r_bias = np.split(np.asarray(bias, np.float32), 2)

    def write(self, *, is_bounded: bool) -> None:
        """Appends the nodes. is_bounded: x is a hidden state itself, in [-1, 1]."""
        build, tag, node = self._build, self._tag, self._node
        build.constant("int8_scale", np.array(1 / _LEVELS, np.float32))
        build.constant("int8_zero", np.array(_ZERO, np.uint8))
        # 1. x of all steps: [T, B, F] -> [T, B, G * H].
        if is_bounded:
            given = self._product(build, "given", node.input[0], self._w, self._w_bias)
        else:
            product = build.node("MatMul", [node.input[0], build.constant(f"{tag}_W", self._w)], f"{tag}_given_product")
            given = build.node("Add", [product, build.constant(f"{tag}_W_bias", self._w_bias)], f"{tag}_given")
        # 2. The body: states [B, H] and gates of x [B, G * H] -> next states, and h once more as the step's output.
        body, names = build.body(f"{tag}_body"), _STATES[node.op_type]
        befores = [f"{tag}_{name}" for name in names]
        own = self._product(body, "own", befores[0], self._r, self._r_bias)
        write_cell: Callable[[GraphBuilder, str, list[str]], list[str]] = {
            "LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn,
        }[node.op_type]  # fmt: skip
        afters = write_cell(body, own, befores)
        output = body.node("Identity", [afters[0]], f"{tag}_output")
        ports = [floats(name, "B", self._hidden) for name in befores]
        ports.append(floats(f"{tag}_step", "B", self._r.shape[1]))
        graph = body.graph(ports, [floats(name, "B", self._hidden) for name in [*afters, output]], is_body=True)
        # 3. The scan, between the operator's shapes: states [1, B, H], outputs [T, 1, B, H].
        starts = node.input[5 : 5 + len(names)]
        states = [
            build.node("Squeeze", [start, build.shape(0)], f"{before}_start")
            for start, before in zip(starts, befores, strict=True)
        ]
        ends = [f"{tag}_{name}_end" for name in names]
        build.split("Scan", [*states, given], [*ends, f"{tag}_steps"], tag, body=graph, num_scan_inputs=1)
        build.node("Unsqueeze", [f"{tag}_steps", build.shape(1)], node.output[0])
        for end, wanted in zip(ends, node.output[1:], strict=False):
            build.node("Unsqueeze", [end, build.shape(0)], wanted)

    def _product(self, build: GraphBuilder, name: str, x: str, matrix: Array, bias: Array) -> str:
        """A value x in [-1, 1], float32 [..., K], times a matrix [K, N] of 8 bits, plus a bias."""
        label = f"{self._tag}_{name}"
        scales = np.maximum(np.abs(matrix).max(axis=0) / _LEVELS, np.finfo(np.float32).tiny).astype(np.float32)
        whole = build.node("QuantizeLinear", [x, "int8_scale", "int8_zero"], f"{label}_bytes")
        inputs = [
            whole,
            build.constant(f"{label}_matrix", np.round(matrix / scales).astype(np.int8)),
            "int8_scale",
            build.constant(f"{label}_scales", scales),
            "int8_zero",
            "",
            build.constant(f"{label}_bias", bias),
        ]
        return build.node("MatMulIntegerToFloat", inputs, label, domain=_DOMAIN)

    def _lstm(self, body: GraphBuilder, own: str, befores: list[str]) -> list[str]:
        """Gates in ONNX's order: input, output, forget, cell."""
        tag = self._tag
        gates = body.node("Add", [own, f"{tag}_step"], f"{tag}_gates")
        sizes = body.shape(3 * self._hidden, self._hidden)
        body.split("Split", [gates, sizes], [f"{tag}_doors", f"{tag}_cell"], f"{tag}_gates", axis=1)
        opened = body.node("Sigmoid", [f"{tag}_doors"], f"{tag}_opened")
        doors = [f"{tag}_{name}" for name in ("input", "shown", "forget")]
        body.split("Split", [opened, body.shape(*[self._hidden] * 3)], doors, f"{tag}_doors", axis=1)
        new = body.node("Tanh", [f"{tag}_cell"], f"{tag}_new")
        kept = body.node("Mul", [doors[2], befores[1]], f"{tag}_kept")
        added = body.node("Mul", [doors[0], new], f"{tag}_added")
        cell = body.node("Add", [kept, added], f"{tag}_c_after")
        seen = body.node("Tanh", [cell], f"{tag}_seen")
        return [body.node("Mul", [doors[1], seen], f"{tag}_h_after"), cell]

    def _gru(self, body: GraphBuilder, own: str, befores: list[str]) -> list[str]:
        """Gates in ONNX's order: update, reset, hidden; the reset gate after the product (linear_before_reset)."""
        tag, sizes = self._tag, body.shape(2 * self._hidden, self._hidden)
        for source, name in ((own, "own"), (f"{tag}_step", "step")):
            parts = [f"{tag}_{name}_doors", f"{tag}_{name}_new"]
            body.split("Split", [source, sizes], parts, f"{tag}_{name}", axis=1)
        summed = body.node("Add", [f"{tag}_own_doors", f"{tag}_step_doors"], f"{tag}_doors")
        opened = body.node("Sigmoid", [summed], f"{tag}_opened")
        doors = [f"{tag}_update", f"{tag}_reset"]
        body.split("Split", [opened, body.shape(self._hidden, self._hidden)], doors, f"{tag}_doors", axis=1)
        reset = body.node("Mul", [doors[1], f"{tag}_own_new"], f"{tag}_was")
        new = body.node("Tanh", [body.node("Add", [reset, f"{tag}_step_new"], f"{tag}_candidate")], f"{tag}_new")
        # (1 - z) n + z h, as n + z (h - n).
        apart = body.node("Sub", [befores[0], new], f"{tag}_apart")
        return [body.node("Add", [new, body.node("Mul", [doors[0], apart], f"{tag}_moved")], f"{tag}_h_after")]

    def _rnn(self, body: GraphBuilder, own: str, befores: list[str]) -> list[str]:
        del befores
        gates = body.node("Add", [own, f"{self._tag}_step"], f"{self._tag}_gates")
        return [body.node("Tanh", [gates], f"{self._tag}_h_after")]


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
    inputs = draw_inputs(contract, _PARITY_ROWS, _PARITY_STEPS)
    one, other = (Runtime(file, contract, 1).run(inputs, _PARITY_STEPS) for file in (path, quantized))
    return max(float(np.abs(one[name].astype(np.float64) - other[name].astype(np.float64)).max()) for name in one)
