"""Loss: what training makes small, and its mean over a part.

Owns: one loss for each kind of head. Must not know optimisers or files.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from eddy.training.batches import Batch, cut_batches
from eddy.training.data import NO_TOKEN, Example, Part
from eddy.training.errors import TrainingError
from eddy.training.families.family import Model, Outputs, StreamingModel
from eddy.training.spec import ClassHead, FeatureInput, Head, QuantileHead, Spec, TokenHead
from eddy.training.windows import EVALUATION_STEPS, Windows


def loss_sum(spec: Spec, outputs: Outputs, targets: Mapping[str, Tensor], smoothing: float = 0.0) -> tuple[Tensor, int]:
    """Summed loss over all heads, and the number of targets in it; both by the heads' names.

    Tokens and classes: cross-entropy in nats, output [B, T, V], targets int64 [B, T], NO_TOKEN left out. Quantiles:
    pinball loss in units of the training part's deviation, output [B, T, K, Q], targets float32 [B, T, K], NaN left
    out. smoothing: this share of a token's probability is asked for evenly from all (Szegedy and others 2016). Raises
    TrainingError for a head that has no loss.
    """
    losses = [_head_loss(spec, head, outputs[head.name], targets[head.name], smoothing) for head in spec.heads]
    return torch.stack([loss for loss, _ in losses]).sum(), sum(number for _, number in losses)


def _head_loss(spec: Spec, head: Head, output: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, int]:
    if isinstance(head, TokenHead | ClassHead):
        flat, wanted = output.flatten(0, -2), targets.flatten()
        total = nn.functional.cross_entropy(
            flat, wanted, ignore_index=NO_TOKEN, reduction="sum", label_smoothing=smoothing
        )
        return total, int((wanted != NO_TOKEN).sum())
    if not isinstance(head, QuantileHead):
        raise TrainingError(f"head {head.name!r}: got {type(head).__name__}, expected tokens, classes or quantiles")
    assert isinstance(spec.input, FeatureInput)  # check_ports has seen to it
    counted = ~torch.isnan(targets)
    levels = torch.tensor(head.quantiles, device=output.device)
    error = (targets[counted].unsqueeze(-1) - output[counted]) / spec.input.scale[head.target]
    return torch.maximum(levels * error, (levels - 1) * error).sum(), int(error.numel())


@torch.no_grad()
def evaluate(model: StreamingModel, part: Part, streams: int) -> float:
    """Mean loss (see `loss_sum`) over a part, state carried from its first step to its last."""
    model.eval()
    (head,) = model.spec.heads
    total, count, state = 0.0, 0, model.initial_state(streams)
    for x, targets in Windows(part, streams, EVALUATION_STEPS):
        device = state[0].device
        outputs, state = model(torch.from_numpy(x).to(device), state)
        loss, number = loss_sum(model.spec, outputs, {head.name: torch.from_numpy(targets).to(device)})
        total, count = total + float(loss), count + number
    return total / count


def batch_loss(model: Model, batch: Batch, device: torch.device, smoothing: float = 0.0) -> tuple[Tensor, int]:
    """As `loss_sum` and `hint_loss`, of a padded batch; what was padded has no target and changes nothing."""
    inputs, lengths, targets = (
        {name: torch.from_numpy(value).to(device) for name, value in tensors.items()}
        for tensors in (batch.inputs, batch.lengths, batch.targets)
    )
    outputs = model.read(inputs, lengths)
    loss, number = loss_sum(model.spec, outputs, targets, smoothing)
    return loss + model.hint_loss(outputs, targets).to(device), number


@torch.no_grad()
def evaluate_examples(model: Model, examples: Sequence[Example], rows: int, device: torch.device) -> float:
    """Mean loss over separate sequences, `rows` of similar length at a time."""
    model.eval()
    total, count = 0.0, 0
    for batch in cut_batches(examples, rows):
        loss, number = batch_loss(model, batch, device)
        total, count = total + float(loss), count + number
    return total / count
