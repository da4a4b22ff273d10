"""Recurrent layers in 8 bits, in torch: what the graph of `families.quantised` must answer.

Owns: the arithmetic with sums in float64, in which integers are exact, and what happens halfway between two levels:
there torch and ONNX Runtime, which differ by 1e-7, may go either way, and the level then differs by 1/127. So torch can
be told what the graph's h was, and takes that level where both are right.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from eddy.training.builder import Array
from eddy.training.errors import ExportError
from eddy.training.families.quantised import STEP, ZERO, Layer, LayerWeights
from eddy.training.families.recurrent.spec import RecurrentSpec

# How far from the middle between two levels both are right, in levels: far more than two float32 results differ by.
TIE = 1e-3


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


def levels_of(h: Tensor, seen: Tensor | None = None) -> Tensor:
    """Hidden states float32 -> levels, whole numbers in float64.

    seen: the graph's h, whose level is taken where both are right.
    """
    exact = h / float(STEP)
    own = exact.round().clamp(-ZERO, ZERO - 1)
    if seen is None:
        return own.double()
    other = (seen / float(STEP)).round().clamp(-ZERO, ZERO - 1)
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
