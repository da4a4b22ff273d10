"""Recurrent nodes: which there are, and which of them look ahead.

Owns what their attributes mean. Must not change a graph.
"""

from __future__ import annotations

from collections.abc import Collection

from onnx import GraphProto, NodeProto

from eddy.inspection.walk import all_nodes, attribute, label

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


def is_recurrent(node: NodeProto) -> bool:
    """Whether a node is an LSTM, GRU or RNN, quantised ones included."""
    if node.op_type == "DynamicQuantizeLSTM":
        return node.domain == "com.microsoft"
    return node.op_type in RECURRENT and node.domain in {"", "ai.onnx"}


def why_not(node: NodeProto) -> str | None:
    """Why a recurrent node cannot be streamed, by its attributes alone."""
    if said := _batchwise(node):
        return said
    direction = attribute(node, "direction")
    towards = direction.s.decode(errors="replace") if direction is not None else "forward"
    if towards == "bidirectional":
        return f"{label(node)} is bidirectional: each of its outputs needs the steps that come later"
    if towards != "forward":
        return f"{label(node)} runs in {towards}: each of its outputs needs the steps that come later"
    return None


def unrunnable(graph: GraphProto, inputs: Collection[str]) -> str | None:
    """A sentence on the first recurrent node that cannot be served at all; None for none.

    Args:
        inputs: the graph's, without those that have a value.
    """
    for node in filter(is_recurrent, all_nodes(graph)):
        if said := _batchwise(node):
            return said
        if given := " and ".join(repr(name) for name in node.input[1:3] if name in inputs):
            return (
                f"{label(node)} takes its weights {given} from its caller: they must be constants of the graph, or in "
                "`constants` in model.toml"
            )
    return None


def _batchwise(node: NodeProto) -> str | None:
    layout = attribute(node, "layout")
    if layout is None or not layout.i:
        return None
    return f"{label(node)} is batch-first (layout {layout.i}), which ONNX Runtime cannot run"
