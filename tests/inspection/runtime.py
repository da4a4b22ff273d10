"""ONNX Runtime for inspection, and hands that step a canonical graph: what tests of inspection share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from eddy.inspection.inspect import Inspection, inspect
from eddy.inspection.settings import Settings

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort


def load(model: onnx.ModelProto) -> Any:
    """A session of one thread that says nothing of failing runs: inspection fails many."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def look(model: onnx.ModelProto, settings: Settings | None = None) -> Inspection:
    """Inspects a model."""
    return inspect(model, load, settings or Settings(), "model")


class Walker:
    """A canonical step graph, its states carried by hand from their initial values."""

    def __init__(self, found: Inspection, rows: int) -> None:
        assert found.step is not None, found.report.reason
        self._contract = found.contract
        self._program = load(found.step)
        self.states = {}
        for state in found.contract.states:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(_elements(found.step)[state.name]))
            if state.initial.WhichOneof("kind") == "data":
                row = np.frombuffer(state.initial.data, dtype).reshape(tuple(state.shape))
            else:
                row = np.full(tuple(state.shape), state.initial.constant, dtype)
            self.states[state.name] = np.repeat(row[None], rows, axis=0)

    def step(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """One run; the outputs by name."""
        names = [spec.name for spec in self._contract.outputs] + [spec.next_name for spec in self._contract.states]
        found = dict(zip(names, self._program.run(names, {**inputs, **self.states}), strict=True))
        for state in self._contract.states:
            self.states[state.name] = found.pop(state.next_name)
        return found

    def steps(self, inputs: Mapping[str, np.ndarray], cuts: Sequence[int]) -> dict[str, np.ndarray]:
        """Several runs; the outputs [B, T, ...] put together."""
        parts, begin = [], 0
        for length in cuts:
            parts.append(self.step(**{name: value[:, begin : begin + length] for name, value in inputs.items()}))
            begin += length
        return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def _elements(model: onnx.ModelProto) -> dict[str, int]:
    return {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
