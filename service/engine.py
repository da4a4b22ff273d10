"""The engine: one model's graphs around its state arena, on one execution provider.

Owns the ONNX Runtime sessions, the arena buffers and the input and output buffers, all on the provider's device. Must
not know sessions, positions or the wire: it sees rows of slots. One caller at a time (the scheduler's dispatcher
guarantees it): the arena is updated in place.

Ordering rules: slot 0 holds the initial state and slot 1 is scratch; neither is ever handed out. A tick never has
fewer than two rows, because ONNX Runtime's kernels for one row take another path and other bits.

Dimension key: B rows of a tick, T steps, S slots.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eddy.service import selftest
from eddy.service.arena import INITIAL_SLOT, NUM_RESERVED_SLOTS, SCRATCH_SLOT
from eddy.service.contract import Contract
from eddy.service.errors import ModelError, Reason
from eddy.service.example import example_feeds
from eddy.service.graph import (
    HOME_SLOTS,
    LIVE,
    READ_SLOTS,
    WRITE_SLOTS,
    ArenaPort,
    ModelGraphs,
    check_graphs,
    load_graph,
    wrap_step_graph,
)
from eddy.service.ports import State
from eddy.service.runtime import MIN_ROWS, Runtime, pad_rows

# No slot: a binding whose immutable states are gathered.
_GATHERED = -1

# Bindings are kept for reuse, because binding costs 25 us of a 45 us tick; bounded in number and in bytes.
_MAX_BINDINGS = 256
_MAX_BINDING_BYTES = 64 << 20


@dataclass(slots=True)
class _Binding:
    """Buffers of one (B, T), bound once: filling them and running is all that a tick does.

    Attributes:
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


@dataclass(frozen=True, slots=True)
class TickCost:
    """What a tick takes: `fixed_seconds + B * T * row_step_seconds`."""

    fixed_seconds: float
    row_step_seconds: float

    def seconds(self, row_steps: int) -> float:
        """Expected seconds of a tick of B x T = `row_steps`."""
        return self.fixed_seconds + row_steps * self.row_step_seconds


