"""Bindings: the buffers of the step graph's runs, bound once for each size and kept.

Owns the wrapped step graph and its input and output buffers, all on the provider's device. Must not know ticks beyond
their size.

Dimension key: B rows of a run, T steps.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from eddy.service.arena import INITIAL_SLOT, SCRATCH_SLOT
from eddy.service.contract import Contract
from eddy.service.example import example_feeds
from eddy.service.graph import HOME_SLOTS, LIVE, READ_SLOTS, WRITE_SLOTS, wrap_step_graph
from eddy.service.runtime import MIN_ROWS, Runtime
from eddy.service.states import States

# No slot: a binding whose immutable states are gathered.
_GATHERED = -1

# Bindings are kept for reuse, because binding costs 25 us of a 45 us tick; bounded in number and in bytes.
_MAX_BINDINGS = 256
_MAX_BYTES = 64 << 20


@dataclass(slots=True)
class Binding:
    """Buffers of one (B, T), bound once: filling them and running is all that a tick does.

    Attributes:
        session, io: the ONNX Runtime session and its binding.
        inputs: [B, T, ...] a feed; outputs: [B, T, ...] a result, on the CPU; both as raw bytes.
        read_slots, write_slots, home_slots: int64 [B]. All of these are views that leave padding rows out.
        device_inputs: values on the device, each with the host array to copy from; device_outputs: values on the
            device, padding included.
    """

    session: Any
    io: Any
    inputs: list[memoryview]
    read_slots: np.ndarray
    write_slots: np.ndarray
    home_slots: np.ndarray
    outputs: list[memoryview]
    device_inputs: list[tuple[Any, np.ndarray]]
    device_outputs: list[Any]
    num_bytes: int


class Bindings:
    """The wrapped step graph with the buffers of the sizes that were run last.

    Args:
        step: the step graph, which is wrapped here; states: what it reads and writes.

    Attributes:
        guarded_states: see `WrappedGraph.guarded`.

    Raises:
        ModelError: the graph cannot be wrapped, or ONNX Runtime refuses it.
    """

    def __init__(self, step: onnx.ModelProto, contract: Contract, runtime: Runtime, states: States) -> None:
        self._contract = contract
        self._runtime = runtime
        self._states = states
        wrapped = wrap_step_graph(step, contract)
        self.guarded_states = wrapped.guarded
        self._session: Any = runtime.session(wrapped.model)
        # A graph that takes so many rows exactly is given them; of others no run has fewer than two.
        self._exact_rows = 0 if contract.runs is None else contract.runs.rows
        # Sessions that were opened together lie together: what is only read is then read where it lies. Gathering a
        # translator's memory takes a quarter of its tick. On the CPU only, where a part of an arena is a value, too.
        # Not where rows may be padding: theirs would lie beyond the arena.
        self._direct: Any = None
        if contract.has_immutable and runtime.is_cpu and not self._exact_rows:
            self._direct = runtime.session(wrap_step_graph(step, contract, gathers_immutable=False).model)
        # Changed only by `find`.
        self._kept: OrderedDict[tuple[int, int, int], Binding] = OrderedDict()
        self._num_bytes = 0

    def find(self, num_rows: int, num_steps: int, home_slots: np.ndarray | int) -> Binding:
        """The buffers of B rows of T steps whose immutable states are in `home_slots` int64 [B]."""
        first_home = _GATHERED if self._direct is None else _first_of_run(home_slots, num_rows)
        key = (num_rows, num_steps, first_home)
        binding = self._kept.get(key)
        if binding is not None:
            self._kept.move_to_end(key)
            return binding
        binding = self._create(num_rows, num_steps, first_home)
        self._kept[key] = binding
        self._num_bytes += binding.num_bytes
        while len(self._kept) > _MAX_BINDINGS or (self._num_bytes > _MAX_BYTES and len(self._kept) > 1):
            _, oldest = self._kept.popitem(last=False)
            self._num_bytes -= oldest.num_bytes
        return binding

    def close(self) -> None:
        """Frees the graph and the buffers; nothing may be found any more."""
        self._kept.clear()
        self._num_bytes = 0
        self._session = self._direct = None

    def _create(self, rows: int, num_steps: int, first_home: int) -> Binding:
        """Buffers for B = `rows`; rows that pad read the initial state, write scratch and stay so.

        Args:
            first_home: where the immutable states of the rows begin, one after the other; or that they are gathered.
        """
        padded = self._exact_rows or max(rows, MIN_ROWS)
        is_direct = first_home != _GATHERED
        session: Any = self._direct if is_direct else self._session
        io = session.io_binding()
        inputs = example_feeds(self._contract, padded, num_steps)
        read, home = np.full(padded, INITIAL_SLOT), np.full(padded, INITIAL_SLOT)
        write = np.full((padded, 1), SCRATCH_SLOT)
        binding = Binding(
            session,
            io,
            [_raw(array[:rows]) for array in inputs],
            read[:rows],
            write[:rows, 0],
            home[:rows],
            [],
            [],
            [],
            0,
        )
        hosts = [(port.name, array) for port, array in zip(self._contract.feeds, inputs, strict=True)]
        hosts += [(READ_SLOTS, read), (WRITE_SLOTS, write)]
        if self._contract.has_immutable and not is_direct:
            hosts.append((HOME_SLOTS, home))
        for name, array in hosts:
            value = self._runtime.value(array)
            if not self._runtime.is_cpu:
                binding.device_inputs.append((value, array))
            io.bind_ortvalue_input(name, value)
            binding.num_bytes += array.nbytes
        if self.guarded_states:
            io.bind_ortvalue_input(LIVE, self._runtime.value(np.ones(1, np.bool_)))
        for state in self._contract.states:
            if is_direct and not state.next_name:
                part = self._states.host(state)[first_home : first_home + rows]
                io.bind_ortvalue_input(state.name, self._runtime.value(part))
                continue
            self._states.bind(io, state)
        for port in self._contract.results:
            array = np.zeros((padded, *port.row_shape(num_steps)), port.dtype)
            value = self._runtime.value(array)
            if self._runtime.is_cpu:
                binding.outputs.append(_raw(array[:rows]))
            else:
                binding.device_outputs.append(value)
            io.bind_ortvalue_output(port.name, value)
            binding.num_bytes += array.nbytes
        return binding


def _first_of_run(slots: np.ndarray | int, num_rows: int) -> int:
    """The first of `slots` int [B] where each is one more than the one before, and they are enough; or `_GATHERED`."""
    if not isinstance(slots, np.ndarray) or num_rows < MIN_ROWS:
        return _GATHERED
    first = int(slots[0])
    is_run = int(slots[-1]) - first == num_rows - 1 and bool((np.diff(slots) == 1).all())
    return first if is_run else _GATHERED


def _raw(array: np.ndarray) -> memoryview:
    """The memory of `array`, contiguous, as bytes."""
    return array.view(np.uint8).reshape(-1).data
