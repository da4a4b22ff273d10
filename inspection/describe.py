"""Descriptions: a canonical graph as a contract, and what was found as a report.

Owns their filling. Must not know graphs' insides.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import helper

from eddy.inspection.canonical import Canonical, State, Tensor
from eddy.inspection.declared import DTYPES, Declared
from eddy.inspection.laws import BATCHES, CUTS
from eddy.inspection.layout import BATCH, Axes, Layout
from eddy.inspection.report import FoundState, FoundTensor, Origin
from eddy.inspection.settings import Settings
from eddy.v1 import contract_pb2 as pb

STEP_FILE = "model.onnx"


def describe(
    form: Canonical, settings: Settings, name: str, limits: Mapping[str, tuple[int, int]], reason: str, tolerance: float
) -> pb.ModelContract:
    """The contract of a step graph, or of a whole graph where `reason` says why the model does not stream."""
    contract = pb.ModelContract(
        schema_version=1,
        name=name,
        task=pb.TASK_OTHER,
        description=settings.description,
        inputs=[_tensor(tensor, limits) for tensor in form.inputs],
        outputs=[_tensor(tensor, {}) for tensor in form.outputs],
        idle_timeout_seconds=settings.idle_timeout_seconds or 0.0,
        adopts=settings.adopts,
        numerics=pb.Numerics(
            bitwise=tolerance == 0.0, tolerance=tolerance, batches=BATCHES, chunk_steps=sorted({*sum(CUTS, ())})
        ),
    )
    contract.streaming.run_rows = form.run_rows or 0
    contract.streaming.max_run_steps = form.max_run_steps or 0
    if reason:
        contract.graphs.whole = STEP_FILE
        contract.streaming.reason = reason
    else:
        contract.graphs.step = STEP_FILE
        contract.streaming.streamable = True
        contract.states.extend(_state(state) for state in form.states)
    return contract


def _tensor(tensor: Tensor, limits: Mapping[str, tuple[int, int]]) -> pb.TensorSpec:
    spec = pb.TensorSpec(
        name=tensor.name,
        dtype=DTYPES[tensor.element],
        shape=tensor.shape,
        no_time_axis=tensor.no_time_axis,
    )
    if tensor.source in limits:
        spec.range.minimum, spec.range.maximum = limits[tensor.source]
    return spec


def _state(state: State) -> pb.StateSpec:
    spec = pb.StateSpec(
        name=state.name,
        next_name=state.next_name,
        dtype=DTYPES[state.element],
        shape=state.shape,
        meaning=state.meaning,
    )
    first = state.initial.ravel()[0] if state.initial.size else np.zeros((), state.initial.dtype)
    if (state.initial == first).all():
        spec.initial.constant = float(first)
    else:
        spec.initial.data = state.initial.astype(state.initial.dtype.newbyteorder("<")).tobytes()
    return spec


def found_states(form: Canonical, layout: Layout) -> tuple[FoundState, ...]:
    """The states for the report; kept values of inputs, too."""
    return tuple(_found_state(state, layout) for state in form.states)


def _found_state(state: State, layout: Layout) -> FoundState:
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(state.element)).name
    if state.pair is None:
        how = f"context_steps of the settings: {state.meaning}"
        return FoundState(state.name, state.next_name, state.shape, dtype, 0, Origin.LIFTED, how)
    axes = layout.states[state.pair.input]
    batch_axis = axes.index(BATCH) if BATCH in axes else None
    pair = state.pair
    return FoundState(pair.input, pair.output, state.shape, dtype, batch_axis, pair.origin, pair.how)


def found_tensors(axes: Mapping[str, Axes], ports: Mapping[str, Declared]) -> tuple[FoundTensor, ...]:
    """Inputs or outputs for the report."""
    return tuple(FoundTensor(name, ports[name].dtype.name, shape) for name, shape in axes.items())
