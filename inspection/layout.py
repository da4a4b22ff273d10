"""Layouts: what every axis of a graph's inputs, states and outputs stands for.

Owns their names. Must not know graphs, or how a layout is found.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

BATCH = "batch"
TIME = "time"
# One axis that holds both, the first of them slower: [B * T] or [T * B].
BATCH_TIME = "batch*time"
TIME_BATCH = "time*batch"
# Its size follows T, but is another number.
VARIES = "varies with time"

# A size, or one of the words above; an axis each.
Axes = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The axes of one graph.

    Attributes:
        inputs: of the inputs that are no states; states: of the state inputs, and so of their next values; outputs: of
            the outputs that are no states.
        fixed_rows: the batch axes take this size alone, None for any; where there is no batch axis it is 1.
        fixed_steps: the same of the time axes.
    """

    inputs: Mapping[str, Axes]
    states: Mapping[str, Axes]
    outputs: Mapping[str, Axes]
    fixed_rows: int | None = None
    fixed_steps: int | None = None

    @property
    def has_time(self) -> bool:
        """Some input has a time axis."""
        return any(TIME in axes for axes in self.inputs.values())

    @property
    def sums_up(self) -> tuple[str, ...]:
        """Outputs that have no time axis though the inputs have."""
        if not self.has_time:
            return ()
        return tuple(
            name for name, axes in self.outputs.items() if not {TIME, BATCH_TIME, TIME_BATCH, VARIES} & {*axes}
        )


def sizes(axes: Axes, rows: int, steps: int) -> tuple[int, ...]:
    """The shape of a tensor for B = `rows`, T = `steps`."""
    words = {BATCH: rows, TIME: steps, BATCH_TIME: rows * steps, TIME_BATCH: rows * steps}
    return tuple(words[axis] if isinstance(axis, str) else axis for axis in axes)


def row_shape(axes: Axes) -> tuple[int, ...]:
    """The sizes that belong to one row's one step."""
    return tuple(axis for axis in axes if isinstance(axis, int))


def step_by_step(layout: Layout) -> Layout:
    """The same with one step a run."""
    return replace(layout, fixed_steps=1)


def in_windows(layout: Layout, size: int) -> Layout:
    """The same without time: what was a sequence is one step of `size` values."""
    inputs = {name: tuple(size if axis == TIME else axis for axis in axes) for name, axes in layout.inputs.items()}
    return replace(layout, inputs=inputs, fixed_steps=1)
