"""Attention of a step to the model's own last hidden states, its own among them.

Owns: it in torch, and the same in ONNX nodes.

score = h_t . A h_j / sqrt(H) + b[t - j], masked where no step has been; context = softmax(score) over the window; what
comes out is tanh(W [h_t, context] + v). The form of the score and of the output is Luong's (arXiv 1508.04025), with a
learned value b per distance, because a window of states has no order of its own.

torch computes the band of a [T, past + T] matrix. The graph gathers each step's window, so that every product has the
same shape whatever T is, and so the same bits.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from eddy.training.builder import END, GraphBuilder
from eddy.training.families.nodes import Weights, write_linear
from eddy.training.families.recurrent.convolution import last_steps
from eddy.training.families.recurrent.parts import Attention

# The score of an empty place: far enough below all others that its share is exactly 0, and finite.
_EMPTY = -1e30


class WindowAttention(nn.Module):
    """State: `past` float32 [B, W - 1, H], oldest first, and `past_count` int64 [B, 1], its filled places."""

    def __init__(self, part: Attention, hidden: int) -> None:
        super().__init__()
        self.part = part
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.distance = nn.Parameter(torch.randn(part.window) / math.sqrt(hidden))
        self.output = nn.Linear(2 * hidden, hidden)

    def forward(self, y: Tensor, past: Tensor, count: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """y: hidden states [B, T, H]. Returns [B, T, H] and the next states, each row's after its valid steps."""
        steps, before = y.shape[1], self.part.past
        seen = torch.cat([past, y], dim=1)
        # 1. How far back place i of what is seen lies from step t: 0 is the step itself.
        places = torch.arange(before + steps, device=y.device)
        back = torch.arange(steps, device=y.device)[:, None] + before - places
        is_near = (back >= 0) & (back <= before)
        is_filled = places >= before - count  # [B, places]
        # 2. Scores, shares, context.
        scores = self.query(y) @ seen.transpose(1, 2) / math.sqrt(y.shape[2])
        scores = scores + self.distance[back.clamp(0, before)]
        scores = scores.masked_fill(~(is_near & is_filled[:, None]), _EMPTY)
        context = torch.softmax(scores, dim=2) @ seen
        mixed = torch.tanh(self.output(torch.cat([y, context], dim=2)))
        # 3. What the next call needs.
        new = steps if lengths is None else lengths[:, None]
        return mixed, last_steps(seen, before, lengths), torch.clamp(count + new, max=before)


def write_attention(build: GraphBuilder, part: Attention, hidden: int, steps: str, weights: Weights) -> str:
    """Hidden states [T, B, H] -> [B, T, H], for the torch module `attention`; writes the next states as well."""
    before = part.past
    present = build.node("Transpose", [steps], "present", perm=[1, 0, 2])
    seen = build.node("Concat", ["past", present], "seen", axis=1)
    # 1. Each step's window: places t to t + W - 1 of what is seen, [T, W].
    length = build.node("Shape", [present], "length", start=1, end=2)
    first = build.node("Squeeze", [length, build.shape(0)], "length_scalar")
    zero, one = build.constant("zero", np.array(0)), build.constant("one", np.array(1))
    counted = build.node("Range", [zero, first, one], "counted")
    offsets = build.constant("offsets", np.arange(part.window))
    places = build.node("Add", [build.node("Unsqueeze", [counted, build.shape(1)], "begins"), offsets], "places")
    windows = build.node("Gather", [seen, places], "windows", axis=1)  # [B, T, W, H]
    # 2. Scores, [B, T, W]; place i is filled from W - 1 - count on.
    query = weights["attention.query.weight"].T / np.float32(math.sqrt(hidden))
    asked = build.node("MatMul", [present, build.constant("query_weight", query)], "asked")
    asked = build.node("Reshape", [asked, build.shape(0, 0, hidden, 1)], "asked_column")
    products = build.node("Squeeze", [build.node("MatMul", [windows, asked], "products"), build.shape(3)], "matches")
    # `distance` counts backwards from the step itself, places count forwards.
    distance = build.constant("distance", weights["attention.distance"][::-1])
    scores = build.node("Add", [products, distance], "scores")
    empty = build.node("Sub", [build.shape(before), "past_count"], "num_empty")
    empty = build.node("Unsqueeze", [empty, build.shape(2)], "num_empty_places")  # [B, 1, 1]
    is_filled = build.node("GreaterOrEqual", [places, empty], "is_filled")
    masked = build.node("Where", [is_filled, scores, build.constant("empty", np.array(_EMPTY, np.float32))], "masked")
    # 3. Context, and what comes out.
    shares = build.node("Softmax", [masked], "shares", axis=2)
    row = build.node("Unsqueeze", [shares, build.shape(2)], "shares_row")
    context = build.node("Squeeze", [build.node("MatMul", [row, windows], "context_row"), build.shape(2)], "context")
    both = build.node("Concat", [present, context], "both", axis=2)
    weight, bias = weights["attention.output.weight"], weights["attention.output.bias"]
    mixed = build.node("Tanh", [write_linear(build, "attention", both, weight, bias)], "mixed")
    # 4. The next states.
    build.node("Slice", [seen, build.shape(-before), build.shape(END), build.shape(1)], "past_next")
    total = build.node("Add", ["past_count", length], "total_count")
    build.node("Min", [total, build.shape(before)], "past_count_next")
    return mixed
