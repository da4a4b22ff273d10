"""Functions that a model brings along: put in place of their calls.

Owns the bounds of that: functions that call functions can stand for more nodes than any memory holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
import onnx.inliner

from eddy.inspection.errors import InspectionError
from eddy.inspection.limits import Limits

_Key = tuple[str, str, str]


def all_nodes(nodes: Iterable[onnx.NodeProto], limits: Limits, depth: int = 1) -> Iterator[onnx.NodeProto]:
    """Nodes with those of their subgraphs.

    Raises:
        InspectionError: graphs are nested too deep.
    """
    if depth > limits.max_depth:
        raise InspectionError(f"graphs are nested more than {limits.max_depth} deep")
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g.node, limits, depth + 1)
            for graph in attribute.graphs:
                yield from all_nodes(graph.node, limits, depth + 1)


def inline(model: onnx.ModelProto, limits: Limits) -> onnx.ModelProto:
    """`model` without functions: each call is replaced by the function's nodes.

    Raises:
        InspectionError: functions call each other in a circle, too deep, or stand for too many nodes.
    """
    functions: dict[_Key, onnx.FunctionProto] = {}
    for function in model.functions:
        key = (function.domain, function.name, function.overload)
        if key in functions:
            raise InspectionError(f"function {function.name!r} is defined twice")
        functions[key] = function
    sizes: dict[_Key, int] = {}
    count = _expanded(model.graph.node, functions, sizes, (), limits)
    for key, function in functions.items():
        if key not in sizes:
            _expanded(function.node, functions, sizes, (key,), limits)
    if count > limits.max_nodes:
        raise InspectionError(
            f"the graph has {count:.3g} nodes with its functions', expected at most {limits.max_nodes:,}"
        )
    if not functions:
        return model
    try:
        inlined = onnx.inliner.inline_local_functions(model)
    except Exception as error:
        raise InspectionError(f"its functions cannot be put in place of their calls: {error}") from error
    if inlined.functions:
        raise InspectionError(f"function {inlined.functions[0].name!r} cannot be put in place of its calls")
    return inlined


def _expanded(
    nodes: Iterable[onnx.NodeProto],
    functions: dict[_Key, onnx.FunctionProto],
    sizes: dict[_Key, int],
    path: tuple[_Key, ...],
    limits: Limits,
) -> int:
    """How many nodes `nodes` are once all calls are replaced; `path` are the functions around them."""
    count = 0
    for node in all_nodes(nodes, limits):
        key = (node.domain, node.op_type, node.overload)
        if key not in functions:
            count += 1
            continue
        if key in path:
            raise InspectionError(f"function {node.op_type!r} calls itself")
        if len(path) >= limits.max_function_depth:
            raise InspectionError(f"functions call functions more than {limits.max_function_depth} deep")
        if key not in sizes:
            sizes[key] = _expanded(functions[key].node, functions, sizes, (*path, key), limits)
        count += sizes[key]
    return count
