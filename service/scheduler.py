"""The scheduler of one model: forms ticks from queued chunks and carries out what they did.

Owns time slicing, the advance of sessions and the answers. Must not know the wire, threads or the clock (time comes in
as an argument), nor how a tick is run: `next_tick` decides, somebody runs it, `commit` or `abort` finishes it. All on
one thread.

Ordering rules: chunks that share a session take effect in the order of arrival; a chunk takes effect once, as a
whole, at its last slice; control operations (close, reset, take-over) keep their place in that order.

Chunks whose rows are all fine, and that need not be sliced, go through `bulk`. The **general path** goes chunk by chunk
and sorts out refused rows, repeats and slices.

Dimension key: B rows of a tick, T steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np

from eddy.service.admission import Admission, input_arrays
from eddy.service.answer import Answer
from eddy.service.arena import INITIAL_SLOT, SlotAllocator
from eddy.service.bulk import BulkAdmission
from eddy.service.chunk import NO_ERRORS, Chunk, ChunkResult
from eddy.service.contract import Contract
from eddy.service.errors import EddyError, Reason, ServerBug
from eddy.service.finite import Outputs, blanked, quarantined
from eddy.service.pages import PageMoves, Stage
from eddy.service.queue import ChunkQueue, Limits
from eddy.service.replies import ReplyStore
from eddy.service.residence import Residence
from eddy.service.sessions import SessionTable
from eddy.service.tick import AnyTick, Control, Job, SingleTick, Tick

_LOG = logging.getLogger(__name__)


class Scheduler:
    """Continuous batching for one model.

    Args:
        table: sessions; model: this model's index in it.
        replies: kept replies of this model; work_slots: slots for states between slices; residence: who has slots.
        on_failed: told the rows whose states a failed tick left undefined; ends those sessions.
        outputs: what is checked of a tick's results; on_quarantined: as `on_failed`, of rows that fail it.
    """

    def __init__(
        self,
        contract: Contract,
        table: SessionTable,
        replies: ReplyStore,
        work_slots: SlotAllocator,
        residence: Residence,
        limits: Limits,
        on_failed: Callable[[np.ndarray], None],
        outputs: Outputs,
        on_quarantined: Callable[[np.ndarray], None],
    ) -> None:
        self._contract = contract
        self._table = table
        self._replies = replies
        self._work_slots = work_slots
        self._on_failed = on_failed
        self._outputs = outputs
        self._on_quarantined = on_quarantined
        self._admission = Admission(contract, table, replies)
        self._residence = residence
        self._bulk = BulkAdmission(contract, table, residence)
        self.queue = ChunkQueue(table, work_slots, limits, residence)
        # Changed only by the methods below.
        # Totals for metrics.
        self.num_ticks = 0
        self.num_row_steps = 0
        self.num_replayed = 0

    def close(self) -> None:
        """Nothing will run any more: who would be told of failures is let go."""
        self._on_failed = self._on_quarantined = _tell_nobody
        self.queue.close()

    # Deciding

    def next_tick(self, now: float) -> AnyTick | None:
        """Forms the next tick; None when nothing can run now. Chunks that need no run are answered on the way."""
        return self._next_job(now, is_turn=True) or self._next_chunks(now) or self._next_job(now, is_turn=False)

    def _next_job(self, now: float, *, is_turn: bool) -> Job | None:
        while (job := self.queue.pop_job(now, is_turn=is_turn)) is not None:
            if job.prepare is None or self._prepare(job, job.prepare):
                self.queue.num_jobs_away += 1
                return job
        return None

    def _prepare(self, job: Job, prepare: Callable[[], None]) -> bool:
        """Whether a job can be run; it is told where it cannot."""
        try:
            prepare()
        except Exception:  # noqa: BLE001  the job's root: it fails alone, and what waits behind it goes on
            _LOG.exception("model %s: a job could not be prepared", self._contract.name)
            job.done(ServerBug(Reason.INTERNAL, "the server failed to prepare this"))
            return False
        return True

    def _next_chunks(self, now: float) -> Tick | SingleTick | None:
        queue = self.queue
        while queue.has_chunks:
            chunks, num_steps = queue.pick(now)
            if not chunks:
                return None
            try:
                tick = self._bulk.admit(chunks, num_steps) or self._general_tick(chunks, num_steps)
            except Exception:
                # Back in the queue: whoever handles this fails what waits there, and nobody is left without an answer.
                queue.put_back(chunk for chunk in chunks if not chunk.is_answered)
                raise
            if tick is not None:
                return tick
        return None

    # The general path

    def _general_tick(self, chunks: list[Chunk], num_steps: int) -> Tick | None:
        """A tick of chunks with refused rows, repeats or slices; None when nothing is left to run."""
        running = []
        this_pass = self.queue.begin_pass()
        postponed: list[Chunk] = []
        for chunk in chunks:
            if not chunk.is_begun:
                rows = self.queue.rows_of(chunk)
                # A session that an earlier chunk of this tick steps, too: the next tick.
                is_shared = bool((self._table.mark[rows] == this_pass).any())
                self._table.mark[rows] = this_pass
                if is_shared:
                    postponed.append(chunk)
                    continue
                self._begin(chunk, num_steps)
            assert chunk.index is not None
            if len(chunk.index):
                running.append(chunk)
            else:
                self._finish(chunk)
        self.queue.put_back(postponed)
        if not running:
            return None
        return self._assemble(running, num_steps)

    def _begin(self, chunk: Chunk, num_steps: int) -> None:
        """Sorts out the rows of a chunk and prepares those that run."""
        rows = self.queue.rows_of(chunk)
        errors, replays = self._admission.check(chunk, rows)
        runs = np.ones(chunk.num_rows, np.bool_)
        runs[[*errors, *replays]] = False
        good = np.flatnonzero(runs)
        if chunk.num_steps > num_steps and len(good):
            chunk.work_slots = self._work_slots.allocate(len(good))
        chunk.errors, chunk.replays, chunk.index = errors, replays, good
        if len(good):
            chunk.answer = Answer(self._contract, len(good), chunk.num_steps)
            self.queue.set_busy(rows[good], len(good))

    def _assemble(self, chunks: list[Chunk], num_steps: int) -> Tick:
        table = self._table
        moves = self._bring(chunks) if self._residence.is_parked else None
        rows, read, write = [], [], []
        inputs: list[list[np.ndarray]] = [[] for _ in self._contract.feeds]
        for chunk in chunks:
            assert chunk.rows is not None and chunk.index is not None
            mine = chunk.rows[chunk.index]
            rows.append(mine)
            is_first, is_last = chunk.done_steps == 0, chunk.done_steps + num_steps == chunk.num_steps
            work = np.empty(0, np.int64) if chunk.work_slots is None else chunk.work_slots
            read.append(table.read_slot[mine] if is_first else work)
            write.append(table.slot[mine] if is_last else work)
            span = slice(chunk.done_steps, chunk.done_steps + num_steps)
            for parts, values in zip(inputs, input_arrays(self._contract, chunk), strict=True):
                parts.append(values[chunk.index, span])
        bounds = list(accumulate(map(len, rows), initial=0))
        return Tick(
            chunks,
            bounds,
            tuple([np.concatenate(parts).tobytes() for parts in inputs]),
            np.concatenate(rows),
            np.concatenate(read),
            np.concatenate(write),
            table.home_slot[np.concatenate(rows)] if self._contract.has_immutable else INITIAL_SLOT,
            bounds[-1],
            num_steps,
            moves=moves,
        )

    def _bring(self, chunks: list[Chunk]) -> PageMoves | None:
        """Slots for the sessions of chunks that begin; those of others keep theirs while they are busy."""
        beginning = [chunk.rows[chunk.index] for chunk in chunks if chunk.rows is not None and not chunk.done_steps]
        return self._residence.bring(np.concatenate(beginning)) if beginning else None

    # Carrying out

    def begin(self, tick: AnyTick) -> None:
        """The tick will run elsewhere while other ticks are formed: its sessions are busy until it is finished."""
        if isinstance(tick, SingleTick):
            self.queue.set_busy(np.array([tick.row]), 1)
        elif isinstance(tick, Tick) and tick.positions is not None:
            self.queue.set_busy(tick.rows, tick.num_rows)

    def commit(self, tick: AnyTick, blocks: Sequence[bytes], now: float, *, was_begun: bool = False) -> None:
        """The tick ran: advances its sessions, keeps its replies and answers its chunks.

        Args:
            blocks: one block an output port, [B, T, ...] raw; now: monotonic seconds.
            was_begun: `begin` was called for it.
        """
        if not isinstance(tick, Job) and tick.moves is not None:
            self._residence.settle(tick.moves)
        if not isinstance(tick, Job) or tick.is_run:
            self.num_ticks += 1
            self.num_row_steps += tick.num_rows * tick.num_steps
        if isinstance(tick, Job):
            tick.done(list(blocks))
            self.queue.num_jobs_away -= 1  # Behind it: where that raises, the job is aborted.
        elif isinstance(tick, SingleTick):
            if was_begun:
                self.queue.clear_busy(np.array([tick.row]))
            self._advance_one(tick, (*tick.inputs, *blocks), now)
            if self._outputs.are_finite(blocks):
                tick.chunk.reply(ChunkResult(blocks))
            else:
                self._reply_checked([tick.chunk], [0, 1], np.array([tick.row]), blocks)
        elif tick.positions is None:
            self._commit_slices(tick, blocks, now)
        else:
            if was_begun:
                self.queue.clear_busy(tick.rows)
            parts = (*tick.inputs, *blocks)
            self._advance(tick.rows, tick.positions, tick.write_slots, tick.num_steps, parts, now)
            if self._outputs.are_finite(blocks):
                self._reply_whole(tick.chunks, tick.bounds, blocks)
            else:
                rows = np.arange(self._table.num_rows)[tick.rows]
                self._reply_checked(tick.chunks, tick.bounds, rows, blocks)

    def _reply_whole(
        self, chunks: Sequence[Chunk], bounds: list[int], blocks: Sequence[bytes], bad: np.ndarray | None = None
    ) -> None:
        """Answers the chunks of a tick of the fast path; `bad` bool [B]: rows that are quarantined."""
        errors: list[Mapping[int, EddyError]] = [NO_ERRORS] * len(chunks)
        if bad is not None:
            errors = [dict.fromkeys(np.flatnonzero(bad[b:e]).tolist(), _QUARANTINED) for b, e in pairwise(bounds)]
        if len(chunks) == 1:
            chunks[0].reply(ChunkResult(blocks, errors[0]))
            return
        cut = []
        for block in blocks:
            size = len(block) // bounds[-1]
            cut.append([block[begin * size : end * size] for begin, end in pairwise(bounds)])
        for chunk, parts, mine in zip(chunks, zip(*cut, strict=True), errors, strict=True):
            chunk.reply(ChunkResult(parts, mine))

    def _reply_checked(
        self, chunks: Sequence[Chunk], bounds: list[int], rows: np.ndarray, blocks: Sequence[bytes]
    ) -> None:
        """Ends sessions whose outputs are not finite, and answers the chunks of the tick.

        Args:
            rows: table rows, int64 [B]; blocks: raw bytes a result, [B, T, ...].
        """
        bad = self._outputs.bad_rows(blocks, len(rows))
        if bad.any():
            self._on_quarantined(rows[bad])
            blocks = [blanked(block, bad) for block in blocks]
        self._reply_whole(chunks, bounds, blocks, bad)

    def abort(self, tick: AnyTick, error: EddyError, *, was_begun: bool = False) -> None:
        """The tick failed in the engine: its chunks fail, and sessions whose state it may have touched end.

        A slice that is not its chunk's last writes working slots only: those sessions stay as they were. So do those of
        a tick that failed before it was run, in its page moves, unless a state was lost on the way.
        """
        if isinstance(tick, Job):
            self.queue.num_jobs_away -= 1
            tick.done(error)
            return
        # None: it was run, or may have been.
        lost = None if tick.moves is None else self._finish_moves(tick.moves)
        if isinstance(tick, SingleTick):
            rows = np.array([tick.row])
            if was_begun:
                self.queue.clear_busy(rows)
            undefined = rows if lost is None else lost
            if len(undefined):
                self._on_failed(undefined)
            tick.chunk.fail(error)
            return
        ending = [] if lost is None else [lost]
        is_fast = tick.positions is not None
        if was_begun and is_fast:
            self.queue.clear_busy(tick.rows)
        every = np.arange(self._table.num_rows)[tick.rows]
        for number, chunk in enumerate(tick.chunks):
            rows = every[tick.bounds[number] : tick.bounds[number + 1]]
            if not is_fast:
                self.queue.clear_busy(rows)
                self._release_work_slots(chunk)
            if lost is None and chunk.done_steps + tick.num_steps == chunk.num_steps:
                ending.append(rows)
        undefined = np.concatenate(ending) if ending else np.zeros(0, np.int64)
        if len(undefined):
            self._on_failed(undefined)
        for chunk in tick.chunks:
            chunk.fail(error)

    def _finish_moves(self, moves: PageMoves) -> np.ndarray | None:
        """The sessions whose states were lost in the moves of a tick that failed in them; None when it came further."""
        if moves.is_settled or moves.stage is Stage.DONE:
            self._residence.settle(moves)
            return None
        return self._residence.undo(moves)

    def fail_queue(self, error: EddyError) -> None:
        """Fails every chunk that waits; control operations are carried out once their sessions are not busy."""
        jobs, waiting = self.queue.drain()
        for job in jobs:
            job.done(error)
        controls: list[Control] = []
        for item in waiting:
            if isinstance(item, Control):
                controls.append(item)
                continue
            if item.index is not None:
                self.queue.clear_busy(self.queue.rows_of(item)[item.index])
                self._release_work_slots(item)
            item.fail(error)
        for control in controls:
            self.queue.submit_control(control.rows, control.run)

    def _advance(
        self,
        rows: np.ndarray | slice,
        positions: np.ndarray,
        slots: np.ndarray,
        num_steps: int,
        parts: tuple[bytes, ...],
        now: float,
    ) -> None:
        """The sessions in `rows` have taken `num_steps` steps, into `slots`; `parts`: inputs, then outputs."""
        table = self._table
        table.next_position[rows] = positions + num_steps
        table.read_slot[rows] = slots
        table.last_used[rows] = now
        entries = table.ring_start[rows]
        if self.queue.uses_rings:
            entries = entries + table.ring_next[rows]
            table.ring_next[rows] = (table.ring_next[rows] + 1) % table.ring_size[rows]
        self._replies.keep(entries, positions, parts, num_steps)

    def _advance_one(self, tick: SingleTick, parts: tuple[bytes, ...], now: float) -> None:
        """`_advance` for a tick of the single path."""
        table = self._table
        row = tick.row
        table.next_position[row] = tick.position + tick.num_steps
        table.read_slot[row] = tick.write_slots
        table.last_used[row] = now
        entry = table.ring_start.item(row)
        if self.queue.uses_rings:
            turn = table.ring_next.item(row)
            entry += turn
            table.ring_next[row] = (turn + 1) % table.ring_size.item(row)
        self._replies.keep_one(entry, tick.position, parts, tick.num_steps)

    def _commit_slices(self, tick: Tick, blocks: Sequence[bytes], now: float) -> None:
        results = [
            port.view(block, tick.num_rows, tick.num_steps)
            for port, block in zip(self._contract.results, blocks, strict=True)
        ]
        unfinished: list[Chunk] = []
        for number, chunk in enumerate(tick.chunks):
            begin, end = tick.bounds[number], tick.bounds[number + 1]
            assert chunk.answer is not None
            chunk.answer.add([part[begin:end] for part in results], chunk.done_steps)
            chunk.done_steps += tick.num_steps
            if chunk.done_steps < chunk.num_steps:
                unfinished.append(chunk)
                continue
            assert chunk.index is not None
            assert isinstance(tick.rows, np.ndarray), "the general path picks its rows"
            rows = tick.rows[begin:end]
            self.queue.clear_busy(rows)
            self._release_work_slots(chunk)
            positions = np.frombuffer(chunk.positions, "<i8")[chunk.index]
            inputs = [values[chunk.index].tobytes() for values in input_arrays(self._contract, chunk)]
            whole = [array.tobytes() for array in chunk.answer.results]
            self._advance(rows, positions, tick.write_slots[begin:end], chunk.num_steps, (*inputs, *whole), now)
            if not self._outputs.are_finite(whole):
                self._quarantine(chunk, rows, self._outputs.bad_rows(whole, len(rows)))
            self._finish(chunk)
        # Behind everybody who waits: a long chunk takes its turns.
        self.queue.put_behind(unfinished)

    def _quarantine(self, chunk: Chunk, rows: np.ndarray, bad: np.ndarray) -> None:
        """Ends the sessions in `rows` int64 [n] that are `bad` bool [n], of a chunk of the general path."""
        assert chunk.answer is not None and chunk.index is not None
        if not bad.any():
            return
        self._on_quarantined(rows[bad])
        chunk.errors = {**chunk.errors, **dict.fromkeys(chunk.index[bad].tolist(), _QUARANTINED)}
        for whole in chunk.answer.results:
            whole[bad] = 0

    def _finish(self, chunk: Chunk) -> None:
        """Answers a chunk of the general path."""
        outputs = []
        for number, port in enumerate(self._contract.results):
            whole = np.zeros((chunk.num_rows, *port.row_shape(chunk.num_steps)), port.dtype)
            if chunk.answer is not None:
                whole[chunk.index] = chunk.answer.results[number]
            for row, kept in chunk.replays.items():
                whole[row] = port.view(kept[number], 1, chunk.num_steps)[0]
            outputs.append(whole.tobytes())
        self.num_replayed += len(chunk.replays)
        chunk.reply(ChunkResult(outputs, chunk.errors, tuple(chunk.replays)))

    def _release_work_slots(self, chunk: Chunk) -> None:
        if chunk.work_slots is not None:
            self._work_slots.free(chunk.work_slots)
            chunk.work_slots = None


_QUARANTINED = quarantined("outputs")


def _tell_nobody(rows: np.ndarray) -> None:
    assert not len(rows), "a closed model has no sessions"
