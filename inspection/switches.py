"""Switches: single numbers among a graph's inputs that choose between its branches, such as a sample rate.

Owns finding them and the value that is taken where nobody says one. Must not know what the branches do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from onnx import NodeProto, numpy_helper

from eddy.inspection.declared import Declared
from eddy.inspection.walk import Scope, bodies, scope_of

# Operators that hand on the number that they are given, in their first input.
_HANDS_ON = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Gather"}
_MAX_DEPTH = 8


def default_constants(scope: Scope, ports: Sequence[Declared]) -> dict[str, np.ndarray]:
    """Inputs that are one integer each and only ever compared with constants -> the first of these constants."""
    found: dict[str, np.ndarray] = {}
    for port in ports:
        if port.dtype.kind not in "iu" or port.dims is None or any(dim != 1 for dim in port.dims):
            continue
        compared = list(_compared(scope, port.name, 0))
        if compared and None not in compared:
            found[port.name] = np.full((1,) * len(port.dims), compared[0], port.dtype)
    return found


def _compared(scope: Scope, name: str, depth: int) -> Iterator[int | None]:
    """The constants that the number is compared with; None where it is used otherwise."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in scope.readers.get(name, ()):
            if node.op_type in _HANDS_ON and node.input[0] == name:
                waiting.extend(node.output)
            elif node.op_type == "Equal":
                yield _other_side(scope, node, name)
            elif name in node.input or depth >= _MAX_DEPTH:
                yield None
            else:
                for _, body in bodies(node):
                    yield from _compared(scope_of(body, scope), name, depth + 1)


def _other_side(scope: Scope, node: NodeProto, name: str) -> int | None:
    """The constant of a comparison with `name`; None where it is none."""
    others = [given for given in node.input if given != name]
    tensor = scope.constant(others[0]) if others else None
    if tensor is None:
        return None
    values = numpy_helper.to_array(tensor).ravel()
    return int(values[0]) if values.size == 1 else None
