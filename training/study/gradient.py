"""Gradients by distance: how much of what a last step lost reaches the inputs before it.

Owns: which lags are looked at and how a norm is taken. Must not know how models are trained.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from eddy.training.batches import join_examples
from eddy.training.data import Example
from eddy.training.families.family import Model
from eddy.training.loss import batch_loss

# Sequences that the norm is averaged over.
MAX_ROWS = 32
# The loss is raised by this and the norms lowered again, so that float32 holds norms down to 1e-60.
SCALE = 1e20
# Lags of a long sequence, evenly spaced as ratios.
MAX_LAGS = 40


def measure_gradient(model: Model, examples: Sequence[Example], name: str) -> dict[str, tuple[float, ...]]:
    """Norm of d loss / d embedded input by lag, mean over the longest sequences.

    The loss is that of each sequence's targets, which must stand at its last step. Returns the series `lags`, steps
    before the last one, and `gradient_{name}`.
    """
    longest = max(example.steps for example in examples)
    batch = join_examples([example for example in examples if example.steps == longest][:MAX_ROWS])
    twin = copy.deepcopy(model).eval()
    embedding = twin.get_submodule("embedding")
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    handle = embedding.register_forward_hook(keep)
    loss, _ = batch_loss(twin, batch, torch.device("cpu"))
    handle.remove()
    torch.autograd.backward(loss * SCALE)
    gradient = kept[0].grad
    assert gradient is not None, "the loss depends on the input"
    norms = gradient.double().norm(dim=-1).mean(dim=0).flip(0)  # [T], the last step first
    lags = np.unique(np.geomspace(1, longest - 1, MAX_LAGS).round().astype(int))
    return {"lags": tuple(map(float, lags)), f"gradient_{name}": tuple(float(norms[lag]) / SCALE for lag in lags)}
