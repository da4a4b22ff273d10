"""The one model definition: input -> recurrent layers -> head, with its state passed in and handed back.

Owns: the torch module and its weights. Must not know data, files, training or ONNX.

Every output depends on its own step and the state only, and every operation after the recurrence is a matrix
product, an addition or a multiplication: these give the same bits at any batch size and chunk length in ONNX
Runtime's CPU kernels, which softplus, exp and means over features do not.
"""

from typing import Any

import torch
from torch import Tensor, nn

from eddy.training.spec import FeatureInput, LinearHead, ModelSpec, QuantileHead, TokenInput

State = tuple[Tensor, ...]

_LAYERS: dict[str, type[nn.RNNBase]] = {"rnn_tanh": nn.RNN, "rnn_relu": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentModel(nn.Module):
    """RNN, GRU or LSTM of one or more layers with explicit, batch-first state.

    The state is a tuple of float32 tensors [B, L, H]: (h,) or, for an LSTM, (h, c).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        if isinstance(spec.input, TokenInput):
            self.embedding = nn.Embedding(spec.input.vocabulary_size, spec.input.embedding)
        else:
            self.register_buffer("mean", torch.tensor(spec.input.mean), persistent=False)
            self.register_buffer("scale", torch.tensor(spec.input.scale), persistent=False)
        options: dict[str, Any] = {"batch_first": True, "dropout": spec.dropout if spec.layers > 1 else 0.0}
        if spec.cell.startswith("rnn_"):
            options["nonlinearity"] = spec.cell.removeprefix("rnn_")
        self.recurrent = _LAYERS[spec.cell](
            input_size=spec.input.width,
            hidden_size=spec.hidden,
            num_layers=spec.layers,
            **options,
        )
        self.dropout = nn.Dropout(spec.dropout)
        self.head = _build_head(spec)

    def initial_state(self, batch: int) -> State:
        """Zeros, one [B, L, H] per state name, on the model's device."""
        weight = self.recurrent.weight_hh_l0
        assert isinstance(weight, Tensor)
        shape = (batch, self.spec.layers, self.spec.hidden)
        return tuple(torch.zeros(shape, device=weight.device, dtype=weight.dtype) for _ in self.spec.state_names)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Run T steps.

        x: int64 [B, T] token ids, or float32 [B, T, F] values in their own units. state: as `initial_state` gives.
        Returns the head's output, [B, T, V], [B, T, K, Q] or [B, T, outputs], and the state after the last step.
        """
        # torch wants [L, B, H]; the contract's state is batch-first because sessions are rows.
        packed = tuple(s.transpose(0, 1).contiguous() for s in state)
        y, after = self.recurrent(self._features(x), packed if len(packed) > 1 else packed[0])
        after = after if isinstance(after, tuple) else (after,)
        y = self.dropout(y)
        output = self.head(y, x) if isinstance(self.head, QuantileProjection) else self.head(y)
        return output, tuple(s.transpose(0, 1).contiguous() for s in after)

    def _features(self, x: Tensor) -> Tensor:
        """[B, T] ids or [B, T, F] raw values -> [B, T, width] as the first layer reads them."""
        if isinstance(self.spec.input, TokenInput):
            embedded: Tensor = self.embedding(x)
            return embedded
        return (x - self.mean) / self.scale


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


def _build_head(spec: ModelSpec) -> nn.Module:
    """The projection that follows the last recurrent layer."""
    if isinstance(spec.head, QuantileHead):
        assert isinstance(spec.input, FeatureInput)  # ModelSpec has checked it
        return QuantileProjection(spec.hidden, spec.head, spec.input.scale[spec.head.target])
    outputs = spec.head.outputs if isinstance(spec.head, LinearHead) else spec.head.vocabulary_size
    return nn.Linear(spec.hidden, outputs)


def count_parameters(model: nn.Module) -> int:
    """Number of trained values."""
    return sum(p.numel() for p in model.parameters())
