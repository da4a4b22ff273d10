"""Step graphs with contracts, built from ONNX operators alone: every family of model that the service must serve.

Owns the models of the tests and the plain reference: a graph as it was built, run by ONNX Runtime with the states
carried by hand. Must not know the service.

Dimension key: B batch, T steps, F features, L layers, H hidden, V vocabulary, K rows of a convolution's cache.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import json_format
from onnx import helper, numpy_helper

from eddy.v1 import contract_pb2

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

OPSET = 17
IR_VERSION = 9
METADATA_KEY = "eddy.contract"
PRIME_FILE = "prime.onnx"

_WIRE_DTYPES: dict[np.dtype, int] = {
    np.dtype(np.float32): contract_pb2.DATA_TYPE_FLOAT32,
    np.dtype(np.float16): contract_pb2.DATA_TYPE_FLOAT16,
    np.dtype(np.int64): contract_pb2.DATA_TYPE_INT64,
    np.dtype(np.uint8): contract_pb2.DATA_TYPE_UINT8,
    np.dtype(np.bool_): contract_pb2.DATA_TYPE_BOOL,
}


@dataclass(frozen=True)
class PortSpec:
    """One input or output, [B, T, *shape]; `values` is the inclusive range that it accepts."""

    name: str
    dtype: type
    shape: tuple[int, ...] = ()
    values: tuple[float, float] | None = None


@dataclass(frozen=True)
class StateSpec:
    """One state, [B, *shape]; `initial` is a number or one row."""

    name: str
    next_name: str
    dtype: type
    shape: tuple[int, ...] = ()
    initial: float | np.ndarray = 0.0
    values: tuple[float, float] | None = None

    def initial_rows(self, count: int) -> np.ndarray:
        """The initial value of `count` rows, [count, *shape]."""
        row: np.ndarray = np.broadcast_to(np.asarray(self.initial, self.dtype), self.shape)
        return np.repeat(row[None], count, axis=0)


@dataclass(frozen=True)
class Ends:
    """The ports of a model that looks ahead, by name, and how many steps it may hold back."""

    length: str
    flush: str
    emitted: str
    block_steps: int
    look_ahead_steps: int

    @property
    def extra_steps(self) -> int:
        """Steps that an answer may have beyond its call's."""
        return self.block_steps - 1 + self.look_ahead_steps


@dataclass(frozen=True)
class PrimeSpec:
    """What a model reads before its first step: [B, S, *shape] inputs and int64 [B] lengths."""

    inputs: tuple[PortSpec, ...]
    length: str
    max_steps: int
    graph: Callable[[], onnx.ModelProto]


