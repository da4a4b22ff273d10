"""What lifting found, as plain values.

Owns their names. Must not know how a graph is changed.

Dimension key: B batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx


@dataclass(frozen=True, slots=True)
class LiftedState:
    """A hidden state that is now an input and an output of the graph.

    Attributes:
        input, output: graph tensors, laid out as the node has them: `initial_h` is [1, B, H].
        dtype: a numpy name: "float32".
        shape: of one row, without the batch axis; None where the graph does not tell an axis' size.
        batch_axis: the position of the batch axis; None where it has none, in a graph for one row.
        initial: what one row begins with, of `shape`, or a value without axes where all elements are equal; dtype as
            above.
        operand: what it is to its node: "initial_h", "initial_c", "carried variable".
        node: the node that it comes from, for a person.
        how: how it was found, for a person.
    """

    input: str
    output: str
    dtype: str
    shape: tuple[int | None, ...]
    batch_axis: int | None
    initial: np.ndarray
    operand: str
    node: str
    how: str


@dataclass(frozen=True, slots=True)
class Given:
    """A node's state that hangs on what the model is given: nothing is hidden there.

    Either the caller gives it (`sources` are explicit states), or it is computed from data, and no stream can carry it.

    Attributes:
        node: whose state it is, for a person; operand: which: "initial_h", "initial_c", "sequence_lens".
        sources: the graph inputs that it hangs on.
        through: the node nearest to it that computes with them, for a person; "" where they are only cut and moved.
    """

    node: str
    operand: str
    sources: tuple[str, ...]
    through: str

    @property
    def reason(self) -> str:
        """Why it cannot be carried, should a source be data."""
        what = ", ".join(repr(name) for name in self.sources) or "nothing that is known"
        through = f" by {self.through}" if self.through else ""
        return f"{self.operand} of {self.node} is computed from {what}{through}: no state that a stream carries"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A node that no stream can run.

    Attributes:
        node: for a person; reason: a sentence that names it.
    """

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Lift:
    """A model whose hidden states lie open.

    Attributes:
        model: a copy; what no output hangs on has been left out.
        states: the lifted ones, in the order of the graph.
        given: states of nodes that hang on the model's inputs.
        obstacles: nodes that prevent streaming.
        echoes: outputs of the file that hold nothing but final states, cut and moved: the whole of them stands in the
            states' own outputs.
        recurrent: every recurrent node, Scan and Loop that was looked at, for a person.
    """

    model: onnx.ModelProto
    states: tuple[LiftedState, ...]
    given: tuple[Given, ...]
    obstacles: tuple[Obstacle, ...]
    echoes: tuple[str, ...]
    recurrent: tuple[str, ...]
