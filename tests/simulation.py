"""One model behind its scheduler, ticked by hand: no wire, no threads, no real clock.

Owns a rig (served model, table, clock), clients of sessions that send chunks and collect replies, and the oracle that
compares what they collected with the plain graph. Ticks run in the order in which they were formed, as on the engine
thread, and may be committed later.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from graphs import Family, PlainGraph, Start

from eddy.service import start as service
from eddy.service.arena import INITIAL_SLOT, NUM_RESERVED_SLOTS
from eddy.service.cells import HostMemory
from eddy.service.chunk import NO_DEADLINE, Chunk, ChunkResult
from eddy.service.config import ModelConfig
from eddy.service.contract import read_contract
from eddy.service.cost import Budget
from eddy.service.errors import EddyError, ModelError, Reason
from eddy.service.graph import ModelGraphs
from eddy.service.model import ModelFile, ServedModel
from eddy.service.pages import Arena, PageMoves
from eddy.service.queue import Limits
from eddy.service.sessions import NOWHERE, SessionTable, route
from eddy.service.tick import AnyTick, Job

STREAM = 7


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Moves on."""
        self.now += seconds


class Mailbox:
    """A source of chunks that keeps every result, and refuses a second one for the same chunk."""

    def __init__(self) -> None:
        self.is_gone = False
        self.results: dict[int, ChunkResult] = {}
        self.order: list[int] = []

    def deliver(self, chunk: Chunk, result: ChunkResult) -> None:
        """Takes the one result of `chunk`."""
        assert chunk.tag not in self.results, "a chunk was answered twice"
        self.results[chunk.tag] = result
        self.order.append(chunk.tag)


def _no_error(error: EddyError | None) -> None:
    assert error is None, error


class Shelf:
    """A state store in memory (`model.Backing`), which answers when it is told to.

    Attributes:
        is_away: it fails what it is asked for.
    """

    def __init__(self) -> None:
        self.is_away = False
        self.num_recalled = 0
        # By row and epoch: position and states [...] each; None of one that stands at its start, as in a record.
        self._kept: dict[tuple[int, int], tuple[int, list[np.ndarray] | None]] = {}
        self._waiting: deque[Callable[[], None]] = deque()

    def work(self) -> bool:
        """Answers the oldest request; False when there is none."""
        if not self._waiting:
            return False
        self._waiting.popleft()()
        return True

    def recall(self, model: ServedModel, rows: np.ndarray, done: Callable[[np.ndarray | EddyError], None]) -> None:
        """Places what was kept."""
        table = model.table

        def place() -> None:
            if self.is_away:
                done(_AWAY)
                return
            # Another call may have brought some of them back meanwhile, and they may have been stepped since.
            away = model.residence.stored_of(rows)
            found = [self._kept[int(row), int(table.stored_epoch[row])] for row in away]
            assert [position for position, _ in found] == table.next_position[away].tolist()
            is_initial = np.array([states is None for _, states in found], np.bool_)
            model.place_at_start(away[is_initial])
            if not is_initial.all():
                kept = [states for _, states in found if states is not None]
                model.place_states(away[~is_initial], [np.stack(values) for values in zip(*kept, strict=True)])
            self.num_recalled += len(away)
            done(rows[:0])

        self._waiting.append(place)

    def checkpoint(self, model: ServedModel) -> None:
        """Keeps all sessions that have changed, wherever they are."""
        table = model.table
        rows = table.open_rows(model.index)
        is_dirty = (table.durable_position[rows] != table.next_position[rows]) | (
            table.stored_epoch[rows] != table.handle[rows] >> np.uint64(32)
        )
        rows = rows[is_dirty & table.is_durable[rows]]
        if len(rows):
            self.on_pressure(model, rows, lambda _: None)

    def on_pressure(self, model: ServedModel, rows: np.ndarray, done: Callable[[EddyError | None], None]) -> None:
        """Keeps sessions as they are."""
        table = model.table
        handles = table.handle[rows]

        def read(states: list[np.ndarray] | EddyError) -> None:
            if isinstance(states, EddyError):
                assert states is _AWAY, states
                done(states)
                return
            is_same = table.handle[rows] == handles
            is_initial = model.is_initial(rows)
            for place in np.flatnonzero(is_same).tolist():
                row = rows[place]
                epoch = int(handles[place]) >> 32
                mine = None if is_initial[place] else [values[place] for values in states]
                self._kept[int(row), epoch] = int(table.next_position[row]), mine
                table.stored_epoch[row] = epoch
                table.set_durable(rows[place : place + 1], table.next_position[rows[place : place + 1]])
            done(None)

        def write() -> None:
            mine = rows[table.handle[rows] == handles]
            if self.is_away or len(mine) < len(rows):
                done(_AWAY if self.is_away else None)
                return
            model.read_states(rows, read)

        self._waiting.append(write)


