"""The scheduler of one model: forms ticks from queued chunks and carries out what they did.

Owns the queue, the rules of positions and repeats, time slicing, and the advance of sessions. Must not know the wire,
threads or the clock (time comes in as an argument), nor how a tick is run: `next_tick` decides, somebody runs it,
`commit` or `abort` finishes it. All on one thread.

Ordering rules: chunks that share a session take effect in the order of arrival; a chunk takes effect once, as a
whole, at its last slice; control operations (close, reset, take-over) keep their place in that order.

Three paths. The **fast path** checks all rows of all chunks of a tick with a few vector operations and is taken when
every row is fine and no chunk is sliced. The **single path** is the same for one session that steps alone, in plain
integers: an array operation costs ten of them, and whoever is alone waits for every one. The **general path** goes
chunk by chunk and sorts out refused rows, repeats and slices.

Dimension key: B rows of a tick, T steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from eddy.service.admission import Admission, input_arrays
from eddy.service.answer import Answer
from eddy.service.arena import INITIAL_SLOT, SlotAllocator
from eddy.service.chunk import Chunk, ChunkResult
from eddy.service.contract import Contract
from eddy.service.errors import CapacityError, Detail, EddyError, Reason
from eddy.service.replies import ReplyStore
from eddy.service.sessions import ANY_ROUTE, ROW_MASK, SessionTable
from eddy.service.tick import AnyTick, Control, Job, SingleTick, Tick, slice_steps
from eddy.service.values import is_acceptable

# Marks of a pass over the queue lie above every row index, so that both can share the table's scratch column.
_FIRST_PASS = 1 << 32


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one model's ticks and queue.

    Attributes:
        max_rows: rows in one tick.
        row_steps_budget: rows x steps in one tick, unless one chunk's one step already has more.
        max_queued_chunks: chunks that may wait.
    """

    max_rows: int
    row_steps_budget: int
    max_queued_chunks: int


