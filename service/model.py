"""A served model: one version of one model with everything it needs to serve sessions.

Owns the putting together of engine, slots, kept replies and scheduler, and the session operations that touch several
of them: open, close, reset, take over, expire. Must not know the wire, files or threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from eddy.service.arena import INITIAL_SLOT, NUM_RESERVED_SLOTS, SlotAllocator
from eddy.service.backing import whom_to_write
from eddy.service.cells import HostMemory
from eddy.service.config import ModelConfig
from eddy.service.contract import Contract
from eddy.service.engine import Engine
from eddy.service.errors import ClientError, Detail, EddyError, Reason
from eddy.service.finite import Outputs, finite_rows
from eddy.service.graph import ModelGraphs
from eddy.service.lifecycle import Event
from eddy.service.pages import PageMoves, Stage
from eddy.service.ports import State
from eddy.service.queue import Limits
from eddy.service.replies import ReplyStore
from eddy.service.residence import Places, Residence
from eddy.service.scheduler import Scheduler
from eddy.service.sessions import MODEL_BITS, NOWHERE, Identity, SessionTable
from eddy.service.start import Start
from eddy.service.stats import ModelStats
from eddy.service.tick import Job

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Where a model came from: its name and version in the repository, and digests of its files.

    Attributes:
        digest: the step graph's SHA-256; package: one over all files of the version's folder.
    """

    name: str
    version: str
    digest: str
    package: str = ""


class Backing(Protocol):
    """A state store, as far as a model's sessions need it that neither slots nor cells have room for.

    Whoever tells `done` sees to it that the model's queue is looked at afterwards.
    """

    def recall(self, model: ServedModel, rows: np.ndarray, done: Callable[[np.ndarray | EddyError], None]) -> None:
        """Has the states of the sessions in `rows` int64 [B] placed by `place_states`; tells `done`, once.

        `done` is told those that the store does not have as they were, int64 [n], because another server has them.
        """

    def on_pressure(self, model: ServedModel, rows: np.ndarray, done: Callable[[EddyError | None], None]) -> None:
        """Has the sessions in `rows` int64 [B] written, whose cells are wanted; tells `done`, once."""


