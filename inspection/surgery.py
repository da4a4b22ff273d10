"""Surgery: a copy of a graph whose tensors can be renamed and whose borders can be moved.

Owns names, constants and node-building for one opset. Must not know what the graph is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from eddy.inspection.walk import all_names, bodies, fresh_name

# Names that begin so belong to the server.
RESERVED = "eddy_"


class Draft:
    """A graph that is being rewritten.

    Args:
        model: it is changed. Its opset must be 11 or later.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        # The caller's; changed by every method.
        self.model = model
        self._graph = model.graph
        self._names = all_names(model.graph)
        self._before: list[onnx.NodeProto] = []
        self._after: list[onnx.NodeProto] = []
        self._has_axes_input = opset_of(model) >= 13

    def name(self, wanted: str) -> str:
        """A name that nothing has."""
        return fresh_name(wanted, self._names)

    def rename(self, names: Mapping[str, str]) -> None:
        """Renames tensors everywhere, bodies included."""
        _rename(self._graph, names)

    def constant(self, wanted: str, values: np.ndarray) -> str:
        """An initializer; its name."""
        name = self.name(wanted)
        self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def before(self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object) -> None:
        """A node in front of all others."""
        self._before.append(self._node(op_type, inputs, outputs, attributes))

    def after(self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object) -> None:
        """A node behind all others."""
        self._after.append(self._node(op_type, inputs, outputs, attributes))

    def _node(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Mapping[str, object]
    ) -> onnx.NodeProto:
        given = dict(attributes)
        if op_type in {"Squeeze", "Unsqueeze"} and self._has_axes_input:
            inputs = [*inputs, self.constant("border_axes", np.array(given.pop("axes"), np.int64))]
        return helper.make_node(op_type, inputs, outputs, self.name(f"border_{op_type}"), None, None, None, **given)

    def finish(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The model with these ports."""
        nodes = [*self._before, *self._graph.node, *self._after]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        for ports, values in ((self._graph.input, inputs), (self._graph.output, outputs)):
            del ports[:]
            ports.extend(values)
        del self._graph.value_info[:]
        return self.model


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that the model is written in."""
    return max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for port in (*graph.input, *graph.output, *graph.value_info):
        port.name = names.get(port.name, port.name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        for used in (node.input, node.output):
            for place, name in enumerate(used):
                if name in names:
                    used[place] = names[name]
        for _, body in bodies(node):
            own = {port.name for port in body.input} | {tensor.name for tensor in body.initializer}
            own |= {name for inner in body.node for name in inner.output}
            _rename(body, {old: new for old, new in names.items() if old not in own})
