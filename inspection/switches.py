"""Switches: single numbers among a graph's inputs that choose between its branches, such as a sample rate.

Owns finding them and the value that is taken where nobody says one. Must not know what the branches do.
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
    for port in ports:
        if port.dtype.kind not in "iu" or port.dims is None or any(dim != 1 for dim in port.dims):
            continue
        compared = list(_compared(scope, port.name))
        if compared and None not in compared:
            found[port.name] = np.full((1,) * len(port.dims), compared[0], port.dtype)
    return found


def _hands_on(node: NodeProto, name: str) -> bool:
    return node.op_type in _HANDS_ON and node.input[0] == name


def _compared(scope: Scope, name: str) -> Iterator[int | None]:
    """The constants that the number is compared with; None where it is used otherwise."""
    for around, node, read in uses(scope, name, _hands_on):
        yield _other_side(around, node, read) if node.op_type == "Equal" else None


def _other_side(scope: Scope, node: NodeProto, name: str) -> int | None:
    """The constant of a comparison with `name`; None where it is none."""
    others = [given for given in node.input if given != name]
    tensor = scope.constant(others[0]) if others else None
    if tensor is None:
        return None
    values = numpy_helper.to_array(tensor).ravel()
    return int(values[0]) if values.size == 1 else None
