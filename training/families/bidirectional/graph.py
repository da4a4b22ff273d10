"""The step graph of a bidirectional model: blocks on a fixed grid, however the stream is cut; and the whole graph.

Owns: the loop over blocks, states and outputs. Must not know contracts or files. What is computed is defined in
`latency`; which frames and how many blocks there are is `frames`' work.

The layers run on the rows that complete a block. One loop runs as many blocks as the row with the most completes; a row
with fewer keeps its state, and has windows of no steps. A call that completes no block runs no layer.
"""

import numpy as np
import onnx
from onnx import TensorProto

from eddy.training.builder import GraphBuilder, booleans, floats, integers
from eddy.training.families.bidirectional.frames import write_aligned, write_counts, write_pending
from eddy.training.families.bidirectional.layer import write_initial, write_whole_layer, write_window_layer
from eddy.training.families.bidirectional.model import BidirectionalModel
from eddy.training.families.bidirectional.spec import COUNT, EMITTED, FLUSH, LENGTH, PENDING, BidirectionalSpec
from eddy.training.families.nodes import Weights, weights_of, write_features, write_head, write_input, write_linear
from eddy.training.spec import TokenInput, head_shape


def build_whole_graph(model: BidirectionalModel) -> onnx.ModelProto:
    """The exact model over whole sequences of equal length: input [B, T, ...] -> outputs [B, T, ...], no states."""
    spec, weights, build = model.spec, weights_of(model), GraphBuilder("whole")
    steps = write_input(build, spec.input, weights)
    build.node("Gather", [build.node("Shape", [spec.input.name], "input_shape"), build.scalar(0)], "batch")
    for layer in range(spec.layers):
        steps = write_whole_layer(build, spec, weights, layer, steps)
    for head, name in zip(spec.heads, spec.projections, strict=True):
        write_head(build, head, spec.input, name, steps, weights)
    return build.model([_input_port(spec)], [floats(head.name, "B", "T", *head_shape(head)) for head in spec.heads])


def build_step_graph(model: BidirectionalModel) -> onnx.ModelProto:
    """Translate a model (its weights copied as constants) into a step graph, without metadata.

    Inputs: `tokens` int64 [B, T] or `values` float32 [B, T, F]; `length` int64 [B]; `flush` bool [B]; the states
    `pending` [B, P] or [B, P, F], as the input, P = Nc - 1 + R; `count` int64 [B]; `h` and `c` float32 [B, L, H].
    Outputs: the heads', [B, T + P, ...], zero from `emitted` on; `emitted` int64 [B]; and every state's successor.
    """
    spec, weights, build = model.spec, weights_of(model), GraphBuilder()
    write_counts(build, spec)
    write_pending(build, spec)
    steps = write_features(build, spec.input, write_aligned(build, spec), weights)
    befores = {name: _write_state_in(build, spec, name) for name in spec.hidden_names}
    hidden, afters = _write_loop(build, spec, weights, steps, befores)
    for name, parts in afters.items():
        _write_state_out(build, spec, weights, name, parts)
    _write_outputs(build, spec, weights, hidden)
    return build.model(*_ports(spec))


def _write_state_in(build: GraphBuilder, spec: BidirectionalSpec, name: str) -> list[str]:
    """State [B, L, H] -> one [1, A, H] per layer, of the active rows."""
    parts = [f"{name}_rows_{layer}" for layer in range(spec.layers)]
    active = build.node("Gather", [name, "active"], f"{name}_active", axis=0)
    build.split("Split", [active, build.shape(*[1] * spec.layers)], parts, name, axis=1)
    return [
        build.node("Reshape", [part, build.shape(1, -1, spec.hidden)], f"{name}_{i}") for i, part in enumerate(parts)
    ]


def _write_loop(
    build: GraphBuilder, spec: BidirectionalSpec, weights: Weights, steps: str, befores: dict[str, list[str]]
) -> tuple[str, dict[str, list[str]]]:
    """Run the blocks over steps [K * Nc + R, A, width] and states [1, A, H] by name and layer.

    Returns the last layer's outputs [K, Nc, A, 2H], and the states after each row's last block.
    """
    # 1. The body: the window's lengths, its steps, the layers.
    body = build.body("block")
    _write_lengths(body, spec)
    body.node("Add", ["first", body.shape(spec.block_steps + spec.look_ahead_steps)], "last")
    x = body.node("Slice", [steps, "first", "last", body.shape(0)], "window")
    keys = [(name, layer) for layer in range(spec.layers) for name in befores]
    after: dict[tuple[str, int], str] = {}
    for layer in range(spec.layers):
        carried = {name: f"{name}_{layer}_carried" for name in befores}
        # The same in every block, so they are made outside.
        begin = write_initial(build, spec, weights, layer, (1,), "num_active")
        x, ends = write_window_layer(body, spec, weights, layer, x, carried, begin)
        after |= {(name, layer): end for name, end in ends.items()}
    body.node("Identity", ["go"], "go_on")
    # 2. Its ports, in the order that the operator wants: number, condition, states; condition, states, scanned outputs.
    carried_in = [floats(f"{name}_{layer}_carried", 1, "A", spec.hidden) for name, layer in keys]
    carried_out = [floats(after[key], 1, "A", spec.hidden) for key in keys]
    scanned = floats(x, spec.block_steps, "A", 2 * spec.hidden)
    graph = body.graph(
        [integers("block_number"), booleans("go"), *carried_in],
        [booleans("go_on"), *carried_out, scanned],
        is_body=True,
    )
    # 3. The loop itself.
    finals = [f"{name}_{layer}_final" for name, layer in keys]
    given = [befores[name][layer] for name, layer in keys]
    build.split("Loop", ["num_blocks", "", *given], [*finals, "block_hidden"], "blocks", body=graph)
    return "block_hidden", {name: [f"{name}_{layer}_final" for layer in range(spec.layers)] for name in befores}


