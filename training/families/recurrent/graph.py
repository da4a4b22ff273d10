"""The recurrent model's step graph, as few ONNX nodes as the mathematics allows.

Owns: the path from the input and the states to the heads and the next states. Must not know contracts or files.

ONNX's recurrent operators want time first, so the input is turned once on the way in and the output once on the way
out; states stay batch-first, because sessions are rows.
"""

import onnx

from eddy.training.builder import Array, GraphBuilder, floats, integers
from eddy.training.families.nodes import Weights, weights_of, write_head, write_input, write_layer, write_linear
from eddy.training.families.quantised import write_quantised_layer
from eddy.training.families.recurrent.attention import write_attention
from eddy.training.families.recurrent.convolution import write_convolution, write_frames
from eddy.training.families.recurrent.levels import read_layers
from eddy.training.families.recurrent.model import RecurrentModel
from eddy.training.families.recurrent.spec import RecurrentSpec
from eddy.training.spec import INT8, FrameInput, TokenInput, head_shape


def build_step_graph(model: RecurrentModel) -> onnx.ModelProto:
    """Translate a model (its weights copied as constants) into a step graph, without metadata.

    Inputs: `tokens` int64 [B, T], `values` float32 [B, T, F] or `frames` float32 [B, T, ...]; the states [B, ...] that
    the specification lists. Outputs: the heads', and every state's successor `<name>_next`. B and T are symbolic.
    """
    spec, weights, build = model.spec, weights_of(model), GraphBuilder()
    # 1. From the input to the layers, [T, B, width].
    if isinstance(spec.input, FrameInput) and spec.frame_convolutions:
        steps = write_frames(build, spec.frame_convolutions, spec.input, spec.widths[0], weights)
    else:
        steps = write_input(build, spec.input, weights)
    for index, part in enumerate(spec.convolutions):
        steps = write_convolution(build, part, index, steps, f"conv_{index}", weights)
    # 2. The layers, [T, B, H].
    if spec.layers:
        steps = _write_layers(build, spec, steps, weights)
    else:
        summed = write_linear(build, "dense", steps, weights["dense.weight"], weights["dense.bias"])
        steps = build.node("Relu", [summed], "dense_features")
    # 3. The heads.
    if spec.attention is not None:
        steps = write_attention(build, spec.attention, spec.hidden, steps, weights)
    for head, name in zip(spec.heads, spec.projections, strict=True):
        write_head(build, head, spec.input, name, steps, weights, time_first=spec.attention is None)
    return build.model(*_ports(spec))


def _write_layers(build: GraphBuilder, spec: RecurrentSpec, steps: str, weights: Weights) -> str:
    """[T, B, width] -> [T, B, H], and the cells' next states."""
    befores = {name: _write_state_in(build, spec, name) for name in spec.cell_state_names}
    layers = [_layer_weights(spec, weights, layer) for layer in range(spec.layers)]
    quantised = read_layers(spec, layers) if spec.precision == INT8 else []
    afters: dict[str, list[str]] = {name: [] for name in spec.cell_state_names}
    for layer in range(spec.layers):
        before = {name: befores[name][layer] for name in befores}
        given = steps
        if quantised:
            steps, after = write_quantised_layer(build, quantised[layer], str(layer), given, before)
        else:
            steps, after = write_layer(build, spec.cell, str(layer), given, layers[layer], before)
        if spec.residual and layer:
            steps = build.node("Add", [steps, given], f"hidden_{layer}_and_input")
        for name, value in after.items():
            afters[name].append(value)
    for name, values in afters.items():
        _write_state_out(build, spec, name, values)
    return steps


def _layer_weights(spec: RecurrentSpec, weights: Weights, layer: int) -> list[Array]:
    parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    if spec.residual:
        return [weights[f"stack.{layer}.{part}_l0"] for part in parts]
    return [weights[f"recurrent.{part}_l{layer}"] for part in parts]


def _write_state_in(build: GraphBuilder, spec: RecurrentSpec, name: str) -> list[str]:
    """State [B, L, H] -> one [1, B, H] per layer. With a single layer this is a view, nothing is copied."""
    parts = [name]
    if spec.layers > 1:
        parts = [f"{name}_rows_{layer}" for layer in range(spec.layers)]
        build.split("Split", [name, build.shape(*[1] * spec.layers)], parts, name, axis=1)
    to_layer = build.shape(1, -1, spec.hidden)
    return [build.node("Reshape", [part, to_layer], f"{name}_{i}") for i, part in enumerate(parts)]


def _write_state_out(build: GraphBuilder, spec: RecurrentSpec, name: str, parts: list[str]) -> None:
    """[1, B, H] per layer -> [B, L, H] under the name `<name>_next`."""
    to_rows = build.shape(-1, 1, spec.hidden)
    if spec.layers == 1:
        build.node("Reshape", [parts[0], to_rows], f"{name}_next")
        return
    rows = [build.node("Reshape", [part, to_rows], f"{part}_rows") for part in parts]
    build.node("Concat", rows, f"{name}_next", axis=1)


def _ports(spec: RecurrentSpec) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """The graph's typed inputs and outputs."""
    if isinstance(spec.input, TokenInput):
        given = integers(spec.input.name, "B", "T")
    else:
        axes = spec.input.shape if isinstance(spec.input, FrameInput) else (spec.input.width,)
        given = floats(spec.input.name, "B", "T", *axes)
    outputs = [floats(head.name, "B", "T", *head_shape(head)) for head in spec.heads]
    states = [(integers if state.is_count else floats, state) for state in spec.states]
    before = [port(state.name, "B", *state.shape) for port, state in states]
    after = [port(f"{state.name}_next", "B", *state.shape) for port, state in states]
    return [given, *before], [*outputs, *after]
