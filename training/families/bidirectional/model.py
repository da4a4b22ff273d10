"""The exact bidirectional model: every output depends on the whole sequence.

Owns: the torch module and its weights. Must not know grids, data, files or ONNX.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from eddy.training.families.bidirectional.spec import BidirectionalSpec
from eddy.training.families.family import Model, Outputs
from eddy.training.families.projection import build_projection
from eddy.training.spec import FeatureInput, TokenInput

CELL_MODULES: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


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
        self.recurrent = CELL_MODULES[spec.cell](
            input_size=spec.input.width,
            hidden_size=spec.hidden,
            num_layers=spec.layers,
            batch_first=True,
            bidirectional=True,
            dropout=spec.dropout if spec.layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(spec.dropout)
        for head, name in zip(spec.heads, spec.projections, strict=True):
            self.add_module(name, build_projection(head, spec.input, 2 * spec.hidden))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Outputs:
        """Whole sequences.

        x: int64 [B, T] token ids, or float32 [B, T, F] values in their own units. lengths: int64 [B], 1 to T; left
        out, every row has T steps. Steps from a row's length on change nothing, and their outputs mean nothing.
        Returns each head's output by its name, float32 [B, T, ...].
        """
        steps = self.features(x)
        if lengths is None:
            y, _ = self.recurrent(steps)
        else:
            packed = pack_padded_sequence(steps, lengths.cpu(), batch_first=True, enforce_sorted=False)
            y, _ = pad_packed_sequence(self.recurrent(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.project(y)

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
