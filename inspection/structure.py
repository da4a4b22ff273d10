"""The structure of a foreign graph: every name defined once and before its use, known operators, sane shapes.

Owns these checks. Must not know files, nor what a graph computes. onnx's own checker follows; what it does not see, or
says of nothing that a person knows, is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx

from eddy.inspection.errors import InspectionError
from eddy.inspection.limits import Limits
from eddy.inspection.tensor_data import check_data, check_shape

DEFAULT_DOMAIN = ""
# What runtimes bring themselves: ONNX's operators under both of its names, classical models, ONNX Runtime's own.
_DOMAINS = {DEFAULT_DOMAIN, "ai.onnx.ml", "com.microsoft"}


def all_tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Every tensor with data in `graph` and its subgraphs, with what to call it."""
    for tensor in graph.initializer:
        yield f"initializer {tensor.name!r}", tensor
    for node in graph.node:
        for attribute in node.attribute:
            where = f"{describe(node)}: {attribute.name!r}"
            if attribute.HasField("t"):
                yield where, attribute.t
            for tensor in attribute.tensors:
                yield where, tensor
            if attribute.HasField("g"):
                yield from all_tensors(attribute.g)
            for inner in attribute.graphs:
                yield from all_tensors(inner)


def describe(node: onnx.NodeProto) -> str:
    """A node, for a person."""
    return f"node {node.name!r} ({node.op_type})" if node.name else f"the {node.op_type} of {list(node.output)[:1]}"


def check_structure(model: onnx.ModelProto, limits: Limits) -> None:
    """`model`, without functions and with its data inside, is one that a runtime may be given.

    Raises:
        InspectionError: it is not; the message names the node or tensor.
    """
    versions = _versions(model)
    graph = model.graph
    if not graph.node:
        raise InspectionError("the graph has no nodes")
    for side, values in (("inputs", graph.input), ("outputs", graph.output)):
        if len(values) > limits.max_ports:
            raise InspectionError(f"the graph has {len(values):,} {side}, expected at most {limits.max_ports:,}")
    if not graph.output:
        raise InspectionError("the graph has no outputs")
    for side, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            _check_port(value, f"{side} {value.name!r}")
    for where, tensor in all_tensors(graph):
        check_data(tensor, where, limits)
    _check_graph(graph, versions, (), limits)
    _check_by_onnx(model)


def _check_by_onnx(model: onnx.ModelProto) -> None:
    # The checker wants a shape of every port; runtimes do not.
    types = [value.type.tensor_type for value in (*model.graph.input, *model.graph.output)]
    shapeless = [kind for kind in types if not kind.HasField("shape")]
    for kind in shapeless:
        kind.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        said = " ".join(str(error).split())
        raise InspectionError(f"onnx's checker refuses the graph: {said[:500]}") from error
    finally:
        for kind in shapeless:
            kind.ClearField("shape")


def _versions(model: onnx.ModelProto) -> dict[str, int]:
    """Operator set by domain."""
    versions = {_plain(entry.domain): entry.version for entry in model.opset_import}
    newest = onnx.defs.onnx_opset_version()
    if DEFAULT_DOMAIN not in versions:
        raise InspectionError("the file says no version of ONNX's operators (opset_import)")
    if not 1 <= versions[DEFAULT_DOMAIN] <= newest:
        raise InspectionError(
            f"the file uses version {versions[DEFAULT_DOMAIN]} of ONNX's operators, expected 1 to {newest}, the newest "
            "known here"
        )
    return versions


def _plain(domain: str) -> str:
    return DEFAULT_DOMAIN if domain == "ai.onnx" else domain


