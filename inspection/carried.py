"""Carried values: inputs that become the initial state of a recurrent node, and outputs that are its final state.

Owns following them through operators that only move values. What is found here is a fact of the graph, not a guess.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto, helper

from eddy.inspection.walk import Scope, attribute, bodies, scope_of

# Operators whose outputs hold the values of their first input (of any input, for Concat), moved about.
_MOVES = {"Squeeze", "Unsqueeze", "Reshape", "Transpose", "Slice", "Split", "Gather", "Identity", "Cast", "Flatten"}
_JOINS = {"Concat"}
# Inputs that are initial states -> the outputs that are the final ones.
_RECURRENT = {"LSTM": ((5, 1), (6, 2)), "GRU": ((5, 1),), "RNN": ((5, 1),)}


def carried_pairs(scope: Scope) -> dict[tuple[str, str], bool]:
    """(graph input, graph output) of every state that a recurrent node carries from one to the other.

    Whether it surely does so from step to step: a Scan or a Loop may go round within one, and improve what it is given.
    """
    outputs = {port.name for port in scope.graph.output}
    found: dict[tuple[str, str], bool] = {}
    for inner, chain in _scopes(scope, ()):
        for node in inner.graph.node:
            for before, after in _states(node):
                inputs = _sources(inner, before) & scope.inputs
                if inputs:
                    results = _results(inner, after, chain) & outputs
                    found |= {(name, result): node.op_type in _RECURRENT for name in inputs for result in results}
    return found


# The nodes that a scope lies in, outermost first, each with the scope it is of.
_Chain = tuple[tuple[Scope, NodeProto], ...]


def _scopes(scope: Scope, chain: _Chain) -> Iterator[tuple[Scope, _Chain]]:
    """A scope and those of the branches of its If nodes."""
    yield scope, chain
    for node in scope.graph.node:
        if node.op_type == "If":
            for _, body in bodies(node):
                yield from _scopes(scope_of(body, scope), (*chain, (scope, node)))


def _states(node: NodeProto) -> Iterator[tuple[str, str]]:
    """(initial, final) of the states of a recurrent node, where it has both."""
    pairs: list[tuple[int, int]] = []
    if node.op_type in _RECURRENT:
        pairs = list(_RECURRENT[node.op_type])
    elif node.op_type == "Scan":
        num_scanned = attribute(node, "num_scan_inputs")
        num_states = len(node.input) - (helper.get_attribute_value(num_scanned) if num_scanned else 0)
        pairs = [(index, index) for index in range(max(0, num_states))]
    elif node.op_type == "Loop":
        pairs = [(index + 2, index) for index in range(len(node.input) - 2)]
    for given, result in pairs:
        if given < len(node.input) and node.input[given] and result < len(node.output) and node.output[result]:
            yield node.input[given], node.output[result]


def _sources(scope: Scope, name: str) -> set[str]:
    """The tensors whose values `name` holds."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name in found or not name:
            continue
        found.add(name)
        node = scope.maker(name)
        if node is not None and node.op_type in _MOVES and node.input:
            waiting.append(node.input[0])
        elif node is not None and node.op_type in _JOINS:
            waiting.extend(node.input)
    return found


def _results(scope: Scope, name: str, chain: _Chain) -> set[str]:
    """The tensors of the outermost graph that hold the values of `name`."""
    found = _moved(scope, {name})
    for around, node in reversed(chain):
        leaving: set[str] = set()
        for _, body in bodies(node):
            if body.name == scope.graph.name or body is scope.graph:
                for port, result in zip(body.output, node.output, strict=False):
                    if port.name in found:
                        leaving.add(result)
        scope, found = around, _moved(around, leaving)
    return found


def _moved(scope: Scope, names: set[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found or not name:
            continue
        found.add(name)
        for node in scope.readers.get(name, ()):
            if node.op_type in _JOINS or (node.op_type in _MOVES and node.input and node.input[0] == name):
                waiting.extend(node.output)
    return found