@dataclass(frozen=True)
class Start:
    """What one session begins with: prime inputs [S, ...], of which the first `length` steps count."""

    inputs: list[np.ndarray]
    length: int


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        body: nodes; weights: initializers.
    """

    name: str
    inputs: tuple[PortSpec, ...]
    outputs: tuple[PortSpec, ...]
    states: tuple[StateSpec, ...]
    body: tuple[onnx.NodeProto, ...]
    weights: tuple[onnx.TensorProto, ...] = ()
    # Largest absolute difference allowed; 0: bit for bit.
    tolerance: float = 0.0
    ends: Ends | None = None
    prime: PrimeSpec | None = None
    # Rows that one run takes, exactly, and steps at most; 0: any number.
    run_rows: int = 0
    max_run_steps: int = 0
    # Why the model does not stream; then it has no states, and its graph takes whole sequences.
    prevented_by: str = ""

    def contract(self) -> contract_pb2.ModelContract:
        """The contract, as a message."""
        message = contract_pb2.ModelContract(
            schema_version=1,
            name=self.name,
            task=contract_pb2.TASK_OTHER,
            graphs=contract_pb2.Graphs(whole="model.onnx")
            if self.prevented_by
            else contract_pb2.Graphs(step="model.onnx"),
            streaming=contract_pb2.Streaming(
                streamable=not self.prevented_by,
                reason=self.prevented_by,
                run_rows=self.run_rows,
                max_run_steps=self.max_run_steps,
            ),
            numerics=contract_pb2.Numerics(bitwise=True),
        )
        ports = [(self.inputs, message.inputs), (self.outputs, message.outputs)]
        if self.ends is not None:
            ends = self.ends
            message.ports.CopyFrom(contract_pb2.Ports(length=ends.length, flush=ends.flush, emitted=ends.emitted))
            message.streaming.block_steps = ends.block_steps
            message.streaming.look_ahead_steps = ends.look_ahead_steps
        if self.prime is not None:
            message.graphs.prime, message.ports.prime_length = PRIME_FILE, self.prime.length
            message.max_prime_steps = self.prime.max_steps
            ports.append((self.prime.inputs, message.prime_inputs))
        for specs, field in ports:
            for port in specs:
                spec = field.add(name=port.name, dtype=_WIRE_DTYPES[np.dtype(port.dtype)], shape=port.shape)
                if port.values is not None:
                    spec.range.minimum, spec.range.maximum = port.values
        for state in self.states:
            added = message.states.add(
                name=state.name,
                next_name=state.next_name,
                dtype=_WIRE_DTYPES[np.dtype(state.dtype)],
                shape=state.shape,
                immutable=not state.next_name,
            )
            if state.values is not None:
                added.range.minimum, added.range.maximum = state.values
            if isinstance(state.initial, np.ndarray):
                added.initial.data = state.initial.astype(state.dtype).tobytes()
            else:
                added.initial.constant = state.initial
        return message

    def graph(self) -> onnx.ModelProto:
        """The step graph, without a contract."""
        rows: int | str = self.run_rows or "B"
        inputs = [_value(port.name, port.dtype, [rows, "T", *port.shape]) for port in self.inputs]
        inputs += [_value(state.name, state.dtype, [rows, *state.shape]) for state in self.states]
        outputs = [_value(port.name, port.dtype, [rows, "U", *port.shape]) for port in self.outputs]
        if self.ends is not None:
            inputs += [_value(self.ends.length, np.int64, [rows]), _value(self.ends.flush, np.bool_, [rows])]
            outputs.append(_value(self.ends.emitted, np.int64, [rows]))
        outputs += [
            _value(state.next_name, state.dtype, [rows, *state.shape]) for state in self.states if state.next_name
        ]
        graph = helper.make_graph(list(self.body), self.name.replace("-", "_"), inputs, outputs, list(self.weights))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model)
        return model

    def model(self, contract: contract_pb2.ModelContract | None = None) -> onnx.ModelProto:
        """The step graph with its contract, or with another one."""
        model = self.graph()
        text = json_format.MessageToJson(contract or self.contract(), preserving_proto_field_name=True)
        helper.set_model_props(model, {METADATA_KEY: text})
        return model

    def example(self, generator: np.random.Generator, num_steps: int) -> list[np.ndarray]:
        """One session's inputs, one [T, ...] an input."""
        return [_example(port, generator, num_steps) for port in self.inputs]

    def feeds(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """What the engine is fed for `inputs`, [T, ...] each, no step of which is an end."""
        return inputs if self.ends is None else [*inputs, np.zeros(len(inputs[0]), np.uint8)]

    def end(self) -> list[np.ndarray]:
        """What the engine is fed for the end of a stream."""
        assert self.ends is not None, "the model knows no ends"
        blank = [np.full((1, *port.shape), max(0, (port.values or (0, 0))[0]), port.dtype) for port in self.inputs]
        return [*blank, np.ones(1, np.uint8)]

    def start(self, generator: np.random.Generator) -> Start | None:
        """What a session begins with; None for the contract's initial states."""
        if self.prime is None:
            return None
        steps = int(generator.integers(1, self.prime.max_steps + 1))
        inputs = [_example(port, generator, steps) for port in self.prime.inputs]
        return Start(inputs, int(generator.integers(1, steps + 1)))


def _example(port: PortSpec, generator: np.random.Generator, num_steps: int) -> np.ndarray:
    shape = (num_steps, *port.shape)
    if np.dtype(port.dtype).kind == "f":
        values = generator.normal(size=shape) if port.values is None else generator.uniform(*port.values, shape)
        return values.astype(port.dtype)
    if np.dtype(port.dtype).kind == "b":
        return generator.random(shape) < 0.2
    low, high = port.values or (0, 9)
    return generator.integers(int(low), int(high), shape, endpoint=True).astype(port.dtype)


def _value(name: str, dtype: type, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape))


def _weight(name: str, values: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values), name)


