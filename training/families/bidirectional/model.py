"""The exact bidirectional model: every output depends on the whole sequence.

Owns: the torch module and its weights. Must not know grids, data, files or ONNX.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from eddy.training.families.bidirectional.spec import BidirectionalSpec
from eddy.training.families.family import Model, Outputs, State
from eddy.training.families.projection import build_projection
from eddy.training.spec import FeatureInput, TokenInput

CELL_MODULES: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}

# A learned initial state begins as small numbers, so that units differ from the first step on.
_INITIAL_DEVIATION = 0.1


class BidirectionalModel(Model):
    """Input -> stacked bidirectional LSTM or GRU -> a projection of every step per head."""

    spec: BidirectionalSpec
    mean: Tensor
    scale: Tensor

    def __init__(self, spec: BidirectionalSpec) -> None:
        super().__init__()
        self.spec = spec
        if isinstance(spec.input, TokenInput):
            self.embedding = nn.Embedding(spec.input.vocabulary_size, spec.input.embedding)
        else:
            assert isinstance(spec.input, FeatureInput)  # BidirectionalSpec has seen to it
            self.register_buffer("mean", torch.tensor(spec.input.mean), persistent=False)
            self.register_buffer("scale", torch.tensor(spec.input.scale), persistent=False)
        widths = [spec.input.width] + [2 * spec.hidden] * (spec.layers - 1)
        # One module per layer and direction: padded rows cost a third of what torch's packed sequences do.
        cell = CELL_MODULES[spec.cell]
        self.forwards = nn.ModuleList(cell(width, spec.hidden, batch_first=True) for width in widths)
        self.backwards = nn.ModuleList(cell(width, spec.hidden, batch_first=True) for width in widths)
        self.dropout = nn.Dropout(spec.dropout)
        for name in spec.hidden_names if spec.learned_state else ():
            value = torch.randn(2, spec.layers, spec.hidden) * _INITIAL_DEVIATION
            self.register_parameter(f"initial_{name}", nn.Parameter(value))
        for head, name in zip(spec.heads, spec.projections, strict=True):
            self.add_module(name, build_projection(head, spec.input, 2 * spec.hidden))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Outputs:
        """Whole sequences.

        x: int64 [B, T] token ids, or float32 [B, T, F] values in their own units. lengths: int64 [B], 1 to T; left
        out, every row has T steps. Steps from a row's length on change nothing, and their outputs mean nothing.
        Returns each head's output by its name, float32 [B, T, ...].
        """
        y = self.features(x)
        for layer in range(self.spec.layers):
            y = self.dropout(y) if layer else y
            ahead, _ = self.forwards[layer](y, self.begin(0, layer, len(x)))
            # Padding comes last in either direction, so that no valid step ever reads it.
            back, _ = self.backwards[layer](turn(y, lengths), self.begin(1, layer, len(x)))
            y = torch.cat([ahead, turn(back, lengths)], dim=-1)
        return self.project(y)

    def initial_state(self, direction: int, layer: int, batch: int) -> State:
        """What a layer's forward (0) or backward (1) direction begins with, [B, H] per state: zeros, or learned."""
        shape = (batch, self.spec.hidden)
        if not self.spec.learned_state:
            return tuple(next(self.parameters()).new_zeros(shape) for _ in self.spec.hidden_names)
        names = [f"initial_{name}" for name in self.spec.hidden_names]
        return tuple(self.get_parameter(name)[direction, layer].expand(shape) for name in names)

    def begin(self, direction: int, layer: int, batch: int) -> Tensor | State:
        """The same as torch's recurrent modules take it, [1, B, H] each."""
        return as_hidden(self.initial_state(direction, layer, batch))

    def read(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> Outputs:
        """See `Model`; the backward direction begins at each row's own end."""
        name = self.spec.input.name
        outputs: Outputs = self(inputs[name], lengths[name])
        return outputs

    def features(self, x: Tensor) -> Tensor:
        """[B, T] ids or [B, T, F] raw values -> [B, T, width] as the first layer reads them."""
        if isinstance(self.spec.input, TokenInput):
            embedded: Tensor = self.embedding(x)
            return embedded
        return (x - self.mean) / self.scale

    def project(self, y: Tensor) -> Outputs:
        """The heads over the last layer's outputs, [B, T, 2H]."""
        y = self.dropout(y)
        named = zip(self.spec.heads, self.spec.projections, strict=True)
        return {head.name: self.get_submodule(name)(y) for head, name in named}


def as_hidden(states: State) -> Tensor | State:
    """[B, H] states as torch's recurrent modules take them: [1, B, H], a pair for an LSTM."""
    turned = tuple(state[None].contiguous() for state in states)
    return turned if len(turned) > 1 else turned[0]


def turn(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Each row's first `length` steps of [B, T, width] in reverse order, what follows stays; without lengths all."""
    if lengths is None:
        return x.flip(1)
    steps, ends = torch.arange(x.shape[1], device=x.device)[None], lengths.to(x.device)[:, None]
    index = torch.where(steps < ends, ends - 1 - steps, steps)
    return torch.take_along_dim(x, index[:, :, None], dim=1)
