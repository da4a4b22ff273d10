"""Walking: who makes a tensor, who reads it, and what a tensor hangs on, across a graph and the bodies inside it.

Owns bounded walks over graphs as they come from strangers: cycles end, nesting has a limit, a tensor has one maker.
Must not know what nodes compute.

A body (of an If, Loop or Scan) sees the tensors of the graphs around it; its own names hide theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, helper, numpy_helper

from eddy.inspection.errors import InspectionError

# Bodies within bodies: what exporters write stays below ten, and protobuf itself reads 33 at most.
MAX_DEPTH = 24


def bodies(node: NodeProto) -> list[tuple[str, GraphProto]]:
    """The graphs inside a node, by the attribute that holds them: `then_branch`, `body`."""
    found = [(attribute.name, attribute.g) for attribute in node.attribute if attribute.type == AttributeProto.GRAPH]
    return found + [(attribute.name, graph) for attribute in node.attribute for graph in attribute.graphs]


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and every body inside it, at any depth, outer ones first. Raises InspectionError beyond MAX_DEPTH."""
    waiting = [(graph, 0)]
    while waiting:
        current, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise InspectionError(f"graph {graph.name!r}: bodies lie more than {MAX_DEPTH} deep in each other")
        yield current
        waiting.extend((body, depth + 1) for node in current.node for _, body in bodies(node))


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of a graph and of every body inside it."""
    for inner in all_graphs(graph):
        yield from inner.node


def captured(graph: GraphProto) -> list[str]:
    """The tensors of the surroundings that a body reads, each once, those of bodies inside it included."""
    return list(_captured(graph, 0))


def _captured(graph: GraphProto, depth: int) -> dict[str, None]:
    if depth > MAX_DEPTH:
        raise InspectionError(f"graph {graph.name!r}: bodies lie more than {MAX_DEPTH} deep in each other")
    own = {port.name for port in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {name for node in graph.node for name in node.output}
    read: dict[str, None] = {}
    for node in graph.node:
        read |= dict.fromkeys(node.input)
        for _, body in bodies(node):
            read |= _captured(body, depth + 1)
    read |= dict.fromkeys(port.name for port in graph.output)
    return {name: None for name in read if name and name not in own}


def reads(node: NodeProto) -> list[str]:
    """Every tensor that a node hangs on: its inputs, and what the bodies inside it read from around them."""
    return [name for name in node.input if name] + [name for _, body in bodies(node) for name in captured(body)]


def label(node: NodeProto) -> str:
    """What a person calls a node: its operator and its name, or its first output where it has none."""
    name = node.name or next((output for output in node.output if output), "")
    return f"{node.op_type} {name!r}"


def attribute(node: NodeProto, name: str) -> AttributeProto | None:
    """A node's attribute; None where it is not there."""
    return next((found for found in node.attribute if found.name == name), None)


@dataclass(frozen=True, slots=True)
class Scope:
    """One graph and those around it, by names.

    Attributes:
        graph: whose names these are; around: the scope that its node lies in, None for the model's graph.
        makers: tensor -> the node that makes it; readers: tensor -> the nodes of this graph that hang on it.
        constants: tensor -> its value, of initializers; inputs: names of the graph's inputs.
    """

    graph: GraphProto
    around: Scope | None = None
    makers: dict[str, NodeProto] = field(default_factory=dict)
    readers: dict[str, list[NodeProto]] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    inputs: frozenset[str] = frozenset()

    def home(self, name: str) -> Scope | None:
        """The innermost scope that `name` belongs to; None where nobody makes it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.makers or name in scope.constants or name in scope.inputs:
                return scope
            scope = scope.around
        return None

    def maker(self, name: str) -> NodeProto | None:
        """The node that makes `name`, of this graph or one around it; None for an input, a constant, a stranger."""
        home = self.home(name)
        return home.makers.get(name) if home is not None else None

    def constant(self, name: str) -> onnx.TensorProto | None:
        """The value of an initializer, or of a Constant node, also through Identity; None where it is computed."""
        seen: set[str] = set()
        while name not in seen:
            seen.add(name)
            home = self.home(name)
            if home is None:
                return None
            node = home.makers.get(name)
            if node is None:
                return home.constants.get(name)
            if node.op_type == "Constant":
                return _constant_value(node)
            if node.op_type != "Identity" or not node.input:
                return None
            name = node.input[0]
        return None

    def ancestors(self, names: Iterable[str]) -> dict[str, None]:
        """Every tensor that `names` hang on, themselves included, here and in the graphs around."""
        found: dict[str, None] = {}
        waiting = [name for name in names if name]
        while waiting:
            name = waiting.pop()
            if name in found:
                continue
            found[name] = None
            node = self.maker(name)
            if node is not None:
                waiting.extend(reads(node))
        return found

    def descendants(self, names: Iterable[str]) -> dict[str, None]:
        """Every tensor of this graph that hangs on one of `names`, themselves included."""
        found: dict[str, None] = {}
        waiting = [name for name in names if name]
        while waiting:
            name = waiting.pop()
            if name in found:
                continue
            found[name] = None
            waiting.extend(output for node in self.readers.get(name, ()) for output in node.output if output)
        return found


def scope_of(graph: GraphProto, around: Scope | None = None) -> Scope:
    """The names of a graph. Raises InspectionError where a tensor has two makers."""
    made = [name for node in graph.node for name in node.output if name]
    constants = {tensor.name: tensor for tensor in graph.initializer}
    inputs = frozenset(port.name for port in graph.input) - constants.keys()
    twice = [name for name, count in Counter([*made, *inputs, *constants]).items() if count > 1]
    if twice:
        raise InspectionError(f"graph {graph.name!r}: tensor {twice[0]!r} is made more than once")
    makers = {name: node for node in graph.node for name in node.output if name}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(reads(node)):
            readers.setdefault(name, []).append(node)
    return Scope(graph, around, makers, readers, constants, inputs)


def all_names(graph: GraphProto) -> set[str]:
    """Every tensor name in a graph and its bodies."""
    names: set[str] = set()
    for inner in all_graphs(graph):
        names |= {port.name for port in (*inner.input, *inner.output)}
        names |= {tensor.name for tensor in inner.initializer}
        names |= {name for node in inner.node for name in (*node.input, *node.output)}
    return names


def fresh_name(wanted: str, taken: set[str]) -> str:
    """`wanted`, with a number behind it where it is taken; the result is taken from now on."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


def _constant_value(node: NodeProto) -> onnx.TensorProto | None:
    """The value of a Constant node in any of its spellings but the sparse one."""
    for found in node.attribute:
        if found.name == "value":
            return found.t
        if found.name in {"value_float", "value_floats"}:
            return numpy_helper.from_array(np.array(helper.get_attribute_value(found), np.float32))
        if found.name in {"value_int", "value_ints"}:
            return numpy_helper.from_array(np.array(helper.get_attribute_value(found), np.int64))
    return None
