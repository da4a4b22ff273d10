"""A model without Eddy: its step graph as the file has it, run by `InferenceSession.run` on one thread.

Owns the sessions, and the states that rows begin with. Must not know what is timed. States are carried from call to
call by passing the arrays on, as the simplest service would.

Dimension key: B rows, one step each (T = 1).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.values import draw_inputs, draw_sources, phases_of
from eddy.service.contract import read_contract
from eddy.service.graph import ModelGraphs

Feed = dict[str, np.ndarray]


class BareModel:
    """One model's step graph, and its prime graph where it has one.

    Args:
        path: its step graph, with the contract inside.

    Attributes:
        contract: what the file says; graphs: all graphs of the model.
    """

    def __init__(self, path: Path) -> None:
        step = onnx.load(path)
        self.contract = read_contract(step)
        files = self.contract.message.graphs
        self.graphs = ModelGraphs(
            step, *(onnx.load(path.with_name(name)) if name else None for name in (files.prime, files.whole))
        )
        self._step = _session(step)
        self._ports = self.contract.message.ports
        self._nexts = [(state.name, state.next_name) for state in self.contract.states if state.next_name]
        outputs = [port.name for port in self.contract.outputs]
        self._outputs = [*outputs, *([self._ports.emitted] if self._ports.emitted else [])]

    def begin(self, rows: int) -> Feed:
        """States [B, ...] by name: of a source that was read, of a block that has begun, else the initial values."""
        states = {
            state.name: np.repeat(state.initial[None], rows, axis=0).astype(state.dtype)
            for state in self.contract.states
        }
        if self.contract.is_primed:
            states |= self._prime(rows)
        phases = phases_of(self.contract, rows)
        feed = self._feed(rows) | states
        for step in range(int(phases.max())):
            self._run(feed | {self._ports.length: (phases > step).astype(np.int64)}, feed)
        return {name: feed[name] for name in states}

    def step_of(self, rows: int) -> Callable[[], None]:
        """Runs one step of all rows, the states of the one before fed back."""
        return self.steps_from(self.begin(rows), rows)

    def steps_from(self, states: Feed, rows: int) -> Callable[[], None]:
        """Runs one step of all rows; `states` are those before it, and then those after it."""
        feed = self._feed(rows)
        return lambda: self._run(feed | states, states)

    def _feed(self, rows: int) -> Feed:
        """Inputs and ports of a step that every row takes and no stream ends with."""
        values = draw_inputs(self.contract, rows)
        feed = {port.name: array for port, array in zip(self.contract.inputs, values, strict=True)}
        if self._ports.length:
            feed[self._ports.length] = np.ones(rows, np.int64)
        if self._ports.flush:
            feed[self._ports.flush] = np.zeros(rows, np.bool_)
        return feed

    def _run(self, feed: Feed, into: Feed) -> None:
        """One call; the next states replace those in `into`."""
        results = self._step.run([*self._outputs, *(after for _, after in self._nexts)], feed)
        for (name, _), value in zip(self._nexts, results[len(self._outputs) :], strict=True):
            into[name] = value

    def _prime(self, rows: int) -> Feed:
        assert self.graphs.prime is not None
        prime = _session(self.graphs.prime)
        sources, lengths = draw_sources(self.contract, rows)
        feed = {port.name: array for port, array in zip(self.contract.prime_inputs, sources, strict=True)}
        if self._ports.prime_length:
            feed[self._ports.prime_length] = lengths
        names = [output.name for output in prime.get_outputs()]
        return dict(zip(names, prime.run(names, feed), strict=True))


def _session(graph: onnx.ModelProto) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
