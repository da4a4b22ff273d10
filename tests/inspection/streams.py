"""Running graphs of strangers: whole, and lifted and cut, by ONNX Runtime.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import onnx

from eddy.inspection.lifted import Lift, LiftedState

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import itertools

import onnxruntime as ort

Tensors = dict[str, np.ndarray]
# 11 steps, cut unevenly, single steps among them.
CUTS = (0, 2, 3, 7, 8, 11)


def load(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session on one thread; inspection's loader in tests."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def begin(state: LiftedState, batch: int) -> np.ndarray:
    """A lifted state before the first step, as the graph's tensor wants it."""
    assert state.batch_axis is not None
    assert None not in state.shape
    row = np.broadcast_to(state.initial, state.shape)
    return np.repeat(np.expand_dims(row, state.batch_axis), batch, axis=state.batch_axis)


def run_whole(model: onnx.ModelProto, feeds: Tensors) -> Tensors:
    """Every output of one call."""
    names = [port.name for port in model.graph.output]
    return dict(zip(names, load(model).run(names, feeds), strict=True))


def run_cut(
    lifted: Lift, feeds: Tensors, cut: str, outputs: Sequence[str], *, axis: int = 1, cuts: Sequence[int] = CUTS
) -> tuple[Tensors, Tensors]:
    """The same in pieces: `cut` is taken in pieces along `axis`, the other feeds are given with every call.

    Returns the outputs, joined along `axis`, and the states after the last piece, by input.
    """
    session = load(lifted.model)
    states = {state.input: begin(state, feeds[cut].shape[1 - axis]) for state in lifted.states}
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in outputs}
    for first, last in itertools.pairwise(cuts):
        call = feeds | {cut: feeds[cut].take(range(first, last), axis)} | states
        names = [*outputs, *(state.output for state in lifted.states)]
        answers = dict(zip(names, session.run(names, call), strict=True))
        for name in outputs:
            pieces[name].append(answers[name])
        states = {state.input: answers[state.output] for state in lifted.states}
    return {name: np.concatenate(found, axis) for name, found in pieces.items()}, states