class PlainGraph:
    """The graphs as they were built, states carried by hand: what the service is compared with."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._session = self.load(family.graph())
        self._prime = None if family.prime is None else self.load(family.prime.graph())
        self._num_rows = family.run_rows or 2

    @staticmethod
    def load(model: onnx.ModelProto) -> Any:
        """An ONNX Runtime session of one thread."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def whole(
        self, feeds: Sequence[np.ndarray], start: Start | None = None
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Outputs [U, ...] each and final states [...] each of one session's whole sequence, run alone.

        Args:
            feeds: [T, ...] each, with the marks of ends where the model has them; start: what it begins with.

        Two equal rows: with one row ONNX Runtime's kernels for RNN take another path and other bits; or as many as the
        graph takes.
        """
        family = self._family
        states = {state.name: state.initial_rows(self._num_rows) for state in family.states}
        if start is not None:
            states |= self._begin(start)
        parts: list[list[np.ndarray]] = [[] for _ in family.outputs]
        for segment, is_end in _pieces(family, feeds):
            outputs, states = self._run(segment, is_end, states)
            for part, output in zip(parts, outputs, strict=True):
                part.append(output)
        return [np.concatenate(part) for part in parts], [states[state.name][0] for state in family.states]

    def _begin(self, start: Start) -> dict[str, Any]:
        prime = self._family.prime
        assert prime is not None and self._prime is not None, "only a primed model has a start"
        feed = self._rows(prime.inputs, start.inputs)
        names = [output.name for output in self._prime.get_outputs()]
        lengths = {prime.length: np.array([start.length] * self._num_rows)} if prime.length else {}
        return dict(zip(names, self._prime.run(names, feed | lengths), strict=True))

    def _rows(self, ports: Sequence[PortSpec], values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        return {port.name: np.stack([each] * self._num_rows) for port, each in zip(ports, values, strict=True)}

    def _run(
        self, inputs: Sequence[np.ndarray], is_end: bool, states: dict[str, Any]
    ) -> tuple[list[np.ndarray], dict[str, Any]]:
        family, ends = self._family, self._family.ends
        feed = self._rows(family.inputs, inputs)
        names = [port.name for port in family.outputs]
        names += [state.next_name for state in family.states if state.next_name]
        if ends is not None:
            num_steps = len(inputs[0]) - (1 if is_end else 0)
            feed |= {ends.length: np.array([num_steps] * self._num_rows)}
            feed |= {ends.flush: np.array([is_end] * self._num_rows)}
            names.append(ends.emitted)
        got: dict[str, Any] = dict(zip(names, self._session.run(names, feed | states), strict=True))
        outputs = [got[port.name][0] for port in family.outputs]
        if ends is not None:
            outputs = [output[: got[ends.emitted][0]] for output in outputs]
        moved = {state.name: got[state.next_name] for state in family.states if state.next_name}
        return outputs, states | moved


def _pieces(family: Family, feeds: Sequence[np.ndarray]) -> list[tuple[list[np.ndarray], bool]]:
    """The segments, cut into what one run takes."""
    found = []
    for segment, is_end in _segments(family, feeds):
        size = family.max_run_steps or len(segment[0])
        cuts = range(0, len(segment[0]), size)
        found += [([values[at : at + size] for values in segment], is_end and at == cuts[-1]) for at in cuts]
    return found


def _segments(family: Family, feeds: Sequence[np.ndarray]) -> list[tuple[list[np.ndarray], bool]]:
    """The streams in one session's feeds, [T, ...] each, and whether each has ended."""
    if family.ends is None:
        return [(list(feeds), False)]
    *inputs, marks = feeds
    cuts = [0, *(np.flatnonzero(marks) + 1).tolist()]
    found = [([values[begin:end] for values in inputs], True) for begin, end in itertools.pairwise(cuts)]
    if cuts[-1] < len(marks):
        found.append(([values[cuts[-1] :] for values in inputs], False))
    return found


# Recurrent layers

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _recurrent(name: str, cell: str, num_layers: int, features: int, hidden: int, out: int, seed: int) -> Family:
    """Stacked recurrent layers and a linear head; every state is [B, L, H]."""
    generator = np.random.default_rng(seed)
    gates = _GATES[cell]
    weights = [_weight("axis_direction", np.array([1]))]
    nodes = [helper.make_node("Transpose", ["x"], ["layer_0"], perm=[1, 0, 2])]
    kinds = ("h", "c") if cell == "LSTM" else ("h",)
    parts = {kind: [f"{kind}_{layer}" for layer in range(num_layers)] for kind in kinds}
    for kind in kinds:
        # [B, L, H] -> [L, B, H] -> one [1, B, H] a layer.
        nodes.append(helper.make_node("Transpose", [kind], [f"{kind}_by_layer"], perm=[1, 0, 2]))
        nodes.append(helper.make_node("Split", [f"{kind}_by_layer"], parts[kind], axis=0))
    for layer in range(num_layers):
        size = features if layer == 0 else hidden
        shapes = {"W": (1, gates * hidden, size), "R": (1, gates * hidden, hidden), "bias": (1, 2 * gates * hidden)}
        for kind, shape in shapes.items():
            weights.append(_weight(f"{kind}_{layer}", generator.normal(0, 0.4, shape).astype(np.float32)))
        names = [f"{kind}_{layer}" for kind in shapes]
        outs = [f"y_{layer}", *(f"{kind}_{layer}_next" for kind in kinds)]
        ins = [f"layer_{layer}", *names, "", *(parts[kind][layer] for kind in kinds)]
        nodes.append(helper.make_node(cell, ins, outs, hidden_size=hidden))
        nodes.append(helper.make_node("Squeeze", [f"y_{layer}", "axis_direction"], [f"layer_{layer + 1}"]))
    for kind in kinds:
        nexts = [f"{kind}_{layer}_next" for layer in range(num_layers)]
        nodes.append(helper.make_node("Concat", nexts, [f"{kind}_stacked"], axis=0))
        nodes.append(helper.make_node("Transpose", [f"{kind}_stacked"], [f"{kind}_next"], perm=[1, 0, 2]))
    weights.append(_weight("head", generator.normal(0, 0.4, (hidden, out)).astype(np.float32)))
    nodes.append(helper.make_node("Transpose", [f"layer_{num_layers}"], ["hidden"], perm=[1, 0, 2]))
    nodes.append(helper.make_node("MatMul", ["hidden", "head"], ["y"]))
    return Family(
        name,
        (PortSpec("x", np.float32, (features,)),),
        (PortSpec("y", np.float32, (out,)),),
        tuple(StateSpec(kind, f"{kind}_next", np.float32, (num_layers, hidden)) for kind in kinds),
        tuple(nodes),
        tuple(weights),
    )


