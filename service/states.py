"""The states of a model's slots, in arenas on the execution provider's device.

Owns the arenas and how their rows are read, written and moved: as arrays where they are the host's memory, elsewhere by
graphs. Must not know ticks, nor what the states mean. A model without states has no arenas, and nothing is written.

Dimension key: B rows, S slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eddy.service.arena import NUM_RESERVED_SLOTS
from eddy.service.contract import Contract
from eddy.service.graph import HOME_SLOTS, READ_SLOTS, WRITE_SLOTS, arena_names, load_graph, move_graph, read_graph
from eddy.service.ports import State
from eddy.service.runtime import Runtime

# Runs a bound graph, or raises a ModelError.
RunBound = Callable[[Any, Any], None]


class States:
    """One arena [S, ...] a state.

    Args:
        contract: the model's; num_slots: S without the reserved ones.
        run_bound: runs an ONNX Runtime session with a binding.

    Raises:
        ModelError: ONNX Runtime refuses a graph.
    """

    def __init__(self, runtime: Runtime, contract: Contract, num_slots: int, run_bound: RunBound) -> None:
        self._runtime = runtime
        self._states = contract.states
        self._run_bound = run_bound
        # Changed by graphs only, in place: those of this class and the step graph.
        self._arenas = {state.name: self._create(state, num_slots + NUM_RESERVED_SLOTS) for state in self._states}
        needs_graphs = bool(self._states) and not runtime.is_cpu
        self._loader = runtime.session(load_graph(contract)) if needs_graphs else None
        self._reader = runtime.session(read_graph(contract)) if needs_graphs else None
        self._copier = runtime.session(move_graph(self._states)) if self._states else None
        # One run gathers all rows before it scatters any. Only where a tick is several must rows be moved before.
        self._moving = [state for state in self._states if state.next_name]
        self._mover = runtime.session(move_graph(self._moving)) if contract.runs is not None and self._moving else None

    def _create(self, state: State, num_slots: int) -> Any:
        # Zero pages are not resident until a slot is used.
        return self._runtime.value(np.zeros([num_slots, *state.shape], state.dtype))

    def close(self) -> None:
        """Frees the arenas and their graphs; nothing may be read or written any more."""
        self._arenas.clear()
        self._loader = self._reader = self._mover = self._copier = None

    def host(self, state: State) -> np.ndarray:
        """An arena, [S, ...]: on the CPU a view of it, elsewhere a copy."""
        values: np.ndarray = self._arenas[state.name].numpy()
        return values

    def bind(self, io: Any, state: State) -> None:
        """Binds an arena to a graph's input and, of a state that is written, to its output."""
        before, after = arena_names(state)
        io.bind_ortvalue_input(before, self._arenas[state.name])
        if state.next_name:
            io.bind_ortvalue_output(after, self._arenas[state.name])

    def read(self, slots: np.ndarray, home_slots: np.ndarray | None = None) -> list[np.ndarray]:
        """Copies of the states in `slots` int64 [B]: one array a state, [B, ...].

        Args:
            home_slots: the same, of those states that no step writes; None: those are in `slots`, too.

        Raises:
            ModelError: ONNX Runtime failed.
        """
        homes = slots if home_slots is None else home_slots
        if self._runtime.is_cpu:
            return [self.host(state)[slots if state.next_name else homes] for state in self._states]
        if self._reader is None:
            return []
        # Only the rows asked for leave the device.
        io = self._reader.io_binding()
        kept = [self._runtime.value(np.ascontiguousarray(each, np.int64)) for each in (slots, homes)]
        for state in self._states:
            if state.next_name:
                io.bind_ortvalue_input(READ_SLOTS, kept[0])
            else:
                io.bind_ortvalue_input(HOME_SLOTS, kept[1])
            io.bind_ortvalue_input(arena_names(state)[0], self._arenas[state.name])
            io.bind_output(state.name, "cpu")
        self._run_bound(self._reader, io)
        return list(io.copy_outputs_to_cpu())

    def write(self, slots: np.ndarray, values: Sequence[np.ndarray]) -> None:
        """Overwrites the states in `slots` int64 [B] with `values`, one [B, ...] a state, in place.

        Raises:
            ModelError: ONNX Runtime failed; the states in `slots` are undefined.
        """
        if self._runtime.is_cpu:
            for state, rows in zip(self._states, values, strict=True):
                self.host(state)[slots] = rows
            return
        if self._loader is None:
            return
        io = self._loader.io_binding()
        # A value on the CPU shares its array's memory, which must outlive the run.
        kept = [self._runtime.value(np.ascontiguousarray(slots, np.int64)[:, None])]
        io.bind_ortvalue_input(WRITE_SLOTS, kept[0])
        for state, rows in zip(self._states, values, strict=True):
            kept.append(self._runtime.value(np.ascontiguousarray(rows, state.dtype)))
            io.bind_ortvalue_input(state.name, kept[-1])
            before, after = arena_names(state)
            io.bind_ortvalue_input(before, self._arenas[state.name])
            io.bind_ortvalue_output(after, self._arenas[state.name])
        self._run_bound(self._loader, io)

    def move(self, read_slots: np.ndarray, write_slots: np.ndarray) -> None:
        """Copies what steps write from `read_slots` to `write_slots`, int64 [B]; all is read before any is written.

        Raises:
            ModelError: ONNX Runtime failed; the states in `write_slots` are undefined.
        """
        if self._mover is not None:
            self._gather_scatter(self._mover, self._moving, read_slots, write_slots, None)

    def copy(self, read_slots: np.ndarray, home_slots: np.ndarray, write_slots: np.ndarray) -> None:
        """Copies whole rows of states to `write_slots`, what is immutable from `home_slots`; int64 [B] each.

        Raises:
            ModelError: ONNX Runtime failed; the states in `write_slots` are undefined.
        """
        if self._copier is not None:
            is_all_moving = len(self._moving) == len(self._states)
            homes = None if is_all_moving else home_slots
            self._gather_scatter(self._copier, self._states, read_slots, write_slots, homes)

    def _gather_scatter(
        self,
        graph: Any,
        states: Sequence[State],
        read_slots: np.ndarray,
        write_slots: np.ndarray,
        home_slots: np.ndarray | None,
    ) -> None:
        columns = {READ_SLOTS: read_slots, WRITE_SLOTS: write_slots[:, None]}
        if home_slots is not None:
            columns[HOME_SLOTS] = home_slots
        # A value on the CPU shares its array's memory, which must outlive the run.
        values = {name: self._runtime.value(np.ascontiguousarray(slots, np.int64)) for name, slots in columns.items()}
        io = graph.io_binding()
        for name, value in values.items():
            io.bind_ortvalue_input(name, value)
        for state in states:
            before, after = arena_names(state)
            io.bind_ortvalue_input(before, self._arenas[state.name])
            io.bind_ortvalue_output(after, self._arenas[state.name])
        self._run_bound(graph, io)