class Scheduler:
    """Continuous batching for one model.

    Args:
        table: sessions; model: this model's index in it.
        replies: kept replies of this model; work_slots: slots for states between slices.
        on_failed: told the rows whose states a failed tick left undefined; ends those sessions.
    """

    def __init__(
        self,
        contract: Contract,
        table: SessionTable,
        replies: ReplyStore,
        work_slots: SlotAllocator,
        limits: Limits,
        on_failed: Callable[[np.ndarray], None],
    ) -> None:
        self.limits = limits
        self._contract = contract
        self._table = table
        self._replies = replies
        self._work_slots = work_slots
        self._on_failed = on_failed
        self._admission = Admission(contract, table, replies)
        # Changed only by the methods below.
        self._queue: deque[Chunk | Control] = deque()
        # Jobs touch no open session, so they wait apart, and take turns with the chunks.
        self._jobs: deque[Job] = deque()
        self._is_jobs_turn = False
        self._pass = _FIRST_PASS
        self._counting = np.arange(1024)
        self._num_busy = 0
        self.uses_rings = False
        # Totals for metrics.
        self.num_ticks = 0
        self.num_row_steps = 0
        self.num_replayed = 0

    # Queue

    @property
    def num_queued(self) -> int:
        """Chunks, control operations and jobs that wait."""
        return len(self._queue) + len(self._jobs)

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._queue and not self._jobs and not self._num_busy

    def most_rows(self, num_steps: int) -> int:
        """Rows of T = `num_steps` that one tick takes; none when they are sliced."""
        return min(self.limits.max_rows, self.limits.row_steps_budget // num_steps)

    def submit(self, chunk: Chunk) -> None:
        """Queues a chunk.

        Raises:
            CapacityError: QUEUE_FULL.
        """
        self._refuse_if_full(len(self._queue))
        self._queue.append(chunk)

    def submit_job(self, job: Job) -> None:
        """Queues a job.

        Raises:
            CapacityError: QUEUE_FULL.
        """
        self._refuse_if_full(len(self._jobs))
        self._jobs.append(job)

    def _refuse_if_full(self, num_queued: int) -> None:
        if num_queued >= self.limits.max_queued_chunks:
            raise CapacityError(
                Reason.QUEUE_FULL,
                f"{num_queued} chunks are waiting for this model, at most {self.limits.max_queued_chunks} may",
            )

    def submit_control(self, rows: np.ndarray, run: Callable[[], None]) -> None:
        """Queues an operation on the sessions in `rows` behind the chunks that wait; at once when none does."""
        if not self._queue and not (self._num_busy and self._table.is_busy[rows].any()):
            run()
        else:
            self._queue.append(Control(rows, run))

    # Deciding

    def next_tick(self, now: float) -> AnyTick | None:
        """Forms the next tick; None when nothing can run now. Chunks that need no run are answered on the way."""
        if self._jobs and (self._is_jobs_turn or not self._queue):
            self._is_jobs_turn = False
            if (job := self._next_job(now)) is not None:
                return job
        self._is_jobs_turn = True
        return self._next_chunks(now) or self._next_job(now)

    def _next_job(self, now: float) -> Job | None:
        while self._jobs:
            job = self._jobs.popleft()
            if job.is_gone:
                continue
            if job.deadline > now:
                return job
            job.done(_late())
        return None

    def _next_chunks(self, now: float) -> Tick | SingleTick | None:
        while self._queue:
            chunks, num_steps = self._pick(now)
            if not chunks:
                return None
            try:
                tick = self._fast_tick(chunks, num_steps) or self._general_tick(chunks, num_steps)
            except Exception:
                # Back in the queue: whoever handles this fails what waits there, and nobody is left without an answer.
                self._queue.extendleft(reversed([chunk for chunk in chunks if not chunk.is_answered]))
                raise
            if tick is not None:
                return tick
        return None

    def _pick(self, now: float) -> tuple[list[Chunk], int]:
        """Takes chunks off the queue that can share one tick, in the order of arrival, and its T.

        Cases for each item:
        1. control: at once, unless a chunk picked or held before it may share its sessions;
        2. cancelled or late, and not begun: answered, dropped;
        3. shares a session with a running, held or (where sessions pipeline) picked chunk, finds no working slots,
           or does not fit: held, with everything that shares its sessions after it;
        4. otherwise picked.
        """
        self._pass += 1
        queue, table = self._queue, self._table
        picked: list[Chunk] = []
        held: list[Chunk | Control] = []
        num_rows, num_steps, max_rows = 0, 0, 0
        num_work_slots = self._work_slots.num_free
        while queue:
            item = queue.popleft()
            if isinstance(item, Control):  # 1.
                if picked:
                    held.append(item)
                    break
                if self._is_blocked(item.rows, bool(held)):
                    held.append(item)
                    table.mark[item.rows] = self._pass
                else:
                    item.run()
                continue
            is_begun = item.index is not None
            if not is_begun:  # 2.
                if item.source.is_gone:
                    continue
                if item.deadline <= now:
                    self._fail(item, _late())
                    continue
            steps_left = item.num_steps - item.done_steps
            wanted = 1 if steps_left == 1 else slice_steps(steps_left, item.num_rows, self.limits.row_steps_budget)
            fits = not picked or (wanted == num_steps and num_rows + item.num_rows <= max_rows)
            if not is_begun:  # 3.
                if wanted < item.num_steps and item.num_rows > num_work_slots:
                    fits = False
                if fits and (held or self._num_busy or self.uses_rings):
                    fits = not self._is_blocked(self._rows(item), self.uses_rings or bool(held))
            if not fits:
                held.append(item)
                table.mark[self._rows(item)] = self._pass
                if picked and num_rows >= max_rows:
                    break
                continue
            if not picked:  # 4.
                num_steps = wanted
                max_rows = max(1, self.most_rows(wanted))
            picked.append(item)
            num_rows += item.num_rows
            if not is_begun:
                if wanted < item.num_steps:
                    num_work_slots -= item.num_rows
                if self.uses_rings:
                    table.mark[self._rows(item)] = self._pass
        if held:
            queue.extendleft(reversed(held))
        return picked, num_steps

    def _is_blocked(self, rows: np.ndarray, some_marked: bool) -> bool:
        table = self._table
        if self._num_busy and table.is_busy[rows].any():
            return True
        return some_marked and bool((table.mark[rows] == self._pass).any())

    def _rows(self, chunk: Chunk) -> np.ndarray:
        if chunk.rows is None:
            chunk.rows = self._table.rows_of(np.frombuffer(chunk.handles, "<u8"))
        return chunk.rows

    def _fast_tick(self, chunks: list[Chunk], num_steps: int) -> Tick | SingleTick | None:
        """A tick of whole chunks whose every row is fine, or None.

        Columns are compared as bytes: on a few rows that costs a fifth of comparing arrays and asking for `all`.
        """
        for chunk in chunks:
            if chunk.num_steps != num_steps or chunk.done_steps:
                return None
        if len(chunks) == 1:
            (chunk,) = chunks
            if chunk.num_rows == 1:
                return self._single_tick(chunk)
            handles, positions = chunk.handles, chunk.positions
            routes = self._route_bytes(chunk)
            bounds = [0, chunk.num_rows]
        else:
            handles = b"".join([chunk.handles for chunk in chunks])
            positions = b"".join([chunk.positions for chunk in chunks])
            routes = b"".join([self._route_bytes(chunk) for chunk in chunks])
            bounds = list(accumulate([chunk.num_rows for chunk in chunks], initial=0))
        table = self._table
        rows = self._owned_rows(handles, bounds[-1])
        if rows is None or table.route[rows].tobytes() != routes or table.next_position[rows].tobytes() != positions:
            return None
        inputs = self._join_inputs(chunks)
        for port, raw in zip(self._contract.feeds, inputs, strict=True):
            if not is_acceptable(port, raw):
                return None
        return Tick(
            chunks,
            bounds,
            inputs,
            rows,
            table.read_slot[rows],
            table.slot[rows],
            table.home_slot[rows] if self._contract.has_immutable else INITIAL_SLOT,
            bounds[-1],
            num_steps,
            np.frombuffer(positions, "<i8"),
        )

    def _owned_rows(self, handles: bytes, count: int) -> np.ndarray | slice | None:
        """The `count` table rows of `handles`; None when one is not good, or there twice.

        Sessions that were opened together lie together: a slice of a column costs a tenth of picking its rows.
        """
        table = self._table
        first = int.from_bytes(handles[:4], "little")
        run = slice(first, first + count)
        if table.handle[run].tobytes() == handles:
            return run
        rows = np.frombuffer(handles, "<u4")[::2].astype(np.int64)  # A handle's low half.
        try:
            if table.handle[rows].tobytes() != handles:
                return None
        except IndexError:  # A handle from nowhere.
            return None
        order = self._order(count)
        table.mark[rows] = order
        return rows if table.mark[rows].tobytes() == order.tobytes() else None

    def _route_bytes(self, chunk: Chunk) -> bytes:
        """The owner column that the chunk's rows must have, int64 [B] raw."""
        if isinstance(chunk.route, bytes):
            return chunk.route
        if chunk.route == ANY_ROUTE:
            return bytes(self._table.route[self._rows(chunk)].tobytes())
        return chunk.route.to_bytes(8, "little") * chunk.num_rows

    def _single_tick(self, chunk: Chunk) -> SingleTick | None:
        """A tick of one whole chunk of one row that is fine, or None."""
        table = self._table
        handle = int.from_bytes(chunk.handles, "little")
        position = int.from_bytes(chunk.positions, "little")
        row = handle & ROW_MASK
        if (
            row >= len(table.handle)
            or table.handle.item(row) != handle
            or (table.route.item(row) != chunk.route and chunk.route != ANY_ROUTE)
            or table.next_position.item(row) != position
        ):
            return None
        for port, raw in zip(self._contract.feeds, chunk.inputs, strict=True):
            if not is_acceptable(port, raw):
                return None
        home = table.home_slot.item(row) if self._contract.has_immutable else INITIAL_SLOT
        return SingleTick(chunk, row, position, table.read_slot.item(row), table.slot.item(row), home)

    def _order(self, count: int) -> np.ndarray:
        """0 .. count - 1."""
        if count > len(self._counting):
            self._counting = np.arange(2 * count)
        return self._counting[:count]

    @staticmethod
    def _join_inputs(chunks: list[Chunk]) -> tuple[bytes, ...]:
        if len(chunks) == 1:
            return chunks[0].inputs
        return tuple([b"".join(parts) for parts in zip(*[chunk.inputs for chunk in chunks], strict=True)])

    # The general path

    def _general_tick(self, chunks: list[Chunk], num_steps: int) -> Tick | None:
        """A tick of chunks with refused rows, repeats or slices; None when nothing is left to run."""
        running = []
        self._pass += 1
        postponed: list[Chunk | Control] = []
        for chunk in chunks:
            if not chunk.is_begun:
                rows = self._rows(chunk)
                # A session that an earlier chunk of this tick steps, too: the next tick.
                is_shared = bool((self._table.mark[rows] == self._pass).any())
                self._table.mark[rows] = self._pass
                if is_shared:
                    postponed.append(chunk)
                    continue
                self._begin(chunk, num_steps)
            assert chunk.index is not None
            if len(chunk.index):
                running.append(chunk)
            else:
                self._finish(chunk)
        self._queue.extendleft(reversed(postponed))
        if not running:
            return None
        return self._assemble(running, num_steps)

    def _begin(self, chunk: Chunk, num_steps: int) -> None:
        """Sorts out the rows of a chunk and prepares those that run."""
        rows = self._rows(chunk)
        errors, replays = self._admission.check(chunk, rows)
        runs = np.ones(chunk.num_rows, np.bool_)
        runs[[*errors, *replays]] = False
        good = np.flatnonzero(runs)
        if chunk.num_steps > num_steps and len(good):
            chunk.work_slots = self._work_slots.allocate(len(good))
        chunk.errors, chunk.replays, chunk.index = errors, replays, good
        if len(good):
            chunk.answer = Answer(self._contract, len(good), chunk.num_steps)
            self._set_busy(rows[good], len(good))

    def _assemble(self, chunks: list[Chunk], num_steps: int) -> Tick:
        table = self._table
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
        )

    # Carrying out

    def begin(self, tick: AnyTick) -> None:
        """The tick will run elsewhere while other ticks are formed: its sessions are busy until it is finished."""
        if isinstance(tick, SingleTick):
            self._set_busy(np.array([tick.row]), 1)
        elif isinstance(tick, Tick) and tick.positions is not None:
            self._set_busy(tick.rows, tick.num_rows)

    def commit(self, tick: AnyTick, blocks: Sequence[bytes], now: float, *, was_begun: bool = False) -> None:
        """The tick ran: advances its sessions, keeps its replies and answers its chunks.

        Args:
            blocks: one block an output port, [B, T, ...] raw; now: monotonic seconds.
            was_begun: `begin` was called for it.
        """
        self.num_ticks += 1
        self.num_row_steps += tick.num_rows * tick.num_steps
        if isinstance(tick, Job):
            tick.done(list(blocks))
        elif isinstance(tick, SingleTick):
            if was_begun:
                self._clear_busy(np.array([tick.row]))
            self._advance_one(tick, (*tick.inputs, *blocks), now)
            tick.chunk.reply(ChunkResult(blocks))
        elif tick.positions is None:
            self._commit_slices(tick, blocks, now)
        else:
            if was_begun:
                self._clear_busy(tick.rows)
            parts = (*tick.inputs, *blocks)
            self._advance(tick.rows, tick.positions, tick.write_slots, tick.num_steps, parts, now)
            self._reply_whole(tick, blocks)

    def _reply_whole(self, tick: Tick, blocks: Sequence[bytes]) -> None:
        """Answers the chunks of a tick of the fast path."""
        if len(tick.chunks) == 1:
            tick.chunks[0].reply(ChunkResult(blocks))
            return
        cut = []
        for block in blocks:
            size = len(block) // tick.num_rows
            cut.append([block[begin * size : end * size] for begin, end in pairwise(tick.bounds)])
        for chunk, parts in zip(tick.chunks, zip(*cut, strict=True), strict=True):
            chunk.reply(ChunkResult(parts))

    def abort(self, tick: AnyTick, error: EddyError, *, was_begun: bool = False) -> None:
        """The tick failed in the engine: its chunks fail, and sessions whose state it may have touched end.

        A slice that is not its chunk's last writes working slots only: those sessions stay as they were.
        """
        if isinstance(tick, Job):
            tick.done(error)
            return
        if isinstance(tick, SingleTick):
            rows = np.array([tick.row])
            if was_begun:
                self._clear_busy(rows)
            self._on_failed(rows)
            self._fail(tick.chunk, error)
            return
        undefined = []
        is_fast = tick.positions is not None
        if was_begun and is_fast:
            self._clear_busy(tick.rows)
        every = np.arange(self._table.num_rows)[tick.rows]
        for number, chunk in enumerate(tick.chunks):
            rows = every[tick.bounds[number] : tick.bounds[number + 1]]
            if not is_fast:
                self._clear_busy(rows)
                self._release_work_slots(chunk)
            if chunk.done_steps + tick.num_steps == chunk.num_steps:
                undefined.append(rows)
        if undefined:
            self._on_failed(np.concatenate(undefined))
        for chunk in tick.chunks:
            self._fail(chunk, error)

    def fail_queue(self, error: EddyError) -> None:
        """Fails every chunk that waits; control operations are carried out."""
        jobs, self._jobs = self._jobs, deque()
        for job in jobs:
            job.done(error)
        waiting, self._queue = self._queue, deque()
        for item in waiting:
            if isinstance(item, Control):
                item.run()
                continue
            if item.index is not None:
                self._clear_busy(self._rows(item)[item.index])
                self._release_work_slots(item)
            self._fail(item, error)

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
        if self.uses_rings:
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
        if self.uses_rings:
            turn = table.ring_next.item(row)
            entry += turn
            table.ring_next[row] = (turn + 1) % table.ring_size.item(row)
        self._replies.keep_one(entry, tick.position, parts, tick.num_steps)

    def _commit_slices(self, tick: Tick, blocks: Sequence[bytes], now: float) -> None:
        results = [
            port.view(block, tick.num_rows, tick.num_steps)
            for port, block in zip(self._contract.results, blocks, strict=True)
        ]
        unfinished: list[Chunk | Control] = []
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
            self._clear_busy(rows)
            self._release_work_slots(chunk)
            positions = np.frombuffer(chunk.positions, "<i8")[chunk.index]
            inputs = [values[chunk.index].tobytes() for values in input_arrays(self._contract, chunk)]
            whole = [array.tobytes() for array in chunk.answer.results]
            self._advance(rows, positions, tick.write_slots[begin:end], chunk.num_steps, (*inputs, *whole), now)
            self._finish(chunk)
        # Behind everybody who waits: a long chunk takes its turns.
        self._queue.extend(unfinished)

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

    def _fail(self, chunk: Chunk, error: EddyError) -> None:
        if not chunk.is_answered:
            chunk.reply(ChunkResult(failure=error))

    def _set_busy(self, rows: np.ndarray | slice, count: int) -> None:
        self._table.is_busy[rows] = True
        self._num_busy += count

    def _clear_busy(self, rows: np.ndarray | slice) -> None:
        self._num_busy -= int(np.count_nonzero(self._table.is_busy[rows]))
        self._table.is_busy[rows] = False

    def _release_work_slots(self, chunk: Chunk) -> None:
        if chunk.work_slots is not None:
            self._work_slots.free(chunk.work_slots)
            chunk.work_slots = None


def _late() -> CapacityError:
    return CapacityError(
        Reason.DEADLINE_EXCEEDED,
        "timeout_milliseconds: the chunk had not begun by its deadline; nothing of it was applied",
        Detail(field="timeout_milliseconds"),
    )
