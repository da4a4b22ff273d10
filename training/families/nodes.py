"""Nodes: torch's layers in ONNX's operators, shared by all families.

Owns: the order of gates, the layouts of weights, and the heads. Must not know whole graphs.

ONNX's recurrent operators want time first; inputs and heads here take and give batch first at the graph's ports and
time first between. Every operation gives the same bits at any batch size and chunk length in ONNX Runtime's CPU
kernels, save the plain RNN at a single row.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from eddy.training.builder import Array, GraphBuilder
from eddy.training.families.projection import quantile_ladder
from eddy.training.spec import FeatureInput, FrameInput, Head, Input, QuantileHead, TokenInput, head_shape

Weights = dict[str, npt.NDArray[Any]]

# Row blocks of torch's stacked gate weights, in the order in which ONNX's operator wants them:
# torch LSTM i, f, g, o -> ONNX i, o, f, c; torch GRU r, z, n -> ONNX z, r, h.
_GATES = {"rnn_tanh": (0,), "rnn_relu": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
OPERATORS = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "lstm": "LSTM", "gru": "GRU"}


def weights_of(model: nn.Module) -> Weights:
    """Every parameter and lasting buffer as numpy, by torch's name."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}


def reorder(cell: str, weight: Array) -> Array:
    """A stacked gate weight of torch's, [gates * H, ...], with its blocks of H rows in ONNX's order."""
    blocks = np.split(weight, len(_GATES[cell]))
    return np.concatenate([blocks[gate] for gate in _GATES[cell]])


def cell_attributes(cell: str, hidden: int) -> dict[str, Any]:
    """What an RNN, GRU or LSTM node needs to compute what torch's does, in one direction."""
    attributes: dict[str, Any] = {"hidden_size": hidden}
    if cell == "gru":
        attributes["linear_before_reset"] = 1  # torch applies the reset gate after the recurrent product
    if cell == "rnn_relu":
        attributes["activations"] = ["Relu"]
    return attributes


def write_layer(
    build: GraphBuilder, cell: str, name: str, steps: str, weights: Sequence[Array], before: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """One recurrent layer: [T, B, width] and [1, B, H] states -> [T, B, H] and [1, B, H] next states.

    name: ends the names of constants and nodes. weights: torch's weight_ih, weight_hh, bias_ih, bias_hh.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    constants = [
        build.constant(f"W_{name}", reorder(cell, weight_ih)[None]),
        build.constant(f"R_{name}", reorder(cell, weight_hh)[None]),
        build.constant(f"B_{name}", np.concatenate([reorder(cell, bias_ih), reorder(cell, bias_hh)])[None]),
    ]
    after = {state: f"{state}_{name}_after" for state in before}
    build.split(
        OPERATORS[cell],
        [steps, *constants, "", *before.values()],
        [f"Y_{name}", *after.values()],
        name,
        **cell_attributes(cell, weight_hh.shape[1]),
    )
    # Y is [T, D, B, H] with D = 1.
    return build.node("Squeeze", [f"Y_{name}", build.shape(1)], f"hidden_{name}"), after


def write_linear(build: GraphBuilder, name: str, steps: str, weight: Array, bias: Array, output: str = "") -> str:
    """[T, B, H] @ weight^T + bias, for torch's weight layout [outputs, H]; called `output` if that is given."""
    product = build.node("MatMul", [steps, build.constant(f"{name}_weight", weight.T)], f"{name}_product")
    return build.node("Add", [product, build.constant(f"{name}_bias", bias)], output or f"{name}_projected")


def write_input(build: GraphBuilder, given: Input, weights: Weights) -> str:
    """Raw input -> features of the first layer, time first: [T, B, width]."""
    raw = given.name
    if isinstance(given, FrameInput):
        raw = build.node("Reshape", [raw, build.shape(0, 0, given.width)], "pixels")
    # Turning before the look-up moves 8 bytes a token instead of a whole vector.
    axes = [1, 0] if isinstance(given, TokenInput) else [1, 0, 2]
    turned = build.node("Transpose", [raw], f"{raw}_time_first", perm=axes)
    return write_features(build, given, turned, weights)


def write_features(build: GraphBuilder, given: Input, raw: str, weights: Weights) -> str:
    """Raw values of an input, flat and whatever their leading axes, -> features of the first layer, [..., width]."""
    if isinstance(given, TokenInput):
        return build.node("Gather", [build.constant("embedding", weights["embedding.weight"]), raw], "embedded", axis=0)
    if isinstance(given, FrameInput) or given.is_identity:
        return raw
    mean = build.constant("mean", np.array(given.mean, np.float32))
    scale = build.constant("scale", np.array(given.scale, np.float32))
    return build.node("Div", [build.node("Sub", [raw, mean], "centred"), scale], "standardised")


def write_head(
    build: GraphBuilder, head: Head, given: Input, name: str, steps: str, weights: Weights, *, time_first: bool = True
) -> None:
    """Hidden states [T, B, H] -> the head's output, batch first, under its name.

    name: the head's in `weights`. time_first: False where the hidden states are [B, T, H].
    """
    if isinstance(head, QuantileHead):
        assert isinstance(given, FeatureInput)
        relative = _write_offsets(build, head, given, name, steps, weights)
        if time_first:
            relative = build.node("Transpose", [relative], f"{name}_batch_first", perm=[1, 0, 2])
        now = given.name
        if given.width > 1:
            now = build.node("Gather", [now, build.constant("target", np.array([head.target]))], "now", axis=2)
        flat = build.node("Add", [relative, now], f"{name}_flat")
        build.node("Reshape", [flat, build.shape(0, 0, *head_shape(head))], head.name)
        return
    last = f"{name}_projected" if time_first else head.name
    write_linear(build, name, steps, weights[f"{name}.weight"], weights[f"{name}.bias"], last)
    if time_first:
        build.node("Transpose", [last], head.name, perm=[1, 0, 2])


def _write_offsets(
    build: GraphBuilder, head: QuantileHead, given: FeatureInput, name: str, steps: str, weights: Weights
) -> str:
    """Quantiles less the present value, [T, B, K * Q]: squares of a projection, laddered, added to another one.

    The deviation that scales the result is multiplied into the constants.
    """
    num_horizons, num_quantiles = len(head.horizons), len(head.quantiles)
    scale = np.float32(given.scale[head.target])
    spread = np.repeat(scale * weights[f"{name}.base.weight"], num_quantiles, axis=0)
    offset = np.repeat(scale * weights[f"{name}.base.bias"], num_quantiles)
    relative = write_linear(build, f"{name}_base", steps, spread, offset)
    if num_quantiles == 1:
        return relative
    root, bias = weights[f"{name}.roots.weight"], weights[f"{name}.roots.bias"]
    roots = write_linear(build, f"{name}_roots", steps, root, bias)
    squares = build.node("Mul", [roots, roots], f"{name}_squares")
    ladder = np.kron(np.eye(num_horizons, dtype=np.float32), scale * quantile_ladder(num_quantiles).numpy())
    gaps = build.node("MatMul", [squares, build.constant("ladder", ladder)], f"{name}_gaps")
    return build.node("Add", [relative, gaps], f"{name}_relative")
