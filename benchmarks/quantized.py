"""LSTM step graphs with weights of 8 bits: the ways to write them.

Owns the rewriting: every LSTM node of a step graph is replaced by a node or a cell of plain operators. Must not know
what is measured.

In a cell of one step the input x and the state h stand side by side, z = [x, h] of [B, K], K = F + H, so that there is
one product a layer: gates = z @ M + b, M of [K, 4H] with the weights' columns in the order input, output, forget, cell.
Weights have a scale a column, symmetric around 0.

Dimension key: B batch, T steps, F features in, H hidden, K = F + H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from eddy.training.contract import extract_contract
from eddy.training.quantize import quantize_graph

_MICROSOFT = "com.microsoft"
# MatMulNBits quantises K in blocks of so many; 32 is what its fast kernels want.
_BLOCK = 32
# h lies in (-1, 1): so many levels on each side of 0, as unsigned bytes around the zero point.
_LEVELS, _ZERO = 127, 128


class Cells:
    """Rewrites one graph; `nodes` and `constants` grow only through the methods."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """A node with one output; operators with a dot in their name are ONNX Runtime's own."""
        domain, _, name = operator.rpartition(".")
        kind = _MICROSOFT if domain else ""
        self.nodes.append(helper.make_node(name, inputs, [output], name=output, domain=kind, **attributes))
        return output

    def split(self, inputs: list[str], outputs: list[str]) -> None:
        """Cuts features apart."""
        self.nodes.append(helper.make_node("Split", inputs, outputs, axis=1))

    def constant(self, name: str, values: np.ndarray) -> str:
        """A constant, once."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def matrix(self, node: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray]:
        """M float32 [K, 4H] and b float32 [4H] of an LSTM node."""
        w, r, b = (self.weights[name][0] for name in node.input[1:4])
        half = len(b) // 2
        return np.concatenate([w, r], axis=1).T.copy(), b[:half] + b[half:]


Product = Callable[[Cells, onnx.NodeProto, str, str], str]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to write an LSTM.

    Attributes:
        rewrite: a step graph with its LSTM nodes written so; the graph that it is given stays as it is.
        takes_chunks: T may be anything; otherwise it is 1.
    """

    name: str
    rewrite: Callable[[onnx.ModelProto], onnx.ModelProto]
    takes_chunks: bool = False


def _nodes(write: Callable[[Cells, onnx.NodeProto], None]) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """Rewrites every LSTM node: `write` appends what stands for one to the cells."""

    def rewrite(model: onnx.ModelProto) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        cells = Cells(copy.graph)
        for node in copy.graph.node:
            if node.op_type == "LSTM":
                write(cells, node)
            else:
                cells.nodes.append(node)
        used = {name for node in cells.nodes for name in node.input}
        kept = [tensor for tensor in copy.graph.initializer if tensor.name in used]
        del copy.graph.node[:], copy.graph.initializer[:]
        copy.graph.node.extend(cells.nodes)
        copy.graph.initializer.extend([*kept, *cells.constants])
        copy.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))
        return copy

    return rewrite


def _shipped(model: onnx.ModelProto) -> onnx.ModelProto:
    """What `eddy quantize` makes of it: `_fixed` for any T, with a Scan over the steps."""
    return quantize_graph(model, extract_contract(model, "the measured model"))


# The cell around a product


def _cell(product: Product) -> Callable[[Cells, onnx.NodeProto], None]:
    """One step of plain operators around `product`."""

    def write(cells: Cells, node: onnx.NodeProto) -> None:
        tag = node.output[0]
        first = cells.constant(f"{tag}_first", np.array([0], np.int64))
        second = cells.constant(f"{tag}_second", np.array([1], np.int64))
        x = cells.add("Squeeze", [node.input[0], first], f"{tag}_x")
        h = cells.add("Squeeze", [node.input[5], first], f"{tag}_h")
        c = cells.add("Squeeze", [node.input[6], first], f"{tag}_c")
        _write_constants(cells, node)
        shown, after = _write_gates(cells, tag, product(cells, node, x, h), c)
        cells.add("Unsqueeze", [after, first], node.output[2])
        step = cells.add("Unsqueeze", [shown, first], node.output[1])
        cells.add("Unsqueeze", [step, second], node.output[0])

    return write


def _write_constants(cells: Cells, node: onnx.NodeProto) -> None:
    """How the gates [B, 4H] are split."""
    tag, hidden = node.output[0], cells.weights[node.input[2]].shape[-1]
    cells.constant(f"{tag}_sizes", np.array([3 * hidden, hidden], np.int64))
    cells.constant(f"{tag}_thirds", np.array([hidden] * 3, np.int64))


