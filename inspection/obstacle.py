"""Obstacles: the node that keeps a model from being streamed.

Owns the search: a graph is run on a whole sequence and on its parts with every tensor in sight, and the first node is
named whose result on the parts is not that on the whole. Must not know how the verdict came about.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, helper

from eddy.inspection.canonical import Canonical
from eddy.inspection.exposed import data_nodes, expose, only, visible
from eddy.inspection.laws import Stepper
from eddy.inspection.program import Loader
from eddy.inspection.trial import RunFailedError, Values, difference, load_graph, run, scale
from eddy.inspection.walk import all_graphs, attribute, bodies, label

# Steps of the two parts; the longer ones for graphs that want some length.
_PARTS = ((4, 7), (37, 53))
_ROWS = 2
_SAME = 1e-4
_BOTH_WAYS = {"bidirectional": "looks both ways", "reverse": "reads backwards"}
_PHRASES = {
    "pools over time": ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2",
                        "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare", "GlobalAveragePool", "GlobalMaxPool",
                        "GlobalLpPool", "ArgMax", "ArgMin", "TopK"),
    "normalises over time": ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization",
                             "Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "MeanVarianceNormalization",
                             "RMSNormalization", "SkipLayerNormalization"),
    "mixes steps with each other": ("MatMul", "Gemm", "Einsum", "Attention", "MultiHeadAttention",
                                    "GroupQueryAttention", "FusedMatMul"),
    "looks at neighbouring steps": ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "AveragePool", "MaxPool",
                                    "LpPool", "Pad", "STFT", "Resize", "Upsample"),
    "sums up over time and keeps nothing": ("CumSum",),
    "turns time round": ("ReverseSequence",),
    "takes steps by their number": ("Gather", "GatherND", "GatherElements", "Slice", "Split", "Compress"),
}  # fmt: skip
_RANDOM = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Runs:
    """Every tensor in sight, by name, of a whole sequence and of its two parts."""

    whole: Values
    parts: tuple[Values, Values]


def find_obstacle(form: Canonical, load: Loader, limits: Mapping[str, tuple[int, int]]) -> str | None:
    """A sentence that names the first node which gives something else when the sequence is cut; None if none does."""
    graph = form.model.graph
    # What hangs on states alone differs at the second part, as it should.
    nodes = data_nodes(graph, [tensor.name for tensor in form.inputs])
    runs = _run(form, load, limits, visible(nodes))
    if isinstance(runs, str) or runs is None:
        return runs
    made = {name: node for node in graph.node for name in node.output}
    for node in nodes:
        if any(not _holds(runs, name) for name in node.output if name in runs.whole):
            return _sentence(node, made, runs)
    return None


def find_end_of_time(form: Canonical, load: Loader, limits: Mapping[str, tuple[int, int]], output: str) -> str | None:
    """A sentence that names the node behind which `output` has no time axis any more; None if none is found."""
    graph = form.model.graph
    nodes = data_nodes(graph, [tensor.name for tensor in form.inputs])
    runs = _run(form, load, limits, visible(nodes))
    if isinstance(runs, str) or runs is None:
        return runs
    makers = {name: node for node in nodes for name in node.output}
    waiting, seen = [output], set()
    inputs = {tensor.name for tensor in form.inputs}
    while waiting:
        name = waiting.pop(0)
        node = makers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if any(given in inputs or (given in runs.whole and _has_time(runs, given)) for given in node.input):
            return f"{label(node)} {_end_phrase(node)}"
        waiting.extend(node.input)
    return None


def _end_phrase(node: NodeProto) -> str:
    if node.op_type in {"LSTM", "GRU", "RNN", "Scan", "Loop"}:
        return "gives its last state alone"
    if node.op_type in {"Gather", "GatherND", "GatherElements", "Slice", "Split", "Squeeze"}:
        return "takes one step of the sequence"
    return _phrase(node)


def find_random(graph: onnx.GraphProto) -> str | None:
    """The first node that draws random numbers; None where there is none."""
    nodes = (node for inner in all_graphs(graph) for node in inner.node)
    return next((label(node) for node in nodes if node.op_type in _RANDOM), None)


def first_that_fails(model: onnx.ModelProto, load: Loader, feed: Mapping[str, np.ndarray]) -> NodeProto | None:
    """The first node that does not run on these values, found by halving; None where all of them do."""
    nodes = data_nodes(model.graph, list(feed))
    names = [visible([node]) for node in nodes]

    def runs(count: int) -> bool:
        wanted = [name for some in names[:count] for name in some]
        try:
            run(load_graph(load, only(model, wanted)), wanted, feed)
        except RunFailedError:
            return False
        return True

    if not nodes or runs(len(nodes)):
        return None
    good, bad = 0, len(nodes)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if runs(middle) else (good, middle)
    return nodes[bad - 1]


def _run(
    form: Canonical, load: Loader, limits: Mapping[str, tuple[int, int]], names: Sequence[str]
) -> _Runs | str | None:
    """All tensors; a sentence where a node runs on no part; None where nothing can be seen."""
    try:
        program = load_graph(load, expose(form.model, names))
    except RunFailedError:
        return None
    rows = form.run_rows or _ROWS
    stepper = Stepper(form, program, limits)
    wanted = list(dict.fromkeys([*names, *(state.next_name for state in form.states)]))
    for parts in _PARTS:
        inputs = stepper.inputs(np.random.default_rng(5), rows, sum(parts))
        states = stepper.start(rows)
        first = {name: np.ascontiguousarray(value[:, : parts[0]]) for name, value in inputs.items()}
        second = {name: np.ascontiguousarray(value[:, parts[0] :]) for name, value in inputs.items()}
        try:
            before = run(program, wanted, {**first, **states})
            after = run(program, wanted, {**second, **{s.name: before[s.next_name] for s in form.states}})
            return _Runs(run(program, wanted, {**inputs, **states}), (before, after))
        except RunFailedError:
            continue
    feed = {**stepper.inputs(np.random.default_rng(5), rows, 1), **stepper.start(rows)}
    node = first_that_fails(form.model, load, feed)
    return None if node is None else f"{label(node)} does not run on a part of the sequence: it {_phrase(node)}"


def _time_axes(runs: _Runs, name: str) -> list[int] | None:
    """The axes whose size follows T; None where the rank does."""
    whole, part = runs.whole[name], runs.parts[0][name]
    if whole.ndim != part.ndim:
        return None
    return [axis for axis in range(whole.ndim) if whole.shape[axis] != part.shape[axis]]


def _has_time(runs: _Runs, name: str) -> bool:
    axes = _time_axes(runs, name)
    return axes is None or bool(axes)


def _holds(runs: _Runs, name: str) -> bool:
    """The whole's value is that of the parts, put together; of the last part, where there is no time axis."""
    axes = _time_axes(runs, name)
    if axes is None:
        return False
    whole, (first, second) = runs.whole[name], (part[name] for part in runs.parts)
    if not axes:
        return whole.shape == second.shape and _same(whole, second)
    if len(axes) > 1 or first.ndim != second.ndim:
        return False
    [axis] = axes
    begin, end = first.shape[axis], whole.shape[axis] - second.shape[axis]
    if 0 < end < begin:
        # Kept values stand in front of the steps: the parts overlap.
        places = range(whole.shape[axis])
        return _same(whole.take(places[:begin], axis), first) and _same(whole.take(places[end:], axis), second)
    for rows in (1, _ROWS):
        # An axis of both batch and time, the batch slower, is cut within each row.
        sizes = [value.shape[axis] for value in (whole, first, second)]
        if any(size % rows for size in sizes) or sizes[0] != sizes[1] + sizes[2]:
            continue
        split = [
            value.reshape(*value.shape[:axis], rows, -1, *value.shape[axis + 1 :]) for value in (whole, first, second)
        ]
        try:
            joined = np.concatenate(split[1:], axis=axis + 1)
        except ValueError:
            return False
        if split[0].shape == joined.shape and _same(split[0], joined):
            return True
    return False


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return difference(one, other) <= _SAME * scale(one)


