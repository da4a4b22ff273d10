"""The engine: one model's graphs around its state arena, on one execution provider.

Owns how the graphs are run: the step graph once a tick, or in groups of rows and pieces of steps where it does not take
any number of them. Must not know sessions, positions or the wire: it sees rows of slots. One caller at a time (the
scheduler's dispatcher guarantees it): the arena is updated in place.

Ordering rules: slot 0 holds the initial state and slot 1 is scratch; neither is ever handed out. A run never has
fewer than two rows, because ONNX Runtime's kernels for one row take another path and other bits; unless the graph
takes one row exactly. All rows of a tick are read before any is written.

Dimension key: B rows of a tick, T steps, S slots.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eddy.service import selftest
from eddy.service.answer import Answer
from eddy.service.arena import INITIAL_SLOT, NUM_RESERVED_SLOTS
from eddy.service.binding import Bindings
from eddy.service.contract import Contract
from eddy.service.cost import TickCost
from eddy.service.errors import ModelError, Reason
from eddy.service.example import example, example_feeds
from eddy.service.finite import finite_rows, not_finite
from eddy.service.graph import ModelGraphs, check_graphs, declared_steps
from eddy.service.runs import Runs
from eddy.service.runtime import MIN_ROWS, Runtime, pad_rows
from eddy.service.states import States

# A run of so few seconds that what it takes a row is lost in what it takes by itself.
_LEAST_ROW_STEP_SECONDS = 1e-8
# Steps of sequences that a whole graph is tried with: some need enough for a window.
_WHOLE_STEPS = (16, 64, 256, 1024, 4096)
# Runs of a tick whose cost is measured, where a tick may be several.
_MEASURED_RUNS = 4


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
        self._runs = contract.runs
        self._runtime = Runtime(provider, num_threads)
        # Changed only by `run`, `begin`, `write_states` and `copy_states`, on the caller's thread.
        self._states = States(self._runtime, contract, num_slots, self._run_bound)
        self._bindings = None
        if graphs.step is not None:
            self._bindings = Bindings(graphs.step, contract, self._runtime, self._states)
        self._prime = None if graphs.prime is None else self._runtime.session(graphs.prime)
        self._whole = None if graphs.whole is None else self._runtime.session(graphs.whole)
        # T of the sequences that the whole graph takes, where it takes no other; else 0.
        self.whole_steps = 0 if graphs.whole is None else declared_steps(graphs.whole, contract)
        self._primed_states = () if graphs.prime is None else tuple(value.name for value in graphs.prime.graph.output)
        # Of the last `run`, `run_whole` or `begin`: seconds inside ONNX Runtime.
        self.run_seconds = 0.0
        self.write_states(np.array([INITIAL_SLOT]), [state.initial[None] for state in contract.states])
        # Names of outputs and states that are not checked for finiteness, because examples of inputs fail that.
        # Until it is known which, no state is.
        self.unchecked = frozenset(state.name for state in contract.states)
        self.unchecked = selftest.check(self, graphs, self._runtime)

    def close(self) -> None:
        """Frees graphs, arenas and buffers; nothing may be run any more."""
        if self._bindings is not None:
            self._bindings.close()
        self._states.close()
        self._prime = self._whole = None

    @property
    def guarded_states(self) -> tuple[str, ...]:
        """Names of states whose update had to be ordered by hand (see `WrappedGraph`)."""
        return () if self._bindings is None else self._bindings.guarded_states

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
        if self._runs is not None and not self._runs.fits(num_rows, num_steps):
            return self._run_in_parts(self._runs, feeds, read_slots, write_slots, num_rows, num_steps, home_slots)
        assert self._bindings is not None, "only a model that streams is stepped"
        binding = self._bindings.find(num_rows, num_steps, home_slots)
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

    def _run_in_parts(
        self,
        runs: Runs,
        feeds: Sequence[bytes],
        read_slots: np.ndarray | int,
        write_slots: np.ndarray | int,
        num_rows: int,
        num_steps: int,
        home_slots: np.ndarray | int,
    ) -> list[bytes]:
        """`run` for a tick that the graph does not take at once: groups of rows, each in pieces of steps."""
        contract = self.contract
        read, write, home = (np.broadcast_to(slots, num_rows) for slots in (read_slots, write_slots, home_slots))
        seconds = 0.0
        is_moving = read != write
        if runs.num_groups(num_rows) > 1 and is_moving.any() and np.isin(read[is_moving], write).any():
            # One group would write what another has yet to read.
            self._states.move(read, write)
            read, seconds = write, self.run_seconds
        arrays = [port.view(raw, num_rows, num_steps) for port, raw in zip(contract.feeds, feeds, strict=True)]
        answer = Answer(contract, num_rows, num_steps)
        for rows in runs.row_groups(num_rows):
            source, count = read[rows], rows.stop - rows.start
            for steps in runs.step_pieces(num_steps):
                size = steps.stop - steps.start
                part = [values[rows, steps].tobytes() for values in arrays]
                blocks = self.run(part, source, write[rows], count, size, home[rows])
                seconds += self.run_seconds
                results = zip(contract.results, blocks, strict=True)
                answer.add([port.view(block, count, size) for port, block in results], steps.start, rows)
                source = write[rows]
        self.run_seconds = seconds
        return [whole.tobytes() for whole in answer.results]

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
            One block of raw bytes an output of the contract, [B, U, ...] in C order. U is T, of a model that streams;
            of others each output has its own.

        Raises:
            ModelError: the graph failed, or gave other shapes than the contract says.
        """
        assert self._whole is not None, "the model has no whole graph"
        contract = self.contract
        feed = {
            port.name: port.view(raw, num_rows, num_steps) for port, raw in zip(contract.inputs, inputs, strict=True)
        }
        blocks = []
        names = [port.name for port in contract.outputs]
        for port, value in zip(contract.outputs, self._run_plain(self._whole, names, feed, num_rows), strict=True):
            if value.ndim != 2 + len(port.shape) or value.shape[2:] != port.shape or len(value) != num_rows:
                raise ModelError(
                    Reason.MODEL_FAILED,
                    f"the whole graph of {contract.name!r} gave {port.name!r} the shape {list(value.shape)}, "
                    f"the contract says {[num_rows, 'U', *port.shape]}",
                )
            blocks.append(value.tobytes())
        return blocks

    def begin(
        self,
        slots: np.ndarray,
        prime: Sequence[np.ndarray] = (),
        lengths: np.ndarray | None = None,
        given: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Writes the states that sessions begin with into `slots` int64 [B]: see `first_states`."""
        self.write_states(slots, self.first_states(len(slots), prime, lengths, given))

    def first_states(
        self,
        count: int,
        prime: Sequence[np.ndarray] = (),
        lengths: np.ndarray | None = None,
        given: Mapping[str, np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """The states that B = `count` sessions begin with, one [B, ...] a state.

        Args:
            prime: one [B, S, ...] a prime input, for a model that has a prime graph; lengths: int64 [B], valid source
                steps of each, at least 1.
            given: states [B, ...] by name, that are taken instead of the prime graph's and the initial ones.

        Raises:
            ModelError: the prime graph failed, or gave values that are not finite (QUARANTINED).
        """
        states = {state.name: np.repeat(state.initial[None], count, axis=0) for state in self.contract.states}
        if prime:
            assert self._prime is not None and lengths is not None, "only a model with a prime graph is primed"
            feed = {port.name: values for port, values in zip(self.contract.prime_inputs, prime, strict=True)}
            if name := self.contract.message.ports.prime_length:
                feed[name] = lengths
            written = self._run_plain(self._prime, list(self._primed_states), feed, count)
            checked = [
                part for name, part in zip(self._primed_states, written, strict=True) if name not in self.unchecked
            ]
            if checked and not finite_rows(checked).all():
                raise not_finite("the states that the prime graph gave")
            states |= dict(zip(self._primed_states, written, strict=True))
        states |= given or {}
        return list(states.values())

    def read_states(self, slots: np.ndarray, home_slots: np.ndarray | None = None) -> list[np.ndarray]:
        """Copies of the states in `slots` int64 [B]: one array a state, [B, ...].

        Args:
            home_slots: the same, of those states that no step writes; None: those are in `slots`, too.
        """
        return self._states.read(slots, home_slots)

    def write_states(self, slots: np.ndarray, states: Sequence[np.ndarray]) -> None:
        """Overwrites the states in `slots` int64 [B] with `states`, one [B, ...] a state, in place.

        Raises:
            ModelError: ONNX Runtime failed; the states in `slots` are undefined.
        """
        self._states.write(slots, states)

    def copy_states(self, read_slots: np.ndarray, home_slots: np.ndarray, write_slots: np.ndarray) -> None:
        """Copies states on the device: from `read_slots`, the immutable ones from `home_slots`; int64 [B] each.

        Raises:
            ModelError: ONNX Runtime failed; the states in `write_slots` are undefined.
        """
        self._states.copy(read_slots, home_slots, write_slots)

    def _run_bound(self, session: Any, io: Any) -> None:
        start = time.perf_counter()
        try:
            # Without run options: passing any costs 65 us a call in ONNX Runtime 1.32's Python layer.
            session.run_with_iobinding(io)
        except Exception as error:  # ONNX Runtime raises bare exceptions of several kinds.
            raise self._failed(error) from error
        self.run_seconds = time.perf_counter() - start

    def _run_plain(
        self, session: Any, names: list[str], feed: Mapping[str, np.ndarray], num_rows: int
    ) -> list[np.ndarray]:
        """The named outputs, [B, ...] each, of a graph that keeps no states; `feed` is [B, ...] each."""
        exact = 0 if self._runs is None else self._runs.rows
        size = exact or num_rows
        start = time.perf_counter()
        parts = []
        for begin in range(0, num_rows, size):
            end = min(begin + size, num_rows)
            padded = {name: pad_rows(values[begin:end], exact or MIN_ROWS) for name, values in feed.items()}
            try:
                parts.append([values[: end - begin] for values in session.run(names, padded)])
            except Exception as error:
                raise self._failed(error) from error
        self.run_seconds = time.perf_counter() - start
        return parts[0] if len(parts) == 1 else [np.concatenate(each) for each in zip(*parts, strict=True)]

    def _failed(self, error: Exception) -> ModelError:
        return ModelError(Reason.MODEL_FAILED, f"the graph of {self.contract.name!r} failed: {error}")

    def measure_cost(self, repeats: int = 15) -> TickCost:
        """Measures what a tick costs, on working slots: the fastest of `repeats` ticks of few and of many row-steps.

        The fastest, because other programs only ever make a tick slower, and what is measured here is kept.
        """
        if self._bindings is None:
            return self._measure_whole()
        runs = self._runs
        # Of a model that looks ahead, ticks that emit: most of its work is done in those.
        streaming = self.contract.message.streaming
        steps = streaming.block_steps + streaming.look_ahead_steps if self.contract.emits else 1
        # B and T of both. Where the graph fixes its rows, many steps take the place of many rows.
        small, large = (2, steps), (32, steps)
        if runs is not None and runs.steps:
            small, large = (2, _MEASURED_RUNS * runs.steps), (32, _MEASURED_RUNS * runs.steps)
        if runs is not None and runs.rows:
            many_steps = runs.steps or 16 * steps
            small, large = (_MEASURED_RUNS * runs.rows, runs.steps or steps), (_MEASURED_RUNS * runs.rows, many_steps)
        few, many = (self._least_seconds(*size, repeats) for size in (small, large))
        num_few, num_many = small[0] * small[1], large[0] * large[1]
        num_runs = 1 if runs is None else runs.num_groups(small[0]) * runs.num_pieces(small[1])
        # Runs that are all of one size tell nothing of what their rows take.
        by_row_step = (many - few) / (num_many - num_few) if num_many > num_few else 0.0
        per_row_step = max(by_row_step, _LEAST_ROW_STEP_SECONDS)
        return TickCost(max(few - num_few * per_row_step, 0.0) / num_runs, per_row_step, runs)

    def _measure_whole(self, repeats: int = 3) -> TickCost:
        """`measure_cost` for a whole graph alone, by sequences of the fewest steps that it takes."""
        num_steps = self.shortest_whole()
        exact = 0 if self._runs is None else self._runs.rows
        few, many = (exact, exact) if exact else (2, 32)
        seconds = []
        for rows in (few, many):
            inputs = [example(port, rows, num_steps).tobytes() for port in self.contract.inputs]
            durations = []
            for _ in range(repeats):
                start = time.perf_counter()
                self.run_whole(inputs, rows, num_steps)
                durations.append(time.perf_counter() - start)
            seconds.append(min(durations))
        if exact:  # One size tells one thing: it is the steps that cost.
            return TickCost(0.0, max(seconds[0] / (exact * num_steps), _LEAST_ROW_STEP_SECONDS), self._runs)
        per_row_step = max((seconds[1] - seconds[0]) / ((many - few) * num_steps), _LEAST_ROW_STEP_SECONDS)
        return TickCost(max(seconds[0] - few * num_steps * per_row_step, 0.0), per_row_step)

    def shortest_whole(self) -> int:
        """The fewest steps, of some that are tried, of sequences that the whole graph takes.

        Raises:
            ModelError: it takes none of them.
        """
        failure: ModelError | None = None
        for num_steps in (self.whole_steps,) if self.whole_steps else _WHOLE_STEPS:
            try:
                self.run_whole([example(port, 2, num_steps).tobytes() for port in self.contract.inputs], 2, num_steps)
            except ModelError as error:
                failure = failure or error
            else:
                return num_steps
        assert failure is not None, "some number of steps was tried"
        raise failure

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
