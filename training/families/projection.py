"""Projections: what follows the last layer, as torch modules that all families share.

Owns: the heads' weights. Every operation is a matrix product, an addition or a multiplication: these give the same
bits at any batch size and chunk length in ONNX Runtime's CPU kernels, which softplus, exp and means over features do
not.
"""

import torch
from torch import Tensor, nn

from eddy.training.spec import FeatureInput, Head, Input, QuantileHead, head_shape


class QuantileProjection(nn.Module):
    """Quantiles that cannot cross: the middle one is free, each step outwards adds a square.

    quantile_k = now + scale * (base + sum of squares between the middle and k), where `now` is the target feature's
    present value: the network learns how the future differs from "nothing changes".
    """

    ladder: Tensor

    def __init__(self, hidden: int, head: QuantileHead, scale: float) -> None:
        super().__init__()
        self.head, self.scale = head, scale
        self.base = nn.Linear(hidden, len(head.horizons))
        # A single quantile has no gaps; torch warns of layers without outputs, so it gets none.
        num_gaps = len(head.horizons) * (len(head.quantiles) - 1)
        self.roots = nn.Linear(hidden, num_gaps) if num_gaps else None
        self.register_buffer("ladder", quantile_ladder(len(head.quantiles)), persistent=False)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y: [B, T, H] hidden states; x: [B, T, F] raw input. Returns [B, T, K, Q] in the target's units."""
        relative = self.base(y).unsqueeze(-1)
        if self.roots is not None:
            roots = self.roots(y).reshape(*relative.shape[:-1], len(self.head.quantiles) - 1)
            relative = relative + (roots * roots) @ self.ladder
        now = x[..., self.head.target, None, None]
        quantiles: Tensor = now + relative * self.scale
        return quantiles


def quantile_ladder(quantiles: int) -> Tensor:
    """The signs that turn Q - 1 gaps into Q offsets from the middle quantile: float32 [Q - 1, Q] of -1, 0 and 1."""
    middle = quantiles // 2
    ladder = torch.zeros(quantiles - 1, quantiles)
    for gap in range(quantiles - 1):
        if gap >= middle:
            ladder[gap, gap + 1 :] = 1.0
        else:
            ladder[gap, : gap + 1] = -1.0
    return ladder


def build_projection(head: Head, given: Input, hidden: int) -> nn.Module:
    """The module from hidden states [B, T, H] to a head's output; a QuantileProjection reads the input as well."""
    if isinstance(head, QuantileHead):
        assert isinstance(given, FeatureInput)  # check_ports has seen to it
        return QuantileProjection(hidden, head, given.scale[head.target])
    (outputs,) = head_shape(head)
    return nn.Linear(hidden, outputs)


def project(projection: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    """A head's output. y: [B, T, H] hidden states; x: the model's raw input."""
    output: Tensor = projection(y, x) if isinstance(projection, QuantileProjection) else projection(y)
    return output
