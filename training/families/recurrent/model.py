"""The recurrent model: input -> convolutions -> recurrent layers -> attention -> heads, its state passed in and out.

Owns: the torch module and its weights. Must not know data, files, training or ONNX. Every output depends on its own
step and the state only.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from eddy.training.families.family import Outputs, State, StreamingModel
from eddy.training.families.projection import build_projection, project
from eddy.training.families.recurrent.attention import WindowAttention
from eddy.training.families.recurrent.convolution import CausalConvolution, FrameEncoder
from eddy.training.families.recurrent.levels import read_layers, run_layer
from eddy.training.families.recurrent.spec import RecurrentSpec
from eddy.training.spec import INT8, FeatureInput, FrameInput, TokenInput

_LAYERS: dict[str, type[nn.RNNBase]] = {"rnn_tanh": nn.RNN, "rnn_relu": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
# A learned initial state begins as small numbers, so that units differ from the first step on.
_INITIAL_DEVIATION = 0.1


class RecurrentModel(StreamingModel):
    """RNN, GRU or LSTM with explicit, batch-first state: a tuple of the tensors that `spec.states` lists."""

    spec: RecurrentSpec
    mean: Tensor
    scale: Tensor

    def __init__(self, spec: RecurrentSpec) -> None:
        super().__init__()
        self.spec = spec
        # 1. What reads the input.
        if isinstance(spec.input, TokenInput):
            self.embedding = nn.Embedding(spec.input.vocabulary_size, spec.input.embedding)
        elif isinstance(spec.input, FeatureInput):
            self.register_buffer("mean", torch.tensor(spec.input.mean), persistent=False)
            self.register_buffer("scale", torch.tensor(spec.input.scale), persistent=False)
        else:
            self.frames = FrameEncoder(spec.frame_convolutions, spec.input.planes)
        if spec.convolutions:
            parts = zip(spec.convolutions, spec.widths, strict=False)
            self.convolutions = nn.ModuleList(CausalConvolution(part, width) for part, width in parts)
        # 2. The layers: one module of torch's, or one each where something is added between them.
        width = spec.widths[-1]
        if spec.residual:
            sizes = (width, *[spec.hidden] * (spec.layers - 1))
            self.stack = nn.ModuleList(_build_cells(spec, size, 1) for size in sizes)
        elif spec.layers:
            self.recurrent = _build_cells(spec, width, spec.layers)
        else:
            self.dense = nn.Linear(width, spec.hidden)
        # 3. What follows.
        if spec.attention is not None:
            self.attention = WindowAttention(spec.attention, spec.hidden)
        self.dropout = nn.Dropout(spec.dropout)
        for head, name in zip(spec.heads, spec.projections, strict=True):
            self.add_module(name, build_projection(head, spec.input, spec.hidden))
        for state in spec.states:
            if state.is_learned:
                value = torch.randn(state.shape) * _INITIAL_DEVIATION
                self.register_parameter(f"initial_{state.name}", nn.Parameter(value))

    def initial_state(self, batch: int) -> State:
        """One [batch, ...] per state: zeros, or the learned values with their gradient, on the model's device."""
        device = next(self.parameters()).device
        found = []
        for state in self.spec.states:
            if state.is_learned:
                found.append(self.get_parameter(f"initial_{state.name}").expand(batch, *state.shape))
            else:
                dtype = torch.int64 if state.is_count else torch.float32
                found.append(torch.zeros((batch, *state.shape), dtype=dtype, device=device))
        return tuple(found)

    def layer_weights(self, layer: int) -> list[Tensor]:
        """weight_ih, weight_hh, bias_ih, bias_hh of a layer."""
        module, index = (self.stack[layer], 0) if self.spec.residual else (self.recurrent, layer)
        parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return [module.get_parameter(f"{part}_l{index}") for part in parts]

    def forward(
        self, x: Tensor, state: State, lengths: Tensor | None = None, seen: Tensor | None = None
    ) -> tuple[Outputs, State]:
        """Run T steps.

        x: int64 [B, T] token ids, float32 [B, T, F] values in their own units, or float32 frames [B, T, ...].
        state: as `initial_state` gives. lengths: int64 [B] on the CPU, the valid steps of each row, 1 to T; None for
        T. seen: in int8, the exported graph's h after every step, [B, T, L, H]; see `levels`. Returns every head's
        output by its name, [B, T, ...], of which those behind a row's valid steps mean nothing, and each row's state
        after its last valid step.
        """
        # 1. States by name; they come back in the same order.
        before = dict(zip(self.spec.state_names, state, strict=True))
        after: dict[str, Tensor] = {}
        placed = None if lengths is None else lengths.to(x.device)
        # 2. From the input to the layers.
        y = self._features(x)
        if self.spec.convolutions:
            for index, convolution in enumerate(self.convolutions):
                y, after[f"conv_{index}"] = convolution(y, before[f"conv_{index}"], placed)
        if self.spec.precision == INT8:
            y = self._run_quantised(y, before, after, placed, seen)
        else:
            y = self._run_layers(y, before, after, lengths)
        # 3. From the layers to the heads.
        if self.spec.attention is not None:
            y, after["past"], after["past_count"] = self.attention(y, before["past"], before["past_count"], placed)
        y = self.dropout(y)
        outputs = {
            head.name: project(self.get_submodule(name), y, x)
            for head, name in zip(self.spec.heads, self.spec.projections, strict=True)
        }
        return outputs, tuple(after[name] for name in self.spec.state_names)

    def _features(self, x: Tensor) -> Tensor:
        """[B, T] ids, [B, T, F] raw values or [B, T, ...] frames -> [B, T, width]."""
        if isinstance(self.spec.input, TokenInput):
            embedded: Tensor = self.embedding(x)
            return embedded
        if isinstance(self.spec.input, FrameInput):
            encoded: Tensor = self.frames(x)
            return encoded
        return (x - self.mean) / self.scale

    def _run_layers(
        self, y: Tensor, before: dict[str, Tensor], after: dict[str, Tensor], lengths: Tensor | None
    ) -> Tensor:
        """[B, T, width] -> [B, T, H] through all layers; puts the cells' next states into `after`."""
        if not self.spec.layers:
            return torch.relu(self.dense(y))
        # torch wants [L, B, H]; the contract's state is batch-first because sessions are rows.
        packed = [before[name].transpose(0, 1) for name in self.spec.cell_state_names]
        if not self.spec.residual:
            y, finals = _run_cells(self.recurrent, y, packed, lengths)
        else:
            pieces = []
            for index, layer in enumerate(self.stack):
                z, final = _run_cells(layer, y, [s[index : index + 1] for s in packed], lengths)
                # Between layers only: the last one's is dropped with everything else before the heads.
                z = self.dropout(z) if index + 1 < self.spec.layers else z
                y = z + y if index else z
                pieces.append(final)
            finals = [torch.cat(layers) for layers in zip(*pieces, strict=True)]
        for name, value in zip(self.spec.cell_state_names, finals, strict=True):
            after[name] = value.transpose(0, 1).contiguous()
        return y

    def _run_quantised(
        self,
        y: Tensor,
        before: dict[str, Tensor],
        after: dict[str, Tensor],
        lengths: Tensor | None,
        seen: Tensor | None,
    ) -> Tensor:
        """As `_run_layers`, in 8 bits and without gradient: such a model is not trained."""
        weights = [[w.detach().cpu().numpy() for w in self.layer_weights(i)] for i in range(self.spec.layers)]
        finals = []
        levels: Tensor | None = None
        for index, layer in enumerate(read_layers(self.spec, weights)):
            given = [before[name][:, index] for name in self.spec.cell_state_names]
            guide = None if seen is None else seen[:, :, index]
            x = levels if layer.reads_levels and levels is not None else y
            z, levels, final = run_layer(layer, x, given, lengths, guide)
            y = z + y if self.spec.residual and index else z
            finals.append(final)
        for name, values in zip(self.spec.cell_state_names, zip(*finals, strict=True), strict=True):
            after[name] = torch.stack(values, dim=1)
        return y


def _build_cells(spec: RecurrentSpec, width: int, layers: int) -> nn.RNNBase:
    options: dict[str, Any] = {"batch_first": True, "dropout": spec.dropout if layers > 1 else 0.0}
    if spec.cell.startswith("rnn_"):
        options["nonlinearity"] = spec.cell.removeprefix("rnn_")
    return _LAYERS[spec.cell](input_size=width, hidden_size=spec.hidden, num_layers=layers, **options)


def _run_cells(cells: nn.Module, x: Tensor, state: list[Tensor], lengths: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """[B, T, width] and [L, B, H] states -> [B, T, H] and the states after each row's last valid step."""
    given = [s.contiguous() for s in state]
    packed = x if lengths is None else pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    y, after = cells(packed, tuple(given) if len(given) > 1 else given[0])
    if lengths is not None:
        y, _ = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])
    return y, list(after) if isinstance(after, tuple) else [after]
