"""Recurrent layers in 8 bits: weights with a scale a column, hidden states in steps of 1/127.

Owns: the arithmetic, in torch and in ONNX nodes.

The h of an LSTM, a GRU and a tanh RNN lies in [-1, 1], so its scale is fixed: no data decides it, and no row of a
batch can move another one's. Products of levels are sums of integers, exact in any order, so a row's bits depend
neither on its batch nor on how its steps are cut. What reads an input without such a bound stays float32 (the first
layer's, and a sum of a residual stack), as do gates, cell states, and all that lies around the layers.

A h that lies halfway between two levels may go to either: torch and ONNX Runtime differ by 1e-7 there, and the level by
1/127 then. So torch can be told what the graph's h was, and takes that level where both are right.

Weights have 64 levels on each side of 0, not 127: processors without VNNI add products in pairs in 16 bits, and
255 * 64 * 2 is the most that fits. That costs nothing measurable (docs/benchmarks/int8.md).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from onnx import TensorProto
from torch import Tensor

from eddy.training.builder import Array, GraphBuilder, floats
from eddy.training.errors import ExportError
from eddy.training.families.recurrent.spec import RecurrentSpec

STATE_LEVELS = 127
# An unsigned byte that stands for 0; levels then reach from -128 to 127.
ZERO = 128
WEIGHT_LEVELS = 64
# How far from the middle between two levels both are right, in levels: far more than two float32 results differ by.
TIE = 1e-3

_STEP = np.float32(1 / STATE_LEVELS)
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


def read_layers(spec: RecurrentSpec, weights: Sequence[LayerWeights]) -> list[Layer]:
    """The layers of a model from torch's weights. A layer that reads another one's h alone reads levels."""
    return [
        Layer(spec.cell, given, reads_levels=layer == 1 or (layer > 1 and not spec.residual))
        for layer, given in enumerate(weights)
    ]


def check_initial(name: str, value: Array) -> None:
    """Raise ExportError for learned initial states h outside of [-1, 1], which have no level."""
    largest = float(np.abs(value).max())
    if name == "h" and largest > 1:
        raise ExportError(f"initial state {name!r}: got a value of size {largest:g}, expected at most 1 in int8")


def _reorder(cell: str, weight: Array) -> Floats:
    blocks = np.split(weight, len(_BLOCKS[cell]))
    return np.concatenate([blocks[block] for block in _BLOCKS[cell]])


def _to_levels(matrix: Array) -> tuple[Array, Floats]:
    """Float32 [K, N] -> int8 [K, N], and the scale of a sum of products with levels of h, float32 [N]."""
    scales = np.maximum(np.abs(matrix).max(axis=0) / np.float32(WEIGHT_LEVELS), np.float32(1e-12))
    return np.round(matrix / scales).astype(np.int8), scales * _STEP


# In torch


def levels_of(h: Tensor, seen: Tensor | None = None) -> Tensor:
    """Hidden states float32 -> levels, whole numbers in float64.

    seen: the graph's h, whose level is taken where both are right.
    """
    exact = h / float(_STEP)
    own = exact.round().clamp(-ZERO, ZERO - 1)
    if seen is None:
        return own.double()
    other = (seen / float(_STEP)).round().clamp(-ZERO, ZERO - 1)
    return torch.where((exact - other).abs() <= 0.5 + TIE, other, own).double()


def run_layer(
    layer: Layer, x: Tensor, before: Sequence[Tensor], lengths: Tensor | None, seen: Tensor | None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """One layer over [B, T, width]; x holds levels in float64 where the layer reads levels.

    before: h and, of an LSTM, c, float32 [B, H]. lengths: int64 [B], the steps that count. seen: the graph's h after
    each step, [B, T, H]. Sums are float64, so that integers are exact in them; what the graph rounds to float32
    between steps is rounded here as well. Returns h of every step, its levels, and the states after each row's last
    valid step.
    """
    # 1. What comes of the input, for all steps.
    given = x.double() @ torch.from_numpy(layer.given.astype(np.float64))
    if layer.reads_levels:
        given = given * torch.from_numpy(layer.given_scale).double()
    given = given + torch.from_numpy(layer.bias).double()
    # 2. Step by step.
    own, scale = torch.from_numpy(layer.own.astype(np.float64)), torch.from_numpy(layer.own_scale).double()
    states, level = list(before), levels_of(before[0])
    steps, levels = [], []
    for t in range(x.shape[1]):
        after = [state.float() for state in _step(layer, given[:, t], (level @ own) * scale, states)]
        level_after = levels_of(after[0], None if seen is None else seen[:, t])
        steps.append(after[0])
        levels.append(level_after)
        if lengths is not None:
            is_valid = (t < lengths)[:, None]
            after = [torch.where(is_valid, new, old) for new, old in zip(after, states, strict=True)]
            level_after = torch.where(is_valid, level_after, level)
        states, level = after, level_after
    return torch.stack(steps, 1), torch.stack(levels, 1), states


def _step(layer: Layer, given: Tensor, own: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    """Gates [B, G * H] of the input and of the state -> the next states, float64 [B, H]."""
    h = states[0].double()
    if layer.cell == "rnn_tanh":
        return [torch.tanh(given + own)]
    if layer.cell == "gru":
        assert layer.inner is not None
        reset, update = torch.sigmoid((given + own)[:, : 2 * layer.hidden]).chunk(2, dim=1)
        inner = own[:, 2 * layer.hidden :] + torch.from_numpy(layer.inner)
        new = torch.tanh(given[:, 2 * layer.hidden :] + reset * inner)
        return [new + update * (h - new)]
    gates = given + own
    enter, forget, show = torch.sigmoid(gates[:, : 3 * layer.hidden]).chunk(3, dim=1)
    c = forget * states[1].double() + enter * torch.tanh(gates[:, 3 * layer.hidden :])
    return [show * torch.tanh(c), c]


# In ONNX nodes


def write_quantised_layer(
    build: GraphBuilder, layer: Layer, name: str, steps: str, before: dict[str, str]
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
    whole = build.node("QuantizeLinear", [h, build.constant("level_step", np.array(_STEP)), zero], f"{name}_levels")
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