_AWAY = ModelError(Reason.STORE_UNAVAILABLE, "the store is away")


class BrokenArena:
    """An arena that cannot be written, and unless `gets_out` not read."""

    def __init__(self, arena: Arena, *, gets_out: bool) -> None:
        self._arena = arena
        self._gets_out = gets_out

    def read_states(self, slots: np.ndarray, home_slots: np.ndarray | None = None) -> list[np.ndarray]:
        """The states in slots, or a failure."""
        if not self._gets_out:
            raise ModelError(Reason.MODEL_FAILED, "the arena cannot be read")
        return self._arena.read_states(slots, home_slots)

    def write_states(self, slots: np.ndarray, states: Sequence[np.ndarray]) -> None:
        """Leaves noise, and fails."""
        self._arena.write_states(slots, [np.ones_like(values) for values in states])
        raise ModelError(Reason.MODEL_FAILED, "the arena cannot be written")


class Rig:
    """One served model with small limits.

    Args:
        family: the model; row_steps_budget: rows x steps in one tick; max_rows: rows in one tick.
        host_bytes: memory for the states of sessions without a slot.
        shelf: a state store for what the host's memory has no room for.
        is_late: ticks that are formed and not committed are run only when they are to be committed.
        settings: further fields of `ModelConfig`.
    """

    def __init__(
        self,
        family: Family,
        *,
        row_steps_budget: int = 1 << 20,
        max_rows: int = 64,
        host_bytes: int = 0,
        shelf: Shelf | None = None,
        is_late: bool = False,
        **settings: Any,
    ) -> None:
        self.family = family
        self.is_late = is_late
        self.shelf = shelf
        self.clock = Clock()
        generator = np.random.default_rng(5)
        self.table = SessionTable(10_000, self.clock, generator.bytes)
        model = family.model()
        graphs = ModelGraphs(model, None if family.prime is None else family.prime.graph())
        config = ModelConfig(**({"max_slots": 48, "max_rows": max_rows} | settings))
        self.ended: list[tuple[int, list[int], EddyError]] = []
        self.model = ServedModel(
            ModelFile(family.name, "1", ""),
            0,
            graphs,
            read_contract(model),
            self.table,
            config,
            "CPUExecutionProvider",
            lambda stream, handles, error: self.ended.append((stream, handles.tolist(), error)),
            memory=HostMemory(host_bytes),
            backing=shelf,
        )
        self.scheduler = self.model.scheduler
        # The measured cost would make the cutting of chunks depend on the machine.
        self.scheduler.queue.limits = Limits(max_rows, Budget(row_steps_budget), 1024)
        self.away: deque[tuple[AnyTick, list[bytes] | EddyError | None]] = deque()
        # Moves that are to fail, by identity: whether those who leave get out before.
        self._doomed: dict[int, bool] = {}
        self.mailbox = Mailbox()
        self._tags = count(1)

    def open(self, num_sessions: int = 1, *, stream: int = STREAM, max_in_flight: int = 1) -> np.ndarray:
        """Opens sessions; returns their table rows, int64 [n]."""
        rows = self.model.open_sessions(num_sessions, stream, max_in_flight, 600.0)
        self.table.is_durable[rows] = self.shelf is not None
        return rows

    def begin(self, row: int, start: Start) -> None:
        """Has the session in `row` begin with `start`."""
        rows = np.array([row])
        prime = [values[None] for values in start.inputs]

        def begun(outcome: list[bytes] | EddyError) -> None:
            assert not isinstance(outcome, EddyError), outcome
            self.table.begin_at(rows, self.table.slot[rows])

        self.model.begin_sessions(rows, service.Start(prime, np.array([start.length])), begun)
        self.run_all()

    def chunk(
        self,
        handles: Sequence[int] | np.ndarray,
        positions: Sequence[int],
        inputs: Sequence[np.ndarray],
        *,
        stream: int = STREAM,
        source: Mailbox | None = None,
        deadline: float = NO_DEADLINE,
    ) -> Chunk:
        """A chunk with `inputs` [B, T, ...] each, not submitted."""
        return Chunk(
            np.asarray(handles, "<u8").tobytes(),
            np.asarray(positions, "<u8").tobytes(),
            inputs[0].shape[1],
            tuple(np.ascontiguousarray(values, port.dtype).tobytes() for values, port in self._with_ports(inputs)),
            route(stream, 0),
            source or self.mailbox,
            next(self._tags),
            self.model.contract,
            self.clock(),
            deadline,
        )

    def _with_ports(self, inputs: Sequence[np.ndarray]) -> list[tuple[np.ndarray, Any]]:
        return list(zip(inputs, self.model.contract.feeds, strict=True))

    def submit(self, rows: np.ndarray, positions: Sequence[int], inputs: Sequence[np.ndarray], **options: Any) -> int:
        """Submits a chunk of the sessions in `rows`; returns its tag."""
        chunk = self.chunk(self.table.handle[rows], positions, inputs, **options)
        self.scheduler.queue.submit(chunk)
        return chunk.tag

    def step(
        self, rows: np.ndarray, positions: Sequence[int], inputs: Sequence[np.ndarray], **options: Any
    ) -> ChunkResult:
        """Submits a chunk, runs all that waits, and returns the chunk's result."""
        tag = self.submit(rows, positions, inputs, **options)
        self.run_all()
        return self.mailbox.results[tag]

    def outputs(self, result: ChunkResult, num_rows: int, num_steps: int) -> list[np.ndarray]:
        """A result's outputs, [B, T, ...] each, and the steps emitted, [B], where the model says them."""
        return [
            port.view(block, num_rows, num_steps)
            for block, port in zip(result.outputs, self.model.contract.results, strict=True)
        ]

    def state(self, row: int) -> list[np.ndarray]:
        """The states of the session in `row`, one [...] a state."""
        residence = self.model.residence
        if len(residence.stored_of(np.array([row]))):
            self.model.recall_states(np.array([row]), _no_error)
            self.run_all()
        found = residence.read(residence.locate(np.array([row])))
        residence.finish()
        return [values[0] for values in found]

    def check_places(self, *, is_quiet: bool = False) -> None:
        """Every open session is in one tier, nobody shares a place, and what is counted is what the table says.

        Args:
            is_quiet: nothing waits and nothing runs: every slot and cell is somebody's, or free.
        """
        table, residence = self.table, self.model.residence
        rows = table.open_rows()
        slots, cells, reads = table.slot[rows], table.cell[rows], table.read_slot[rows]
        has_slot, has_cell, is_stored = slots != NOWHERE, cells != NOWHERE, table.is_stored[rows]
        is_initial = reads == INITIAL_SLOT
        assert (has_slot.astype(int) + has_cell + is_stored <= 1).all(), "a session is in two tiers"
        assert (table.home_slot[rows[is_initial]] == INITIAL_SLOT).all(), "half of a session's states are initial"
        assert not (is_initial & (has_cell | is_stored)).any(), "a session without states has a place for them"
        assert ((reads == slots) | is_initial | ~has_slot).all(), "a session reads another's slot"
        assert (is_initial | has_slot | has_cell | is_stored).all(), "a session's states are nowhere"
        assert len(np.unique(slots[has_slot])) == np.count_nonzero(has_slot), "two sessions have one slot"
        assert len(np.unique(cells[has_cell])) == np.count_nonzero(has_cell), "two sessions have one cell"
        owners = residence._owners  # noqa: SLF001  (the rig's own)
        assert (owners[slots[has_slot] - NUM_RESERVED_SLOTS] == rows[has_slot]).all(), "a slot has another owner"
        assert np.count_nonzero(owners) == np.count_nonzero(has_slot), "a slot is owned by nobody that is open"
        assert residence.num_sessions == len(rows)
        assert residence.num_stored == np.count_nonzero(is_stored)
        assert residence.num_parked == np.count_nonzero(~has_slot)
        queue = self.scheduler.queue
        assert queue._num_busy == np.count_nonzero(table.is_busy), "busy sessions were miscounted"  # noqa: SLF001
        if is_quiet:
            assert residence.cells.num_used == np.count_nonzero(has_cell), "a cell is lost"
            assert residence.slots.num_free + np.count_nonzero(has_slot) == residence.slots.num_slots, "a slot is lost"
            assert not table.num_readers.any() and not self.model.num_reads and queue.is_idle

    # Ticks

    def run_tick(self) -> bool:
        """Forms a tick, runs and commits it, as on the event loop; False when there was none."""
        assert not self.away, "ticks are away: an inline tick would overtake them"
        tick = self.scheduler.next_tick(self.clock())
        if tick is None:
            return False
        self.scheduler.commit(tick, self._run(tick), self.clock())
        return True

    def form_tick(self) -> bool:
        """Forms a tick and runs it without committing it, as while the engine thread has it."""
        tick = self.scheduler.next_tick(self.clock())
        if tick is None:
            return False
        self.scheduler.begin(tick)
        # In order: not before one that is run late.
        is_late = self.is_late or any(blocks is None for _, blocks in self.away)
        self.away.append((tick, None if is_late else self._run(tick)))
        return True

    def fail_moves(self, *, gets_out: bool) -> bool:
        """Forms a tick whose page moves fail, before they have done anything or once all who leave are out.

        What it should have copied is scribbled over. False when there was none, or nothing was to be moved.
        """
        while not self.is_late and self.commit_tick():
            pass
        tick = self.scheduler.next_tick(self.clock())
        if tick is None:
            return False
        self.scheduler.begin(tick)
        if isinstance(tick, Job) or tick.moves is None:
            self.away.append((tick, None if self.is_late else self._run(tick)))
            return False
        self._doomed[id(tick.moves)] = gets_out
        self.away.append((tick, None))
        return True

    def commit_tick(self) -> bool:
        """Commits the oldest tick that is away."""
        if not self.away:
            return False
        tick, blocks = self.away.popleft()
        if blocks is None:
            blocks = self._run_or_fail(tick)
        if isinstance(blocks, EddyError):
            self.scheduler.abort(tick, blocks, was_begun=True)
        else:
            self.scheduler.commit(tick, blocks, self.clock(), was_begun=True)
        return True

    def _run_or_fail(self, tick: AnyTick) -> list[bytes] | EddyError:
        """Runs a tick as the engine thread does."""
        try:
            if not isinstance(tick, Job) and tick.moves is not None and id(tick.moves) in self._doomed:
                self._break_moves(tick.moves, gets_out=self._doomed.pop(id(tick.moves)))
            return self._run(tick)
        except EddyError as error:
            return error

    def _break_moves(self, moves: PageMoves, *, gets_out: bool) -> None:
        """Carries moves out on an arena that fails."""
        moves.arena = BrokenArena(moves.arena, gets_out=gets_out)

    def fail_tick(self) -> bool:
        """Forms a tick that the engine fails after it has scribbled over the slots that it was to write."""
        if self.away:
            return False
        tick = self.scheduler.next_tick(self.clock())
        if tick is None:
            return False
        engine = self.model.engine
        if isinstance(tick, Job):
            self.scheduler.commit(tick, tick.run(), self.clock())
            return False
        if tick.moves is not None:
            tick.moves.carry_out()
        slots = np.atleast_1d(tick.write_slots)
        noise = [np.ones_like(state) for state in engine.read_states(slots)]
        if all(state.next_name for state in self.family.states):
            engine.write_states(slots, noise)
        self.scheduler.abort(tick, ModelError(Reason.MODEL_FAILED, "the graph failed"))
        return True

    def _run(self, tick: AnyTick) -> list[bytes]:
        if isinstance(tick, Job):
            return tick.run()
        if tick.moves is not None:
            tick.moves.carry_out()
        assert np.unique(tick.write_slots).size == tick.num_rows, "two rows of a tick write one slot"
        budget = self.scheduler.queue.limits.budget.row_steps
        assert tick.num_steps == 1 or tick.num_rows * tick.num_steps <= budget, "a tick is over its budget"
        return self.model.engine.run(
            tick.inputs, tick.read_slots, tick.write_slots, tick.num_rows, tick.num_steps, tick.home_slots
        )

    def run_all(self) -> None:
        """Commits and runs until nothing waits."""
        while self.commit_tick() or self.run_tick() or (self.shelf is not None and self.shelf.work()):
            pass
        assert self.scheduler.queue.is_idle, "something waits that nothing can move on"


