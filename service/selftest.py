"""The self-test: a freshly loaded engine against its model's plain graphs, states carried by hand.

Owns the schedule and the comparison. A second line behind the structural guard: what it cannot see is why the guard is
the proof. A neighbouring slot holds a marker: a wrong gather, scatter or copy shows there or in the difference.

Dimension key: B rows, T steps, S source steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx

from eddy.service.answer import Answer
from eddy.service.arena import INITIAL_SLOT, NUM_RESERVED_SLOTS
from eddy.service.contract import END, Contract
from eddy.service.errors import ModelError, Reason
from eddy.service.example import example, example_feeds
from eddy.service.finite import Outputs, finite_rows
from eddy.service.graph import ModelGraphs
from eddy.service.runs import Runs
from eddy.service.runtime import MIN_ROWS, Runtime, pad_rows

_MARKER = 77
# T of each call, and whether the stream ends with it; the end has no steps of its own.
_CALLS = ((1, False), (1, False), (3, False))
_SOURCE_STEPS = 3
_CUDA_TOLERANCE = 1e-4
# Sequences that a whole graph is tried with, and how much of their largest value their results may differ by: kernels
# add in another order when there are more rows, and whoever mixes sequences is much farther off.
_WHOLE_ROWS = 3
_WHOLE_TOLERANCE = 1e-4


class Subject(Protocol):
    """The engine, as far as it is tested."""

    contract: Contract
    num_slots: int

    def run(
        self,
        feeds: Sequence[bytes],
        read_slots: np.ndarray | int,
        write_slots: np.ndarray | int,
        num_rows: int,
        num_steps: int,
        home_slots: np.ndarray | int = ...,
    ) -> list[bytes]:
        """See `Engine.run`."""

    def run_whole(self, inputs: Sequence[bytes], num_rows: int, num_steps: int) -> list[bytes]:
        """See `Engine.run_whole`."""

    def shortest_whole(self) -> int:
        """See `Engine.shortest_whole`."""

    def begin(
        self,
        slots: np.ndarray,
        prime: Sequence[np.ndarray] = ...,
        lengths: np.ndarray | None = ...,
        given: Mapping[str, np.ndarray] | None = ...,
    ) -> None:
        """See `Engine.begin`."""

    def read_states(self, slots: np.ndarray) -> list[np.ndarray]:
        """See `Engine.read_states`."""

    def write_states(self, slots: np.ndarray, states: Sequence[np.ndarray]) -> None:
        """See `Engine.write_states`."""


def check(engine: Subject, graphs: ModelGraphs, runtime: Runtime) -> frozenset[str]:
    """Tries every graph of a model that was just loaded.

    Returns:
        Names of the outputs and states that were not finite for examples of inputs: those of this model may be so.

    Raises:
        ModelError: a graph does not run, gives other shapes than the contract says, or the engine other values.
    """
    if graphs.step is None:
        return _check_whole_alone(engine)
    names = _check_steps(engine, graphs, graphs.step, runtime)
    return names if graphs.whole is None else names | _check_whole(engine)


def _check_steps(engine: Subject, graphs: ModelGraphs, step: onnx.ModelProto, runtime: Runtime) -> frozenset[str]:
    """Steps a few slots in a few calls, ends their streams where the model has ends, and compares everything."""
    contract = engine.contract
    outputs, unusual = Outputs(contract.results, emits=contract.emits), frozenset[str]()
    rows = max(1, min(3, engine.num_slots - 1))
    slots = np.arange(rows)[::-1] + NUM_RESERVED_SLOTS
    neighbour = np.array([NUM_RESERVED_SLOTS + rows])
    has_neighbour = rows < engine.num_slots
    marker = [np.full((1, *state.shape), _MARKER, state.dtype) for state in contract.states]
    if has_neighbour:
        before = engine.read_states(neighbour)
        engine.write_states(neighbour, marker)
    plain = _Plain(contract, step, graphs.prime, runtime, rows)
    tolerance = max(contract.tolerance, 0.0 if runtime.is_cpu else _CUDA_TOLERANCE)
    read = np.full(rows, INITIAL_SLOT)
    if contract.is_primed:
        source = [example(port, rows, _source_steps(contract)) for port in contract.prime_inputs]
        lengths = np.arange(rows) % _source_steps(contract) + 1
        engine.begin(slots, source, lengths)
        plain.begin(source, lengths)
        read = slots
    ends = ((1, True),) if contract.message.ports.flush else ()
    for call, (num_steps, is_end) in enumerate((*_CALLS, *ends)):
        feeds = example_feeds(contract, plain.num_rows, num_steps, seed=call)
        if is_end:
            feeds[-1][:] = 1
        wanted = plain.step(feeds, num_steps)
        home = slots if contract.is_primed else INITIAL_SLOT
        blocks = engine.run([values[:rows].tobytes() for values in feeds], read, slots, rows, num_steps, home)
        read = slots
        unusual |= outputs.bad_names(blocks, rows)
        for port, block in zip(contract.results, blocks, strict=True):
            _compare(port.view(block, rows, num_steps), wanted[port.name][:rows], port.name, tolerance)
    for state, value in zip(contract.states, engine.read_states(slots), strict=True):
        if not finite_rows([value]).all():
            unusual |= {state.name}
        if state.next_name or contract.is_primed:
            _compare(value, plain.states[state.name][:rows], state.name, tolerance)
    if has_neighbour:
        for value, expected in zip(engine.read_states(neighbour), marker, strict=True):
            _compare(value, expected, "a neighbouring slot", 0.0)
        engine.write_states(neighbour, before)
    for state, value in zip(contract.states, engine.read_states(np.array([INITIAL_SLOT])), strict=True):
        _compare(value, state.initial[None], "the initial-state slot", 0.0)
    return unusual


class _Plain:
    """The model's graphs as they are, states carried by hand.

    Args:
        num_rows: rows that are compared; there are more where a run takes more.
    """

    def __init__(
        self, contract: Contract, step: onnx.ModelProto, prime: onnx.ModelProto | None, runtime: Runtime, num_rows: int
    ) -> None:
        self._contract = contract
        self._step = runtime.session(step)
        self._prime = None if prime is None else runtime.session(prime)
        self._runs = contract.runs or Runs(0, 0)
        self.num_rows = self._runs.padded(num_rows) if self._runs.rows else max(num_rows, MIN_ROWS)
        self.states: dict[str, Any] = {
            state.name: np.repeat(state.initial[None], self.num_rows, axis=0) for state in contract.states
        }

    def begin(self, source: Sequence[np.ndarray], lengths: np.ndarray) -> None:
        assert self._prime is not None, "only a model with a prime graph is primed"
        feed = {
            port.name: pad_rows(values, self.num_rows)
            for port, values in zip(self._contract.prime_inputs, source, strict=True)
        }
        if name := self._contract.message.ports.prime_length:
            feed[name] = pad_rows(lengths, self.num_rows)
        names = [output.name for output in self._prime.get_outputs()]
        parts = []
        for rows in self._runs.row_groups(self.num_rows):
            written = _run(self._prime, names, {name: values[rows] for name, values in feed.items()})
            for state in self._contract.states:
                if state.name in names:
                    shape = (rows.stop - rows.start, *state.shape)
                    _check_shape(state.name, written[names.index(state.name)], shape)
            parts.append(written)
        self.states |= dict(zip(names, (np.concatenate(each) for each in zip(*parts, strict=True)), strict=True))

    def step(self, feeds: Sequence[np.ndarray], num_steps: int) -> dict[str, np.ndarray]:
        """One call, in as many runs as the graph needs; the results by name."""
        answer = Answer(self._contract, self.num_rows, num_steps)
        for rows in self._runs.row_groups(self.num_rows):
            for steps in self._runs.step_pieces(num_steps):
                parts = self._run_step([values[rows, steps] for values in feeds], rows, steps.stop - steps.start)
                answer.add(parts, steps.start, rows)
        return {port.name: values for port, values in zip(self._contract.results, answer.results, strict=True)}

    def _run_step(self, feeds: Sequence[np.ndarray], rows: slice, num_steps: int) -> list[np.ndarray]:
        """One run of some of the rows; the results in the contract's order."""
        contract, ports, count = self._contract, self._contract.message.ports, rows.stop - rows.start
        feed = {port.name: values for port, values in zip(contract.feeds, feeds, strict=True) if port.name != END}
        is_end = feeds[-1][:, -1].astype(np.bool_) if contract.has_end else np.zeros(count, np.bool_)
        if ports.length:
            feed[ports.length] = num_steps - is_end.astype(np.int64)
        if ports.flush:
            feed[ports.flush] = is_end
        feed |= {name: values[rows] for name, values in self.states.items()}
        moving = [state for state in contract.states if state.next_name]
        names = [port.name for port in contract.results] + [state.next_name for state in moving]
        found = dict(zip(names, _run(self._step, names, feed), strict=True))
        for state in moving:
            _check_shape(state.next_name, found[state.next_name], (count, *state.shape))
            # A new array: what was fed is the caller's.
            self.states[state.name] = self.states[state.name].copy()
            self.states[state.name][rows] = found[state.next_name]
        for port in contract.results:
            _check_shape(port.name, found[port.name], (count, *port.row_shape(num_steps)))
        return [found[port.name] for port in contract.results]


