"""Recurrent nodes: which there are, and which of them look ahead.

Owns what their attributes mean. Must not change a graph.
"""

from __future__ import annotations

from onnx import NodeProto

from eddy.inspection.walk import attribute, label

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


def is_recurrent(node: NodeProto) -> bool:
    """Whether a node is an LSTM, GRU or RNN, quantised ones included."""
    if node.op_type == "DynamicQuantizeLSTM":
        return node.domain == "com.microsoft"
    return node.op_type in RECURRENT and node.domain in {"", "ai.onnx"}


def why_not(node: NodeProto) -> str | None:
    """Why a recurrent node cannot be streamed, by its attributes alone."""
    layout, direction = attribute(node, "layout"), attribute(node, "direction")
    if layout is not None and layout.i:
        return f"{label(node)} is batch-first (layout {layout.i}), which ONNX Runtime cannot run"
    towards = direction.s.decode(errors="replace") if direction is not None else "forward"
    if towards == "bidirectional":
        return f"{label(node)} is bidirectional: each of its outputs needs the steps that come later"
    if towards != "forward":
        return f"{label(node)} runs in {towards}: each of its outputs needs the steps that come later"
    return None