def _token_gru() -> Family:
    """Token ids in 0..6, an embedding, a GRU and twelve logits a step."""
    inner = _recurrent("token-gru", "GRU", 1, 6, 8, 12, seed=11)
    generator = np.random.default_rng(12)
    embedding = _weight("embedding", generator.normal(0, 1, (7, 6)).astype(np.float32))
    gather = helper.make_node("Gather", ["embedding", "token"], ["x"], axis=0)
    return Family(
        inner.name,
        (PortSpec("token", np.int64, (), (0, 6)),),
        inner.outputs,
        inner.states,
        (gather, *inner.body),
        (embedding, *inner.weights),
    )


# Other states


def _causal_convolution() -> Family:
    """y[t] = a x[t] + b x[t-1].

    The cache's new value is cut from the input alone: nothing but the guard orders the reading of the old cache before
    its overwriting.
    """
    generator = np.random.default_rng(21)
    weights = (
        _weight("now", generator.normal(size=3).astype(np.float32)),
        _weight("before", generator.normal(size=3).astype(np.float32)),
        *(_weight(name, np.array([value])) for name, value in (("zero", 0), ("one", 1), ("last", -1), ("end", 2**31))),
    )
    nodes = (
        # First in the graph, so that it could run first.
        helper.make_node("Slice", ["x", "last", "end", "one"], ["cache_next"]),
        helper.make_node("Concat", ["cache", "x"], ["both"], axis=1),
        helper.make_node("Slice", ["both", "zero", "last", "one"], ["shifted"]),
        helper.make_node("Mul", ["x", "now"], ["with_now"]),
        helper.make_node("Mul", ["shifted", "before"], ["with_before"]),
        helper.make_node("Add", ["with_now", "with_before"], ["y"]),
    )
    return Family(
        "causal-convolution",
        (PortSpec("x", np.float32, (3,)),),
        (PortSpec("y", np.float32, (3,)),),
        (StateSpec("cache", "cache_next", np.float32, (1, 3)),),
        nodes,
        weights,
    )


def _scan(body: Sequence[onnx.NodeProto], states: Sequence[onnx.ValueInfoProto], **ports: object) -> onnx.NodeProto:
    """A Scan over axis 1 of every scanned tensor."""
    scanned: Sequence[onnx.ValueInfoProto] = ports["inputs"]  # type: ignore[assignment]
    nexts: Sequence[onnx.ValueInfoProto] = ports["nexts"]  # type: ignore[assignment]
    outputs: Sequence[onnx.ValueInfoProto] = ports["outputs"]  # type: ignore[assignment]
    graph = helper.make_graph(list(body), "body", [*states, *scanned], [*nexts, *outputs])
    return helper.make_node(
        "Scan",
        ports["node_inputs"],  # type: ignore[arg-type]
        ports["node_outputs"],  # type: ignore[arg-type]
        body=graph,
        num_scan_inputs=len(scanned),
        scan_input_axes=[1] * len(scanned),
        scan_output_axes=[1] * len(outputs),
    )


def history_in(base: int) -> Family:
    """A state' = base * state + x that is also the output: the history, spelled in that base."""
    body = (
        helper.make_node("Mul", ["s", "base"], ["shifted"]),
        helper.make_node("Add", ["shifted", "digit"], ["s_next"]),
        helper.make_node("Identity", ["s_next"], ["spelled"]),
    )
    scan = _scan(
        body,
        [_value("s", np.int64, ["B"])],
        inputs=[_value("digit", np.int64, ["B"])],
        nexts=[_value("s_next", np.int64, ["B"])],
        outputs=[_value("spelled", np.int64, ["B"])],
        node_inputs=["history", "x"],
        node_outputs=["history_next", "y"],
    )
    return Family(
        "history",
        (PortSpec("x", np.int64),),
        (PortSpec("y", np.int64),),
        (StateSpec("history", "history_next", np.int64),),
        (scan,),
        (_weight("base", np.array(base)),),
    )


def _history() -> Family:
    """Inputs 1, 2, 3 answer 1, 12, 123."""
    return history_in(10)


