"""Graph surgery: wraps a model's graphs around its state arena.

Owns the comparison of graphs with their contract, the rewriting of (inputs, states) -> (outputs, next states) into a
graph that gathers states from arena rows and scatters them back, and the graph that writes states into rows. Must not
know how graphs are run. The rule it must keep: in the wrapped graph every reader of an arena comes before its
ScatterND in every order a runtime may choose, because arena input and arena output are bound to one buffer.

Dimension key: B batch, T steps, S slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from eddy.service.contract import END, Contract, refuse
from eddy.service.errors import ModelError, Reason
from eddy.service.ports import Port, State

PREFIX = "eddy_"
READ_SLOTS = PREFIX + "read_slots"
WRITE_SLOTS = PREFIX + "write_slots"
HOME_SLOTS = PREFIX + "home_slots"
LIVE = PREFIX + "live"
_OPSET = 17
_IR_VERSION = 8


@dataclass(frozen=True, slots=True)
class ModelGraphs:
    """The graphs of one model: the step graph, of one that streams, and the others where there are any."""

    step: onnx.ModelProto | None
    prime: onnx.ModelProto | None = None
    whole: onnx.ModelProto | None = None


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
        model: the feeds, `eddy_read_slots` int64 [B], `eddy_write_slots` int64 [B, 1], where a state is immutable
            `eddy_home_slots` int64 [B], from which it is read, and one arena [S, ...] a state.
        arenas: the arenas, in the contract's order of states.
        guarded: names of states whose ScatterND needed an explicit guard to come after the Gather.
    """

    model: onnx.ModelProto
    arenas: tuple[ArenaPort, ...]
    guarded: tuple[str, ...]


def wrap_step_graph(model: onnx.ModelProto, contract: Contract, *, gathers_immutable: bool = True) -> WrappedGraph:
    """Wraps a copy of `model`; `model` is not changed.

    Args:
        gathers_immutable: whether immutable states come from their arenas; else they stay inputs, [B, ...] each.

    Raises:
        ModelError: the graph already uses a name of ours, or a state's output cannot be told from another tensor.
    """
    wrapped = onnx.ModelProto()
    wrapped.CopyFrom(model)
    graph = wrapped.graph
    _refuse_reserved_names(graph)

    gathers: list[onnx.NodeProto] = []
    scatters, arenas, guarded = [], [], []
    wrapped_states = [state for state in contract.states if state.next_name or gathers_immutable]
    states = {state.name for state in wrapped_states}
    nexts = {state.next_name for state in contract.states if state.next_name}
    ports = {contract.message.ports.length, contract.message.ports.flush} - {""}
    keep_inputs = [value for value in graph.input if value.name not in states | ports]
    if contract.has_end:
        keep_inputs.append(helper.make_tensor_value_info(END, TensorProto.UINT8, ["B", "T"]))
        gathers.extend(_write_ports(graph, contract))
    keep_outputs = [value for value in graph.output if value.name not in nexts]
    for state in wrapped_states:
        port = ArenaPort(state, *arena_names(state))
        arenas.append(port)
        # What is never scattered stays in the session's own slot, wherever its other states are at the moment.
        slots_name = READ_SLOTS if state.next_name else HOME_SLOTS
        gathers.append(helper.make_node("Gather", [port.input_name, slots_name], [state.name], axis=0))
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
    if contract.has_immutable and gathers_immutable:
        slots.append(helper.make_tensor_value_info(HOME_SLOTS, TensorProto.INT64, ["B"]))
    del graph.input[:]
    graph.input.extend([*keep_inputs, *slots, *(_arena_info(port.state, port.input_name) for port in arenas)])
    del graph.output[:]
    mutable = [port for port in arenas if port.state.next_name]
    graph.output.extend([*keep_outputs, *(_arena_info(port.state, port.output_name) for port in mutable)])
    return WrappedGraph(wrapped, tuple(arenas), tuple(guarded))


def _write_ports(graph: onnx.GraphProto, contract: Contract) -> Iterator[onnx.NodeProto]:
    """`length` int64 [B] and `flush` bool [B] from `END` uint8 [B, T], where only the last step can be an end."""
    for name, value in (("last", -1), ("one", 1)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), PREFIX + name))
    yield helper.make_node("Gather", [END, PREFIX + "last"], [PREFIX + "ended"], axis=1)
    ports = contract.message.ports
    if ports.length:
        yield helper.make_node("Shape", [END], [PREFIX + "shape"])
        yield helper.make_node("Gather", [PREFIX + "shape", PREFIX + "one"], [PREFIX + "steps"], axis=0)
        yield helper.make_node("Cast", [PREFIX + "ended"], [PREFIX + "num_ended"], to=TensorProto.INT64)
        yield helper.make_node("Sub", [PREFIX + "steps", PREFIX + "num_ended"], [ports.length])
    if ports.flush:
        yield helper.make_node("Cast", [PREFIX + "ended"], [ports.flush], to=TensorProto.BOOL)


