"""Tables: which integers an input may hold, where a table that it looks into says so.

Owns following an input to the tables. Without one nothing is known, and small numbers are tried.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto, numpy_helper

from eddy.inspection.walk import Scope, attribute, bodies, scope_of

# Operators that hand on the integers that they are given, in their first input.
_HANDS_ON = {"Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Flatten", "Split", "Expand"}


def integer_limits(scope: Scope, names: list[str]) -> dict[str, tuple[int, int]]:
    """Inputs -> the smallest and the largest integer that every table they look into has an entry for."""
    found: dict[str, tuple[int, int]] = {}
    for name in names:
        entries = [size for size in _table_sizes(scope, name, 0) if size > 0]
        if entries:
            found[name] = (0, min(entries) - 1)
    return found


_MAX_DEPTH = 8


def _table_sizes(scope: Scope, name: str, depth: int) -> Iterator[int]:
    """Entries of the tables that the values of `name` are indices of."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in scope.readers.get(name, ()):
            if (node.op_type in _HANDS_ON and node.input[0] == name) or node.op_type == "Concat":
                waiting.extend(node.output)
            elif node.op_type == "Gather" and len(node.input) == 2 and node.input[1] == name:
                table, axis = scope.constant(node.input[0]), attribute(node, "axis")
                if table is not None and table.dims:
                    yield table.dims[axis.i if axis else 0]
            elif node.op_type == "OneHot" and node.input[0] == name:
                depth_of = scope.constant(node.input[1])
                if depth_of is not None:
                    yield from _single(depth_of)
            elif depth < _MAX_DEPTH:
                for _, body in bodies(node):
                    yield from _table_sizes(scope_of(body, scope), name, depth + 1)


def _single(tensor: TensorProto) -> Iterator[int]:
    values = numpy_helper.to_array(tensor).ravel()
    if values.size == 1:
        yield int(values[0])
