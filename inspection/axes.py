"""Axes: which axis of a graph's inputs and states is the batch, which is time, found by running the graph.

Owns the trying of candidates. Must not know whether a model streams.

A layout is right if the graph runs with sizes that occur nowhere else, every next state has its state's shape, and no
row of the batch changes another.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from eddy.inspection.candidates import MAX_TRIES, Ports, combinations
from eddy.inspection.layout import BATCH, BATCH_TIME, TIME, TIME_BATCH, VARIES, Axes, Layout, sizes
from eddy.inspection.program import Program
from eddy.inspection.trial import RunFailedError, Values, difference, draw, run, scale

# Tried sizes of B; of T in turn, as graphs with convolutions need some length, and those with tables have a longest.
_ROWS = (3, 5)
_STEPS = ((7, 11), (37, 53), (131, 163), (523, 569))
# Rows that do not know each other differ by rounding at most.
_ROUNDING = 1e-4


def find_layouts(program: Program, ports: Ports) -> Iterator[Layout]:
    """The layouts that are right, the likeliest first.

    Args:
        program: of the graph without its declarations.
    """
    for steps in _STEPS:
        found = False
        for has_batch, is_grouped in ((True, True), (True, False), (False, True)):
            likely = combinations(ports, has_batch=has_batch, is_grouped=is_grouped)
            for inputs, states in islice(likely, MAX_TRIES):
                layout = _try(program, ports, inputs, states, steps)
                if layout is not None:
                    found = True
                    yield layout
        if found or not any(port.dims for port in ports.inputs):
            return


def feed_of(ports: Ports, layout: Layout, rows: int, steps: int, generator: np.random.Generator) -> Values:
    """Random inputs, and states: floating ones random, others zero."""
    feed: Values = {}
    for port in ports.inputs:
        shape = sizes(layout.inputs[port.name], rows, steps)
        feed[port.name] = draw(generator, port.dtype, shape, ports.limits.get(port.name, (0, 1)))
    for port in ports.states:
        shape = sizes(layout.states[port.name], rows, steps)
        is_float = port.dtype.kind == "f"
        feed[port.name] = 0.5 * draw(generator, port.dtype, shape) if is_float else np.zeros(shape, port.dtype)
        feed[port.name] = feed[port.name].astype(port.dtype)
    return feed


def _generator() -> np.random.Generator:
    return np.random.default_rng(0)


def _try(
    program: Program, ports: Ports, inputs: dict[str, Axes], states: dict[str, Axes], steps: tuple[int, int]
) -> Layout | None:
    """The layout with these axes, if it is right."""
    guess = Layout(inputs, states, {})
    every = [*inputs.values(), *states.values()]
    has_batch, has_time = any(BATCH in axes for axes in every), any(TIME in axes for axes in inputs.values())
    names = [port.name for port in ports.outputs]
    generator = _generator()
    shapes = {}
    try:
        cases = [(_ROWS[0], steps[0])]
        cases += [(_ROWS[1], steps[0])] if has_batch else []
        cases += [(_ROWS[0], steps[1])] if has_time else []
        for rows, length in cases:
            feed = feed_of(ports, guess, rows, length, generator)
            found = run(program, names, feed)
            shapes[rows, length] = {name: value.shape for name, value in found.items()}
            if any(found[after].shape != feed[before].shape for before, after in ports.nexts.items()):
                return None
        outputs = _output_axes(ports, shapes, steps, has_batch=has_batch, has_time=has_time)
        if outputs is None:
            return None
        layout = Layout(inputs, states, outputs)
        if has_batch and not _rows_are_apart(program, ports, layout, steps[0]):
            return None
        if _takes_other_sizes(program, ports, guess, steps[0]):
            return None
    except RunFailedError:
        return None
    return _with_fixed_axes(layout, ports.known, has_batch=has_batch, has_time=has_time)


def _takes_other_sizes(program: Program, ports: Ports, layout: Layout, steps: int) -> bool:
    """An axis of which no size is declared was given one, but takes others as well: the size was none."""
    declared = {port.name: port.dims or () for port in (*ports.inputs, *ports.states) if port.name not in ports.wanted}

    def wider(tensors: Mapping[str, Axes]) -> dict[str, Axes]:
        return {
            name: tuple(
                axis + 2 if isinstance(axis, int) and not isinstance(dim, int) else axis
                for axis, dim in zip(axes, declared.get(name) or (0,) * len(axes), strict=True)
            )
            for name, axes in tensors.items()
        }

    other = Layout(wider(layout.inputs), wider(layout.states), {})
    if (other.inputs, other.states) == (layout.inputs, layout.states):
        return False
    try:
        run(program, [port.name for port in ports.outputs], feed_of(ports, other, _ROWS[0], steps, _generator()))
    except RunFailedError:
        return False
    return True


def _output_axes(
    ports: Ports,
    shapes: Mapping[tuple[int, int], Mapping[str, tuple[int, ...]]],
    steps: tuple[int, int],
    *,
    has_batch: bool,
    has_time: bool,
) -> dict[str, Axes] | None:
    """What each axis of the outputs follows; None where a rank does."""
    first = shapes[_ROWS[0], steps[0]]
    more_rows = shapes.get((_ROWS[1], steps[0]), first)
    longer = shapes.get((_ROWS[0], steps[1]), first)
    found: dict[str, Axes] = {}
    for name, shape in first.items():
        if name in ports.nexts.values():
            continue
        if not len(shape) == len(more_rows[name]) == len(longer[name]):
            return None
        axes: list[str | int] = []
        for size, wide, long in zip(shape, more_rows[name], longer[name], strict=True):
            if (size, wide, long) == (_ROWS[0], _ROWS[1], _ROWS[0]) and has_batch:
                axes.append(BATCH)
            elif (size, wide, long) == (steps[0], steps[0], steps[1]) and has_time:
                axes.append(TIME)
            elif size == wide == long:
                axes.append(size)
            elif size == wide:
                axes.append(VARIES)
            elif (size, wide, long) == tuple(
                rows * length for rows, length in ((_ROWS[0], steps[0]), (_ROWS[1], steps[0]), (_ROWS[0], steps[1]))
            ):
                axes.append(BATCH_TIME)
            else:
                return None
        if has_batch and not {BATCH, BATCH_TIME} & {*axes}:
            return None
        found[name] = tuple(axes)
    return found


def _rows_are_apart(program: Program, ports: Ports, layout: Layout, steps: int) -> bool:
    """Other values in row 1 change no other row; settles which of batch and time is slower in an axis of both."""
    rows = _ROWS[0]
    generator = np.random.default_rng(1)
    feed, other = (feed_of(ports, layout, rows, steps, generator) for _ in range(2))
    every = {**layout.inputs, **layout.states}
    mixed = dict(feed)
    for name, axes in every.items():
        if BATCH in axes:
            mixed[name] = feed[name].copy()
            place = (slice(None),) * axes.index(BATCH) + (1,)
            mixed[name][place] = other[name][place]
    names = [port.name for port in ports.outputs]
    before, after = run(program, names, feed), run(program, names, mixed)
    results = {**layout.outputs, **{ports.nexts[name]: axes for name, axes in layout.states.items()}}
    for name, axes in results.items():
        if BATCH_TIME in axes:
            order = _order(before[name], after[name], axes.index(BATCH_TIME), rows, steps)
            if order is None:
                return False
            assert isinstance(layout.outputs, dict), "it was made here"
            layout.outputs[name] = tuple(order if axis == BATCH_TIME else axis for axis in axes)
            continue
        if not _same_rows(before[name], after[name], axes.index(BATCH), rows):
            return False
    return True


def _same_rows(before: np.ndarray, after: np.ndarray, axis: int, rows: int) -> bool:
    """All rows but row 1 are the same."""
    kept = [row for row in range(rows) if row != 1]
    first, second = before.take(kept, axis), after.take(kept, axis)
    return difference(first, second) <= _ROUNDING * scale(first)


def _order(before: np.ndarray, after: np.ndarray, axis: int, rows: int, steps: int) -> str | None:
    """Which of batch and time is slower in an axis of both."""
    for order, shape, batch in ((BATCH_TIME, (rows, steps), axis), (TIME_BATCH, (steps, rows), axis + 1)):
        full = (*before.shape[:axis], *shape, *before.shape[axis + 1 :])
        if _same_rows(before.reshape(full), after.reshape(full), batch, rows):
            return order
    return None


def _with_fixed_axes(layout: Layout, known: Mapping[str, int], *, has_batch: bool, has_time: bool) -> Layout:
    """Where there is no batch or time axis, axes of size 1 where one would be stand for it."""
    inputs, states, outputs = dict(layout.inputs), dict(layout.states), dict(layout.outputs)
    if not has_batch:
        inputs = {name: _mark(axes, BATCH, range(len(axes) - 1)) for name, axes in inputs.items()}
        outputs = {name: _mark(axes, BATCH, range(len(axes) - 1)) for name, axes in outputs.items()}
        for name, axes in states.items():
            habit = (1, 0) if len(axes) == 3 else range(len(axes))
            states[name] = _mark(axes, BATCH, (known[name],) if name in known else habit)
    if not has_time:
        for tensors in (inputs, outputs):
            for name, axes in tensors.items():
                if BATCH in axes and len(axes) > 2:
                    tensors[name] = _mark(axes, TIME, [axis for axis in (0, 1) if axes[axis] != BATCH])
    in_all_rows = has_batch and all(BATCH in axes for axes in inputs.values())
    in_all_steps = has_time and all(TIME in axes for axes in inputs.values())
    return Layout(inputs, states, outputs, None if in_all_rows else 1, None if in_all_steps else 1)


def _mark(axes: Axes, role: str, places: Sequence[int]) -> Axes:
    """The first of `places` that has size 1 gets the role."""
    for place in places:
        if axes[place] == 1:
            return (*axes[:place], role, *axes[place + 1 :])
    return axes