def _sentence(node: NodeProto, made: Mapping[str, NodeProto], runs: _Runs) -> str:
    phrase = _phrase(node)
    if node.op_type == "Slice" and all(name in runs.whole and _has_time(runs, name) for name in node.output):
        whole, source = runs.whole[node.output[0]], runs.whole.get(node.input[0])
        if source is not None and any(_same(whole, np.flip(source, axis)) for axis in range(source.ndim)):
            phrase = "turns time round"
    if phrase:
        return f"{label(node)} {phrase}"
    strange = [name for name in node.input if name in made and name not in runs.whole]
    if strange:
        return f"{label(node)} takes values that depend on the number of the step ({label(made[strange[0]])})"
    return f"{label(node)} gives other values when the sequence is cut"


def _phrase(node: NodeProto) -> str:
    """What such a node does with time; "" where its operator does not tell."""
    direction = attribute(node, "direction")
    if node.op_type in {"LSTM", "GRU", "RNN"}:
        said = helper.get_attribute_value(direction).decode() if direction is not None else "forward"
        return _BOTH_WAYS.get(said, "begins anew with every call: its state is not carried on")
    if node.op_type == "Scan":
        ways = attribute(node, "scan_input_directions")
        if ways is not None and 1 in helper.get_attribute_value(ways):
            return "reads backwards"
        return "begins anew with every call: its state is not carried on"
    if node.op_type == "Loop":
        return "begins anew with every call: its state is not carried on"
    for phrase, operators in _PHRASES.items():
        if node.op_type in operators:
            return phrase
    for _, body in bodies(node):
        for inner in body.node:
            if inside := _phrase(inner):
                return f"holds {label(inner)}, which {inside}"
    return ""
