"""Uses: what becomes of an input's values, across operators that hand them on and into bodies.

Owns the walk. Must not know what it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from onnx import NodeProto

from eddy.inspection.walk import Scope, bodies, scope_of

_MAX_DEPTH = 8


def uses(
    scope: Scope, name: str, hands_on: Callable[[NodeProto, str], bool], depth: int = 0
) -> Iterator[tuple[Scope, NodeProto, str]]:
    """The nodes that use the values of `name` for something: where they stand, and as which tensor they read them.

    Args:
        hands_on: whether a node's outputs hold the values of the tensor that it reads, and nothing is used yet.
    """
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in scope.readers.get(name, ()):
            if hands_on(node, name):
                waiting.extend(node.output)
                continue
            if name in node.input or depth >= _MAX_DEPTH:
                yield scope, node, name
                continue
            for _, body in bodies(node):
                yield from uses(scope_of(body, scope), name, hands_on, depth + 1)
