"""Exposed tensors: a graph run so that what its nodes make can be seen.

Owns the copy with further outputs and which of them hang on data. Must not know what is looked for.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import NodeProto

from eddy.inspection.prune import prune
from eddy.inspection.walk import reads

# A graph of more nodes is looked at in part: each exposed tensor is kept.
MAX_NODES = 3000
# Operators whose outputs are no tensors.
_NO_TENSORS = ("Sequence", "SplitToSequence", "Optional")
# Operators that look at the shape of what they are given alone.
_SHAPE_ONLY = {"Shape", "Size"}


def data_nodes(graph: onnx.GraphProto, names: Sequence[str]) -> list[NodeProto]:
    """The nodes of the main graph whose outputs hang on the values of `names`, not on their shapes alone; in order."""
    known = set(names)
    found: list[NodeProto] = []
    for node in graph.node:
        if node.op_type not in _SHAPE_ONLY and any(name in known for name in reads(node)):
            known.update(name for name in node.output if name)
            found.append(node)
    return found


def visible(nodes: Sequence[NodeProto]) -> list[str]:
    """The tensors that the nodes make, as far as they can be looked at."""
    plain = [node for node in nodes[:MAX_NODES] if not node.op_type.startswith(_NO_TENSORS)]
    return [name for node in plain for name in node.output if name]


def expose(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of which `names` are outputs, too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    there = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    return copy


def only(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy that gives `names` and nothing else."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    # A runtime runs what no output hangs on as well.
    prune(copy.graph)
    return copy