def _write_lengths(body: GraphBuilder, spec: BidirectionalSpec) -> None:
    """Of block `block_number`: `first` int64 [1]; `has_block_wide` bool [1, A, 1]; the steps, int32 [A]."""
    body.node("Mul", ["block_number", body.scalar(spec.block_steps)], "first_frame")
    body.node("Unsqueeze", ["first_frame", body.shape(0)], "first")
    body.node("Less", ["block_number", "active_blocks"], "has_block")
    body.node("Unsqueeze", ["has_block", body.shape(0, 2)], "has_block_wide")
    body.node("Sub", ["active_known", "first_frame"], "remaining")
    body.node("Where", ["has_block", "remaining", body.scalar(0)], "readable")
    body.node("Min", ["readable", body.scalar(spec.block_steps)], "own_frames")
    body.node("Sub", ["readable", "own_frames"], "further_frames")
    body.node("Min", ["further_frames", body.scalar(spec.look_ahead_steps)], "seen_frames")
    body.node("Add", ["own_frames", "seen_frames"], "window_frames")
    for count, name in (("own_frames", "own"), ("seen_frames", "ahead"), ("window_frames", "window")):
        body.node("Cast", [count], f"{name}_steps", to=TensorProto.INT32)


def _write_state_out(
    build: GraphBuilder, spec: BidirectionalSpec, weights: Weights, name: str, parts: list[str]
) -> None:
    """[1, A, H] per layer -> [B, L, H] under the name `<name>_next`; the initial values where the stream ends.

    Rows that are not active keep theirs.
    """
    rows = [build.node("Transpose", [part], f"{part}_rows", perm=[1, 0, 2]) for part in parts]
    active = build.node("Concat", rows, f"{name}_active_after", axis=1)
    places = build.node("Unsqueeze", ["active", build.shape(1)], f"{name}_active_rows")
    after = build.node("ScatterND", [name, places, active], f"{name}_after")
    ended = build.node("Unsqueeze", [FLUSH, build.shape(1, 2)], f"{name}_ends")
    initial = build.zero()
    if spec.learned_state:
        initial = build.constant(f"initial_{name}", weights[f"initial_{name}"][0])
    build.node("Where", [ended, initial, after], f"{name}_next")


def _write_outputs(build: GraphBuilder, spec: BidirectionalSpec, weights: Weights, hidden: str) -> None:
    """The heads over [K, Nc, A, 2H], looked up batch first: [B, P + T, ...], zero from `emitted` on."""
    # Output number t of the active row number a is projected row t * A + a; what is not emitted is the row of zeros
    # behind them all.
    build.node("Mul", ["block_frames", "num_active"], "num_rows")
    build.node("Range", [build.scalar(0), "stride", build.scalar(1)], "output_numbers")
    build.node("Mul", ["output_numbers", "num_active"], "output_starts")
    build.node(
        "Cast", [build.node("Greater", ["blocks", build.scalar(0)], "is_active")], "active_ones", to=TensorProto.INT64
    )
    build.node("CumSum", ["active_ones", build.scalar(0)], "active_numbers_from_1")
    build.node("Sub", ["active_numbers_from_1", build.scalar(1)], "active_numbers")
    build.node("Unsqueeze", ["active_numbers", build.shape(1)], "row_column")
    build.node("Add", ["output_starts", "row_column"], "output_places")
    build.node("Unsqueeze", [EMITTED, build.shape(1)], "emitted_column")
    build.node("Less", ["output_numbers", "emitted_column"], "is_emitted")
    build.node("Where", ["is_emitted", "output_places", "num_rows"], "output_index")
    # Without a block the loop's output has no elements, and its other axes may be 0 as well: hence the explicit shape.
    build.node("Unsqueeze", ["num_rows", build.shape(0)], "num_rows_axis")
    build.node("Concat", ["num_rows_axis", build.shape(2 * spec.hidden)], "hidden_shape", axis=0)
    steps = build.node("Reshape", [hidden, "hidden_shape"], "block_rows", allowzero=1)
    for head, name in zip(spec.heads, spec.projections, strict=True):
        projected = write_linear(build, name, steps, weights[f"{name}.weight"], weights[f"{name}.bias"])
        nothing = build.constant(f"{name}_zeros", np.zeros((1, *head_shape(head)), np.float32))
        padded = build.node("Concat", [projected, nothing], f"{name}_rows", axis=0)
        build.node("Gather", [padded, "output_index"], head.name, axis=0)


def _input_port(spec: BidirectionalSpec, name: str = "", steps: str | int = "T") -> onnx.ValueInfoProto:
    """The input's typed port, or another one of its dtype and of frames like it."""
    name = name or spec.input.name
    if isinstance(spec.input, TokenInput):
        return integers(name, "B", steps)
    return floats(name, "B", steps, spec.input.width)


def _ports(spec: BidirectionalSpec) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """The step graph's typed inputs and outputs."""

    def states(end: str) -> list[onnx.ValueInfoProto]:
        hidden = [floats(f"{name}{end}", "B", spec.layers, spec.hidden) for name in spec.hidden_names]
        return [_input_port(spec, f"{PENDING}{end}", spec.pending_steps), integers(f"{COUNT}{end}", "B"), *hidden]

    outputs = [floats(head.name, "B", "E", *head_shape(head)) for head in spec.heads]
    inputs = [_input_port(spec), integers(LENGTH, "B"), booleans(FLUSH, "B")]
    return inputs + states(""), [*outputs, integers(EMITTED, "B"), *states("_next")]