def assert_same(got: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Bit for bit, or within the tolerance that the contract states."""
    if tolerance:
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)
    else:
        np.testing.assert_array_equal(got, expected)


@dataclass
class Sent:
    """A chunk of one session: where it begins, its feeds [T, ...], and the tags under which it was sent."""

    position: int
    inputs: list[np.ndarray]
    tags: list[tuple[int, int]] = field(default_factory=list)

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.inputs[0])


class Writer:
    """The client of one session: knows what it sent, and where it thinks the session is."""

    def __init__(self, row: int, handle: int, max_in_flight: int, start: Start | None = None) -> None:
        self.row = row
        self.handle = handle
        self.max_in_flight = max_in_flight
        self.position = 0
        self.sent: list[Sent] = []
        self.is_open = True
        self.start = start

    def restart(self, handle: int) -> None:
        """The session was reset."""
        self.handle, self.position, self.sent = handle, 0, []


def check_writer(rig: Rig, plain: PlainGraph, writer: Writer) -> int:
    """The oracle: what a writer collected is what the plain graph gives for what was applied.

    Every chunk that was answered was applied once: answers to the same chunk are equal, positions are contiguous,
    outputs and final states are those of the sequence run alone. Returns the number of steps compared.
    """
    applied: list[tuple[Sent, list[np.ndarray]]] = []
    for sent in writer.sent:
        answers = []
        for tag, index in sent.tags:
            result = rig.mailbox.results[tag]
            if result.failure is None and index not in result.errors:
                num_rows = len(result.outputs[0]) // rig.model.contract.outputs[0].row_bytes(sent.num_steps)
                answer = [block[index] for block in rig.outputs(result, num_rows, sent.num_steps)]
                if rig.family.ends is not None:
                    *outputs, emitted = answer
                    assert not any(output[emitted:].any() for output in outputs), "values beyond what was emitted"
                    answer = [output[:emitted] for output in outputs]
                answers.append(answer)
        for answer in answers[1:]:
            for first, again in zip(answers[0], answer, strict=True):
                np.testing.assert_array_equal(first, again)
        if answers:
            applied.append((sent, answers[0]))
    if not applied:
        return 0
    applied.sort(key=lambda pair: pair[0].position)
    place = 0
    for sent, _ in applied:
        assert sent.position == place, "applied chunks are not contiguous"
        place += sent.num_steps
    inputs = [np.concatenate(values) for values in zip(*[sent.inputs for sent, _ in applied], strict=True)]
    outputs, states = plain.whole(inputs, writer.start)
    for i, expected in enumerate(outputs):
        assert_same(np.concatenate([answer[i] for _, answer in applied]), expected, rig.family.tolerance)
    if writer.is_open:
        assert int(rig.table.next_position[writer.row]) == place
        for state, expected in zip(rig.state(writer.row), states, strict=True):
            assert_same(state, expected, rig.family.tolerance)
    return place
