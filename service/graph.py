"""Graph surgery: wraps a step graph around its state arena.

Owns the rewriting of (inputs, states) -> (outputs, next states) into a graph that gathers states from arena rows and
scatters them back. Must not know how graphs are run. The rule it must keep: in the wrapped graph every reader of an
arena comes before its ScatterND in every order a runtime may choose, because arena input and arena output are bound
to one buffer.

Dimension key: B batch, T steps, S slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from eddy.service.contract import Contract, State
from eddy.service.errors import ModelError, Reason

PREFIX = "eddy_"
READ_SLOTS = PREFIX + "read_slots"
WRITE_SLOTS = PREFIX + "write_slots"
LIVE = PREFIX + "live"


@dataclass(frozen=True, slots=True)
class ArenaPort:
    """Where one state's arena enters and leaves the wrapped graph; both are bound to the same buffer."""

    state: State
    input_name: str
    output_name: str


@dataclass(frozen=True, slots=True)
class WrappedGraph:
    """A wrapped step graph.

    Attributes:
        model: inputs, `eddy_read_slots` int64 [B], `eddy_write_slots` int64 [B, 1] and one arena [S, ...] a state.
        arenas: the arenas, in the contract's order of states.
        guarded: names of states whose ScatterND needed an explicit guard to come after the Gather.
    """

    model: onnx.ModelProto
    arenas: tuple[ArenaPort, ...]
    guarded: tuple[str, ...]


def wrap_step_graph(model: onnx.ModelProto, contract: Contract) -> WrappedGraph:
    """Wraps a copy of `model`; `model` is not changed.

    Raises:
        ModelError: the graph already uses a name of ours, or a state's output cannot be told from another tensor.
    """
    wrapped = onnx.ModelProto()
    wrapped.CopyFrom(model)
    graph = wrapped.graph
    _refuse_reserved_names(graph)

    gathers, scatters, arenas, guarded = [], [], [], []
    states = {state.name for state in contract.states}
    nexts = {state.next_name for state in contract.states if state.next_name}
    keep_inputs = [value for value in graph.input if value.name not in states]
    keep_outputs = [value for value in graph.output if value.name not in nexts]
    for state in contract.states:
        port = ArenaPort(state, f"{PREFIX}arena_{state.name}", f"{PREFIX}arena_{state.name}_next")
        arenas.append(port)
        gathers.append(helper.make_node("Gather", [port.input_name, READ_SLOTS], [state.name], axis=0))
        if not state.next_name:
            continue
        update = state.next_name
        if not _is_ancestor(graph, state.name, state.next_name):
            scatters.extend(_guard(state))
            update = _guarded_name(state)
            guarded.append(state.name)
        scatters.append(helper.make_node("ScatterND", [port.input_name, WRITE_SLOTS, update], [port.output_name]))

    nodes = [*gathers, *graph.node, *scatters]
    del graph.node[:]
    graph.node.extend(nodes)
    if guarded:
        # An input, not a constant: a constant condition would be folded, and the Where's edge with it.
        keep_inputs.append(helper.make_tensor_value_info(LIVE, TensorProto.BOOL, [1]))
    slots = [
        helper.make_tensor_value_info(READ_SLOTS, TensorProto.INT64, ["B"]),
        helper.make_tensor_value_info(WRITE_SLOTS, TensorProto.INT64, ["B", 1]),
    ]
    del graph.input[:]
    graph.input.extend([*keep_inputs, *slots, *(_arena_info(port.state, port.input_name) for port in arenas)])
    del graph.output[:]
    mutable = [port for port in arenas if port.state.next_name]
    graph.output.extend([*keep_outputs, *(_arena_info(port.state, port.output_name) for port in mutable)])
    return WrappedGraph(wrapped, tuple(arenas), tuple(guarded))


def _arena_info(state: State, name: str) -> onnx.ValueInfoProto:
    element = helper.np_dtype_to_tensor_dtype(state.dtype)
    return helper.make_tensor_value_info(name, element, ["S", *state.shape])


def _guarded_name(state: State) -> str:
    return f"{PREFIX}guarded_{state.name}"


def _guard(state: State) -> list[onnx.NodeProto]:
    """Where(live, next, gathered): `live` is always true, the data edge from the Gather is what matters."""
    return [helper.make_node("Where", [LIVE, state.next_name, state.name], [_guarded_name(state)])]


def _refuse_reserved_names(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        for name in (*node.input, *node.output):
            if name.startswith(PREFIX):
                raise ModelError(
                    Reason.MODEL_NOT_READY, f"tensor {name!r}: names that begin with {PREFIX!r} are reserved"
                )


def _is_ancestor(graph: onnx.GraphProto, ancestor: str, name: str) -> bool:
    """Whether tensor `name` is computed from tensor `ancestor` along data edges that every run executes.

    Edges into a subgraph (If, Loop, Scan) count for the node that holds it: it runs only when all that its
    subgraphs capture is there.
    """
    producers = {output: node for node in graph.node for output in node.output if output}
    pending = [name]
    seen: set[str] = set()
    while pending:
        current = pending.pop()
        if current == ancestor:
            return True
        node = producers.get(current)
        if node is None or current in seen:
            continue
        seen.update(node.output)
        pending.extend(used for used in _consumed(node) if used)
    return False


# Operators whose output ignores the values of an input: a runtime may replace them and drop the edge.
_VALUE_BLIND = {"Shape", "Size"}


def _consumed(node: onnx.NodeProto) -> Iterator[str]:
    if node.op_type in _VALUE_BLIND:
        return
    yield from node.input
    for attribute in node.attribute:
        subgraphs = [attribute.g] if attribute.HasField("g") else attribute.graphs
        for subgraph in subgraphs:
            for inner in subgraph.node:
                yield from _consumed(inner)
