"""Lifting: hidden recurrent states become inputs and outputs of a graph.

Owns the change of the graph: LSTM, GRU and RNN nodes, also in the branches of an If, and the variables that Scan and
Loop carry. Must not know whether the result streams: trying it shows that.

An initial state that is absent, constant or computed from no more than the input's shape is replaced by a graph input;
what the node ends with becomes a graph output. In an If both branches answer with every state: nodes of the two
branches that have equal states share them, as two sets of weights for one stream do, and a branch that has no such node
gives the state back as it came.

Dimension key: B batch, T steps, H hidden, D directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from google.protobuf.internal.containers import RepeatedScalarFieldContainer
from onnx import GraphProto, ModelProto, NodeProto, helper

from eddy.inspection.lifted import Given, Lift, LiftedState, Obstacle
from eddy.inspection.loops import Carried, carried_of, is_loop
from eddy.inspection.moves import first_computing, is_moved, sources
from eddy.inspection.prune import prune
from eddy.inspection.recurrent import is_recurrent, why_not
from eddy.inspection.start import Dependent, Pair, Starts, find_starts
from eddy.inspection.walk import Scope, all_graphs, all_names, attribute, bodies, fresh_name, label, scope_of

# Operand: its place among a recurrent node's inputs, that of the final value among its outputs, the state's name.
_OPERANDS = (("initial_h", 5, 1, "h"), ("initial_c", 6, 2, "c"))
_LENGTHS = 4


@dataclass(frozen=True, slots=True)
class _Exposed:
    """A state and the tensor that holds its next value in the graph at hand."""

    state: LiftedState
    name: str


@dataclass
class _Lifter:
    """One model under the knife. The lists grow while its graphs are visited; nobody else changes them."""

    starts: Starts
    taken: set[str]
    given: list[Given] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)
    recurrent: list[str] = field(default_factory=list)
    # Scopes in use: values are remembered by their graphs' identities.
    scopes: list[Scope] = field(default_factory=list)

    def visit(self, graph: GraphProto, around: Scope | None, pool: Sequence[LiftedState]) -> list[_Exposed]:
        """Lifts the states of a graph's nodes; `pool` has states of the other branch, to be shared, each once."""
        scope = scope_of(graph, around)
        self.scopes.append(scope)
        left, found = list(pool), []
        for node in graph.node:
            if is_recurrent(node):
                exposed = self._recurrent(node, scope, left)
            elif is_loop(node):
                exposed = self._loop(node, scope, left)
            elif node.op_type == "If":
                exposed = self._choice(node, scope, left)
            else:
                continue
            used = {one.state.input for one in exposed}
            left = [state for state in left if state.input not in used]
            found += exposed
        return found

    # Recurrent nodes

    def _recurrent(self, node: NodeProto, scope: Scope, pool: Sequence[LiftedState]) -> list[_Exposed]:
        self.recurrent.append(label(node))
        obstacle = why_not(node)
        if obstacle is None:
            obstacle = self._check_lengths(node, scope)
        if obstacle is not None:
            self.obstacles.append(Obstacle(label(node), obstacle))
            return []
        num_states = 2 if node.op_type in {"LSTM", "DynamicQuantizeLSTM"} else 1
        found = []
        for operand, place, output, name in _OPERANDS[:num_states]:
            given = node.input[place] if place < len(node.input) else ""
            try:
                start = self.starts.value(scope, given) if given else None
            except Dependent:
                self._note(node, operand, scope, given)
                continue
            if start is not None and any(value.ndim != 3 or not _has_equal_rows(value, 1) for value in start):
                reason = f"{operand} of {label(node)} begins differently in each row of a batch"
                self.obstacles.append(Obstacle(label(node), reason))
                continue
            state = self._state(node, operand, name, self._row(node, scope, start), scope, given, pool)
            pool = [other for other in pool if other.input != state.input]
            _put(node.input, place, state.input)
            _put(node.output, output, node.output[output] if len(node.output) > output else "")
            if not node.output[output]:
                node.output[output] = fresh_name(f"{state.input}/final", self.taken)
            found.append(_Exposed(state, node.output[output]))
        return found

    def _check_lengths(self, node: NodeProto, scope: Scope) -> str | None:
        """Takes away lengths that say no more than "all of them"; the reason where they are fixed otherwise."""
        name = node.input[_LENGTHS] if len(node.input) > _LENGTHS else ""
        if not name:
            return None
        try:
            lengths = self.starts.value(scope, name)
        except Dependent:
            self._note(node, "sequence_lens", scope, name)
            return None
        sizes = self.starts.sizes(node.input[0])
        if sizes and len(sizes) == 3 and all(bool((one == t).all()) for one, t in zip(lengths, sizes[0], strict=True)):
            node.input[_LENGTHS] = ""
            return None
        return f"sequence_lens of {label(node)} is fixed at {lengths[0].reshape(-1)[:4].tolist()} steps"

    def _row(self, node: NodeProto, scope: Scope, start: Pair | None) -> tuple[tuple[int | None, ...], np.ndarray]:
        """The shape [1, H] of one row of a recurrent node's state, and what it begins with."""
        if start is not None:
            row = start[0][:, 0, :]
            return row.shape, row
        hidden = attribute(node, "hidden_size")
        size = hidden.i if hidden is not None else None
        weights = scope.constant(node.input[2]) if len(node.input) > 2 else None
        if size is None and weights is not None and len(weights.dims) == 3:
            size = weights.dims[2]
        kind = self.starts.dtype(node.input[0]) or self.starts.dtype(node.input[1]) or onnx.TensorProto.FLOAT
        return (1, size), np.zeros((), helper.tensor_dtype_to_np_dtype(kind))

    def _note(self, node: NodeProto, operand: str, scope: Scope, name: str) -> None:
        """Keeps that an operand hangs on the model's inputs, and through what."""
        through = first_computing(scope, name)
        computing = label(through) if through is not None else ""
        self.given.append(Given(label(node), operand, sources(scope, name), computing))

    # Loops

    def _loop(self, node: NodeProto, scope: Scope, pool: Sequence[LiftedState]) -> list[_Exposed]:
        self.recurrent.append(label(node))
        found = []
        for carried in carried_of(node, scope, self.starts):
            if carried.obstacle:
                self.obstacles.append(Obstacle(label(node), carried.obstacle))
            elif carried.is_given:
                self._note(node, carried.operand, scope, node.input[carried.place])
            elif carried.initial is not None:
                found.append(self._carry(node, scope, carried, carried.initial, pool))
                pool = [other for other in pool if other.input != found[-1].state.input]
        return found

    def _carry(
        self, node: NodeProto, scope: Scope, carried: Carried, row: np.ndarray, pool: Sequence[LiftedState]
    ) -> _Exposed:
        start = (carried.shape, row)
        given = node.input[carried.place]
        state = self._state(node, carried.operand, "state", start, scope, given, pool, carried.batch_axis)
        node.input[carried.place] = state.input
        _put(node.output, carried.output, node.output[carried.output] if len(node.output) > carried.output else "")
        if not node.output[carried.output]:
            node.output[carried.output] = fresh_name(f"{state.input}/final", self.taken)
        return _Exposed(state, node.output[carried.output])

    # Branches

    def _choice(self, node: NodeProto, scope: Scope, pool: Sequence[LiftedState]) -> list[_Exposed]:
        """Lifts the states of both branches, and lets both answer with all of them."""
        branches = dict(bodies(node))
        if set(branches) != {"then_branch", "else_branch"}:
            return []
        taken = self._taken(node, scope)
        then = self.visit(branches["then_branch"], scope, pool) if taken is not False else []
        used = {one.state.input for one in then}
        rest = [state for state in pool if state.input not in used]
        shared = [one.state for one in then] + rest
        other = self.visit(branches["else_branch"], scope, shared) if taken is not True else []
        states = list({one.state.input: one.state for one in (*then, *other)}.values())
        found = []
        for state in states:
            for branch, exposed in ((branches["then_branch"], then), (branches["else_branch"], other)):
                source = next((one.name for one in exposed if one.state.input == state.input), state.input)
                self._answer(branch, state, source)
            node.output.append(fresh_name(f"{state.input}/final", self.taken))
            found.append(_Exposed(state, node.output[-1]))
        return found

    def _taken(self, node: NodeProto, scope: Scope) -> bool | None:
        """The condition of an If where shapes of fixed size decide it; None where it is not known."""
        try:
            one, _ = self.starts.value(scope, node.input[0])
        except Dependent:
            return None
        return bool(one.reshape(-1)[0]) if one.size == 1 else None

    def _answer(self, branch: GraphProto, state: LiftedState, source: str) -> None:
        """Appends a state's next value to what a branch answers; an output has a node and a name of its own."""
        name = fresh_name(f"{state.input}/final", self.taken)
        branch.node.append(helper.make_node("Identity", [source], [name], name=f"{name}/lift"))
        branch.output.append(_port(name, state, None))

    # States

    def _state(
        self,
        node: NodeProto,
        operand: str,
        name: str,
        start: tuple[tuple[int | None, ...], np.ndarray],
        scope: Scope,
        given: str,
        pool: Sequence[LiftedState],
        batch_axis: int | None = 1,
    ) -> LiftedState:
        """A new state, or an equal one of the other branch."""
        shape, initial = start
        if initial.size and (initial == initial.reshape(-1)[0]).all():
            initial = initial.reshape(-1)[0]
        initial = np.asarray(initial)
        for other in pool:
            mine = (operand, shape, batch_axis, initial.dtype.name)
            same = (other.operand, other.shape, other.batch_axis, other.dtype) == mine
            if same and np.array_equal(other.initial, initial):
                return other
        new = fresh_name(name, self.taken)
        how = f"{operand} of {label(node)} {_story(scope, given, initial)}"
        output = f"{new}_next"
        return LiftedState(new, output, initial.dtype.name, shape, batch_axis, initial, operand, label(node), how)