def _write_gates(cells: Cells, tag: str, gates: str, c: str) -> tuple[str, str]:
    """Gates [B, 4H] and cell state [B, H] -> next h and c, [B, H]."""
    cells.split([gates, f"{tag}_sizes"], [f"{tag}_doors", f"{tag}_new"])
    doors = cells.add("Sigmoid", [f"{tag}_doors"], f"{tag}_open")
    names = [f"{tag}_{name}" for name in ("in", "out", "forget")]
    cells.split([doors, f"{tag}_thirds"], names)
    new = cells.add("Tanh", [f"{tag}_new"], f"{tag}_candidate")
    kept = cells.add("Mul", [names[2], c], f"{tag}_kept")
    added = cells.add("Mul", [names[0], new], f"{tag}_added")
    after = cells.add("Add", [kept, added], f"{tag}_c_after")
    seen = cells.add("Tanh", [after], f"{tag}_seen")
    return cells.add("Mul", [names[1], seen], f"{tag}_h_after"), after


def _plain(cells: Cells, node: onnx.NodeProto, x: str, h: str) -> str:
    """Float32, to see what leaving the LSTM operator costs by itself."""
    tag, (matrix, bias) = node.output[0], cells.matrix(node)
    z = cells.add("Concat", [x, h], f"{tag}_z", axis=1)
    constants = [cells.constant(f"{tag}_M", matrix), cells.constant(f"{tag}_b", bias)]
    return cells.add("Gemm", [z, *constants], f"{tag}_gates")


def _per_row(cells: Cells, node: onnx.NodeProto, x: str, h: str) -> str:
    """Activations with a scale of each row's own, its largest magnitude / 127; the integer product is exact."""
    tag, (matrix, bias) = node.output[0], cells.matrix(node)
    values, scales = _columns(matrix)
    z = cells.add("Concat", [x, h], f"{tag}_z", axis=1)
    size = cells.add("ReduceMax", [cells.add("Abs", [z], f"{tag}_abs")], f"{tag}_max", axes=[1], keepdims=1)
    least = cells.constant(f"{tag}_least", np.array(1e-6, np.float32))
    step = cells.add(
        "Mul",
        [cells.add("Max", [size, least], f"{tag}_most"), cells.constant(f"{tag}_127", np.array(1 / 127, np.float32))],
        f"{tag}_step",
    )
    level = cells.add("Div", [z, step], f"{tag}_level")
    shifted = cells.add("Add", [level, cells.constant(f"{tag}_128", np.array(128, np.float32))], f"{tag}_shifted")
    rounded = cells.add("Round", [shifted], f"{tag}_rounded")
    whole = cells.add("Cast", [rounded], f"{tag}_q", to=TensorProto.UINT8)
    product = cells.add("MatMulInteger", [whole, *_integers(cells, tag, values)], f"{tag}_product")
    real = cells.add("Cast", [product], f"{tag}_real", to=TensorProto.FLOAT)
    scaled = cells.add("Mul", [real, cells.constant(f"{tag}_scales", scales)], f"{tag}_scaled")
    rows = cells.add("Mul", [scaled, step], f"{tag}_rows")
    return cells.add("Add", [rows, cells.constant(f"{tag}_b", bias)], f"{tag}_gates")


def _fixed(cells: Cells, node: onnx.NodeProto, x: str, h: str) -> str:
    """State h with the fixed scale 1/127, which no data decides: it lies in (-1, 1). The first layer's x in float32."""
    tag, (matrix, bias) = node.output[0], cells.matrix(node)
    features = len(matrix) - cells.weights[node.input[2]].shape[-1]
    scale = cells.constant(f"{tag}_scale", np.array(1 / _LEVELS, np.float32))
    zero = cells.constant(f"{tag}_zero", np.array(_ZERO, np.uint8))
    is_first = not node.input[0].startswith("hidden_")
    z = h if is_first else cells.add("Concat", [x, h], f"{tag}_z", axis=1)
    whole = cells.add("QuantizeLinear", [z, scale, zero], f"{tag}_q")
    constants = _scaled(cells, f"{tag}_M", tag, matrix[features:] if is_first else matrix, bias)
    gates = cells.add("ms.MatMulIntegerToFloat", [whole, *constants], f"{tag}_from_h")
    if not is_first:
        return gates
    given = cells.add("MatMul", [x, cells.constant(f"{tag}_W", matrix[:features])], f"{tag}_from_x")
    return cells.add("Add", [gates, given], f"{tag}_gates")


def _blocks(bits: int, accuracy: int) -> Product:
    """`MatMulNBits`: weights in blocks; with accuracy 4 activations too, in blocks of each row's own."""

    def write(cells: Cells, node: onnx.NodeProto, x: str, h: str) -> str:
        tag, (matrix, bias) = node.output[0], cells.matrix(node)
        packed, scales = _pack(matrix, bits)
        z = cells.add("Concat", [x, h], f"{tag}_z", axis=1)
        constants = [cells.constant(f"{tag}_M", packed), cells.constant(f"{tag}_scales", scales)]
        product = cells.add(
            "ms.MatMulNBits",
            [z, *constants],
            f"{tag}_product",
            K=len(matrix),
            N=matrix.shape[1],
            bits=bits,
            block_size=_BLOCK,
            accuracy_level=accuracy,
        )
        return cells.add("Add", [product, cells.constant(f"{tag}_b", bias)], f"{tag}_gates")

    return write


