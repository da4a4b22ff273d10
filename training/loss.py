"""Loss: what training makes small, and its mean over a part.

Owns: the two losses. Must not know optimisers or files.
"""

import numpy as np
import torch
from torch import Tensor, nn

from eddy.training.data import NO_TOKEN, Part
from eddy.training.families.family import Outputs, StreamingModel
from eddy.training.spec import FeatureInput, QuantileHead, Spec, TokenHead
from eddy.training.windows import EVALUATION_STEPS, Windows

# Steps before the validation part that a forecaster reads first, so that it enters with the state it would have.
WARM_UP_STEPS = 1000


def loss_sum(spec: Spec, outputs: Outputs, targets: Tensor) -> tuple[Tensor, int]:
    """Summed loss and the number of targets in it.

    Next token: cross-entropy in nats, output [B, T, V], targets int64 [B, T], NO_TOKEN left out. Quantiles: pinball
    loss in units of the training part's deviation, output [B, T, K, Q], targets float32 [B, T, K], NaN left out.
    """
    (head,) = spec.heads
    output = outputs[head.name]
    if isinstance(head, TokenHead):
        flat, wanted = output.flatten(0, 1), targets.flatten()
        total = nn.functional.cross_entropy(flat, wanted, ignore_index=NO_TOKEN, reduction="sum")
        return total, int((wanted != NO_TOKEN).sum())
    assert isinstance(head, QuantileHead)
    assert isinstance(spec.input, FeatureInput)  # check_ports has seen to it
    counted = ~torch.isnan(targets)
    levels = torch.tensor(head.quantiles, device=output.device)
    error = (targets[counted].unsqueeze(-1) - output[counted]) / spec.input.scale[head.target]
    return torch.maximum(levels * error, (levels - 1) * error).sum(), int(error.numel())


@torch.no_grad()
def evaluate(model: StreamingModel, part: Part, streams: int) -> float:
    """Mean loss (see `loss_sum`) over a part, state carried from its first step to its last."""
    model.eval()
    total, count, state = 0.0, 0, model.initial_state(streams)
    for x, targets in Windows(part, streams, EVALUATION_STEPS):
        device = state[0].device
        outputs, state = model(torch.from_numpy(x).to(device), state)
        loss, number = loss_sum(model.spec, outputs, torch.from_numpy(targets).to(device))
        total, count = total + float(loss), count + number
    return total / count


def warmed_up(part: Part) -> Part:
    """A part of a series without what lies more than WARM_UP_STEPS before its first target."""
    first = int(np.argmax((~np.isnan(part.targets)).any(axis=1)))
    start = max(0, first - WARM_UP_STEPS)
    return Part(part.inputs[start:], part.targets[start:])
