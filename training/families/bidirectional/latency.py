"""The latency-controlled result, straight in PyTorch: what the step graph must compute, without streaming.

Owns: the definition. Blocks of Nc steps lie on a fixed grid that begins at position 0. The window of a block is its
own steps and the R steps of look-ahead that follow, fewer where the sequence ends. In every layer

* the forward direction enters the block with the state that it had at the previous block's end, reads the block, whose
  end state is carried on, and reads on over the look-ahead, from where no state is kept;
* the backward direction begins anew at the window's end, with zeros or its learned state, and reads to the block's
  first step;
* the next layer reads this layer's outputs, of both directions, over the whole window.

The block's own outputs of the last layer are emitted. (Zhang et al., "Highway Long Short-Term Memory RNNs for Distant
Speech Recognition", 2016, section 3.3, gives the single layer.)

What holds: where the first window covers the sequence (length <= Nc + R), every later window reaches the end too, and
all outputs equal the exact bidirectional model's, however many layers there are. Otherwise the first layer's forward
direction is still exact, and its backward direction is in every window that reaches the end; with one layer the outputs
of those blocks are exact therefore. With more layers they are not: the forward states of the layers above come from
earlier windows, which ended too soon. As R grows, all of them converge to the exact result.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from eddy.training.families.bidirectional.model import BidirectionalModel, as_hidden, turn
from eddy.training.families.family import Outputs, State


@torch.no_grad()
def run_latency_controlled(
    model: BidirectionalModel, x: Tensor, lengths: Tensor, *, is_end: bool
) -> tuple[Outputs, Tensor, State]:
    """Whole sequences on the grid of `model.spec`.

    x: int64 [B, T] or float32 [B, T, F]. lengths: int64 [B], 0 to T. is_end: the sequences end there, so that all
    steps are emitted; else only blocks whose look-ahead is complete.
    Returns the outputs by name, [B, T, ...], zero where nothing was emitted; the number emitted, int64 [B]; and the
    forward states at each row's last emitted block's end, [B, L, H] each.
    """
    spec = model.spec
    block, ahead = spec.block_steps, spec.look_ahead_steps
    blocks = -(-lengths // block) if is_end else ((lengths - ahead) // block).clamp(min=0)
    emitted = torch.minimum(blocks * block, lengths)
    carried = [tuple(s.clone() for s in model.initial_state(0, layer, len(x))) for layer in range(spec.layers)]
    hidden = torch.zeros(*x.shape[:2], 2 * spec.hidden)
    steps = model.features(x)
    for first in range(0, int(emitted.max()) if len(x) else 0, block):
        rows = torch.nonzero(emitted > first)[:, 0]
        window = (lengths[rows] - first).clamp(max=block + ahead)
        y = steps[rows, first : first + block + ahead]
        for layer in range(spec.layers):
            before = tuple(s[rows] for s in carried[layer])
            y, after = _run_layer(model, layer, y, window, before)
            for s, new in zip(carried[layer], after, strict=True):
                s[rows] = new
        hidden[rows, first : first + block] = y[:, :block]
    is_emitted = torch.arange(x.shape[1]) < emitted[:, None]
    outputs = {name: value * is_emitted[:, :, None] for name, value in model.project(hidden).items()}
    return outputs, emitted, tuple(torch.stack(parts, 1) for parts in zip(*carried, strict=True))


def _run_layer(model: BidirectionalModel, layer: int, x: Tensor, window: Tensor, before: State) -> tuple[Tensor, State]:
    """One layer over windows: x [B, W, width], window int64 [B], 1 to W. Returns [B, W, 2H] and the block's end."""
    ahead, back, block = model.forwards[layer], model.backwards[layer], model.spec.block_steps
    own = window.clamp(max=block)
    y_own, after = _read(ahead, x[:, :block], own, before)
    y = torch.zeros(*x.shape[:2], model.spec.hidden)
    y[:, : y_own.shape[1]] = y_own
    # Rows whose window ends with the block have no look-ahead.
    further = torch.nonzero(window > block)[:, 0]
    if len(further):
        kept = tuple(s[further] for s in after)
        y[further, block:], _ = _read(ahead, x[further, block:], window[further] - block, kept)
    z, _ = _read(back, turn(x, window), window, model.initial_state(1, layer, len(x)))
    return torch.cat([y, turn(z, window)], dim=-1), after


def _read(layer: nn.Module, x: Tensor, lengths: Tensor, before: State) -> tuple[Tensor, State]:
    """Run [B, T, width] rows of 1 to T steps from states [B, H]; outputs [B, T, H] and each row's end state."""
    packed: PackedSequence = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    y, after = layer(packed, as_hidden(before))
    after = after if isinstance(after, tuple) else (after,)
    return pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0], tuple(s[0] for s in after)
