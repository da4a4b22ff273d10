"""The shape of a recurrent model: which cell, how large, what lies around it, and the states that follow from it.

Knows neither torch nor onnx.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from eddy.training.families.recurrent.parts import Attention, Convolution, FrameConvolution, StateShape
from eddy.training.fields import require
from eddy.training.spec import (
    CELLS,
    FLOAT32,
    INT8,
    PRECISIONS,
    FrameInput,
    Head,
    Input,
    TokenInput,
    check_ports,
    ports_to_dict,
    spec_from_values,
)

KIND = "recurrent"


@dataclass(frozen=True, slots=True)
class RecurrentSpec:
    """Everything that fixes a recurrent model's architecture, in the order in which data passes.

    cell: one of CELLS. layers: L; with none, one dense layer of H units with ReLU is in their place. hidden: H, units
    per layer. dropout: share of units dropped after every layer while training; the recurrence itself keeps all of
    them. residual: what goes into a layer is added to what comes out, from the second layer on. learned_state: the
    state before the first step is trained too, instead of zeros. precision: what the layers compute with, one of
    PRECISIONS; models are trained in float32.
    """

    kind: ClassVar[str] = KIND

    cell: str
    layers: int
    hidden: int
    input: Input
    heads: tuple[Head, ...]
    dropout: float = 0.0
    residual: bool = False
    learned_state: bool = False
    frame_convolutions: tuple[FrameConvolution, ...] = ()
    convolutions: tuple[Convolution, ...] = ()
    attention: Attention | None = None
    precision: str = FLOAT32

    def __post_init__(self) -> None:
        require(self.cell in CELLS, "cell", self.cell, f"one of {', '.join(CELLS)}")
        require(self.layers >= 0, "layers", self.layers, "0 or more")
        require(self.hidden >= 1, "hidden", self.hidden, "at least 1")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a share in [0, 1)")
        require(not self.residual or self.layers >= 2, "residual", self.residual, "false for fewer than 2 layers")
        require(not self.learned_state or self.layers, "learned_state", self.learned_state, "false without layers")
        is_video = isinstance(self.input, FrameInput)
        number = len(self.frame_convolutions)
        require(is_video or not number, "frame_convolutions", number, "none where the input is not frames")
        require(min(self.maps_shape) >= 1, "frame_convolutions", self.maps_shape, "a row and a column left over")
        require(self.precision in PRECISIONS, "precision", self.precision, f"one of {', '.join(PRECISIONS)}")
        if self.precision == INT8:
            require(self.layers >= 1, "precision", self.precision, "float32 for a model without recurrent layers")
            bounded = self.cell != "rnn_relu"
            require(bounded, "precision", self.precision, "float32 for a ReLU RNN, whose state has no bound")
        check_ports(self.input, self.heads)

    @property
    def head(self) -> Head:
        """The head of a model that has only one."""
        (head,) = self.heads
        return head

    @property
    def projections(self) -> tuple[str, ...]:
        """The heads' modules: `head` where there is only one, else `head_<name>`."""
        return ("head",) if len(self.heads) == 1 else tuple(f"head_{head.name}" for head in self.heads)

    @property
    def maps_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of a frame after the frame convolutions; (1, 1, width) where there are none."""
        if not isinstance(self.input, FrameInput):
            return 1, 1, self.input.width
        planes, rows, columns = self.input.planes, self.input.rows, self.input.columns
        for part in self.frame_convolutions:
            planes, rows, columns = part.channels, part.size_after(rows), part.size_after(columns)
        return planes, rows, columns

    @property
    def widths(self) -> tuple[int, ...]:
        """Features per step before each convolution, and, last, those that the first layer reads."""
        planes, rows, columns = self.maps_shape
        return (planes * rows * columns, *(part.channels for part in self.convolutions))

    @property
    def cell_state_names(self) -> tuple[str, ...]:
        """States of the cells, each float32 [B, L, H]."""
        return (("h", "c") if self.cell == "lstm" else ("h",)) if self.layers else ()

    @property
    def states(self) -> tuple[StateShape, ...]:
        """Every state tensor; the graph's inputs have these names, its outputs the same with `_next` behind."""
        meanings = {"h": "hidden state of every layer", "c": "cell state of every layer"}
        found = [
            StateShape(name, (self.layers, self.hidden), meanings[name], is_learned=self.learned_state)
            for name in self.cell_state_names
        ]
        for index, (part, width) in enumerate(zip(self.convolutions, self.widths, strict=False)):
            found.append(StateShape(f"conv_{index}", (part.past, width), f"last inputs of convolution {index}"))
        if self.attention is not None:
            shape = (self.attention.past, self.hidden)
            found.append(StateShape("past", shape, "last hidden states of the last layer, oldest first"))
            found.append(StateShape("past_count", (1,), "how many of them are filled, from the end", is_count=True))
        return tuple(found)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Graph inputs that carry state; the next ones are these with `_next` appended."""
        return tuple(state.name for state in self.states)

    def to_dict(self) -> dict[str, Any]:
        """As plain values (for a checkpoint); `from_dict` reads it back."""
        return {"family": KIND} | asdict(self) | ports_to_dict(self.input, self.heads)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "RecurrentSpec":
        """Inverse of `to_dict`. Raises RecipeError where the values do not make a model."""
        return spec_from_values(RecurrentSpec, values)


@dataclass(frozen=True, slots=True)
class RecurrentArchitecture:
    """A recipe's [model] table of this family; input and heads follow from the data. See RecurrentSpec."""

    kind: ClassVar[str] = KIND

    cell: str
    hidden: int
    layers: int = 1
    # Width of a token's vector; about a quarter of `hidden` is enough for characters. Unused by other inputs.
    embedding: int = 32
    # Share of units dropped after every layer while training: small texts are learnt by heart without it.
    dropout: float = 0.0
    # Four layers and more learn faster with it.
    residual: bool = False
    # Zeros are as good for long streams; short sequences gain by a start of their own.
    learned_state: bool = False
    frame_convolutions: tuple[FrameConvolution, ...] = ()
    convolutions: tuple[Convolution, ...] = ()
    attention: Attention | None = None

    def __post_init__(self) -> None:
        require(self.cell in CELLS, "model.cell", self.cell, f"one of {', '.join(CELLS)}")
        require(self.hidden >= 1, "model.hidden", self.hidden, "at least 1")
        require(self.layers >= 0, "model.layers", self.layers, "0 or more")
        require(self.embedding >= 1, "model.embedding", self.embedding, "at least 1")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "a share in [0, 1)")

    def spec(self, given: Input, heads: tuple[Head, ...]) -> RecurrentSpec:
        """The full specification; a token input gets this architecture's embedding."""
        if isinstance(given, TokenInput):
            given = replace(given, embedding=self.embedding)
        return RecurrentSpec(
            cell=self.cell,
            layers=self.layers,
            hidden=self.hidden,
            input=given,
            heads=heads,
            dropout=self.dropout,
            residual=self.residual,
            learned_state=self.learned_state,
            frame_convolutions=self.frame_convolutions,
            convolutions=self.convolutions,
            attention=self.attention,
        )
