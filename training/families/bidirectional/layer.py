"""Bidirectional layers as ONNX nodes: over one window of the grid, and over whole sequences.

Owns: how the recurrent operators are used. Must not know how windows come about.
"""

from collections.abc import Sequence

import numpy as np

from eddy.training.builder import GraphBuilder
from eddy.training.families.bidirectional.spec import BidirectionalSpec
from eddy.training.families.nodes import OPERATORS, Weights, cell_attributes, reorder

_MODULES = {"forward": ("forwards",), "reverse": ("backwards",), "bidirectional": ("forwards", "backwards")}


def write_whole_layer(build: GraphBuilder, spec: BidirectionalSpec, weights: Weights, layer: int, x: str) -> str:
    """One layer over whole sequences from its initial state on: [T, B, width] -> [T, B, 2H]. Reads `batch`."""
    begin = write_initial(build, spec, weights, layer, (0, 1), "batch")
    y = _write_cells(build, spec, weights, layer, "bidirectional", [x, "", *begin] if begin else [x])
    # [T, D, B, H]: the two directions of a step come to stand side by side.
    turned = build.node("Transpose", [y], f"turned_{layer}", perm=[0, 2, 1, 3])
    return build.node("Reshape", [turned, build.shape(0, 0, 2 * spec.hidden)], f"hidden_{layer}")


def write_window_layer(
    body: GraphBuilder,
    spec: BidirectionalSpec,
    weights: Weights,
    layer: int,
    x: str,
    before: dict[str, str],
    begin: list[str],
) -> tuple[str, dict[str, str]]:
    """One layer over a window, as `latency` defines it.

    x: [W, B, width], W = Nc + R. before: the forward states [1, B, H]. begin: the backward ones, as `write_initial`
    gives them. Reads `own_steps`, `ahead_steps`,
    `window_steps` int32 [B] and `has_block_wide` bool [1, B, 1]. Returns [W, B, 2H], of the last layer [Nc, B, 2H],
    and the states at the block's end.
    """
    block, window = spec.block_steps, spec.block_steps + spec.look_ahead_steps
    has_ahead, is_last = spec.look_ahead_steps > 0, layer == spec.layers - 1
    # 1. Forward over the block; its end is carried on.
    own = _cut(body, x, 0, block, f"own_{layer}") if has_ahead else x
    ends = {name: f"{name}_{layer}_end" for name in before}
    forward = _write_cells(
        body, spec, weights, layer, "forward", [own, "own_steps", *before.values()], [*ends.values()]
    )
    # 2. Forward over the look-ahead, for the layers above: nothing else reads it.
    if has_ahead and not is_last:
        ahead = _cut(body, x, block, window, f"ahead_{layer}")
        inputs = [ahead, "ahead_steps", *ends.values()]
        further = _write_cells(body, spec, weights, layer, "forward", inputs, name="_ahead")
        forward = body.node("Concat", [forward, further], f"forward_{layer}", axis=0)
    # 3. Backward from the window's end.
    backward = _write_cells(body, spec, weights, layer, "reverse", [x, "window_steps", *begin])
    if has_ahead and is_last:
        backward = _cut(body, backward, 0, block, f"backward_{layer}")
    # 4. Both, [W, 1, B, H] each. The operator gives rows of no steps a state of zeros: they keep theirs.
    both = body.node("Concat", [forward, backward], f"both_{layer}", axis=3)
    after = {
        name: body.node("Where", ["has_block_wide", end, before[name]], f"{name}_{layer}_after")
        for name, end in ends.items()
    }
    return body.node("Squeeze", [both, body.shape(1)], f"hidden_{layer}"), after


def write_initial(
    build: GraphBuilder, spec: BidirectionalSpec, weights: Weights, layer: int, directions: tuple[int, ...], batch: str
) -> list[str]:
    """Learned initial states of a layer, [D, B, H] each, for as many rows as `batch` says; none where they are 0."""
    if not spec.learned_state:
        return []
    label = f"{layer}_" + "_".join(map(str, directions))
    build.node("Unsqueeze", [batch, build.shape(0)], f"batch_axis_{label}")
    build.node("Concat", [build.shape(1), f"batch_axis_{label}", build.shape(1)], f"initial_axes_{label}", axis=0)
    values = {name: weights[f"initial_{name}"][list(directions), layer][:, None] for name in spec.hidden_names}
    constants = [build.constant(f"initial_{name}_{label}", value) for name, value in values.items()]
    return [build.node("Expand", [name, f"initial_axes_{label}"], f"{name}_rows") for name in constants]


def _cut(body: GraphBuilder, x: str, start: int, stop: int, name: str) -> str:
    """Steps `start` to `stop` of a tensor with time first."""
    return body.node("Slice", [x, body.shape(start), body.shape(stop), body.shape(0)], name)


def _write_cells(
    build: GraphBuilder,
    spec: BidirectionalSpec,
    weights: Weights,
    layer: int,
    direction: str,
    inputs: Sequence[str],
    ends: Sequence[str] | None = None,
    name: str = "",
) -> str:
    """One recurrent node. inputs: x [T, B, width], then lengths int32 [B] and states [1, B, H] as there are.

    ends: names for the end states. Returns all steps' outputs, [T, D, B, H].
    """
    modules = _MODULES[direction]

    def stack(part: str) -> list[np.ndarray]:
        return [reorder(spec.cell, weights[f"{module}.{layer}.{part}_l0"]) for module in modules]

    biases = [np.concatenate(pair) for pair in zip(stack("bias_ih"), stack("bias_hh"), strict=True)]
    parts = {"W": stack("weight_ih"), "R": stack("weight_hh"), "B": biases}
    constants = [build.constant(f"{key}_{layer}_{direction}", np.stack(value)) for key, value in parts.items()]
    label = f"{layer}_{direction}{name}"
    build.split(
        OPERATORS[spec.cell],
        [inputs[0], *constants, *inputs[1:]],
        [f"Y_{label}", *(ends or ())],
        label,
        direction=direction,
        **cell_attributes(spec.cell, spec.hidden),
    )
    return f"Y_{label}"
