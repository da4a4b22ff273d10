"""Recurrent layers in 8 bits, as ONNX nodes: weights with a scale a column, hidden states in steps of 1/127.

Owns: the numbers of a layer and the graph of it, for whoever builds or rewrites a graph. Must not know torch.

The h of an LSTM, a GRU and a tanh RNN lies in [-1, 1], so its scale is fixed: no data decides it, and no row of a
batch can move another one's. Products of levels are sums of integers, exact in any order, so a row's bits depend
neither on its batch nor on how its steps are cut. What reads an input without such a bound stays float32 (the first
layer's, and a sum of a residual stack), as do gates, cell states, and all that lies around the layers.

Weights have 64 levels on each side of 0, not 127: processors without VNNI add products in pairs in 16 bits, and
255 * 64 * 2 is the most that fits. That costs nothing measurable (docs/benchmarks/int8.md).

Dimension key: B batch, T steps, H hidden, G gates (4 in an LSTM, 3 in a GRU, 1 in an RNN).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from eddy.training.builder import Array, GraphBuilder, floats

STATE_LEVELS = 127
# An unsigned byte that stands for 0; levels then reach from -128 to 127.
ZERO = 128
WEIGHT_LEVELS = 64

STEP = np.float32(1 / STATE_LEVELS)
# Row blocks of torch's stacked gate weights, those that a sigmoid follows first:
# LSTM i, f, g, o -> i, f, o, g; GRU r, z, n as they are.
_BLOCKS = {"rnn_tanh": (0,), "lstm": (0, 1, 3, 2), "gru": (0, 1, 2)}

Floats = npt.NDArray[np.float32]
# weight_ih, weight_hh, bias_ih, bias_hh of a layer, as torch has them.
LayerWeights = Sequence[Array]


class Layer:
    """One layer's numbers, columns in the order of `_BLOCKS`. Nothing in it changes.

    given: float32 [width, G * H], what the input is multiplied by, as levels where `reads_levels`. bias: float32
    [G * H]. own: int8 [H, G * H]. inner: float32 [H], the bias inside a GRU's reset gate. `*_scale`: float32 [G * H],
    what a sum of products of levels is multiplied by.
    """

    def __init__(self, cell: str, weights: LayerWeights, *, reads_levels: bool) -> None:
        weight_ih, weight_hh, bias_ih, bias_hh = (_reorder(cell, np.asarray(w, np.float32)) for w in weights)
        hidden = weight_hh.shape[1]
        self.cell, self.hidden, self.reads_levels = cell, hidden, reads_levels
        self.own, self.own_scale = _to_levels(weight_hh.T)
        self.given: Array = weight_ih.T
        if reads_levels:
            self.given, self.given_scale = _to_levels(weight_ih.T)
        self.inner = bias_hh[2 * hidden :] if cell == "gru" else None
        outer = bias_hh.copy()
        if cell == "gru":
            outer[2 * hidden :] = 0
        self.bias: Floats = bias_ih + outer


def _reorder(cell: str, weight: Array) -> Floats:
    blocks = np.split(weight, len(_BLOCKS[cell]))
    return np.concatenate([blocks[block] for block in _BLOCKS[cell]])


def _to_levels(matrix: Array) -> tuple[Array, Floats]:
    """Float32 [K, N] -> int8 [K, N], and the scale of a sum of products with levels of h, float32 [N]."""
    scales = np.maximum(np.abs(matrix).max(axis=0) / np.float32(WEIGHT_LEVELS), np.float32(1e-12))
    return np.round(matrix / scales).astype(np.int8), scales * STEP


def write_quantised_layer(
    build: GraphBuilder, layer: Layer, name: str, steps: str, before: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """One layer: [T, B, width] and [1, B, H] states -> [T, B, H] and [1, B, H] next states. name: ends all names.

    What comes of the input is computed for all steps at once, the rest step by step in a Scan. The operators are those
    of ONNX itself: ONNX Runtime's own `MatMulIntegerToFloat` is no faster.
    """
    # 1. The input's part of the gates, [T, B, G * H].
    if layer.reads_levels:
        given = _write_product(build, f"given_{name}", steps, layer.given, layer.given_scale)
    else:
        given = build.node("MatMul", [steps, build.constant(f"W_{name}", layer.given)], f"given_{name}")
    given = build.node("Add", [given, build.constant(f"B_{name}", layer.bias)], f"gates_in_{name}")
    # 2. The body: states [B, H] and a step's gates [B, G * H] -> next states, and h again as what is collected.
    body = build.body(f"layer_{name}")
    inside = [f"{state}_{name}_at" for state in before]
    own = _write_product(body, f"own_{name}", inside[0], layer.own, layer.own_scale)
    after = _write_step(body, layer, name, f"gates_at_{name}", own, inside)
    body.node("Identity", [after[0]], f"shown_{name}")
    width = len(layer.bias)
    graph = body.graph(
        [*(floats(state, "B", layer.hidden) for state in inside), floats(f"gates_at_{name}", "B", width)],
        [floats(state, "B", layer.hidden) for state in (*after, f"shown_{name}")],
        is_body=True,
    )
    # 3. The scan; states come and go as [1, B, H].
    starts = [
        build.node("Squeeze", [value, build.shape(0)], f"{state}_{name}_start") for state, value in before.items()
    ]
    ends = {state: f"{state}_{name}_end" for state in before}
    build.split("Scan", [*starts, given], [*ends.values(), f"hidden_{name}"], name, body=graph, num_scan_inputs=1)
    return f"hidden_{name}", {
        state: build.node("Unsqueeze", [end, build.shape(0)], f"{state}_{name}_after") for state, end in ends.items()
    }


def _write_product(build: GraphBuilder, name: str, h: str, levels: Array, scale: Floats) -> str:
    """Hidden states float32 [..., K] times levels int8 [K, N] -> float32 [..., N]."""
    zero = build.constant("level_zero", np.array(ZERO, np.uint8))
    whole = build.node("QuantizeLinear", [h, build.constant("level_step", np.array(STEP)), zero], f"{name}_levels")
    product = build.node("MatMulInteger", [whole, build.constant(f"{name}_weight", levels), zero], f"{name}_sums")
    real = build.node("Cast", [product], f"{name}_real", to=TensorProto.FLOAT)
    return build.node("Mul", [real, build.constant(f"{name}_scale", scale)], name)


def _write_step(build: GraphBuilder, layer: Layer, name: str, given: str, own: str, states: Sequence[str]) -> list[str]:
    """As `_step`, in nodes: the names of the next states."""
    if layer.cell == "rnn_tanh":
        return [build.node("Tanh", [build.node("Add", [given, own], f"sum_{name}")], f"h_{name}_next")]
    hidden, num_doors = layer.hidden, 2 if layer.cell == "gru" else 3
    cut = build.shape(num_doors * hidden, hidden)

    def split(value: str, sizes: str, *parts: str) -> list[str]:
        outputs = [f"{part}_{name}" for part in parts]
        build.split("Split", [value, sizes], outputs, f"{parts[0]}_{name}", axis=1)
        return outputs

    if layer.cell == "gru":
        assert layer.inner is not None
        doors_in, new_in = split(given, cut, "doors_in", "new_in")
        doors_own, new_own = split(own, cut, "doors_own", "new_own")
        doors = build.node("Sigmoid", [build.node("Add", [doors_in, doors_own], f"doors_sum_{name}")], f"doors_{name}")
        reset, update = split(doors, build.shape(hidden, hidden), "reset", "update")
        inner = build.node("Add", [new_own, build.constant(f"inner_{name}", layer.inner)], f"inner_sum_{name}")
        kept = build.node("Mul", [reset, inner], f"kept_{name}")
        new = build.node("Tanh", [build.node("Add", [new_in, kept], f"new_sum_{name}")], f"new_{name}")
        gap = build.node("Sub", [states[0], new], f"gap_{name}")
        return [build.node("Add", [new, build.node("Mul", [update, gap], f"held_{name}")], f"h_{name}_next")]
    gates = build.node("Add", [given, own], f"gates_{name}")
    doors_sum, new_sum = split(gates, cut, "doors_sum", "new_sum")
    doors = build.node("Sigmoid", [doors_sum], f"doors_{name}")
    enter, forget, show = split(doors, build.shape(*[hidden] * 3), "enter", "forget", "show")
    added = build.node("Mul", [enter, build.node("Tanh", [new_sum], f"new_{name}")], f"added_{name}")
    held = build.node("Mul", [forget, states[1]], f"held_{name}")
    c = build.node("Add", [held, added], f"c_{name}_next")
    return [build.node("Mul", [show, build.node("Tanh", [c], f"seen_{name}")], f"h_{name}_next"), c]