def _check_whole(engine: Subject) -> frozenset[str]:
    """The whole graph of a model that streams answers every step."""
    contract = engine.contract
    outputs, unusual = Outputs(contract.outputs), frozenset[str]()
    for rows, num_steps in ((1, 2), (3, 5)):
        inputs = [example(port, rows, num_steps).tobytes() for port in contract.inputs]
        blocks = engine.run_whole(inputs, rows, num_steps)
        for port, block in zip(contract.outputs, blocks, strict=True):
            expected = rows * num_steps * port.step_bytes
            if len(block) != expected:
                raise ModelError(
                    Reason.MODEL_NOT_READY,
                    f"the whole graph's output {port.name!r} has {len(block)} bytes after {num_steps} steps of {rows} "
                    f"rows, the contract says {expected}",
                )
        unusual |= outputs.bad_names(blocks, rows)
    return unusual


def _check_whole_alone(engine: Subject) -> frozenset[str]:
    """The only graph of a model that does not stream: no sequence's result depends on those that it is run with."""
    contract, num_steps = engine.contract, engine.shortest_whole()
    inputs = [example(port, _WHOLE_ROWS, num_steps) for port in contract.inputs]
    together = engine.run_whole([values.tobytes() for values in inputs], _WHOLE_ROWS, num_steps)
    for row in range(_WHOLE_ROWS):
        alone = engine.run_whole([values[row].tobytes() for values in inputs], 1, num_steps)
        for port, block, mine in zip(contract.outputs, together, alone, strict=True):
            values = np.frombuffer(block, port.dtype).reshape(_WHOLE_ROWS, -1)[row]
            found = np.frombuffer(mine, port.dtype)
            if found.shape != values.shape:
                counts = f"{len(found)} values for a sequence alone and {len(values)} beside others"
                raise ModelError(Reason.MODEL_NOT_READY, f"self-test: {port.name!r} has {counts}")
            sizes = np.abs(values.astype(np.float64))
            most = float(sizes[np.isfinite(sizes)].max(initial=1.0))
            tolerance = max(contract.tolerance, _WHOLE_TOLERANCE * most)
            _compare(found, values, port.name, tolerance, "between a sequence alone and beside others")
    return Outputs(contract.outputs).bad_names(together, _WHOLE_ROWS)


def _source_steps(contract: Contract) -> int:
    return min(_SOURCE_STEPS, contract.max_prime_steps)


def _run(session: Any, names: list[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    try:
        results: list[np.ndarray] = session.run(names, feed)
    except Exception as error:
        raise ModelError(Reason.MODEL_NOT_READY, f"the graph does not run: {error}") from error
    return results


def _check_shape(name: str, value: np.ndarray, shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise ModelError(
            Reason.MODEL_NOT_READY, f"{name!r} has shape {list(value.shape)}, the contract says {list(shape)}"
        )


_WRAPPED = "between the wrapped and the plain graph"


def _compare(got: np.ndarray, wanted: np.ndarray, name: str, tolerance: float, between: str = _WRAPPED) -> None:
    ours, theirs = got.astype(np.float64), wanted.astype(np.float64)
    # What is no number, or infinite, in both is the same.
    is_same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    difference = np.abs(np.where(is_same, 0.0, ours) - np.where(is_same, 0.0, theirs)).max(initial=0.0)
    if not difference <= tolerance:
        raise ModelError(
            Reason.MODEL_NOT_READY,
            f"self-test: {name!r} differs by {difference:.3g} {between} (allowed: {tolerance:.3g})",
        )