def _two_inputs() -> Family:
    """A running sum that a flag restarts: two inputs of different dtype and rank, two outputs, a boolean state."""
    body = (
        helper.make_node("Unsqueeze", ["flag_t", "minus_one"], ["flag_column"]),
        helper.make_node("Add", ["s", "value_t"], ["added"]),
        helper.make_node("Where", ["flag_column", "value_t", "added"], ["s_next"]),
        helper.make_node("Identity", ["s_next"], ["total_t"]),
        helper.make_node("Or", ["seen", "flag_t"], ["seen_next"]),
        helper.make_node("Identity", ["seen_next"], ["was_t"]),
    )
    scan = _scan(
        body,
        [_value("s", np.float32, ["B", 2]), _value("seen", np.bool_, ["B"])],
        inputs=[_value("value_t", np.float32, ["B", 2]), _value("flag_t", np.bool_, ["B"])],
        nexts=[_value("s_next", np.float32, ["B", 2]), _value("seen_next", np.bool_, ["B"])],
        outputs=[_value("total_t", np.float32, ["B", 2]), _value("was_t", np.bool_, ["B"])],
        node_inputs=["sum", "ever", "value", "restart"],
        node_outputs=["sum_next", "ever_next", "total", "was_restarted"],
    )
    return Family(
        "two-inputs",
        (PortSpec("value", np.float32, (2,)), PortSpec("restart", np.bool_)),
        (PortSpec("total", np.float32, (2,)), PortSpec("was_restarted", np.bool_)),
        (
            StateSpec("sum", "sum_next", np.float32, (2,), 0.25),
            StateSpec("ever", "ever_next", np.bool_),
        ),
        (scan,),
        (_weight("minus_one", np.array([-1])),),
    )


def _immutable() -> Family:
    """A fading sum s' = s / 2 + gain x, where `gain` is a state that is never written and starts from data."""
    body = (
        helper.make_node("Mul", ["s", "half"], ["faded"]),
        helper.make_node("Mul", ["x_t", "gain"], ["scaled"]),
        helper.make_node("Add", ["faded", "scaled"], ["s_next"]),
        helper.make_node("Identity", ["s_next"], ["y_t"]),
    )
    scan = _scan(
        body,
        [_value("s", np.float32, ["B", 2])],
        inputs=[_value("x_t", np.float32, ["B", 2])],
        nexts=[_value("s_next", np.float32, ["B", 2])],
        outputs=[_value("y_t", np.float32, ["B", 2])],
        node_inputs=["fading", "x"],
        node_outputs=["fading_next", "y"],
    )
    return Family(
        "immutable",
        (PortSpec("x", np.float32, (2,)),),
        (PortSpec("y", np.float32, (2,)),),
        (
            StateSpec("gain", "", np.float32, (2,), np.array([3.0, -0.5], np.float32)),
            StateSpec("fading", "fading_next", np.float32, (2,), np.array([1.0, 2.0], np.float32)),
        ),
        (scan,),
        (_weight("half", np.array(0.5, np.float32)),),
    )


def _half_precision() -> Family:
    """A fading sum in half precision over an odd number of features: rows whose bytes are no multiple of four."""
    body = (
        helper.make_node("Mul", ["s", "half"], ["faded"]),
        helper.make_node("Add", ["faded", "x_t"], ["s_next"]),
        helper.make_node("Identity", ["s_next"], ["y_t"]),
    )
    scan = _scan(
        body,
        [_value("s", np.float16, ["B", 3])],
        inputs=[_value("x_t", np.float16, ["B", 3])],
        nexts=[_value("s_next", np.float16, ["B", 3])],
        outputs=[_value("y_t", np.float16, ["B", 3])],
        node_inputs=["fading", "x"],
        node_outputs=["fading_next", "y"],
    )
    return Family(
        "half-precision",
        (PortSpec("x", np.float16, (3,)),),
        (PortSpec("y", np.float16, (3,)),),
        (StateSpec("fading", "fading_next", np.float16, (3,)),),
        (scan,),
        (_weight("half", np.array(0.5, np.float16)),),
    )


# Ends and beginnings


def _parsed(text: str) -> tuple[onnx.NodeProto, ...]:
    """Nodes in ONNX's textual syntax."""
    return tuple(onnx.parser.parse_graph("agraph () => () {" + text + "}").node)