class Engine:
    """One model, loaded and ready to tick.

    Args:
        graphs: its graphs; contract: its contract.
        num_slots: S, slots to hand out (the reserved ones come on top).
        provider: an ONNX Runtime execution provider name from `runtime.available_providers`.
        num_threads: threads within one operator.

    Raises:
        ModelError: the graphs are not the contract's, ONNX Runtime refuses one, or the self-test finds a wrong result.
    """

    def __init__(
        self,
        graphs: ModelGraphs,
        contract: Contract,
        *,
        num_slots: int,
        provider: str = "CPUExecutionProvider",
        num_threads: int = 1,
    ) -> None:
        check_graphs(contract, graphs)
        self.contract = contract
        self.provider = provider
        self.num_slots = num_slots
        self._runtime = Runtime(provider, num_threads)
        wrapped = wrap_step_graph(graphs.step, contract)
        self.guarded_states = wrapped.guarded
        self._ports = wrapped.arenas
        self._session = self._runtime.session(wrapped.model)
        # Sessions that were opened together lie together: what is only read is then read where it lies. Gathering a
        # translator's memory takes a quarter of its tick. On the CPU only, where a part of an arena is a value, too.
        self._direct = None
        if contract.has_immutable and self._runtime.is_cpu:
            direct = wrap_step_graph(graphs.step, contract, gathers_immutable=False)
            self._direct = self._runtime.session(direct.model)
        self._loader = self._runtime.session(load_graph(contract))
        self._prime = None if graphs.prime is None else self._runtime.session(graphs.prime)
        self._whole = None if graphs.whole is None else self._runtime.session(graphs.whole)
        self._primed_states = () if graphs.prime is None else tuple(value.name for value in graphs.prime.graph.output)
        # Changed only by `run`, `begin` and `write_states`, on the caller's thread.
        self._arenas = {port.state.name: self._create_arena(port.state) for port in self._ports}
        self._bindings: OrderedDict[tuple[int, int, int], _Binding] = OrderedDict()
        self._binding_bytes = 0
        # Of the last `run`, `run_whole` or `begin`: seconds inside ONNX Runtime.
        self.run_seconds = 0.0
        self.write_states(np.array([INITIAL_SLOT]), [port.state.initial[None] for port in self._ports])
        selftest.check(self, graphs, self._runtime)

    def close(self) -> None:
        """Frees graphs, arenas and buffers; nothing may be run any more."""
        self._bindings.clear()
        self._binding_bytes = 0
        self._arenas.clear()
        del self._session, self._loader
        self._direct = self._prime = self._whole = None

    @property
    def arena_bytes(self) -> int:
        """Bytes of all arenas on the device."""
        return self.contract.state_bytes * (self.num_slots + NUM_RESERVED_SLOTS)

    def run(
        self,
        feeds: Sequence[bytes],
        read_slots: np.ndarray | int,
        write_slots: np.ndarray | int,
        num_rows: int,
        num_steps: int,
        home_slots: np.ndarray | int = INITIAL_SLOT,
    ) -> list[bytes]:
        """Steps B rows by T steps: state of row b comes from `read_slots[b]` and goes to `write_slots[b]`.

        Args:
            feeds: one block of raw bytes a feed of the contract, [B, T, ...] in C order.
            read_slots, write_slots: int64 [B], or the slot itself where B = 1; write slots are distinct.
            num_rows: B; num_steps: T.
            home_slots: the same, where immutable states are; of no account for a model that has none.

        Returns:
            One block of raw bytes a result of the contract, [B, T, ...] in C order.

        Raises:
            ModelError: the graph failed; the rows' states are undefined.
        """
        first_home = _GATHERED if self._direct is None else _first_of_run(home_slots, num_rows)
        binding = self._binding(num_rows, num_steps, first_home)
        for buffer, values in zip(binding.inputs, feeds, strict=True):
            buffer[:] = values
        binding.read_slots[:] = read_slots
        binding.write_slots[:] = write_slots
        if self.contract.has_immutable:
            binding.home_slots[:] = home_slots
        for value, host in binding.device_inputs:
            value.update_inplace(host)
        self._run_bound(binding.session, binding.io)
        if binding.device_outputs:
            blocks = [value.numpy()[:num_rows].tobytes() for value in binding.device_outputs]
        else:
            blocks = [buffer.tobytes() for buffer in binding.outputs]
        if self.contract.emits:
            self._check_emitted(blocks[-1], num_steps)
        return blocks

    def _check_emitted(self, raw: bytes, num_steps: int) -> None:
        """A graph that says it has emitted more than it can have is not believed."""
        counts = np.frombuffer(raw, "<i8")
        most = num_steps + self.contract.outputs[0].extra_steps
        if counts.min() < 0 or counts.max() > most:
            raise ModelError(
                Reason.MODEL_FAILED,
                f"the graph of {self.contract.name!r} emitted {counts.min()} to {counts.max()} steps, 0 to {most} fit",
            )

    def run_whole(self, inputs: Sequence[bytes], num_rows: int, num_steps: int) -> list[bytes]:
        """The whole graph's result for B whole sequences of T steps.

        Args:
            inputs: one block of raw bytes an input of the contract, [B, T, ...] in C order.

        Returns:
            One block of raw bytes an output of the contract, [B, T, ...] in C order.

        Raises:
            ModelError: the graph failed.
        """
        assert self._whole is not None, "the model has no whole graph"
        feed = {
            port.name: pad_rows(np.frombuffer(raw, port.dtype).reshape(num_rows, num_steps, *port.shape))
            for port, raw in zip(self.contract.inputs, inputs, strict=True)
        }
        names = [port.name for port in self.contract.outputs]
        return [value[:num_rows].tobytes() for value in self._run_plain(self._whole, names, feed)]

    def begin(
        self,
        slots: np.ndarray,
        prime: Sequence[np.ndarray] = (),
        lengths: np.ndarray | None = None,
        given: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Writes the states that sessions begin with into `slots` int64 [B].

        Args:
            prime: one [B, S, ...] a prime input, for a model that has a prime graph; lengths: int64 [B], valid source
                steps of each, at least 1.
            given: states [B, ...] by name, that are taken instead of the prime graph's and the initial ones.

        Raises:
            ModelError: the prime graph failed; nothing was written.
        """
        count = len(slots)
        states = {port.state.name: np.repeat(port.state.initial[None], count, axis=0) for port in self._ports}
        if prime:
            assert self._prime is not None and lengths is not None, "only a model with a prime graph is primed"
            feed = {port.name: pad_rows(values) for port, values in zip(self.contract.prime_inputs, prime, strict=True)}
            if name := self.contract.message.ports.prime_length:
                feed[name] = pad_rows(lengths)
            written = self._run_plain(self._prime, list(self._primed_states), feed)
            for state, values in zip(self._primed_states, written, strict=True):
                states[state] = values[:count]
        states |= given or {}
        self.write_states(slots, list(states.values()))

    def read_states(self, slots: np.ndarray) -> list[np.ndarray]:
        """Copies of the states in `slots` int64 [B]: one array a state, [B, ...]. Not for the hot path."""
        return [self._host_arena(port)[slots].copy() for port in self._ports]

    def write_states(self, slots: np.ndarray, states: Sequence[np.ndarray]) -> None:
        """Overwrites the states in `slots` int64 [B] with `states`, one [B, ...] a state, in place.

        Raises:
            ModelError: ONNX Runtime failed; the states in `slots` are undefined.
        """
        io = self._loader.io_binding()
        # A value on the CPU shares its array's memory, which must outlive the run.
        kept = [self._runtime.value(np.ascontiguousarray(slots, np.int64)[:, None])]
        io.bind_ortvalue_input(WRITE_SLOTS, kept[0])
        for port, rows in zip(self._ports, states, strict=True):
            kept.append(self._runtime.value(np.ascontiguousarray(rows, port.state.dtype)))
            io.bind_ortvalue_input(port.state.name, kept[-1])
            io.bind_ortvalue_input(port.input_name, self._arenas[port.state.name])
            io.bind_ortvalue_output(port.output_name, self._arenas[port.state.name])
        self._run_bound(self._loader, io)

    def _run_bound(self, session: Any, io: Any) -> None:
        start = time.perf_counter()
        try:
            # Without run options: passing any costs 65 us a call in ONNX Runtime 1.32's Python layer.
            session.run_with_iobinding(io)
        except Exception as error:  # ONNX Runtime raises bare exceptions of several kinds.
            raise self._failed(error) from error
        self.run_seconds = time.perf_counter() - start

    def _run_plain(self, session: Any, names: list[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        start = time.perf_counter()
        try:
            results: list[np.ndarray] = session.run(names, feed)
        except Exception as error:
            raise self._failed(error) from error
        self.run_seconds = time.perf_counter() - start
        return results

    def _failed(self, error: Exception) -> ModelError:
        return ModelError(Reason.MODEL_FAILED, f"the graph of {self.contract.name!r} failed: {error}")

    def measure_cost(self, repeats: int = 15) -> TickCost:
        """Measures what a tick costs, on working slots: the fastest of `repeats` ticks of 2 and of 32 rows.

        The fastest, because other programs only ever make a tick slower, and what is measured here is kept.
        """
        small, large = 2, 32
        # Of a model that looks ahead, ticks that emit: most of its work is done in those.
        streaming = self.contract.message.streaming
        num_steps = streaming.block_steps + streaming.look_ahead_steps if self.contract.emits else 1
        few, many = (self._least_seconds(rows, num_steps, repeats) for rows in (small, large))
        per_row_step = max((many - few) / ((large - small) * num_steps), 1e-8)
        return TickCost(max(few - small * num_steps * per_row_step, 0.0), per_row_step)

    def _least_seconds(self, rows: int, num_steps: int, repeats: int) -> float:
        feeds = [values.tobytes() for values in example_feeds(self.contract, rows, num_steps)]
        read = np.full(rows, INITIAL_SLOT)
        write = np.arange(rows) % self.num_slots + NUM_RESERVED_SLOTS
        durations = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.run(feeds, read, write, rows, num_steps)
            durations.append(time.perf_counter() - start)
        return min(durations)

    # Buffers

    def _create_arena(self, state: State) -> Any:
        shape = [self.num_slots + NUM_RESERVED_SLOTS, *state.shape]
        # Zero pages are not resident until a slot is used.
        return self._runtime.value(np.zeros(shape, state.dtype))

    def _host_arena(self, port: ArenaPort) -> np.ndarray:
        """On the CPU a view of the arena itself, elsewhere a copy."""
        value: np.ndarray = self._arenas[port.state.name].numpy()
        return value

    def _binding(self, rows: int, num_steps: int, first_home: int) -> _Binding:
        key = (rows, num_steps, first_home)
        binding = self._bindings.get(key)
        if binding is not None:
            self._bindings.move_to_end(key)
            return binding
        binding = self._create_binding(rows, num_steps, first_home)
        self._bindings[key] = binding
        self._binding_bytes += binding.num_bytes
        while len(self._bindings) > _MAX_BINDINGS or (
            self._binding_bytes > _MAX_BINDING_BYTES and len(self._bindings) > 1
        ):
            _, oldest = self._bindings.popitem(last=False)
            self._binding_bytes -= oldest.num_bytes
        return binding

    def _create_binding(self, rows: int, num_steps: int, first_home: int) -> _Binding:
        """Buffers for B = `rows`; rows that pad to the minimum read the initial state, write scratch and stay so.

        Args:
            first_home: where the immutable states of the rows begin, one after the other; or that they are gathered.
        """
        padded = max(rows, MIN_ROWS)
        is_direct = first_home != _GATHERED
        session: Any = self._direct if is_direct else self._session
        io = session.io_binding()
        inputs = example_feeds(self.contract, padded, num_steps)
        read, home = np.full(padded, INITIAL_SLOT), np.full(padded, INITIAL_SLOT)
        write = np.full((padded, 1), SCRATCH_SLOT)
        binding = _Binding(
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
        hosts = [(port.name, array) for port, array in zip(self.contract.feeds, inputs, strict=True)]
        hosts += [(READ_SLOTS, read), (WRITE_SLOTS, write)]
        if self.contract.has_immutable and not is_direct:
            hosts.append((HOME_SLOTS, home))
        for name, array in hosts:
            value = self._runtime.value(array)
            if not self._runtime.is_cpu:
                binding.device_inputs.append((value, array))
            io.bind_ortvalue_input(name, value)
            binding.num_bytes += array.nbytes
        if self.guarded_states:
            io.bind_ortvalue_input(LIVE, self._runtime.value(np.ones(1, np.bool_)))
        for arena in self._ports:
            if is_direct and not arena.state.next_name:
                part = self._host_arena(arena)[first_home : first_home + rows]
                io.bind_ortvalue_input(arena.state.name, self._runtime.value(part))
                continue
            io.bind_ortvalue_input(arena.input_name, self._arenas[arena.state.name])
            if arena.state.next_name:
                io.bind_ortvalue_output(arena.output_name, self._arenas[arena.state.name])
        for port in self.contract.results:
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