def _check_port(value: onnx.ValueInfoProto, where: str) -> None:
    """A tensor of a known type. -1, which some exporters write for an unknown size, becomes one."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise InspectionError(f"{where} is of the kind {kind or 'unknown'!r}, expected a tensor")
    if not value.type.tensor_type.elem_type:
        raise InspectionError(f"{where} has no element type")
    for size in value.type.tensor_type.shape.dim:
        if size.HasField("dim_value") and size.dim_value == -1:
            size.ClearField("dim_value")


def _check_values(values: Iterable[onnx.ValueInfoProto], what: str, limits: Limits) -> None:
    for value in values:
        tensor = value.type.tensor_type
        if len(tensor.shape.dim) > limits.max_rank or any(size.dim_value for size in tensor.shape.dim):
            # An unknown size counts as one.
            check_shape([size.dim_value or 1 for size in tensor.shape.dim], f"{what} {value.name[:200]!r}", limits)


def _check_graph(
    graph: onnx.GraphProto, versions: Mapping[str, int], outer: tuple[set[str], ...], limits: Limits
) -> None:
    """One graph and those within; `outer` are the names that it sees of the graphs around it."""
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise InspectionError(f"initializer {name!r} is sparse, expected dense ones only")
    for what, values in (("input", graph.input), ("output", graph.output), ("value", graph.value_info)):
        _check_values(values, what, limits)
    defined = _unique([value.name for value in graph.input], "input", limits)
    weights = _unique([tensor.name for tensor in graph.initializer], "initializer", limits)
    # An input with an initializer of its name has a default.
    defined |= weights
    visible = (*outer, defined)
    for node in graph.node:
        _check_operator(node, versions)
        for name in node.input:
            if name and not any(name in names for names in visible):
                raise _undefined(graph, node, name, visible)
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _check_graph(inner, versions, visible, limits)
        for name in filter(None, node.output):
            if len(name) > limits.max_name_characters:
                raise InspectionError(f"{name[:50]!r}… has {len(name):,} characters, too long for a name")
            if name in defined:
                raise InspectionError(f"{describe(node)} gives {name!r}, which is already defined")
            defined.add(name)
    for value in graph.output:
        if value.name not in defined and not any(value.name in names for names in outer):
            raise InspectionError(f"output {value.name[:200]!r} is given by no node")
    _unique([value.name for value in graph.output], "output", limits)


def _unique(names: Sequence[str], what: str, limits: Limits) -> set[str]:
    found: set[str] = set()
    for name in names:
        if not name or len(name) > limits.max_name_characters:
            raise InspectionError(
                f"{what} {name[:50]!r}: its name has {len(name):,} characters, "
                f"expected 1 to {limits.max_name_characters:,}"
            )
        if name in found:
            raise InspectionError(f"{what} {name!r} is there twice")
        found.add(name)
    return found


def _check_operator(node: onnx.NodeProto, versions: Mapping[str, int]) -> None:
    domain = _plain(node.domain)
    if domain not in _DOMAINS:
        raise InspectionError(
            f"{describe(node)} is a custom operator of the domain {node.domain[:200]!r}: only ONNX's operators and "
            "ONNX Runtime's own are served, libraries of others are not loaded"
        )
    if domain not in versions:
        raise InspectionError(f"{describe(node)}: the file says no version of the operators of {domain!r}")
    if domain == DEFAULT_DOMAIN and not onnx.defs.has(node.op_type, max_inclusive_version=versions[domain]):
        raise InspectionError(
            f"{describe(node)}: version {versions[domain]} of ONNX's operators has no {node.op_type[:200]!r}"
        )


def _undefined(
    graph: onnx.GraphProto, node: onnx.NodeProto, name: str, visible: tuple[set[str], ...]
) -> InspectionError:
    """Why `node` cannot read `name`: a cycle, an order that is no order, or a name that nothing has."""
    makers = {output: other for other in graph.node for output in other.output if output}
    if name not in makers:
        return InspectionError(f"{describe(node)} reads {name[:200]!r}, which is not defined")
    # Follows what `name` needs; back at `node` there is a cycle.
    waiting, seen = [makers[name]], set()
    while waiting:
        other = waiting.pop()
        if other is node or set(other.output) & set(node.output):
            return InspectionError(
                f"{describe(node)} and {describe(makers[name])} need each other: the graph has a cycle"
            )
        for needed in _reads(other):
            if needed in makers and needed not in seen and not any(needed in names for names in visible):
                seen.add(needed)
                waiting.append(makers[needed])
    return InspectionError(
        f"{describe(node)} reads {name!r} before {describe(makers[name])} gives it: nodes out of order"
    )


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node or a graph within it reads."""
    yield from node.input
    for attribute in node.attribute:
        for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            for other in inner.node:
                yield from _reads(other)
