"""The canonical form: a copy of a graph whose inputs are [B, T, ...], states [B, ...] and outputs [B, T, ...].

Owns the operators at its borders; they move values and compute nothing, so every bit stays. Must not know how the
layout was found, or whether the model streams.

Dimension key: B batch, T steps, C kept values of an input, N new ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from eddy.inspection.declared import Declared
from eddy.inspection.layout import BATCH, BATCH_TIME, TIME, TIME_BATCH, VARIES, Axes, Layout, row_shape
from eddy.inspection.pairs import Pair
from eddy.inspection.surgery import RESERVED, Draft
from eddy.inspection.walk import all_names


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of the canonical graph.

    Attributes:
        name: there; source: in the graph it comes from; shape: of one row's one step.
        no_time_axis: the source has none.
    """

    name: str
    source: str
    element: int
    shape: tuple[int, ...]
    no_time_axis: bool


@dataclass(frozen=True, slots=True)
class State:
    """A state of the canonical graph, [B, *shape]; initial: one row. pair: None for an input's kept values."""

    name: str
    next_name: str
    element: int
    shape: tuple[int, ...]
    initial: np.ndarray
    meaning: str
    pair: Pair | None


@dataclass(frozen=True, slots=True)
class Canonical:
    """A rewritten model.

    Attributes:
        run_rows: the B that a run takes, None for any; max_run_steps: the largest T, None for any.
    """

    model: onnx.ModelProto
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    states: tuple[State, ...]
    run_rows: int | None
    max_run_steps: int | None


