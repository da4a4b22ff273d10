"""Pruning: nodes and constants that no output of their graph hangs on are taken away.

Owns nothing else. A node with several outputs stays where one of them is needed.
"""

from __future__ import annotations

from onnx import GraphProto

from eddy.inspection.walk import all_graphs, reads, scope_of


def prune(graph: GraphProto) -> None:
    """Takes away what the outputs do not need, in bodies as well; inputs stay. Raises InspectionError, see `walk`."""
    for inner in reversed(list(all_graphs(graph))):  # Bodies first: what they no longer read is not needed outside.
        _prune_one(inner)


def _prune_one(graph: GraphProto) -> None:
    scope = scope_of(graph)
    needed: set[str] = set()
    waiting = [port.name for port in graph.output]
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in scope.makers:
            waiting.extend(reads(scope.makers[name]))
    for number in reversed(range(len(graph.node))):
        if needed.isdisjoint(graph.node[number].output):
            del graph.node[number]
    for number in reversed(range(len(graph.initializer))):
        if graph.initializer[number].name not in needed:
            del graph.initializer[number]
