"""Tables: which integers an input may hold, where a table that it looks into says so.

Owns following an input to the tables. Without one nothing is known, and small numbers are tried.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto, TensorProto, numpy_helper

from eddy.inspection.uses import uses
from eddy.inspection.walk import Scope, attribute

# Operators that hand on the integers that they are given, in their first input.
_HANDS_ON = {"Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Flatten", "Split", "Expand"}


def integer_limits(scope: Scope, names: list[str]) -> dict[str, tuple[int, int]]:
    """Inputs -> the smallest and the largest integer that every table they look into has an entry for."""
    found: dict[str, tuple[int, int]] = {}
    for name in names:
        entries = [size for size in _table_sizes(scope, name) if size > 0]
        if entries:
            found[name] = (0, min(entries) - 1)
    return found


def _hands_on(node: NodeProto, name: str) -> bool:
    return (node.op_type in _HANDS_ON and node.input[0] == name) or (node.op_type == "Concat" and name in node.input)


def _table_sizes(scope: Scope, name: str) -> Iterator[int]:
    """Entries of the tables that the values of `name` are indices of."""
    for around, node, read in uses(scope, name, _hands_on):
        if node.op_type == "Gather" and len(node.input) == 2 and node.input[1] == read:
            table, axis = around.constant(node.input[0]), attribute(node, "axis")
            if table is not None and table.dims:
                yield table.dims[axis.i if axis else 0]
        elif node.op_type == "OneHot" and node.input[0] == read:
            depth_of = around.constant(node.input[1])
            if depth_of is not None:
                yield from _single(depth_of)


def _single(tensor: TensorProto) -> Iterator[int]:
    values = numpy_helper.to_array(tensor).ravel()
    if values.size == 1:
        yield int(values[0])
