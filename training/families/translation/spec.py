"""The shape of an encoder-decoder: its sizes, and the names of the tensors that follow from them.

Knows neither torch nor onnx.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from eddy.training.fields import require
from eddy.training.spec import Head, Input, TokenHead, TokenInput, check_ports, ports_to_dict, spec_from_values

KIND = "translation"
CELLS = ("gru", "lstm")


@dataclass(frozen=True, slots=True)
class TranslationSpec:
    """One vocabulary for both languages, a bidirectional encoder of one layer and a decoder of one layer.

    cell: one of CELLS. hidden: H, units of the decoder; the encoder has half of them in each direction. attention
    False: the decoder starts from the encoder's last state and sees nothing else of the source. dropout: share of units
    dropped while training. max_source_steps: the longest source, in symbols; the memory has that many places.
    """

    kind: ClassVar[str] = KIND

    cell: str
    hidden: int
    input: Input
    heads: tuple[Head, ...]
    attention: bool = True
    dropout: float = 0.0
    max_source_steps: int = 64

    def __post_init__(self) -> None:
        require(self.cell in CELLS, "cell", self.cell, f"one of {', '.join(CELLS)}")
        require(self.hidden >= 2 and self.hidden % 2 == 0, "hidden", self.hidden, "an even number, at least 2")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a share in [0, 1)")
        require(self.max_source_steps >= 1, "max_source_steps", self.max_source_steps, "at least 1")
        check_ports(self.input, self.heads)
        require(isinstance(self.input, TokenInput), "input", self.input, "tokens")
        wanted = (TokenHead(self.vocabulary_size),)
        require(self.heads == wanted, "heads", self.heads, f"{wanted}: the next token of the input's vocabulary")

    @property
    def tokens(self) -> TokenInput:
        """The input, which is of tokens."""
        assert isinstance(self.input, TokenInput)
        return self.input

    @property
    def vocabulary_size(self) -> int:
        """V, symbols of both languages."""
        return self.tokens.vocabulary_size

    @property
    def embedding(self) -> int:
        """E, width of a symbol's vector."""
        return self.tokens.embedding

    @property
    def state_names(self) -> tuple[str, ...]:
        """Graph inputs that carry the decoder's state, each float32 [B, 1, H]; the next ones end in `_next`."""
        return ("h", "c") if self.cell == "lstm" else ("h",)

    def to_dict(self) -> dict[str, Any]:
        """As plain values (for a checkpoint); `from_dict` reads it back."""
        return {"family": KIND} | asdict(self) | ports_to_dict(self.input, self.heads)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "TranslationSpec":
        """Inverse of `to_dict`. Raises RecipeError where the values do not make a model."""
        return spec_from_values(TranslationSpec, values)


@dataclass(frozen=True, slots=True)
class TranslationArchitecture:
    """A recipe's [model] table of this family; the vocabulary follows from the data."""

    kind: ClassVar[str] = KIND

    cell: str
    hidden: int
    # Width of a symbol's vector, in the input and, transposed, in the output.
    embedding: int = 128
    attention: bool = True
    dropout: float = 0.3
    max_source_steps: int = 64

    def __post_init__(self) -> None:
        require(self.cell in CELLS, "model.cell", self.cell, f"one of {', '.join(CELLS)}")
        require(self.hidden >= 2 and self.hidden % 2 == 0, "model.hidden", self.hidden, "an even number, at least 2")
        require(self.embedding >= 1, "model.embedding", self.embedding, "at least 1")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "a share in [0, 1)")
        require(self.max_source_steps >= 1, "model.max_source_steps", self.max_source_steps, "at least 1")

    def spec(self, given: Input, heads: tuple[Head, ...]) -> TranslationSpec:
        """The full specification; the token input gets this architecture's embedding."""
        if isinstance(given, TokenInput):
            given = TokenInput(given.vocabulary_size, self.embedding)
        return TranslationSpec(
            self.cell, self.hidden, given, heads, self.attention, self.dropout, self.max_source_steps
        )
