"""Moves: nodes that only cut, join and move values, and what lies behind a row of them.

Owns the list of such operators. Must not know what is looked for behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from onnx import NodeProto

from eddy.inspection.walk import Scope, bodies, reads, scope_of

# fmt: off
MOVING = frozenset((
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
))
# fmt: on

Place = tuple[Scope, str]


def first_computing(scope: Scope, name: str) -> NodeProto | None:
    """The node nearest to a tensor that does more than cut and move values; None where there is none."""
    for _, _, node in _behind(scope, name, _moved):
        if node is not None and node.op_type not in MOVING | {"If", "Constant"}:
            return node
    return None


def sources(scope: Scope, name: str) -> tuple[str, ...]:
    """The inputs of graphs whose values a tensor is computed from; those of which only the shape counts are none."""
    behind = _behind(scope, name, _valued)
    return tuple(dict.fromkeys(tensor for place, tensor, _ in behind if tensor in place.inputs))


def is_moved(scope: Scope, name: str, origins: set[str]) -> bool:
    """Whether a tensor holds values of `origins`, cut and moved, and nothing else."""
    waiting, seen = [name], set()
    while waiting:
        name = waiting.pop()
        if name in seen or name in origins:
            continue
        seen.add(name)
        node = scope.maker(name)
        if node is None or node.op_type not in MOVING:
            return False
        waiting += node.input if node.op_type == "Concat" else node.input[:1]
    return True


def _moved(node: NodeProto) -> list[str]:
    """The inputs whose values a node moves; none where it computes."""
    if node.op_type not in MOVING:
        return []
    return list(node.input if node.op_type == "Concat" else node.input[:1])


def _valued(node: NodeProto) -> list[str]:
    """The tensors whose values count for a node."""
    if node.op_type in {"Shape", "Size"}:
        return []
    return list(node.input) if node.op_type == "If" else reads(node)


def _behind(
    scope: Scope, name: str, follow: Callable[[NodeProto], list[str]]
) -> Iterator[tuple[Scope, str, NodeProto | None]]:
    """What lies behind a tensor, nearest first: the scope it belongs to, its name, its node.

    `follow` says through which inputs of a node; through an If the way leads into both branches as well.
    """
    waiting: list[Place] = [(scope, name)]
    # With their scopes, so that their graphs keep their identities.
    seen: dict[tuple[int, str], Scope] = {}
    while waiting:
        place, wanted = waiting.pop(0)
        home = place.home(wanted) if wanted else None
        if home is None or (id(home.graph), wanted) in seen:
            continue
        seen[id(home.graph), wanted] = home
        node = home.makers.get(wanted)
        yield home, wanted, node
        if node is not None:
            waiting += [(home, needed) for needed in follow(node)]
        if node is not None and node.op_type == "If":
            number = list(node.output).index(wanted)
            results = [(scope_of(body, home), body.output[number : number + 1]) for _, body in bodies(node)]
            waiting += [(inner, port.name) for inner, ports in results for port in ports]