def lift(model: ModelProto) -> Lift:
    """Makes every hidden state of a model an input and an output of a copy of it.

    model: with all of its data inside and without functions; it is not changed. Nothing is run.

    Raises InspectionError where the graph is broken: a tensor with two makers, bodies too deep in each other.
    """
    changed = ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    scope_of(graph)
    prune(graph)
    lifter = _Lifter(find_starts(changed), all_names(graph))
    originals = [port.name for port in graph.output]
    exposed = lifter.visit(graph, None, ())
    states = []
    for one in exposed:
        output = fresh_name(one.state.output, lifter.taken)
        graph.node.append(helper.make_node("Identity", [one.name], [output], name=f"{output}/lift"))
        graph.input.append(_port(one.state.input, one.state, "B"))
        graph.output.append(_port(output, one.state, "B"))
        states.append(replace(one.state, output=output))
    if states:
        for inner in all_graphs(graph):
            del inner.value_info[:]  # Inferred for the old graph, and often false.
        prune(graph)
    finals = {one.name for one in exposed}
    echoes = tuple(name for name in originals if is_moved(scope_of(graph), name, finals))
    return Lift(changed, tuple(states), tuple(lifter.given), tuple(lifter.obstacles), echoes, tuple(lifter.recurrent))


def _story(scope: Scope, given: str, initial: np.ndarray) -> str:
    """How a state begins, for a person."""
    what = f"{initial.item():g} everywhere" if initial.ndim == 0 else "values of its own"
    if not given:
        return "is absent: it begins with 0 everywhere"
    origin = "is a constant" if scope.constant(given) is not None else "is computed from the input's shape alone"
    return f"{origin}: it begins with {what}"


def _has_equal_rows(value: np.ndarray, axis: int) -> bool:
    """Whether all rows of a state's initial value are the same bits; an empty one has none to begin with."""
    rows = np.moveaxis(value, axis, 0)
    return len(rows) > 0 and all(row.tobytes() == rows[0].tobytes() for row in rows[1:])


def _put(names: RepeatedScalarFieldContainer[str], place: int, name: str) -> None:
    """Sets an input or output of a node that may have fewer."""
    names.extend([""] * (place + 1 - len(names)))
    names[place] = name


def _port(name: str, state: LiftedState, batch: str | None) -> onnx.ValueInfoProto:
    """A state's port; of the batch axis no size is claimed."""
    sizes: list[str | int | None] = list(state.shape)
    if state.batch_axis is not None:
        sizes.insert(state.batch_axis, batch)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(state.dtype)), sizes)
