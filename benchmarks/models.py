"""Model files to measure: LSTMs with random weights, written node by node with `onnx`, so that no torch is needed.

Owns the graph and the model repository folder. The graph is that of an exported model: time first inside, batch first
outside, one LSTM node a layer, states [B, L, H].

Dimension key: B batch, T steps, F features, H hidden, L layers, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import json_format
from onnx import TensorProto, helper, numpy_helper

from benchmarks.shape import INPUT, OUTPUT, SHAPES, Shape
from eddy.service.contract import METADATA_KEY, SCHEMA_VERSION
from eddy.v1 import contract_pb2

_STATES = ("h", "c")
_OPSET = 17
_IR_VERSION = 8


def write_repository(root: Path, shapes: Iterable[Shape] = tuple(SHAPES.values())) -> Path:
    """Writes models as `root/<name>/1/model.onnx`; returns `root`."""
    for shape in shapes:
        path = model_path(root, shape.name)
        path.parent.mkdir(parents=True)
        onnx.save(build_model(shape), path)
    return root


def model_path(root: Path, name: str) -> Path:
    """Where a model's step graph lies in a repository."""
    return root / name / "1" / "model.onnx"


def build_model(shape: Shape, seed: int = 0) -> onnx.ModelProto:
    """The step graph with its contract; weights uniform in +-1/sqrt(H)."""
    graph = helper.make_graph(*_Builder(shape, seed).build())
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="eddy-benchmarks"
    )
    text = json_format.MessageToJson(_contract(shape), preserving_proto_field_name=True)
    model.metadata_props.add(key=METADATA_KEY, value=text)
    onnx.checker.check_model(model, full_check=True)
    return model


class _Builder:
    """Collects nodes and constants; both grow only through its methods."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self._shape = shape
        self._generator = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def build(
        self,
    ) -> tuple[list[onnx.NodeProto], str, list[onnx.ValueInfoProto], list[onnx.ValueInfoProto], list[onnx.TensorProto]]:
        """Arguments of `helper.make_graph`."""
        shape = self._shape
        self._ints("layer_shape", [1, -1, shape.hidden])
        self._ints("row_shape", [-1, 1, shape.hidden])
        self._ints("direction_axis", [1])
        before = {state: self._split(state) for state in _STATES}
        steps = self._node("Transpose", [INPUT], "time_first", perm=[1, 0, 2])
        after: dict[str, list[str]] = {state: [] for state in _STATES}
        for layer in range(shape.layers):
            steps, ends = self._layer(layer, steps, [before[state][layer] for state in _STATES])
            for state, end in zip(_STATES, ends, strict=True):
                after[state].append(end)
        product = self._node("MatMul", [steps, self._weights("head_weight", shape.hidden, shape.outputs)], "product")
        summed = self._node("Add", [product, self._weights("head_bias", shape.outputs)], "summed")
        self._node("Transpose", [summed], OUTPUT, perm=[1, 0, 2])
        for state in _STATES:
            self._join(state, after[state])
        state_shape: list[str | int | None] = ["B", shape.layers, shape.hidden]
        inputs = [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["B", "T", shape.features])]
        inputs += [helper.make_tensor_value_info(state, TensorProto.FLOAT, state_shape) for state in _STATES]
        outputs = [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["B", "T", shape.outputs])]
        outputs += [helper.make_tensor_value_info(f"{state}_next", TensorProto.FLOAT, state_shape) for state in _STATES]
        return self._nodes, "step", inputs, outputs, self._constants

    def _layer(self, layer: int, steps: str, before: list[str]) -> tuple[str, list[str]]:
        """One LSTM: [T, B, F or H] and states [1, B, H] -> [T, B, H] and next states [1, B, H]."""
        hidden = self._shape.hidden
        width = hidden if layer else self._shape.features
        weights = [
            self._weights(f"W_{layer}", 1, 4 * hidden, width),
            self._weights(f"R_{layer}", 1, 4 * hidden, hidden),
            self._weights(f"B_{layer}", 1, 8 * hidden),
        ]
        ends = [f"{state}_{layer}_after" for state in _STATES]
        outputs = [f"Y_{layer}", *ends]
        self._nodes.append(
            helper.make_node("LSTM", [steps, *weights, "", *before], outputs, f"LSTM_{layer}", hidden_size=hidden)
        )
        return self._node("Squeeze", [f"Y_{layer}", "direction_axis"], f"hidden_{layer}"), ends

    def _split(self, state: str) -> list[str]:
        """State [B, L, H] -> one [1, B, H] a layer."""
        parts = [state]
        if self._shape.layers > 1:
            parts = [f"{state}_rows_{layer}" for layer in range(self._shape.layers)]
            sizes = self._ints(f"{state}_sizes", [1] * self._shape.layers)
            self._nodes.append(helper.make_node("Split", [state, sizes], parts, f"Split_{state}", axis=1))
        return [
            self._node("Reshape", [part, "layer_shape"], f"{state}_{layer}_before") for layer, part in enumerate(parts)
        ]

    def _join(self, state: str, parts: list[str]) -> None:
        """One [1, B, H] a layer -> next state [B, L, H]."""
        if len(parts) == 1:
            self._node("Reshape", [parts[0], "row_shape"], f"{state}_next")
            return
        rows = [self._node("Reshape", [part, "row_shape"], f"{part}_rows") for part in parts]
        self._node("Concat", rows, f"{state}_next", axis=1)

    def _node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(operator, inputs, [output], f"{operator}_{output}", **attributes))
        return output

    def _weights(self, name: str, *dims: int) -> str:
        limit = self._shape.hidden**-0.5
        values = self._generator.uniform(-limit, limit, dims).astype(np.float32)
        self._constants.append(numpy_helper.from_array(values, name))
        return name

    def _ints(self, name: str, values: list[int]) -> str:
        self._constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name


def _contract(shape: Shape) -> contract_pb2.ModelContract:
    floats = contract_pb2.DATA_TYPE_FLOAT32
    return contract_pb2.ModelContract(
        schema_version=SCHEMA_VERSION,
        name=shape.name,
        task=contract_pb2.TASK_OTHER,
        description=f"{shape.layers} layers of LSTM, {shape.hidden} units, random weights",
        family="lstm",
        inputs=[contract_pb2.TensorSpec(name=INPUT, dtype=floats, shape=[shape.features])],
        outputs=[contract_pb2.TensorSpec(name=OUTPUT, dtype=floats, shape=[shape.outputs])],
        states=[
            contract_pb2.StateSpec(
                name=state,
                next_name=f"{state}_next",
                dtype=floats,
                shape=[shape.layers, shape.hidden],
                initial=contract_pb2.InitialState(constant=0.0),
            )
            for state in _STATES
        ],
        graphs=contract_pb2.Graphs(step="model.onnx"),
        streaming=contract_pb2.Streaming(streamable=True),
        numerics=contract_pb2.Numerics(tolerance=1e-5),
    )
