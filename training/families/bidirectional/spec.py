"""The shape of a bidirectional model: which cell, how large, and the grid on which it streams.

Knows neither torch nor onnx.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from eddy.training.fields import require
from eddy.training.spec import (
    FeatureInput,
    Head,
    Input,
    QuantileHead,
    TokenInput,
    check_ports,
    ports_to_dict,
    spec_from_values,
)

KIND = "bidirectional"
CELLS = ("lstm", "gru")
# Ports of the step graph, and the states that hold what was read but not yet emitted.
LENGTH, FLUSH, EMITTED = "length", "flush", "emitted"
PENDING, COUNT = "pending", "count"
# The grid where none is chosen.
BLOCK_STEPS, LOOK_AHEAD_STEPS = 8, 16


@dataclass(frozen=True, slots=True)
class BidirectionalSpec:
    """Everything that fixes a bidirectional model's architecture, and its grid.

    cell: one of CELLS. layers: L. hidden: H, units per layer and direction. dropout: share of units dropped after
    every layer while training. block_steps, look_ahead_steps: Nc and R. The weights do not depend on them, so they are
    chosen at export (`on_grid`). learned_state: the states that both directions begin with are trained.
    """

    kind: ClassVar[str] = KIND

    cell: str
    layers: int
    hidden: int
    input: Input
    heads: tuple[Head, ...]
    dropout: float = 0.0
    block_steps: int = BLOCK_STEPS
    look_ahead_steps: int = LOOK_AHEAD_STEPS
    learned_state: bool = False

    def __post_init__(self) -> None:
        require(self.cell in CELLS, "cell", self.cell, f"one of {', '.join(CELLS)}")
        require(self.layers >= 1, "layers", self.layers, "at least 1")
        require(self.hidden >= 1, "hidden", self.hidden, "at least 1")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a share in [0, 1)")
        check_ports(self.input, self.heads)
        require(isinstance(self.input, TokenInput | FeatureInput), "input", self.input, "tokens or features")
        for head in self.heads:
            require(not isinstance(head, QuantileHead), "heads", head, "heads of logits or plain projections")
        require(self.block_steps >= 1, "block_steps", self.block_steps, "at least 1")
        require(self.look_ahead_steps >= 0, "look_ahead_steps", self.look_ahead_steps, "0 or more")
        # Blocks of one step and no look-ahead leave nothing pending: a state of no bytes.
        require(self.pending_steps >= 1, "look_ahead_steps", self.look_ahead_steps, "at least 1 with blocks of 1 step")

    @property
    def pending_steps(self) -> int:
        """The most frames that wait for their block and its look-ahead to be complete: P = Nc - 1 + R."""
        return self.block_steps - 1 + self.look_ahead_steps

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """States of the forward direction at the last block's end, each float32 [B, L, H]."""
        return ("h", "c") if self.cell == "lstm" else ("h",)

    @property
    def projections(self) -> tuple[str, ...]:
        """The heads' modules: `head` where there is only one, else `head_<name>`."""
        return ("head",) if len(self.heads) == 1 else tuple(f"head_{head.name}" for head in self.heads)

    def on_grid(self, block_steps: int, look_ahead_steps: int) -> "BidirectionalSpec":
        """The same model on another grid. Raises RecipeError."""
        return replace(self, block_steps=block_steps, look_ahead_steps=look_ahead_steps)

    def to_dict(self) -> dict[str, Any]:
        """As plain values (for a checkpoint); `from_dict` reads it back."""
        return {"family": KIND} | asdict(self) | ports_to_dict(self.input, self.heads)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "BidirectionalSpec":
        """Inverse of `to_dict`. Raises RecipeError where the values do not make a model."""
        return spec_from_values(BidirectionalSpec, values)


@dataclass(frozen=True, slots=True)
class BidirectionalArchitecture:
    """A recipe's [model] table of this family; input width and heads follow from the data."""

    kind: ClassVar[str] = KIND

    cell: str
    hidden: int
    layers: int = 1
    # Width of a token's vector; about a quarter of `hidden` is enough for characters. Unused by series.
    embedding: int = 32
    # Share of units dropped after every layer while training.
    dropout: float = 0.0
    # The grid on which `eddy export` lets the model stream unless it is told another one.
    block_steps: int = BLOCK_STEPS
    look_ahead_steps: int = LOOK_AHEAD_STEPS
    # Sequences begin and end with trained states instead of zeros.
    learned_state: bool = False

    def __post_init__(self) -> None:
        require(self.cell in CELLS, "model.cell", self.cell, f"one of {', '.join(CELLS)}")
        for name in ("hidden", "layers", "embedding", "block_steps"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "a share in [0, 1)")
        require(self.look_ahead_steps >= 0, "model.look_ahead_steps", self.look_ahead_steps, "0 or more")

    def spec(self, given: Input, heads: tuple[Head, ...]) -> BidirectionalSpec:
        """The full specification; a token input gets this architecture's embedding."""
        if isinstance(given, TokenInput):
            given = TokenInput(given.vocabulary_size, self.embedding)
        grid = self.block_steps, self.look_ahead_steps
        return BidirectionalSpec(
            self.cell, self.layers, self.hidden, given, heads, self.dropout, *grid, learned_state=self.learned_state
        )
