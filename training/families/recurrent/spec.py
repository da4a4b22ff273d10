"""The shape of a recurrent model: which cell, how large, and the names of the tensors that follow from it.

Knows neither torch nor onnx.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from eddy.training.errors import RecipeError
from eddy.training.fields import require
from eddy.training.spec import CELLS, Head, Input, TokenInput, check_ports, ports_from_dict, ports_to_dict

KIND = "recurrent"


@dataclass(frozen=True, slots=True)
class RecurrentSpec:
    """Everything that fixes a recurrent model's architecture.

    cell: one of CELLS. layers: L. hidden: H, units per layer. dropout: share of units dropped after every
    recurrent layer while training; the recurrence itself keeps all of them.
    """

    kind: ClassVar[str] = KIND

    cell: str
    layers: int
    hidden: int
    input: Input
    heads: tuple[Head, ...]
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.cell in CELLS, "cell", self.cell, f"one of {', '.join(CELLS)}")
        require(self.layers >= 1, "layers", self.layers, "at least 1")
        require(self.hidden >= 1, "hidden", self.hidden, "at least 1")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a share in [0, 1)")
        check_ports(self.input, self.heads)

    @property
    def head(self) -> Head:
        """The head of a model that has only one."""
        (head,) = self.heads
        return head

    @property
    def state_names(self) -> tuple[str, ...]:
        """Graph inputs that carry state, each float32 [B, L, H]; the next ones are these with `_next` appended."""
        return ("h", "c") if self.cell == "lstm" else ("h",)

    @property
    def projections(self) -> tuple[str, ...]:
        """The heads' modules: `head` where there is only one, else `head_<name>`."""
        return ("head",) if len(self.heads) == 1 else tuple(f"head_{head.name}" for head in self.heads)

    def to_dict(self) -> dict[str, Any]:
        """As plain values (for a checkpoint); `from_dict` reads it back."""
        return {"family": KIND} | asdict(self) | ports_to_dict(self.input, self.heads)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "RecurrentSpec":
        """Inverse of `to_dict`. Raises RecipeError where the values do not make a model."""
        given, heads = ports_from_dict(values)
        plain = {key: value for key, value in values.items() if key not in ("family", "input", "head", "heads")}
        try:
            return RecurrentSpec(input=given, heads=heads, **plain)
        except TypeError as error:
            raise RecipeError(f"model specification: {error}") from error


@dataclass(frozen=True, slots=True)
class RecurrentArchitecture:
    """A recipe's [model] table of this family; input width and heads follow from the data."""

    kind: ClassVar[str] = KIND

    cell: str
    hidden: int
    layers: int = 1
    # Width of a token's vector; about a quarter of `hidden` is enough for characters. Unused by series.
    embedding: int = 32
    # Share of units dropped after every layer while training: small texts are learnt by heart without it.
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.cell in CELLS, "model.cell", self.cell, f"one of {', '.join(CELLS)}")
        require(self.hidden >= 1, "model.hidden", self.hidden, "at least 1")
        require(self.layers >= 1, "model.layers", self.layers, "at least 1")
        require(self.embedding >= 1, "model.embedding", self.embedding, "at least 1")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "a share in [0, 1)")

    def spec(self, given: Input, heads: tuple[Head, ...]) -> RecurrentSpec:
        """The full specification; a token input gets this architecture's embedding."""
        if isinstance(given, TokenInput):
            given = TokenInput(given.vocabulary_size, self.embedding)
        return RecurrentSpec(self.cell, self.layers, self.hidden, given, heads, self.dropout)