def read_graph(contract: Contract) -> onnx.ModelProto:
    """The graph that copies rows of all arenas, [B, ...] a state, named as the states.

    Rows `eddy_read_slots` of what steps write, rows `eddy_home_slots` of the others.
    """
    used = {READ_SLOTS if state.next_name else HOME_SLOTS for state in contract.states}
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B"]) for name in sorted(used)]
    outputs, nodes = [], []
    for state in contract.states:
        arena, _ = arena_names(state)
        inputs.append(_arena_info(state, arena))
        element = helper.np_dtype_to_tensor_dtype(state.dtype)
        outputs.append(helper.make_tensor_value_info(state.name, element, ["B", *state.shape]))
        rows = READ_SLOTS if state.next_name else HOME_SLOTS
        nodes.append(helper.make_node("Gather", [arena, rows], [state.name], axis=0))
    graph = helper.make_graph(nodes, "read", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def load_graph(contract: Contract) -> onnx.ModelProto:
    """The graph that writes states [B, ...] into the rows `eddy_write_slots` of their arenas.

    Inputs and outputs are named as in the wrapped graph; the states by their names.
    """
    inputs = [helper.make_tensor_value_info(WRITE_SLOTS, TensorProto.INT64, ["B", 1])]
    outputs, nodes = [], []
    for state in contract.states:
        before, after = arena_names(state)
        element = helper.np_dtype_to_tensor_dtype(state.dtype)
        inputs += [helper.make_tensor_value_info(state.name, element, ["B", *state.shape]), _arena_info(state, before)]
        outputs.append(_arena_info(state, after))
        nodes.append(helper.make_node("ScatterND", [before, WRITE_SLOTS, state.name], [after]))
    graph = helper.make_graph(nodes, "load", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def move_graph(states: Sequence[State]) -> onnx.ModelProto:
    """The graph that copies some states from the rows `eddy_read_slots` of their arenas to `eddy_write_slots`.

    Inputs and outputs are named as in the wrapped graph; what is immutable is read from the rows `eddy_home_slots`.
    Of each arena every row is read before any is written.
    """
    inputs = [
        helper.make_tensor_value_info(READ_SLOTS, TensorProto.INT64, ["B"]),
        helper.make_tensor_value_info(WRITE_SLOTS, TensorProto.INT64, ["B", 1]),
    ]
    if not all(state.next_name for state in states):
        inputs.append(helper.make_tensor_value_info(HOME_SLOTS, TensorProto.INT64, ["B"]))
    outputs, nodes = [], []
    for state in states:
        before, after = arena_names(state)
        inputs.append(_arena_info(state, before))
        outputs.append(_arena_info(state, after))
        source = READ_SLOTS if state.next_name else HOME_SLOTS
        nodes.append(helper.make_node("Gather", [before, source], [state.name], axis=0))
        nodes.append(helper.make_node("ScatterND", [before, WRITE_SLOTS, state.name], [after]))
    graph = helper.make_graph(nodes, "move", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def arena_names(state: State) -> tuple[str, str]:
    """The names under which a state's arena enters and leaves."""
    return f"{PREFIX}arena_{state.name}", f"{PREFIX}arena_{state.name}_next"


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


# Against the contract

Wanted = dict[str, tuple[np.dtype, int]]


def check_graphs(contract: Contract, graphs: ModelGraphs) -> None:
    """The contract names every graph's inputs and outputs, with their dtypes and ranks.

    Raises:
        ModelError: it does not, or a graph that it names is not there.
    """
    ports = contract.message.ports
    counts, flags = np.dtype("<i8"), np.dtype("?")
    inputs, outputs = _of_ports(contract.inputs), _of_ports(contract.outputs)
    states = {state.name: (state.dtype, 1 + len(state.shape)) for state in contract.states}
    nexts = {state.next_name: states[state.name] for state in contract.states if state.next_name}
    extra = {ports.length: (counts, 1), ports.flush: (flags, 1)}
    taken = {name: port for name, port in extra.items() if name}
    given = {ports.emitted: (counts, 1)} if ports.emitted else {}
    if graphs.step is not None:
        _check_graph("step", graphs.step.graph, inputs | states | taken, outputs | nexts | given)
    if graphs.whole is not None:
        _check_graph("whole", graphs.whole.graph, inputs, outputs)
    if graphs.prime is not None:
        length = {ports.prime_length: (counts, 1)} if ports.prime_length else {}
        written = {value.name: states.get(value.name, (counts, -1)) for value in graphs.prime.graph.output}
        unknown = sorted(written.keys() - states.keys())
        if unknown or not written:
            raise refuse(f"the prime graph writes {unknown or 'nothing'}, the contract's states are {sorted(states)}")
        _check_graph("prime", graphs.prime.graph, _of_ports(contract.prime_inputs) | length, written)


def declared_steps(model: onnx.ModelProto, contract: Contract) -> int:
    """T, where the graph declares the only one that its inputs can have; else 0."""
    names = {port.name for port in contract.inputs}
    shapes = [value.type.tensor_type.shape.dim for value in model.graph.input if value.name in names]
    return max((axes[1].dim_value for axes in shapes if len(axes) > 1), default=0)


def _of_ports(ports: tuple[Port, ...]) -> Wanted:
    return {port.name: (port.dtype, 2 + len(port.shape)) for port in ports}


def _check_graph(which: str, graph: onnx.GraphProto, wanted_inputs: Wanted, wanted_outputs: Wanted) -> None:
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in initializers}
    outputs = {value.name: value for value in graph.output}
    _check_values(f"{which} graph's input", wanted_inputs, inputs)
    _check_values(f"{which} graph's output", wanted_outputs, outputs)


def _check_values(kind: str, wanted: Wanted, found: Mapping[str, onnx.ValueInfoProto]) -> None:
    if wanted.keys() != found.keys():
        raise refuse(f"the contract names the {kind}s {sorted(wanted)}, the graph has {sorted(found)}")
    for name, (dtype, rank) in wanted.items():
        tensor_type = found[name].type.tensor_type
        if helper.tensor_dtype_to_np_dtype(tensor_type.elem_type) != dtype:
            raise refuse(f"{kind} {name!r}: the contract's dtype {dtype} is not the graph's")
        if tensor_type.HasField("shape") and len(tensor_type.shape.dim) != rank:
            raise refuse(f"{kind} {name!r}: the contract's rank {rank} is not the graph's")
