"""The recurrent model: input -> recurrent layers -> heads, with its state passed in and handed back.

Owns: the torch module and its weights. Must not know data, files, training or ONNX. Every output depends on its own
step and the state only.
"""

from typing import Any

import torch
from torch import Tensor, nn

from eddy.training.families.family import Outputs, State, StreamingModel
from eddy.training.families.projection import build_projection, project
from eddy.training.families.recurrent.spec import RecurrentSpec
from eddy.training.spec import TokenInput

_LAYERS: dict[str, type[nn.RNNBase]] = {"rnn_tanh": nn.RNN, "rnn_relu": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentModel(StreamingModel):
    """RNN, GRU or LSTM of one or more layers with explicit, batch-first state.

    The state is a tuple of float32 tensors [B, L, H]: (h,) or, for an LSTM, (h, c).
    """

    spec: RecurrentSpec
    mean: Tensor
    scale: Tensor

    def __init__(self, spec: RecurrentSpec) -> None:
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
        for head, name in zip(spec.heads, spec.projections, strict=True):
            self.add_module(name, build_projection(head, spec.input, spec.hidden))

    def initial_state(self, batch: int) -> State:
        """Zeros, one [B, L, H] per state name, on the model's device."""
        weight = next(self.parameters())
        shape = (batch, self.spec.layers, self.spec.hidden)
        return tuple(torch.zeros(shape, device=weight.device, dtype=weight.dtype) for _ in self.spec.state_names)

    def forward(self, x: Tensor, state: State) -> tuple[Outputs, State]:
        """Run T steps.

        x: int64 [B, T] token ids, or float32 [B, T, F] values in their own units. state: as `initial_state` gives.
        Returns every head's output by its name, [B, T, ...], and the state after the last step.
        """
        # torch wants [L, B, H]; the contract's state is batch-first because sessions are rows.
        packed = tuple(s.transpose(0, 1).contiguous() for s in state)
        y, after = self.recurrent(self._features(x), packed if len(packed) > 1 else packed[0])
        after = after if isinstance(after, tuple) else (after,)
        y = self.dropout(y)
        outputs = {
            head.name: project(self.get_submodule(name), y, x)
            for head, name in zip(self.spec.heads, self.spec.projections, strict=True)
        }
        return outputs, tuple(s.transpose(0, 1).contiguous() for s in after)

    def _features(self, x: Tensor) -> Tensor:
        """[B, T] ids or [B, T, F] raw values -> [B, T, width] as the first layer reads them."""
        if isinstance(self.spec.input, TokenInput):
            embedded: Tensor = self.embedding(x)
            return embedded
        return (x - self.mean) / self.scale
