"""The encoder-decoder: a bidirectional encoder reads the source, a decoder with attention writes the target.

Owns: the torch module and its weights. Must not know data, files, training or ONNX.

Attention is Luong's "general" score (Luong, Pham, Manning 2015), computed from the decoder's own output and fed
nowhere: without input feeding a call of T steps is one recurrence followed by T independent looks at the memory, so
that it does not matter how the steps are cut into calls. Beside the encoder's outputs the looks see the source's own
vectors, which go past the tanh straight to the output (Nguyen and Chiang 2018), and one embedding serves source, target
and, transposed, the output (Press and Wolf 2017): together they let a decoder copy a name that it has never seen.

Dimension key: B batch, S source steps, T target steps, E embedding, H hidden, V vocabulary.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from eddy.training.families.family import Model, Outputs, State
from eddy.training.families.translation.spec import TranslationSpec

# Added to the score of a place that holds nothing; exp of it is exactly 0.
NOTHING = -1e9
# How much a look counts beside a symbol in the loss, and the share that keeps its logarithm finite.
GUIDANCE = 0.5
LEAST_SHARE = 1e-6
_LAYERS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class Source(NamedTuple):
    """What the encoder makes of a source. Without attention the decoder uses `state` alone.

    memory: its outputs, float32 [B, S, H]. words: the symbols' vectors, [B, S, E]. mask: 0 where there is a symbol,
    NOTHING elsewhere, [B, S]. state: the decoder's first state, each [B, 1, H]. memory and words are 0 where the source
    has no symbol.
    """

    memory: Tensor
    words: Tensor
    mask: Tensor
    state: State


class TranslationModel(Model):
    """Encoder, attention and decoder."""

    spec: TranslationSpec

    def __init__(self, spec: TranslationSpec) -> None:
        super().__init__()
        self.spec = spec
        layer, hidden, embedding = _LAYERS[spec.cell], spec.hidden, spec.embedding
        self.embedding = nn.Embedding(spec.vocabulary_size, embedding)
        nn.init.normal_(self.embedding.weight, std=embedding**-0.5)
        self.encoder = layer(embedding, hidden // 2, batch_first=True, bidirectional=True)
        self.bridges = nn.ModuleDict({name: nn.Linear(hidden, hidden) for name in spec.state_names})
        self.decoder = layer(embedding, hidden, batch_first=True)
        self.attention = Attention(hidden, embedding) if spec.attention else None
        self.mix = nn.Linear(hidden * (2 if spec.attention else 1), embedding)
        self.bias = nn.Parameter(torch.zeros(spec.vocabulary_size))
        self.dropout = nn.Dropout(spec.dropout)

    def encode(self, source: Tensor, lengths: Tensor) -> Source:
        """source: int64 [B, S]; lengths: int64 [B], 1 to S; what stands from a row's length on changes nothing."""
        words = self.dropout(self.embedding(source))
        packed = pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs, last = self.encoder(packed)
        memory, _ = pad_packed_sequence(outputs, batch_first=True, total_length=source.shape[1])
        mask = source_mask(lengths, source.shape[1])
        lasts = dict(zip(self.spec.state_names, last if isinstance(last, tuple) else (last,), strict=True))
        # [2, B, H/2] -> [B, 1, H]: forwards after the last valid step, backwards after the first.
        joined = {n: s.transpose(0, 1).reshape(len(source), 1, self.spec.hidden) for n, s in lasts.items()}
        state = tuple(torch.tanh(bridge(joined[name])) for name, bridge in self.bridges.items())
        return Source(memory, words * (mask == 0).unsqueeze(-1), mask, state)

    def no_source(self, batch: int) -> Source:
        """What stands in the states of a session whose source was never given."""
        spec, weights = self.spec, self.bias
        memory = weights.new_zeros(batch, spec.max_source_steps, spec.hidden)
        words = weights.new_zeros(batch, spec.max_source_steps, spec.embedding)
        state = tuple(weights.new_zeros(batch, 1, spec.hidden) for _ in spec.state_names)
        return Source(memory, words, weights.new_full((batch, spec.max_source_steps), NOTHING), state)

    def decode(self, tokens: Tensor, source: Source, state: State) -> tuple[Tensor, Tensor | None, State]:
        """tokens: int64 [B, T], each the symbol before the one asked for. state: each [B, 1, H].

        Returns logits [B, T, V], attention [B, T, S] (None without) and the state after the last step.
        """
        first = tuple(s.transpose(0, 1).contiguous() for s in state)
        y, last = self.decoder(self.dropout(self.embedding(tokens)), first if len(first) > 1 else first[0])
        weights = None
        if self.attention is None:
            mixed = torch.tanh(self.mix(self.dropout(y)))
        else:
            weights, context, copied = self.attention(y, source)
            mixed = torch.tanh(self.mix(self.dropout(torch.cat([context, y], dim=-1)))) + copied
        logits = self.dropout(mixed) @ self.embedding.weight.T + self.bias
        lasts = last if isinstance(last, tuple) else (last,)
        return logits, weights, tuple(s.transpose(0, 1).contiguous() for s in lasts)

    def forward(self, source: Tensor, lengths: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Teacher forcing: logits [B, T, V] and attention [B, T, S] for sources and the targets' symbols so far."""
        encoded = self.encode(source, lengths)
        logits, weights, _ = self.decode(tokens, encoded, encoded.state)
        return logits, weights

    def read(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> Outputs:
        """Teacher forcing, see `Model`: `source`, and in `tokens` the target's symbols so far."""
        logits, weights = self(inputs["source"], lengths["source"], inputs["tokens"])
        return {"logits": logits} | ({} if weights is None else {"attention": weights})

    def hint_loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> Tensor:
        """Where to look (Chen and others 2016): the surprise, in nats, of a look at any of the places that are meant.

        targets: `attention` [B, T, at least S], 1 where a place is meant; steps without one do not count.
        """
        if "attention" not in targets or "attention" not in outputs:
            return super().hint_loss(outputs, targets)
        weights = outputs["attention"]
        meant = targets["attention"][..., : weights.shape[2]] == 1
        shares = (weights * meant).sum(-1)[meant.any(-1)]
        return -GUIDANCE * torch.log(shares + LEAST_SHARE).sum()


class Attention(nn.Module):
    """Looks of a decoder at a source."""

    def __init__(self, hidden: int, embedding: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.copy = nn.Linear(embedding, embedding, bias=False)
        # As it is looked at, so it is written, before anything is learned.
        nn.init.eye_(self.copy.weight)

    def forward(self, y: Tensor, source: Source) -> tuple[Tensor, Tensor, Tensor]:
        """y: [B, T, H]. Returns the weights [B, T, S], the context [B, T, H] and what to copy, [B, T, E]."""
        scores = self.query(y) @ source.memory.transpose(1, 2) + source.mask.unsqueeze(1)
        weights = torch.softmax(scores, dim=-1)
        return weights, weights @ source.memory, self.copy(weights @ source.words)


def source_mask(lengths: Tensor, steps: int) -> Tensor:
    """float32 [B, steps]: 0 below each row's length, NOTHING from there on."""
    beyond = torch.arange(steps, device=lengths.device) >= lengths.unsqueeze(1)
    return torch.where(beyond, NOTHING, 0.0)
