"""Switches: single numbers among a graph's inputs that choose between its branches, such as a sample rate.

Owns finding them, those that were left without an effect, and the value that is taken where nobody says one. Must not
know what the branches do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from onnx import NodeProto, numpy_helper

from eddy.inspection.declared import Declared
from eddy.inspection.uses import uses
from eddy.inspection.walk import Scope

# Operators that hand on the number that they are given, in their first input.
_HANDS_ON = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Gather"}


def default_constants(scope: Scope, ports: Sequence[Declared]) -> dict[str, np.ndarray]:
    """Inputs that are one integer each and only ever compared with constants -> the first of these constants."""
    found: dict[str, np.ndarray] = {}
    for port in _numbers(ports):
        compared = list(_compared(scope, port.name))
        if compared and None not in compared:
            found[port.name] = _full(port, compared[0] or 0)
    return found


def idle_constants(scope: Scope, ports: Sequence[Declared]) -> dict[str, np.ndarray]:
    """Inputs that are one integer each and change nothing, as they are read by no node or multiplied by 0 -> 0."""
    found = {}
    for port in _numbers(ports):
        read = uses(scope, port.name, _hands_on)
        if all(node.op_type == "Mul" and _other_side(around, node, name) == 0 for around, node, name in read):
            found[port.name] = _full(port, 0)
    return found


def _numbers(ports: Sequence[Declared]) -> Iterator[Declared]:
    for port in ports:
        if port.dtype.kind in "iu" and port.dims is not None and all(dim == 1 for dim in port.dims):
            yield port


def _full(port: Declared, value: int) -> np.ndarray:
    assert port.dims is not None, "the ranks of numbers are known"
    return np.full((1,) * len(port.dims), value, port.dtype)


def _hands_on(node: NodeProto, name: str) -> bool:
    return node.op_type in _HANDS_ON and node.input[0] == name


def _compared(scope: Scope, name: str) -> Iterator[int | None]:
    """The constants that the number is compared with; None where it is used otherwise."""
    for around, node, read in uses(scope, name, _hands_on):
        yield _other_side(around, node, read) if node.op_type == "Equal" else None


def _other_side(scope: Scope, node: NodeProto, name: str) -> int | None:
    """The constant that an operator of two inputs takes with `name`; None where it is none."""
    others = [given for given in node.input if given != name]
    tensor = scope.constant(others[0]) if others else None
    if tensor is None:
        return None
    values = numpy_helper.to_array(tensor).ravel()
    return int(values[0]) if values.size == 1 else None