def _look_ahead() -> Family:
    """y[t] = x[t] + 100 x[t+1] + 10000 x[t+2], with nothing behind the end: each answer spells what came after it.

    Two steps are held back; a row's place in its buffer is computed from its own count.
    """
    body = _parsed(
        """
        none = Constant <value_ints = [0]> ()
        one = Constant <value_ints = [1]> ()
        two = Constant <value_ints = [2]> ()
        three = Constant <value_ints = [3]> ()
        big = Constant <value_ints = [1000000]> ()
        zero = Constant <value_int = 0> ()
        step = Constant <value_int = 1> ()
        hundred = Constant <value_int = 100> ()
        far = Constant <value_int = 10000> ()
        shape = Shape (x)
        num_steps = Gather <axis = 0> (shape, step)
        ahead = Constant <value_int = 2> ()
        size = Add (num_steps, ahead)
        places = Range (zero, size, step)
        after = Mul (held, zero)
        both = Concat <axis = 1> (held, x, after, after)
        count_column = Unsqueeze (count, one)
        is_held = Less (places, count_column)
        shifted = Sub (places, count_column)
        from_x = Add (shifted, ahead)
        index = Where (is_held, places, from_x)
        aligned_raw = GatherElements <axis = 1> (both, index)
        total = Add (count, length)
        total_column = Unsqueeze (total, one)
        is_valid = Less (places, total_column)
        aligned = Where (is_valid, aligned_raw, zero)
        padded = Concat <axis = 1> (aligned, after)
        next_one = Slice (padded, one, big, one)
        size_column = Unsqueeze (size, none)
        first = Slice (next_one, none, size_column, one)
        next_two = Slice (padded, two, big, one)
        scaled_one = Mul (first, hundred)
        scaled_two = Mul (next_two, far)
        sum_one = Add (aligned, scaled_one)
        sum_two = Add (sum_one, scaled_two)
        free = Sub (total, two)
        not_less = Max (free, zero)
        emitted = Where (flush, total, not_less)
        emitted_column = Unsqueeze (emitted, one)
        is_out = Less (places, emitted_column)
        y = Where (is_out, sum_two, zero)
        left = Sub (total, emitted)
        count_next = Where (flush, zero, left)
        pair = Range (zero, ahead, step)
        kept_raw = Add (emitted_column, pair)
        last = Sub (size, step)
        kept = Min (kept_raw, last)
        kept_values = GatherElements <axis = 1> (aligned, kept)
        left_column = Unsqueeze (count_next, one)
        is_kept = Less (pair, left_column)
        held_next = Where (is_kept, kept_values, zero)
        """
    )
    return Family(
        "look-ahead",
        (PortSpec("x", np.int64, (), (0, 9)),),
        (PortSpec("y", np.int64),),
        (
            StateSpec("held", "held_next", np.int64, (2,), values=(0, 9)),
            StateSpec("count", "count_next", np.int64, values=(0, 2)),
        ),
        body,
        ends=Ends("length", "flush", "emitted", 1, 2),
    )


def _primed() -> Family:
    """A sum of gain x, where `gain`, which is never written, is the source's sum, and the sum begins as its length."""
    body = _parsed(
        """
        axis = Constant <value_int = 1> ()
        one = Constant <value_ints = [1]> ()
        minus_one = Constant <value_int = -1> ()
        gain_column = Unsqueeze (gain, one)
        total_column = Unsqueeze (total, one)
        scaled = Mul (x, gain_column)
        summed = CumSum (scaled, axis)
        y = Add (summed, total_column)
        total_next = Gather <axis = 1> (y, minus_one)
        """
    )
    return Family(
        "primed",
        (PortSpec("x", np.int64, (), (0, 9)),),
        (PortSpec("y", np.int64),),
        (
            StateSpec("gain", "", np.int64, values=(0, 1000)),
            StateSpec("total", "total_next", np.int64, values=(0, 1 << 40)),
        ),
        body,
        prime=PrimeSpec((PortSpec("source", np.int64, (), (1, 9)),), "source_length", 5, _prime_graph),
    )