def _scaled(cells: Cells, name: str, tag: str, matrix: np.ndarray, bias: np.ndarray | None = None) -> list[str]:
    """What `MatMulIntegerToFloat` wants beside bytes of the fixed scale."""
    values, scales = _columns(matrix)
    found = [
        cells.constant(name, values),
        f"{tag}_scale",
        cells.constant(f"{name}_scales", scales),
        f"{tag}_zero",
        cells.constant(f"{name}_zeros", np.zeros(len(scales), np.int8)),
    ]
    return found if bias is None else [*found, cells.constant(f"{name}_b", bias)]


# Other nodes in the LSTM's place


def _dynamic(cells: Cells, node: onnx.NodeProto) -> None:
    """ONNX Runtime's own `DynamicQuantizeLSTM`: activations with one scale for the whole batch."""
    tag = node.output[0]
    inputs = list(node.input)
    scales, zeros = [], []
    for number, name in ((1, "W"), (2, "R")):
        values, scale = _columns(cells.weights[node.input[number]][0].T)
        inputs[number] = cells.constant(f"{tag}_{name}", values[None])
        scales.append((cells.constant(f"{tag}_{name}_scale", scale[None]), name))
        zeros.append(cells.constant(f"{tag}_{name}_zero", np.zeros((1, len(scale)), np.int8)))
    inputs += [""] * (8 - len(inputs))
    for (scale_name, _), zero in zip(scales, zeros, strict=True):
        inputs += [scale_name, zero]
    hidden = cells.weights[node.input[2]].shape[-1]
    cells.nodes.append(
        helper.make_node(
            "DynamicQuantizeLSTM", inputs, list(node.output), name=tag, domain=_MICROSOFT, hidden_size=hidden
        )
    )


def _stored(cells: Cells, node: onnx.NodeProto) -> None:
    """Weights stored as int8 and turned into float32 before the LSTM."""
    inputs = list(node.input)
    for number in (1, 2):
        values, scales = _columns(cells.weights[node.input[number]][0].T)
        tag = f"{node.output[0]}_{number}"
        constants = [cells.constant(f"{tag}_q", values.T[None]), cells.constant(f"{tag}_scale", scales)]
        constants.append(cells.constant(f"{tag}_zero", np.zeros(len(scales), np.int8)))
        inputs[number] = cells.add("DequantizeLinear", constants, f"{tag}_real", axis=1)
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:]
    copy.input.extend(inputs)
    cells.nodes.append(copy)


# Weights


def _columns(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float32 [K, N] -> int8 [K, N] and the scale of each column, float32 [N]."""
    scales = (np.abs(matrix).max(axis=0) / 127).astype(np.float32)
    return np.round(matrix / scales).astype(np.int8), scales


def _integers(cells: Cells, tag: str, values: np.ndarray) -> list[str]:
    """The second operand of `MatMulInteger`, and the zero points of both."""
    return [
        cells.constant(f"{tag}_M", values),
        cells.constant(f"{tag}_zero", np.array(_ZERO, np.uint8)),
        cells.constant(f"{tag}_zeros", np.array(0, np.int8)),
    ]


def _pack(matrix: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Float32 [K, N] -> what `MatMulNBits` wants: uint8 [N, blocks, bytes] and scales float32 [N * blocks]."""
    columns = matrix.T
    missing = -columns.shape[1] % _BLOCK
    blocks = np.pad(columns, ((0, 0), (0, missing))).reshape(len(columns), -1, _BLOCK)
    middle = 2 ** (bits - 1)
    scales = np.maximum(np.abs(blocks).max(axis=2) / (middle - 1), 1e-12).astype(np.float32)
    levels = (np.round(blocks / scales[:, :, None]) + middle).astype(np.uint8)
    if bits == 4:
        levels = levels[:, :, 0::2] | (levels[:, :, 1::2] << 4)
    return levels, scales.reshape(-1)


FLOAT32 = Variant("float32 LSTM", lambda model: model, takes_chunks=True)
SHIPPED = Variant("int8 state, fixed scale, Scan", _shipped, takes_chunks=True)
VARIANTS = (
    FLOAT32,
    Variant("float32, plain operators", _nodes(_cell(_plain))),
    Variant("DynamicQuantizeLSTM", _nodes(_dynamic), takes_chunks=True),
    Variant("int8 weights, float32 LSTM", _nodes(_stored), takes_chunks=True),
    Variant("int8, a scale a row", _nodes(_cell(_per_row))),
    Variant("int8 state, fixed scale", _nodes(_cell(_fixed))),
    SHIPPED,
    Variant("MatMulNBits, 8 bits", _nodes(_cell(_blocks(8, 0)))),
    Variant("MatMulNBits, 8 bits, int8 activations", _nodes(_cell(_blocks(8, 4)))),
    Variant("MatMulNBits, 4 bits, int8 activations", _nodes(_cell(_blocks(4, 4)))),
)