def canonical_form(
    model: onnx.ModelProto,
    layout: Layout,
    pairs: Sequence[Pair],
    inputs: Mapping[str, Declared],
    outputs: Mapping[str, Declared],
    *,
    context: Mapping[str, int],
    names: Mapping[str, str],
) -> Canonical:
    """The canonical form of a copy of `model`, laid out as `layout` says.

    Args:
        context: inputs whose last values of the last axis are kept, how many of them.
        names: ports as they shall be called.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return _Border(copy, layout, inputs, outputs, names).build(pairs, context)


class _Border:
    """The work on one copy."""

    def __init__(
        self,
        model: onnx.ModelProto,
        layout: Layout,
        inputs: Mapping[str, Declared],
        outputs: Mapping[str, Declared],
        names: Mapping[str, str],
    ) -> None:
        self._layout = layout
        self._inputs = inputs
        self._outputs = outputs
        ports = [*inputs, *outputs]
        wanted = {name: _unreserved(names.get(name, name)) for name in ports}
        # Everything inside is called otherwise than the ports, so that each port can have an operator of its own.
        inner = {name: f"source/{name}" for name in ports}
        taken = all_names(model.graph)
        reserved = {name: f"source/{name}" for name in taken if name.startswith(RESERVED)}
        self._draft = Draft(model)
        self._inner = {name: self._draft.name(new) for name, new in (reserved | inner).items()}
        self._draft.rename(self._inner)
        clash = {*wanted.values()} & all_names(model.graph)
        self._draft.rename({name: self._draft.name(f"source/{name}") for name in clash})
        self._wanted = wanted
        # Filled by `build`.
        self._values_in: list[onnx.ValueInfoProto] = []
        self._values_out: list[onnx.ValueInfoProto] = []
        self._max_run_steps = layout.fixed_steps

    def build(self, pairs: Sequence[Pair], context: Mapping[str, int]) -> Canonical:
        """The whole of it."""
        states: list[State] = []
        inputs = []
        for name in self._layout.inputs:
            tensor, kept = self._input(name, context.get(name, 0))
            inputs.append(tensor)
            states += kept
        before = [self._state(pair) for pair in pairs]
        outputs = tuple(self._output(name, inputs[0].name) for name in self._layout.outputs)
        states = [*before, *states]
        for state in states:
            self._values_in.append(helper.make_tensor_value_info(state.name, state.element, ["B", *state.shape]))
            self._values_out.append(helper.make_tensor_value_info(state.next_name, state.element, ["B", *state.shape]))
        model = self._draft.finish(self._values_in, self._values_out)
        return Canonical(model, tuple(inputs), outputs, tuple(states), self._layout.fixed_rows, self._max_run_steps)

    def _input(self, name: str, num_kept: int) -> tuple[Tensor, list[State]]:
        """The operators from [B, T, ...] to what the graph takes; the kept values where there are any."""
        axes, port = self._layout.inputs[name], self._inputs[name]
        shape = row_shape(axes)
        given, states, current = self._wanted[name], [], self._wanted[name]
        if num_kept:
            shape = (*shape[:-1], shape[-1] - num_kept)
            current = self._draft.name(f"border/{name}_window")
            states.append(self._keep(name, given, current, num_kept, shape))
        self._enter(current, self._inner[name], axes)
        self._values_in.append(helper.make_tensor_value_info(given, port.element, ["B", "T", *shape]))
        return Tensor(given, name, port.element, shape, TIME not in axes), states

    def _enter(self, current: str, inner: str, axes: Axes) -> None:
        """[B, T, ...] becomes the graph's own axes; what it has no axis for has size 1."""
        missing = [place for place, role in enumerate((BATCH, TIME)) if role not in axes]
        self._move(current, inner, missing, axes, is_state=False)

    def _move(self, current: str, inner: str, missing: list[int], axes: Axes, *, is_state: bool) -> None:
        if missing:
            squeezed = self._draft.name(f"border/{inner}_squeezed")
            self._draft.before("Squeeze", [current], [squeezed], axes=missing)
            current = squeezed
        roles = [role for role in ((BATCH,) if is_state else (BATCH, TIME)) if role in axes]
        rest = iter(range(len(roles), len(axes)))
        order = [roles.index(axis) if isinstance(axis, str) else next(rest) for axis in axes]
        if order == sorted(order):
            self._draft.before("Identity", [current], [inner])
        else:
            self._draft.before("Transpose", [current], [inner], perm=order)

    def _state(self, pair: Pair) -> State:
        axes, port = self._layout.states[pair.input], self._inputs[pair.input]
        name, next_name = self._wanted[pair.input], self._wanted[pair.output]
        self._move(name, self._inner[pair.input], [] if BATCH in axes else [0], axes, is_state=True)
        self._leave(self._inner[pair.output], next_name, axes, has_time=False)
        shape = row_shape(axes)
        initial = np.zeros(shape, port.dtype) if pair.initial is None else pair.initial.astype(port.dtype)
        initial = np.broadcast_to(initial.reshape(shape) if initial.size > 1 else initial, shape)
        return State(name, next_name, port.element, shape, initial.copy(), "", pair)

    def _output(self, name: str, first_input: str) -> Tensor:
        axes, port = self._layout.outputs[name], self._outputs[name]
        self._leave(self._inner[name], self._wanted[name], axes, has_time=True, like=first_input)
        shape = row_shape(axes)
        steps = "T_out" if VARIES in axes else "T" if {TIME, BATCH_TIME, TIME_BATCH} & {*axes} else 1
        self._values_out.append(helper.make_tensor_value_info(self._wanted[name], port.element, ["B", steps, *shape]))
        return Tensor(self._wanted[name], name, port.element, shape, steps == 1)

    def _leave(self, inner: str, wanted: str, axes: Axes, *, has_time: bool, like: str = "") -> None:
        """The graph's own axes become [B, T, ...], or [B, ...] of a state."""
        flat = next((axis for axis in axes if axis in {BATCH_TIME, TIME_BATCH}), None)
        if flat is not None:
            inner, axes = self._unfold(inner, axes, str(flat), like)
        roles = {BATCH: 0, TIME: 1, VARIES: 1}
        there = {roles[axis] for axis in axes if isinstance(axis, str)}
        missing = [place for place in ((0, 1) if has_time else (0,)) if place not in there]
        found = sorted((roles[axis], place) for place, axis in enumerate(axes) if isinstance(axis, str))
        order = [place for _, place in found] + [place for place, axis in enumerate(axes) if isinstance(axis, int)]
        current = inner
        if order != sorted(order):
            current = self._draft.name(f"border/{wanted}_moved")
            self._draft.after("Transpose", [inner], [current], perm=order)
        if missing:
            self._draft.after("Unsqueeze", [current], [wanted], axes=missing)
        else:
            self._draft.after("Identity", [current], [wanted])

    def _unfold(self, inner: str, axes: Axes, flat: str, like: str) -> tuple[str, Axes]:
        """An axis of both batch and time becomes two; `like` is [B, T, ...]."""
        draft, place = self._draft, axes.index(flat)
        shape, rows, steps, target, full = (draft.name(f"border/{inner}_{part}") for part in "sbtxf")
        roles = (BATCH, TIME) if flat == BATCH_TIME else (TIME, BATCH)
        draft.after("Shape", [like], [shape])
        for name, index in ((rows, 0), (steps, 1)):
            draft.after("Gather", [shape, draft.constant("border_index", np.array([index], np.int64))], [name], axis=0)
        around = [
            draft.constant("border_sizes", np.array(part, np.int64)) for part in (axes[:place], axes[place + 1 :])
        ]
        both = [rows, steps] if flat == BATCH_TIME else [steps, rows]
        draft.after("Concat", [around[0], *both, around[1]], [target], axis=0)
        draft.after("Reshape", [inner, target], [full])
        return full, (*axes[:place], *roles, *axes[place + 1 :])

    def _keep(self, name: str, given: str, window: str, num_kept: int, shape: tuple[int, ...]) -> State:
        """`window` [B, T, ..., C + N]: in front of each step's N new values the C that came before them.

        With N >= C the values before a step are the last of the step before, so that any T goes through at once.
        """
        draft, port, rank = self._draft, self._inputs[name], 2 + len(shape)
        state, after = draft.name(f"{given}_context"), draft.name(f"{given}_context_next")
        kept_shape = (*shape[:-1], num_kept)

        def cut(source: str, start: int, end: int, axis: int, result: str) -> None:
            bounds = [draft.constant("border_bound", np.array([bound], np.int64)) for bound in (start, end, axis)]
            draft.before("Slice", [source, *bounds], [result])

        largest = np.iinfo(np.int64).max
        fronts = draft.name(f"border/{name}_front")
        draft.before("Unsqueeze", [state], [fronts], axes=[1])
        if shape[-1] >= num_kept and self._max_run_steps is None:
            tails, earlier, joined, last = (draft.name(f"border/{name}_{part}") for part in "tejl")
            cut(given, -num_kept, largest, rank - 1, tails)
            cut(tails, 0, -1, 1, earlier)
            draft.before("Concat", [fronts, earlier], [joined], axis=1)
            draft.before("Concat", [joined, given], [window], axis=rank - 1)
            cut(tails, -1, largest, 1, last)
        else:
            last = draft.name(f"border/{name}_last")
            draft.before("Concat", [fronts, given], [window], axis=rank - 1)
            cut(window, -num_kept, largest, rank - 1, last)
            self._max_run_steps = 1
        draft.before("Squeeze", [last], [after], axes=[1])
        meaning = f"the last {num_kept} values of {given!r}"
        return State(state, after, port.element, kept_shape, np.zeros(kept_shape, port.dtype), meaning, None)


def _unreserved(name: str) -> str:
    return f"own_{name}" if name.startswith(RESERVED) else name


def whole_form(step: Canonical) -> onnx.ModelProto:
    """The step graph for whole sequences: its states begin with their initial values and are not given back."""
    model = onnx.ModelProto()
    model.CopyFrom(step.model)
    states = {state.name for state in step.states}
    nexts = {state.next_name for state in step.states}
    inputs = [value for value in model.graph.input if value.name not in states]
    outputs = [value for value in model.graph.output if value.name not in nexts]
    draft = Draft(model)
    if step.states:
        shape, rows = draft.name("whole/shape"), draft.name("whole/rows")
        first = draft.constant("whole_first", np.array([0], np.int64))
        # Built back to front: `before` adds in order, so the shape comes first.
        draft.before("Shape", [step.inputs[0].name], [shape])
        draft.before("Gather", [shape, first], [rows], axis=0)
    for state in step.states:
        value = draft.constant("whole_initial", state.initial[None])
        sizes = draft.constant("whole_sizes", np.array(state.shape, np.int64))
        target = draft.name("whole/target")
        draft.before("Concat", [rows, sizes], [target], axis=0)
        draft.before("Expand", [value, target], [state.name])
    return draft.finish(inputs, outputs)