def _prime_graph() -> onnx.ModelProto:
    nodes = _parsed(
        """
        zero = Constant <value_int = 0> ()
        step = Constant <value_int = 1> ()
        one = Constant <value_ints = [1]> ()
        shape = Shape (source)
        size = Gather <axis = 0> (shape, step)
        places = Range (zero, size, step)
        length_column = Unsqueeze (source_length, one)
        is_valid = Less (places, length_column)
        valid = Where (is_valid, source, zero)
        gain = ReduceSum <keepdims = 0> (valid, one)
        total = Identity (source_length)
        """
    )
    inputs = [_value("source", np.int64, ["B", "S"]), _value("source_length", np.int64, ["B"])]
    outputs = [_value(name, np.int64, ["B"]) for name in ("gain", "total")]
    graph = helper.make_graph(list(nodes), "prime", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model


# Graphs that do not take any number of rows and steps


def _history_one_row() -> Family:
    """`history` whose graph takes one step of one row, and fails for more of either."""
    body = _parsed(
        """
        ten = Constant <value_int = 10> ()
        one = Constant <value_ints = [1]> ()
        pair = Constant <value_ints = [1, 1]> ()
        digit = Reshape (x, one)
        shifted = Mul (history, ten)
        history_next = Add (shifted, digit)
        y = Reshape (history_next, pair)
        """
    )
    return replace(_history(), name="history-one-row", body=body, weights=(), run_rows=1, max_run_steps=1)


def _history_by_step() -> Family:
    """`history` whose graph has no time axis inside: it takes it away and puts it back, which fails but for T = 1."""
    body = _parsed(
        """
        ten = Constant <value_int = 10> ()
        axis = Constant <value_ints = [1]> ()
        digit = Squeeze (x, axis)
        shifted = Mul (history, ten)
        history_next = Add (shifted, digit)
        y = Unsqueeze (history_next, axis)
        """
    )
    return replace(_history(), name="history-by-step", body=body, weights=(), max_run_steps=1)


def _history_two_steps() -> Family:
    """`history` whose graph fails for more than two steps at once."""
    history = _history()
    check = _parsed(
        """
        pair = Constant <value_ints = [1, 2]> ()
        checked = Expand (x, pair)
        none = Sub (checked, checked)
        axis = Constant <value_ints = [1]> ()
        zero = ReduceSum <keepdims = 1> (none, axis)
        given = Add (x, zero)
        """
    )
    [scan] = history.body
    checked = onnx.NodeProto()
    checked.CopyFrom(scan)
    checked.input[1] = "given"
    return replace(history, name="history-two-steps", body=(*check, checked), max_run_steps=2)


def _history_three_rows() -> Family:
    """`history` of any steps whose graph takes three rows, no more and no fewer."""
    history = _history()
    fix = _parsed("shape = Constant <value_ints = [3, -1]> () given = Reshape (x, shape)")
    [scan] = history.body
    fixed = onnx.NodeProto()
    fixed.CopyFrom(scan)
    fixed.input[1] = "given"
    return replace(history, name="history-three-rows", body=(*fix, fixed), run_rows=3)


def _stateless() -> Family:
    """Three times x, and one: nothing is remembered, and a session is a position."""
    body = _parsed(
        """
        three = Constant <value_float = 3.0> ()
        one = Constant <value_float = 1.0> ()
        scaled = Mul (x, three)
        y = Add (scaled, one)
        """
    )
    return Family("stateless", (PortSpec("x", np.float32, (2,)),), (PortSpec("y", np.float32, (2,)),), (), body)


# Graphs that take whole sequences


def _pooled() -> Family:
    """The mean over all steps, one step of output."""
    body = _parsed("y = ReduceMean <axes = [1], keepdims = 1> (x)")
    port = PortSpec("x", np.float32, (3,))
    return Family("pooled", (port,), (replace(port, name="y"),), (), body, prevented_by="node 'y' pools over time")


def _strided() -> Family:
    """Every other step, the number of a sequence's steps, and every step doubled: three outputs of three lengths."""
    body = _parsed(
        """
        none = Constant <value_ints = [0]> ()
        one = Constant <value_ints = [1]> ()
        two = Constant <value_ints = [2]> ()
        big = Constant <value_ints = [1000000]> ()
        other = Slice (x, none, big, one, two)
        same = Sub (x, x)
        ones = Pow (same, same)
        count = ReduceSum <keepdims = 1> (ones, one)
        double = Add (x, x)
        """
    )
    ports = tuple(PortSpec(name, np.int64) for name in ("x", "other", "count", "double"))
    return Family("strided", ports[:1], ports[1:], (), body, prevented_by="node 'other' takes every other step")


def _backwards() -> Family:
    """A running sum from the end and one from the beginning: a layer that looks both ways."""
    body = _parsed(
        """
        axis = Constant <value_int = 1> ()
        forward = CumSum (x, axis)
        backward = CumSum <reverse = 1> (x, axis)
        y = Sub (forward, backward)
        """
    )
    return Family(
        "backwards", (PortSpec("x", np.int64),), (PortSpec("y", np.int64),), (), body, prevented_by="it looks both ways"
    )


def _bidirectional() -> Family:
    """A bidirectional GRU with a linear head."""
    generator = np.random.default_rng(11)
    weights = [
        _weight(name, generator.normal(0, 0.4, shape).astype(np.float32))
        for name, shape in {"W": (2, 18, 4), "R": (2, 18, 6), "bias": (2, 36), "head": (12, 3)}.items()
    ]
    weights.append(_weight("flat", np.array([0, 0, -1])))
    nodes = (
        helper.make_node("Transpose", ["x"], ["by_time"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["by_time", "W", "R", "bias"], ["both"], hidden_size=6, direction="bidirectional"),
        helper.make_node("Transpose", ["both"], ["by_batch"], perm=[2, 0, 1, 3]),
        helper.make_node("Reshape", ["by_batch", "flat"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "head"], ["y"]),
    )
    return Family(
        "bidirectional-gru",
        (PortSpec("x", np.float32, (4,)),),
        (PortSpec("y", np.float32, (3,)),),
        (),
        nodes,
        tuple(weights),
        prevented_by="GRU node looks both ways",
    )


_BUILDERS: dict[str, Callable[[], Family]] = {
    "lstm": lambda: _recurrent("lstm", "LSTM", 1, 4, 12, 3, seed=1),
    "lstm-stacked": lambda: _recurrent("lstm-stacked", "LSTM", 2, 4, 9, 3, seed=2),
    "gru": lambda: _recurrent("gru", "GRU", 1, 4, 12, 3, seed=3),
    "gru-stacked": lambda: _recurrent("gru-stacked", "GRU", 2, 4, 9, 3, seed=4),
    "rnn": lambda: _recurrent("rnn", "RNN", 1, 4, 12, 3, seed=5),
    "rnn-stacked": lambda: _recurrent("rnn-stacked", "RNN", 2, 4, 9, 3, seed=6),
    "token-gru": _token_gru,
    "causal-convolution": _causal_convolution,
    "history": _history,
    "two-inputs": _two_inputs,
    "immutable": _immutable,
    "half-precision": _half_precision,
    "look-ahead": _look_ahead,
    "primed": _primed,
    "history-by-step": _history_by_step,
    "history-two-steps": _history_two_steps,
    "history-one-row": _history_one_row,
    "history-three-rows": _history_three_rows,
    "stateless": _stateless,
    "stateless-one-row": lambda: replace(_stateless(), name="stateless-one-row", run_rows=1, max_run_steps=1),
    # All that a graph can ask for at once.
    "look-ahead-in-parts": lambda: replace(_look_ahead(), name="look-ahead-in-parts", run_rows=3, max_run_steps=2),
    "primed-in-parts": lambda: replace(_primed(), name="primed-in-parts", run_rows=2, max_run_steps=3),
}

FAMILIES = tuple(_BUILDERS)

# Models that do not stream.
_WHOLE_BUILDERS: dict[str, Callable[[], Family]] = {
    "pooled": _pooled,
    "strided": _strided,
    "backwards": _backwards,
    "bidirectional-gru": _bidirectional,
    "backwards-three-rows": lambda: replace(_backwards(), name="backwards-three-rows", run_rows=3),
    "strided-one-row": lambda: replace(_strided(), name="strided-one-row", run_rows=1),
}

WHOLE_FAMILIES = tuple(_WHOLE_BUILDERS)
_built: dict[str, Family] = {}


def family(name: str) -> Family:
    """A family by name, built once."""
    if name not in _built:
        _built[name] = (_BUILDERS | _WHOLE_BUILDERS)[name]()
    return _built[name]


# Models from files

_NUMPY = {number: dtype for dtype, number in _WIRE_DTYPES.items()}


@dataclass(frozen=True)
class FileFamily(Family):
    """A model of a repository, with its own graph and contract."""

    path: Path = Path()
    task: int = contract_pb2.TASK_OTHER

    def graph(self) -> onnx.ModelProto:
        """The step graph as it is in the file."""
        return onnx.load(self.path)

    def model(self, contract: contract_pb2.ModelContract | None = None) -> onnx.ModelProto:
        """The same: it carries its contract."""
        assert contract is None, "a shipped model has its own contract"
        return self.graph()


def shipped_families(repository: Path) -> list[FileFamily]:
    """The latest version of every model of a repository, by name."""
    return [family_from_file(sorted(folder.glob("*/model.onnx"))[-1]) for folder in sorted(repository.glob("*"))]


def family_from_file(path: Path) -> FileFamily:
    """The family of a model's step graph, with what lies beside it."""
    text = next(entry.value for entry in onnx.load(path).metadata_props if entry.key == METADATA_KEY)
    contract = json_format.Parse(text, contract_pb2.ModelContract())
    ports, streaming = contract.ports, contract.streaming
    ends = Ends(ports.length, ports.flush, ports.emitted, streaming.block_steps, streaming.look_ahead_steps)
    prime = PrimeSpec(
        tuple(_port_of(spec) for spec in contract.prime_inputs),
        ports.prime_length,
        contract.max_prime_steps,
        lambda: onnx.load(path.with_name(contract.graphs.prime)),
    )
    return FileFamily(
        path.parts[-3],
        tuple(_port_of(spec) for spec in contract.inputs),
        tuple(_port_of(spec) for spec in contract.outputs),
        tuple(_state_of(spec) for spec in contract.states),
        (),
        tolerance=0.0 if contract.numerics.bitwise else contract.numerics.tolerance,
        ends=ends if ports.emitted else None,
        prime=prime if contract.graphs.prime else None,
        run_rows=streaming.run_rows,
        max_run_steps=streaming.max_run_steps,
        prevented_by="" if streaming.streamable else streaming.reason,
        path=path,
        task=contract.task,
    )


def _port_of(spec: contract_pb2.TensorSpec) -> PortSpec:
    values = (spec.range.minimum, spec.range.maximum) if spec.HasField("range") else None
    return PortSpec(spec.name, _NUMPY[spec.dtype].type, tuple(spec.shape), values)


def _state_of(spec: contract_pb2.StateSpec) -> StateSpec:
    dtype, shape = _NUMPY[spec.dtype], tuple(spec.shape)
    initial: float | np.ndarray = spec.initial.constant
    if spec.initial.WhichOneof("kind") == "data":
        initial = np.frombuffer(spec.initial.data, dtype).reshape(shape)
    values = (spec.range.minimum, spec.range.maximum) if spec.HasField("range") else None
    return StateSpec(spec.name, spec.next_name, dtype.type, shape, initial, values)
