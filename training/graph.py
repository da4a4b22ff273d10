"""The step graph: a trained model as ONNX nodes, as few of them as the mathematics allows.

Owns: the translation of weights and cells into ONNX operators, and the checks that the result has the properties
which serving relies on. Must not know contracts, checkpoints or files.

The graph is written node by node instead of traced: two thirds of the traced one's nodes (no copies of the state where
L = 1, no shape arithmetic), the same bits, the same time or up to 7 % less (LSTM 128, batches 2 to 256), and it does
not change with torch's exporter. ONNX's
recurrent operators want time first, so the input is turned once on the way in and the output once on the way out;
states stay batch-first, because sessions are rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from eddy.training.errors import ExportError
from eddy.training.model import RecurrentModel, quantile_ladder
from eddy.training.spec import FeatureInput, ModelSpec, QuantileHead, TokenHead, TokenInput

# Opset 17 is the oldest with everything needed; every ONNX Runtime since 1.12 runs it, on CPU and CUDA.
OPSET = 17
IR_VERSION = 8
RECURRENT_OPERATORS = ("RNN", "GRU", "LSTM")

# Row blocks of torch's stacked gate weights, in the order in which ONNX's operator wants them:
# torch LSTM i, f, g, o -> ONNX i, o, f, c; torch GRU r, z, n -> ONNX z, r, h.
_GATES = {"rnn_tanh": (0,), "rnn_relu": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
_OPERATORS = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "lstm": "LSTM", "gru": "GRU"}

Array = npt.NDArray[np.generic]


def build_step_graph(model: RecurrentModel) -> onnx.ModelProto:
    """Translate a model (its weights copied as constants) into a step graph, without metadata.

    Inputs: `tokens` int64 [B, T] or `values` float32 [B, T, F]; states float32 [B, L, H]. Outputs: the head's, and
    every state's successor `<name>_next`. B and T are symbolic.
    """
    spec, build = model.spec, _Builder(model)
    steps = _write_input(build, spec)
    befores = {name: _write_state_in(build, spec, name) for name in spec.state_names}
    afters: dict[str, list[str]] = {name: [] for name in spec.state_names}
    for layer in range(spec.layers):
        steps, after = _write_layer(build, spec, layer, steps, {name: befores[name][layer] for name in befores})
        for name, value in after.items():
            afters[name].append(value)
    _write_head(build, spec, steps)
    for name, values in afters.items():
        _write_state_out(build, spec, name, values)
    return build.model(*_ports(spec))


class _Builder:
    """Collects nodes and constants. Nodes and initializers grow only through its methods."""

    def __init__(self, model: RecurrentModel) -> None:
        self.weights = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node with one output; returns the output's name."""
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=f"{operator}_{output}", **attributes))
        return output

    def constant(self, name: str, value: Array) -> str:
        """Add an initializer once; returns its name."""
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def shape(self, *dims: int) -> str:
        """An int64 constant for Reshape, Squeeze or Split."""
        return self.constant("ints_" + "_".join(str(d).replace("-", "m") for d in dims), np.array(dims, np.int64))

    def model(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The finished, checked model."""
        graph = helper.make_graph(self.nodes, "step", inputs, outputs, list(self.initializers.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="eddy")
        onnx.checker.check_model(model, full_check=True)
        return model


def _write_input(build: _Builder, spec: ModelSpec) -> str:
    """Raw input -> features of the first layer, time first: [T, B, width]."""
    if isinstance(spec.input, TokenInput):
        # Turning the ids before the look-up moves 8 bytes a step instead of a whole vector.
        turned = build.node("Transpose", [spec.input.name], "tokens_time_first", perm=[1, 0])
        table = build.constant("embedding", build.weights["embedding.weight"])
        return build.node("Gather", [table, turned], "embedded", axis=0)
    values = spec.input.name
    if not spec.input.is_identity:
        mean = build.constant("mean", np.array(spec.input.mean, np.float32))
        scale = build.constant("scale", np.array(spec.input.scale, np.float32))
        values = build.node("Div", [build.node("Sub", [values, mean], "centred"), scale], "standardised")
    return build.node("Transpose", [values], "features_time_first", perm=[1, 0, 2])


def _write_state_in(build: _Builder, spec: ModelSpec, name: str) -> list[str]:
    """State [B, L, H] -> one [1, B, H] per layer. With a single layer this is a view, nothing is copied."""
    parts = [name]
    if spec.layers > 1:
        parts = [f"{name}_rows_{layer}" for layer in range(spec.layers)]
        build.nodes.append(
            helper.make_node("Split", [name, build.shape(*[1] * spec.layers)], parts, name=f"Split_{name}", axis=1)
        )
    to_layer = build.shape(1, -1, spec.hidden)
    return [build.node("Reshape", [part, to_layer], f"{name}_{i}") for i, part in enumerate(parts)]


def _write_layer(
    build: _Builder, spec: ModelSpec, layer: int, steps: str, before: dict[str, str]
) -> tuple[str, dict[str, str]]:
    """One recurrent layer: [T, B, width] and [1, B, H] states -> [T, B, H] and [1, B, H] next states."""
    names = [
        build.constant(f"W_{layer}", _reorder(build, spec, f"weight_ih_l{layer}")[None]),
        build.constant(f"R_{layer}", _reorder(build, spec, f"weight_hh_l{layer}")[None]),
        build.constant(
            f"B_{layer}",
            np.concatenate([_reorder(build, spec, f"bias_{part}_l{layer}") for part in ("ih", "hh")])[None],
        ),
    ]
    attributes: dict[str, Any] = {"hidden_size": spec.hidden}
    if spec.cell == "gru":
        attributes["linear_before_reset"] = 1  # torch applies the reset gate after the recurrent product
    if spec.cell == "rnn_relu":
        attributes["activations"] = ["Relu"]
    after = {name: f"{name}_{layer}_after" for name in before}
    build.nodes.append(
        helper.make_node(
            _OPERATORS[spec.cell],
            [steps, *names, "", *before.values()],
            [f"Y_{layer}", *after.values()],
            name=f"{_OPERATORS[spec.cell]}_{layer}",
            **attributes,
        )
    )
    # Y is [T, D, B, H] with D = 1.
    return build.node("Squeeze", [f"Y_{layer}", build.shape(1)], f"hidden_{layer}"), after


def _reorder(build: _Builder, spec: ModelSpec, name: str) -> Array:
    """A stacked gate weight of torch's with its blocks of H rows in ONNX's order."""
    blocks = np.split(build.weights[f"recurrent.{name}"], len(_GATES[spec.cell]))
    return np.concatenate([blocks[gate] for gate in _GATES[spec.cell]])


def _write_head(build: _Builder, spec: ModelSpec, steps: str) -> None:
    """Hidden states [T, B, H] -> the head's output, batch first, under its name."""
    if isinstance(spec.head, QuantileHead):
        _write_quantiles(build, spec, spec.head, steps)
        return
    projected = _linear(build, "head", steps, build.weights["head.weight"], build.weights["head.bias"])
    build.node("Transpose", [projected], spec.head.name, perm=[1, 0, 2])


def _write_quantiles(build: _Builder, spec: ModelSpec, head: QuantileHead, steps: str) -> None:
    """The quantile head as two projections: squares of one, laddered by a constant matrix, added to the other.

    The deviation that scales the result is multiplied into the constants.
    """
    assert isinstance(spec.input, FeatureInput)
    num_horizons, num_quantiles = len(head.horizons), len(head.quantiles)
    scale = np.float32(spec.input.scale[head.target])
    spread = np.repeat(scale * build.weights["head.base.weight"], num_quantiles, axis=0)
    offset = np.repeat(scale * build.weights["head.base.bias"], num_quantiles)
    relative = _linear(build, "base", steps, spread, offset)
    if num_quantiles > 1:
        roots = _linear(build, "roots", steps, build.weights["head.roots.weight"], build.weights["head.roots.bias"])
        squares = build.node("Mul", [roots, roots], "squares")
        ladder = np.kron(np.eye(num_horizons, dtype=np.float32), scale * quantile_ladder(num_quantiles).numpy())
        gaps = build.node("MatMul", [squares, build.constant("ladder", ladder)], "gaps")
        relative = build.node("Add", [relative, gaps], "relative")
    turned = build.node("Transpose", [relative], "relative_batch_first", perm=[1, 0, 2])
    now = spec.input.name
    if spec.input.width > 1:
        now = build.node("Gather", [now, build.constant("target", np.array([head.target], np.int64))], "now", axis=2)
    summed = build.node("Add", [turned, now], "flat_quantiles")
    build.node("Reshape", [summed, build.shape(0, 0, num_horizons, num_quantiles)], head.name)


def _linear(build: _Builder, name: str, steps: str, weight: Array, bias: Array) -> str:
    """[T, B, H] @ weight^T + bias, for torch's weight layout [outputs, H]."""
    product = build.node("MatMul", [steps, build.constant(f"{name}_weight", weight.T)], f"{name}_product")
    return build.node("Add", [product, build.constant(f"{name}_bias", bias)], f"{name}_projected")


def _write_state_out(build: _Builder, spec: ModelSpec, name: str, parts: list[str]) -> None:
    """[1, B, H] per layer -> [B, L, H] under the name `<name>_next`."""
    to_rows = build.shape(-1, 1, spec.hidden)
    if spec.layers == 1:
        build.node("Reshape", [parts[0], to_rows], f"{name}_next")
        return
    rows = [build.node("Reshape", [part, to_rows], f"{part}_rows") for part in parts]
    build.node("Concat", rows, f"{name}_next", axis=1)


def _ports(spec: ModelSpec) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """The graph's typed inputs and outputs."""
    floats = TensorProto.FLOAT
    state: list[str | int | None] = ["B", spec.layers, spec.hidden]
    if isinstance(spec.input, TokenInput):
        given = helper.make_tensor_value_info(spec.input.name, TensorProto.INT64, ["B", "T"])
    else:
        given = helper.make_tensor_value_info(spec.input.name, floats, ["B", "T", spec.input.width])
    output = helper.make_tensor_value_info(spec.head.name, floats, ["B", "T", *head_shape(spec)])
    states = [helper.make_tensor_value_info(name, floats, state) for name in spec.state_names]
    nexts = [helper.make_tensor_value_info(f"{name}_next", floats, state) for name in spec.state_names]
    return [given, *states], [output, *nexts]


def head_shape(spec: ModelSpec) -> tuple[int, ...]:
    """Axes of the output after [B, T]: (V,), (K, Q) or (outputs,)."""
    if isinstance(spec.head, QuantileHead):
        return len(spec.head.horizons), len(spec.head.quantiles)
    return (spec.head.vocabulary_size if isinstance(spec.head, TokenHead) else spec.head.outputs,)


def check_structure(model: onnx.ModelProto) -> None:
    """Raise ExportError unless the graph keeps what serving relies on.

    Recurrent weights are initializers (CUDA caches them only then), no recurrent node is batch-first (`layout` 1 has
    no CPU kernel), all data is inside the file, and every input and output has a symbolic first axis.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ExportError(f"initializer {tensor.name!r}: data lies outside the file, expected inside")
    for node in model.graph.node:
        if node.op_type not in RECURRENT_OPERATORS:
            continue
        for label, name in zip("WRB", node.input[1:4], strict=False):
            if name not in constants:
                raise ExportError(f"{node.name}: {label} is {name!r}, expected an initializer")
        layout = next((a.i for a in node.attribute if a.name == "layout"), 0)
        if layout != 0:
            raise ExportError(f"{node.name}: layout is {layout}, expected 0")
    for port in [*model.graph.input, *model.graph.output]:
        if not port.type.tensor_type.shape.dim[0].dim_param:
            raise ExportError(f"{port.name!r}: the first axis is fixed, expected a symbolic batch axis")