class ServedModel:
    """One version of one model, ready to serve.

    Args:
        file: what it is; index: its number in the session table.
        graphs, contract: its graphs and their contract.
        table: the server's sessions.
        config: sizes and limits; provider: execution provider.
        on_ended: told the handles of sessions that ended by the server's will, by owner stream, and why.
        stats: what counts on from a model before it; new ones without.
        memory: for the states of sessions that have no slot; none without. backing: the state store, if there is one.

    Raises:
        ModelError: the model does not load.
    """

    def __init__(
        self,
        file: ModelFile,
        index: int,
        graphs: ModelGraphs,
        contract: Contract,
        table: SessionTable,
        config: ModelConfig,
        provider: str,
        on_ended: Callable[[int, np.ndarray, EddyError], None],
        stats: ModelStats | None = None,
        memory: HostMemory | None = None,
        backing: Backing | None = None,
    ) -> None:
        self.file = file
        self.index = index
        self.contract = contract
        self.config = config
        self._table = table
        self._on_ended = on_ended
        # A model that does not stream has no sessions, and so nothing to keep.
        num_slots = config.num_slots(contract.state_bytes) if contract.is_streamable else 0
        num_work_slots = config.max_rows if contract.is_streamable else 0
        self.engine = Engine(
            graphs, contract, num_slots=num_slots + num_work_slots, provider=provider, num_threads=config.num_threads
        )
        self.stats = stats or ModelStats()
        self._backing = backing
        # The state store was asked to make room, and has not answered; what it said when it could not.
        self._is_pressed = False
        self._pressure_error: EddyError | None = None
        self.residence = Residence(
            index,
            table,
            self.engine,
            contract.states,
            num_slots,
            config.max_rows,
            memory or HostMemory(0),
            self.stats.observe_moves,
            is_endless=backing is not None,
        )
        self.replies = ReplyStore(
            contract.feeds,
            contract.results,
            config.max_kept_reply_bytes,
        )
        self.cost = self.engine.measure_cost()
        # Reading jobs that have not ended.
        self.num_reads = 0
        # Changed by the catalog: when the model was retired, monotonic seconds; None while it opens sessions.
        self.retired_at: float | None = None
        limits = Limits(config.max_rows, self.cost.budget(config.max_tick_seconds), config.max_queued_chunks)
        self.scheduler = Scheduler(
            contract,
            table,
            self.replies,
            SlotAllocator(NUM_RESERVED_SLOTS + num_slots, num_work_slots),
            self.residence,
            limits,
            self._fail_rows,
            Outputs(contract.results, emits=contract.emits, unchecked=self.engine.unchecked),
            self.quarantine_sessions,
        )
        self.scheduler.queue.send_for = self._send_for
        self.scheduler.queue.make_room = self._make_room
        self._is_checked = [self.is_checked(state) for state in contract.states]
        # Of whole sequences, one block [B, U, ...] an output.
        self.whole_outputs = Outputs(contract.outputs, unchecked=self.engine.unchecked)

    @property
    def table(self) -> SessionTable:
        """The server's sessions."""
        return self._table

    @property
    def slots(self) -> SlotAllocator:
        """The slots of sessions."""
        return self.residence.slots

    @property
    def num_sessions(self) -> int:
        """Sessions of this model that are open."""
        return self.residence.num_sessions

    def refuse_unless_streamable(self) -> None:
        """Raises ClientError NOT_STREAMABLE where the model has no sessions, with what prevents them."""
        if self.contract.is_streamable:
            return
        why = self.contract.message.streaming.reason or "its contract gives no reason"
        message = f"model: {self.file.name!r} does not stream ({why}); send it whole sequences, by Infer"
        raise ClientError(Reason.NOT_STREAMABLE, message, Detail("model", self.file.name, "a model that streams"))

    def idle_timeout_seconds(self, usual: float, most: float) -> float:
        """Of sessions whose client asks for none: the contract's, or else the server's; never more than the most."""
        return min(self.contract.message.idle_timeout_seconds or usual, most)

    def open_sessions(
        self,
        count: int,
        stream: int,
        max_in_flight: int,
        idle_timeout_seconds: float | np.ndarray,
        identity: Identity | None = None,
    ) -> np.ndarray:
        """Opens `count` sessions owned by `stream`; returns their table rows, int64 [count].

        Args:
            identity: of sessions that were open elsewhere or before.

        Raises:
            CapacityError: no memory for their states, or too many sessions; nothing was opened.
        """
        slots = self.residence.take(count)
        rings = self.replies.open_rings(count, max_in_flight)
        try:
            rows = self._table.open(
                slots,
                model=self.index,
                stream=stream,
                initial_slot=INITIAL_SLOT,
                ring_starts=rings,
                ring_size=max_in_flight,
                idle_timeout_seconds=idle_timeout_seconds,
                identity=identity,
            )
        except EddyError:
            self.residence.give_back(slots)
            self.replies.close_rings(rings, np.full(count, max_in_flight))
            raise
        self.residence.settle_in(rows, slots)
        if max_in_flight > 1:
            self.scheduler.queue.uses_rings = True
        self.stats.num_opened_sessions += count
        return rows

    def begin_sessions(self, rows: np.ndarray, start: Start, done: Callable[[list[bytes] | EddyError], None]) -> None:
        """Has `start` written into the slots of the sessions in `rows`, no more of them at once than a tick takes.

        Of sessions without a slot, into cells. Until `done` is told, once, the sessions are busy: whatever else is
        asked of them waits, and they neither end nor leave their places, into which nobody else must have been let when
        these are written.

        Raises:
            CapacityError: QUEUE_FULL; nothing will be written.
        """
        queue = self.scheduler.queue
        slots, cells = self._table.slot[rows].astype(np.int64), np.full(len(rows), NOWHERE, np.int64)
        most = max(1, queue.most_rows(start.num_steps))
        parts = [slice(begin, begin + most) for begin in range(0, len(rows), most)]
        outcomes: list[list[bytes] | EddyError] = []

        def write(part: slice) -> list[bytes]:
            piece = start.take(part)
            states = self.engine.first_states(len(slots[part]), piece.prime, piece.lengths, piece.states)
            self.residence.write(slots[part], cells[part], states)
            return []

        def written(outcome: list[bytes] | EddyError) -> None:
            outcomes.append(outcome)
            if len(outcomes) == len(parts):
                queue.clear_busy(rows)
                done(next((each for each in outcomes if isinstance(each, EddyError)), []))

        is_run = bool(start.prime)
        jobs = [Job(partial(write, part), written, len(rows[part]), start.num_steps, is_run=is_run) for part in parts]
        queue.submit_job(*jobs)
        is_parked = slots == NOWHERE
        if is_parked.any():
            cells[is_parked] = self.residence.enter_cells(rows[is_parked])
        queue.set_busy(rows, len(rows))
        self._table.has_own_start[rows] = True

    def read_states(
        self, rows: np.ndarray, done: Callable[[list[np.ndarray] | EddyError], None], *, is_refusable: bool = True
    ) -> None:
        """Copies the states of the sessions in `rows` int64 [B], which are open and may be busy.

        Args:
            done: told, once, one array a state, [B, ...], as they are after the steps that the table counts when it is
                told: `next_position` belongs to them. A session whose handle is another by then is for the caller
                to leave out.
            is_refusable: somebody asked for it, who can ask again; not so the server's own checkpoints.

        Raises:
            CapacityError: QUEUE_FULL.
        """
        residence, queue = self.residence, self.scheduler.queue
        places: list[Places] = []
        found: list[np.ndarray] = []
        held = [rows]

        def submit() -> None:
            if len(stored := residence.stored_of(rows)):
                self.recall_states(stored, submit_again)
                return
            job = Job(read, finished, len(rows), 1, prepare=prepare)
            if is_refusable:
                queue.submit_job(job)
            else:
                queue.add_job(job)

        def submit_again(error: EddyError | None) -> None:
            try:
                if error is None:
                    submit()
                    return
            except EddyError as refusal:
                error = refusal
            end(error)

        def prepare() -> None:
            # Only now: until its turn came they may have changed places.
            places.append(residence.locate(rows))

        def read() -> list[bytes]:
            found[:] = residence.read(places[0])
            return []

        def finished(outcome: list[bytes] | EddyError) -> None:
            if places:
                residence.finish()
                if not residence.are_good(rows, places.pop()):
                    submit_again(None)
                    return
            end(outcome if isinstance(outcome, EddyError) else found)

        def release() -> None:
            if held:  # Once, though a job whose end fails is told so again.
                residence.release(held.pop())
                self.num_reads -= 1

        def end(outcome: list[np.ndarray] | EddyError) -> None:
            release()
            done(outcome)

        residence.hold(rows)
        self.num_reads += 1
        try:
            submit()
        except EddyError:
            release()
            raise

    def is_checked(self, state: State) -> bool:
        """Whether a session's `state` must be finite; False where it was not even for examples of inputs."""
        return state.name not in self.engine.unchecked

    # The store tier

    def recall_states(
        self, rows: np.ndarray, done: Callable[[EddyError | None], None], staying: np.ndarray | None = None
    ) -> None:
        """Has the states of the sessions in `rows` int64 [B], which are in the state store only, brought into cells.

        Others make room for them, but for those in `staying` int64 [n]. They are busy until `done` is told. Where the
        store fails, so do the chunks that wait for them. Those that it does not have as they were end; of those that
        the caller itself keeps busy `done` is told, and they end later.
        """
        assert self._backing is not None, "nobody has a state in a store that is not there"
        queue = self.scheduler.queue
        mine = rows[~self._table.is_busy[rows]]
        queue.set_busy(mine, len(mine))
        if short := self.residence.cells.num_short(len(rows)):
            self.residence.shelve(short, rows if staying is None else staying)

        def recalled(outcome: np.ndarray | EddyError) -> None:
            queue.clear_busy(mine)
            if isinstance(outcome, EddyError):
                queue.fail_waiting(rows, outcome)
                done(outcome)
                return
            self._table.is_durable[outcome] = False
            self.fence_sessions(outcome[~self._table.is_busy[outcome]])
            held = outcome[self._table.is_busy[outcome]]
            if len(held):
                queue.submit_control(held, partial(self._fence_open, held, self._table.handle[held]))
            done(self._table.ended_by(Event.FENCE) if len(held) else None)

        self._backing.recall(self, rows, recalled)

    def _fence_open(self, rows: np.ndarray, handles: np.ndarray) -> None:
        """The same for sessions that somebody kept busy, unless they have ended otherwise."""
        self.fence_sessions(rows[self._table.handle[rows] == handles])

    def _send_for(self, rows: np.ndarray, staying: np.ndarray) -> None:
        self.recall_states(rows, lambda _: None, staying)

    def _make_room(self, num_rows: int) -> EddyError | None:
        """Asks the state store to take sessions whose cells are wanted; why a chunk fails that finds no room."""
        if self._is_pressed:
            return None
        error, self._pressure_error = self._pressure_error, None
        rows = whom_to_write(self._table, self.index) if self._backing is not None else np.empty(0, np.int64)
        if error is not None or self._backing is None or not len(rows):
            return error or self.residence.refusal(num_rows)

        def written(problem: EddyError | None) -> None:
            self._is_pressed = False
            self._pressure_error = problem

        self._is_pressed = True
        self._backing.on_pressure(self, rows, written)
        return None

    def place_at_start(self, rows: np.ndarray) -> None:
        """The sessions in `rows` int64 [B], open and not busy, have the initial states from now on."""
        self.residence.place_at_start(rows)

    def place_states(self, rows: np.ndarray, states: Sequence[np.ndarray]) -> None:
        """The sessions in `rows` int64 [B], open and not busy, have `states` from now on, one [B, ...] a state.

        They lie in the host's memory then, and are moved into slots by the next tick that there is, as far as slots are
        free. Positions and whatever else the table knows of them is for the caller.
        """
        self.residence.place(rows, states)
        handles = self._table.handle[rows]
        formed: list[PageMoves] = []

        def prepare() -> None:
            if moves := self.residence.settle_back(rows[self._table.handle[rows] == handles]):
                formed.append(moves)

        def move() -> list[bytes]:
            for moves in formed:
                moves.carry_out()
            return []

        def moved(_: list[bytes] | EddyError) -> None:
            for moves in formed:
                if moves.stage is Stage.DONE:
                    self.residence.settle(moves)
                elif len(lost := self.residence.undo(moves)):
                    self._fail_rows(lost)

        if self.slots.num_free:
            self.scheduler.queue.submit_job(Job(move, moved, len(rows), 1, prepare=prepare))

    def finite_rows(self, states: Sequence[np.ndarray], num_rows: int) -> np.ndarray:
        """Rows of states that are finite, bool [B]; one [B, ...] a state in the contract's order, B = `num_rows`.

        States that were not finite for examples of inputs are not checked.
        """
        checked = [values for values, is_checked in zip(states, self._is_checked, strict=True) if is_checked]
        return finite_rows(checked) if checked else np.ones(num_rows, np.bool_)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What whoever runs the server should know of the model."""
        if not self.engine.unchecked:
            return ()
        names = ", ".join(sorted(self.engine.unchecked))
        return (f"{names}: not finite for examples of inputs, so no session ends because they are not",)

    def is_initial(self, rows: np.ndarray) -> np.ndarray:
        """Which of the sessions in `rows` int64 [B] have the contract's initial states, bool [B]."""
        return np.asarray(self._table.read_slot[rows] == INITIAL_SLOT)

    def last_reply(self, row: int) -> tuple[bytes, ...] | None:
        """The kept outputs of the last chunk of the session in `row`, raw bytes a port; None when forgotten."""
        table = self._table
        kept = self.replies.last(table.ring_start.item(row), table.ring_size.item(row), table.next_position.item(row))
        return None if kept is None else kept.outputs

    def close_sessions(self, rows: np.ndarray) -> None:
        """Ends sessions at their client's wish; `rows` int64 [B], open and not busy."""
        self._end(rows, Event.CLOSE)

    def reset_sessions(self, rows: np.ndarray) -> None:
        """Back to the initial state; kept replies are forgotten. `rows` int64 [B], open and not busy."""
        self.residence.forget(rows)
        self._table.reset(rows, INITIAL_SLOT)
        self.replies.clear_rings(self._table.ring_start[rows], self._table.ring_size[rows])

    def expire_sessions(self, rows: np.ndarray) -> None:
        """Ends sessions that were idle for too long, with notice to their owners."""
        self._end_with_notice(rows, Event.EXPIRE)

    def retire_sessions(self, rows: np.ndarray) -> None:
        """Ends sessions of a model that was retired long ago, with notice to their owners; `rows` not busy."""
        self._end_with_notice(rows, Event.RETIRE)

    def quarantine_sessions(self, rows: np.ndarray) -> None:
        """Ends sessions with values that are not finite, with notice to their owners; `rows` int64 [B], not busy.

        What the state store has of them stays. Nobody is let into their slots before the initial values are there.
        """
        slots = self._table.slot[rows].astype(np.int64)
        slots = slots[slots != NOWHERE]  # Whoever is parked has none, and a cell is written before it is read.
        self._end_with_notice(rows, Event.QUARANTINE)
        _LOG.warning("model %s version %s: %d sessions quarantined", self.file.name, self.file.version, len(rows))

        def clear() -> list[bytes]:
            initial = [np.repeat(state.initial[None], len(slots), axis=0) for state in self.contract.states]
            self.engine.write_states(slots, initial)
            return []

        def cleared(outcome: list[bytes] | EddyError) -> None:
            if isinstance(outcome, EddyError):
                # Fresh sessions read the initial slot: what is left there is never read before it is written.
                _LOG.error("model %s version %s: %s", self.file.name, self.file.version, outcome.message)
            self.residence.free_slots(slots)

        if len(slots):
            self.scheduler.queue.add_job(Job(clear, cleared, len(slots), 1))

    def close(self) -> None:
        """Frees the arena and the graphs, once no session is open and nothing runs."""
        self.engine.close()
        self.residence.cells.close()
        self.scheduler.close()

    def fence_sessions(self, rows: np.ndarray) -> None:
        """Ends sessions that another server goes on with, with notice to their owners; `rows` not busy."""
        if len(rows):
            self._end_with_notice(rows, Event.FENCE)

    def _fail_rows(self, rows: np.ndarray) -> None:
        self._end_with_notice(rows, Event.FAIL)

    def _end_with_notice(self, rows: np.ndarray, event: Event) -> None:
        handles, routes = self._table.handle[rows], self._table.route[rows]
        self._end(rows, event)
        streams = routes >> MODEL_BITS
        for stream in np.unique(streams).tolist():
            mine = handles[streams == stream]
            self._on_ended(stream, mine, self._table.ended_by(event))

    def _end(self, rows: np.ndarray, event: Event) -> None:
        self.replies.close_rings(self._table.ring_start[rows], self._table.ring_size[rows])
        self.residence.leave(rows, keeps_slots=event is Event.QUARANTINE)  # Which are cleared first.
        self._table.stand_at_start(rows, INITIAL_SLOT)  # Whoever was about to read them reads nothing of others.
        self._table.end(rows, event)
        self.stats.num_ended_sessions[event] += len(rows)
