"""Loops: which of the variables that a Scan or a Loop carries from step to step are states.

Owns telling states from the rest: counters, values that never change, buffers and lists that gather outputs. Must not
change a graph.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, NodeProto

from eddy.inspection.start import Dependent, Pair, Starts
from eddy.inspection.walk import Scope, attribute, bodies, label, scope_of

# The first version of Scan has a batch axis of its own, and lengths before its variables.
_FIRST_SCAN = 8
_LISTS = frozenset({"SequenceEmpty", "SequenceConstruct", "SequenceInsert", "Optional", "SplitToSequence"})


@dataclass(frozen=True, slots=True)
class Carried:
    """One variable of a loop that changes from step to step.

    Attributes:
        place: among the node's inputs; output: among its outputs.
        shape: of one row; batch_axis: None where it has none.
        initial: what one row begins with; None where it cannot be told.
        is_given: why not: it hangs on what the model is given.
        obstacle: why no stream can carry it, a sentence.
    """

    place: int
    output: int
    shape: tuple[int | None, ...] = ()
    batch_axis: int | None = None
    initial: np.ndarray | None = None
    is_given: bool = False
    obstacle: str = ""

    @property
    def operand(self) -> str:
        """What it is to its node, for a person."""
        return f"carried variable {self.output}"


def is_loop(node: NodeProto) -> bool:
    """Whether a node is a Scan or a Loop."""
    return node.op_type in {"Scan", "Loop"} and node.domain in {"", "ai.onnx"}


def carried_of(node: NodeProto, scope: Scope, starts: Starts) -> list[Carried]:
    """The variables of a loop that are states, or that prevent streaming."""
    body = dict(bodies(node)).get("body")
    if body is None:
        return []
    found = []
    inner = scope_of(body, scope)
    backwards = _backwards(node)
    for output, (place, entry, result) in enumerate(_variables(node, body, starts.opset)):
        if not node.input[place] or _unchanged(inner, result) == entry:
            continue
        maker = scope.maker(node.input[place])
        if maker is not None and maker.op_type in _LISTS:
            continue
        try:
            start = starts.value(scope, node.input[place])
        except Dependent:
            found.append(Carried(place, output, is_given=True))
            continue
        if backwards:
            reason = f"{label(node)} runs backwards: each of its outputs needs the steps that come later"
            found.append(Carried(place, output, obstacle=reason))
        elif not _is_rest(start, _trips(node, scope, starts)):
            found.append(_state(node, place, output, start, is_first_scan=_is_first_scan(node, starts.opset)))
    return found


def _variables(node: NodeProto, body: GraphProto, opset: int) -> list[tuple[int, str, str]]:
    """Each variable's place among the node's inputs, and its names at the body's beginning and end."""
    if node.op_type == "Loop":
        count = max(min(len(node.input) - 2, len(body.input) - 2, len(body.output) - 1), 0)
        return [(2 + k, body.input[2 + k].name, body.output[1 + k].name) for k in range(count)]
    first = 1 if _is_first_scan(node, opset) else 0
    scanned = attribute(node, "num_scan_inputs")
    count = len(node.input) - first - (scanned.i if scanned is not None else 0)
    count = max(min(count, len(body.input), len(body.output)), 0)
    return [(first + k, body.input[k].name, body.output[k].name) for k in range(count)]


def _is_first_scan(node: NodeProto, opset: int) -> bool:
    return node.op_type == "Scan" and opset <= _FIRST_SCAN


def _backwards(node: NodeProto) -> bool:
    """Whether a Scan reads one of its inputs from the end."""
    directions = attribute(node, "scan_input_directions") or attribute(node, "directions")
    return directions is not None and any(directions.ints)


def _unchanged(inner: Scope, name: str) -> str:
    """The tensor that `name` is a mere copy of."""
    seen: set[str] = set()
    while name not in seen:
        seen.add(name)
        node = inner.makers.get(name)
        if node is None or node.op_type != "Identity" or not node.input:
            break
        name = node.input[0]
    return name


def _trips(node: NodeProto, scope: Scope, starts: Starts) -> tuple[int, int] | None:
    """How often a loop runs, for both sets of stand-ins; None where that is not known."""
    if node.op_type == "Scan":
        axes = attribute(node, "scan_input_axes")
        sizes = starts.sizes(node.input[-1])
        first = 1 if _is_first_scan(node, starts.opset) else 0
        axis = axes.ints[-1] if axes is not None and axes.ints else first
        return sizes[axis] if sizes and -len(sizes) <= axis < len(sizes) else None
    if not node.input[0]:
        return None
    try:
        one, other = starts.value(scope, node.input[0])
    except Dependent:
        return None
    return (int(one.reshape(-1)[0]), int(other.reshape(-1)[0])) if one.size == other.size == 1 else None


def _is_rest(start: Pair, trips: tuple[int, int] | None) -> bool:
    """Whether a variable is a counter, or gathers what the loop answers: nothing that a next call must know."""
    one, other = start
    if one.ndim != other.ndim or not one.size or not other.size:
        return True
    if one.size == other.size == 1 and one.ndim <= 1 and one.dtype.kind in "iub":
        return True
    varying = [sizes for sizes in zip(one.shape, other.shape, strict=True) if sizes[0] != sizes[1]]
    return len(varying) > 1 or (trips is not None and trips in varying)


def _state(node: NodeProto, place: int, output: int, start: Pair, *, is_first_scan: bool) -> Carried:
    """A variable that a next call must know."""
    one, other = start
    axes = [axis for axis, sizes in enumerate(zip(one.shape, other.shape, strict=True)) if sizes[0] != sizes[1]]
    if is_first_scan:
        axes = [0]
    if not axes and one.ndim > 1:
        # Exported for a fixed batch: an axis of size 1, or else the first along which all rows are equal.
        equal = [axis for axis in range(one.ndim) if len(np.unique(one, axis=axis)) == 1 or one.shape[axis] == 1]
        axes = sorted(equal, key=lambda axis: one.shape[axis] != 1)
    if not axes:
        return Carried(place, output, one.shape, None, one)
    axis = axes[0]
    rows, others = np.moveaxis(one, axis, 0), np.moveaxis(other, axis, 0)
    if any(not np.array_equal(row, rows[0]) for row in (*rows, *others)):
        reason = f"carried variable {output} of {label(node)} begins differently in each row of a batch"
        return Carried(place, output, obstacle=reason)
    return Carried(place, output, rows[0].shape, axis, rows[0])
