"""The queue of one model: what waits, and which of it can share a tick.

Owns the order of what waits and which sessions are running meanwhile. Must not know how a chunk's rows are checked,
nor how ticks are formed or run. All on one thread.

Ordering rules: chunks that share a session leave in the order of arrival, and so do control operations (close, reset,
take-over) among them; a chunk is neither dropped nor overtaken once it has begun.

Dimension key: B rows of a chunk, T steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from eddy.service.arena import SlotAllocator
from eddy.service.chunk import Chunk
from eddy.service.cost import Budget
from eddy.service.errors import CapacityError, Detail, EddyError, Reason
from eddy.service.residence import Residence
from eddy.service.sessions import SessionTable
from eddy.service.tick import Control, Job, slice_steps


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one model's ticks and queue.

    Attributes:
        max_rows: rows in one tick.
        budget: rows and steps in one tick, unless one chunk's one step already has more.
        max_queued_chunks: chunks that may wait.
    """

    max_rows: int
    budget: Budget
    max_queued_chunks: int


class ChunkQueue:
    """Chunks, control operations and jobs that wait for one model.

    Args:
        table: sessions; work_slots: slots for states between slices; limits: bounds of ticks and of the queue;
            residence: who has slots.
    """

    def __init__(self, table: SessionTable, work_slots: SlotAllocator, limits: Limits, residence: Residence) -> None:
        self.limits = limits
        self._residence = residence
        # Set by the model: sends for sessions whose states are in the state store only, for which others make room, but
        # for some that are about to be stepped; makes room where a chunk of so many sessions finds none, or says why
        # not.
        self.send_for: Callable[[np.ndarray, np.ndarray], None] = _cannot
        self.make_room: Callable[[int], EddyError | None] = residence.refusal
        self._table = table
        self._work_slots = work_slots
        # Changed only by the methods below.
        self._queue: deque[Chunk | Control] = deque()
        # Jobs touch no open session, so they wait apart, and take turns with the chunks.
        self._jobs: deque[Job] = deque()
        self._is_jobs_turn = False
        # Jobs that have left and are not finished. Set by the scheduler.
        self.num_jobs_away = 0
        self._pass = table.next_mark()
        self._num_busy = 0
        # Some session may have several chunks under way.
        self.uses_rings = False

    def __len__(self) -> int:
        """Chunks, control operations and jobs that wait."""
        return len(self._queue) + len(self._jobs)

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._queue and not self._jobs and not self._num_busy

    def most_rows(self, num_steps: int) -> int:
        """Rows of T = `num_steps` that one tick takes; none when they are sliced."""
        return min(self.limits.max_rows, self.limits.budget.most_rows(num_steps))

    def submit(self, chunk: Chunk) -> None:
        """Queues a chunk.

        Raises:
            CapacityError: QUEUE_FULL.
        """
        self._refuse_if_full(len(self._queue))
        self._queue.append(chunk)

    def submit_job(self, *jobs: Job) -> None:
        """Queues a job, or several that are one.

        Raises:
            CapacityError: QUEUE_FULL; none was queued.
        """
        self._refuse_if_full(len(self._jobs), len(jobs))
        self._jobs.extend(jobs)

    def add_job(self, job: Job) -> None:
        """Queues a job of the server's own, which is never refused."""
        self._jobs.append(job)

    def refuse_job(self) -> None:
        """Raises CapacityError QUEUE_FULL where one more job could not be queued."""
        self._refuse_if_full(len(self._jobs))

    def _refuse_if_full(self, num_queued: int, num_more: int = 1) -> None:
        if num_queued + num_more > self.limits.max_queued_chunks:
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

    # Leaving

    def close(self) -> None:
        """Nothing will be queued any more: who would find states and slots is let go."""
        self.send_for, self.make_room = _cannot, self._residence.refusal

    def begin_pass(self) -> int:
        """A mark of its own for rows in the table's scratch column."""
        self._pass = self._table.next_mark()
        return self._pass

    def pop_job(self, now: float, *, is_turn: bool) -> Job | None:
        """The next job; with `is_turn` only where it is the jobs' turn or no chunk waits."""
        if is_turn and not (self._jobs and (self._is_jobs_turn or not self._queue)):
            self._is_jobs_turn = True
            return None
        self._is_jobs_turn = False
        return self._jobs.popleft() if self._has_job(now) else None

    def _has_job(self, now: float) -> bool:
        """Whether a job waits to be run; those at the head that nobody waits for, or that are late, are dropped."""
        while self._jobs:
            job = self._jobs[0]
            if not job.is_gone and job.deadline > now:
                return True
            self._jobs.popleft()
            if not job.is_gone:
                job.done(_late())
        return False

    @property
    def has_chunks(self) -> bool:
        """Chunks or control operations wait."""
        return bool(self._queue)

    def pick(self, now: float) -> tuple[list[Chunk], int]:
        """Takes chunks off the queue that can share one tick, in the order of arrival, and its T.

        Cases for each item:
        1. control: at once, unless a chunk picked or held before it may share its sessions;
        2. cancelled or late, and not begun: answered, dropped;
        3. shares a session with a running, held or (where sessions pipeline) picked chunk, finds no working slots or
           no slots for all of its sessions, or does not fit: held, with everything that shares its sessions after it;
        4. otherwise picked.

        Where nothing is picked, nothing runs, and some chunk finds no slots, none would ever come: it fails, unless the
        state store makes room. Jobs count as what runs: they hold slots and cells, too; and so do sessions that are on
        their way from another model, which can leave their slots once they are here. Sessions whose states are in the
        store only are sent for, and are busy until they are back.
        """
        picked: list[Chunk] = []
        held: list[Chunk | Control] = []
        stored: list[np.ndarray] = []
        try:
            num_steps, homeless = self._sort_out(now, picked, held, stored)
        except BaseException:
            # Whoever handles this fails what waits: nobody is left without an answer.
            self._queue.extendleft([*held, *picked])
            raise
        if held:
            self._queue.extendleft(reversed(held))
        if homeless is not None and not picked and not self._is_under_way(now):
            error = self.make_room(homeless.num_rows)
            if error is not None:
                self._queue.remove(homeless)
                homeless.fail(error)
                return self.pick(now)
        elif stored:  # Now that it is known who is to be stepped, and that nobody waits for what these would take.
            staying = [self.rows_of(chunk) for chunk in picked]
            rows = np.unique(np.concatenate(stored))
            self.send_for(rows, np.concatenate([rows, *staying]))
        return picked, num_steps

    def _sort_out(
        self, now: float, picked: list[Chunk], held: list[Chunk | Control], stored: list[np.ndarray]
    ) -> tuple[int, Chunk | None]:
        """Takes items off the queue, by the cases of `pick`.

        Args:
            picked, held, stored: appended to: chunks to run; what waits on, before what was not looked at; sessions
                whose states are in the state store only, int64 [n] each.

        Returns:
            T, and a chunk that finds no slots, if there is one.
        """
        self._pass = self._table.next_mark()
        queue, table = self._queue, self._table
        num_rows, num_steps, max_rows = 0, 0, 0
        num_work_slots = self._work_slots.num_free
        homeless: Chunk | None = None
        while queue:
            item = queue.popleft()
            if picked and not max_rows:  # Of no account to whoever is alone.
                max_rows = max(1, self.most_rows(num_steps))
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
                    item.fail(_late())
                    continue
            steps_left = item.num_steps - item.done_steps
            wanted = 1 if steps_left == 1 else slice_steps(steps_left, self.limits.budget.most_steps(item.num_rows))
            fits = not picked or (wanted == num_steps and num_rows + item.num_rows <= max_rows)
            if not is_begun:  # 3.
                if wanted < item.num_steps and item.num_rows > num_work_slots:
                    fits = False
                if fits and (held or self._num_busy or self.uses_rings):
                    fits = not self._is_blocked(self.rows_of(item), self.uses_rings or bool(held))
            if fits and not is_begun and self._residence.is_parked:
                if self._residence.has_shelved and len(away := self._stored_of(item)):
                    fits = False
                    if item.num_rows <= self._residence.slots.num_slots:
                        stored.append(away)
                    else:  # To no avail: two of them would push out each other's sessions for ever.
                        homeless = homeless or item
                elif not self._has_room(picked, num_rows, item):
                    fits = False
                    homeless = homeless or item
            if not fits:
                held.append(item)
                table.mark[self.rows_of(item)] = self._pass
                if picked and num_rows >= max_rows:
                    break
                continue
            if not picked:  # 4.
                num_steps = wanted
            picked.append(item)
            num_rows += item.num_rows
            if not is_begun:
                if wanted < item.num_steps:
                    num_work_slots -= item.num_rows
                if self.uses_rings:
                    table.mark[self.rows_of(item)] = self._pass
        return num_steps, homeless

    def _is_under_way(self, now: float) -> bool:
        """Something has slots or cells now that others may have when it ends."""
        return bool(self._num_busy or self.num_jobs_away or self._residence.num_expected or self._has_job(now))

    def _stored_of(self, chunk: Chunk) -> np.ndarray:
        """Those of the chunk's sessions whose states are in the state store only, int64 [n]."""
        rows = self.rows_of(chunk)
        is_stored = self._table.is_stored[rows]
        if not is_stored.any():
            return rows[:0]
        return np.asarray(rows[is_stored & (self._table.handle[rows] == np.frombuffer(chunk.handles, "<u8"))])

    def fail_waiting(self, rows: np.ndarray, error: EddyError) -> None:
        """Fails the chunks that wait for one of the sessions in `rows` int64 [n]."""
        this_pass = self.begin_pass()
        self._table.mark[rows] = this_pass
        kept: list[Chunk | Control] = []
        failed: list[Chunk] = []
        for item in self._queue:
            is_theirs = isinstance(item, Chunk) and (self._table.mark[self.rows_of(item)] == this_pass).any()
            if is_theirs and isinstance(item, Chunk) and not item.is_begun:
                failed.append(item)
            else:
                kept.append(item)
        self._queue = deque(kept)
        for chunk in failed:
            chunk.fail(error)

    def _has_room(self, picked: list[Chunk], num_rows: int, chunk: Chunk) -> bool:
        """Whether the sessions of the `picked` chunks, of `num_rows` rows, and of `chunk` can have slots together."""
        residence = self._residence
        if residence.has_room(num_rows + chunk.num_rows, self._num_busy, self._table.num_pinned):
            return True
        rows = np.concatenate([self.rows_of(each) for each in (*picked, chunk)])
        return not residence.missing(rows)

    def _is_blocked(self, rows: np.ndarray, some_marked: bool) -> bool:
        table = self._table
        if self._num_busy and table.is_busy[rows].any():
            return True
        return some_marked and bool((table.mark[rows] == self._pass).any())

    def rows_of(self, chunk: Chunk) -> np.ndarray:
        """The table rows of a chunk, int64 [B]."""
        if chunk.rows is None:
            chunk.rows = self._table.rows_of(np.frombuffer(chunk.handles, "<u8"))
        return chunk.rows

    def put_back(self, chunks: Iterable[Chunk]) -> None:
        """Chunks that were picked and not carried out wait again, before all others."""
        self._queue.extendleft(reversed([*chunks]))

    def put_behind(self, chunks: Iterable[Chunk | Control]) -> None:
        """Chunks that have had their turn wait again, behind all others."""
        self._queue.extend(chunks)

    def withdraw(self, rows: np.ndarray) -> list[Chunk | Control] | None:
        """Takes what waits for the sessions in `rows` int64 [B] out of the queue, in order.

        None where something waits for some of them and for others: then all is left as it was.
        """
        is_mine = np.zeros(self._table.num_rows, np.bool_)
        is_mine[rows] = True
        taken: list[Chunk | Control] = []
        left: deque[Chunk | Control] = deque()
        for item in self._queue:
            concerned = self._concerned(item)
            found = is_mine[concerned]
            if not found.any():
                left.append(item)
            elif found.all():
                taken.append(item)
            else:
                return None
        self._queue = left
        return taken

    def _concerned(self, item: Chunk | Control) -> np.ndarray:
        """The table rows that an item waits for, int64 [n]; what a chunk is refused for is of no account."""
        if isinstance(item, Control):
            return item.rows
        rows = self.rows_of(item)
        if item.index is not None:
            return np.asarray(rows[item.index])
        return np.asarray(rows[self._table.handle[rows] == np.frombuffer(item.handles, "<u8")])

    def drain(self) -> tuple[list[Job], list[Chunk | Control]]:
        """All that waits, which waits no more."""
        jobs, waiting = list(self._jobs), list(self._queue)
        self._jobs.clear()
        self._queue.clear()
        return jobs, waiting

    # Running

    def set_busy(self, rows: np.ndarray | slice, count: int) -> None:
        """The `count` sessions in `rows` are running, or begun and not finished: others of their chunks wait."""
        self._table.is_busy[rows] = True
        self._num_busy += count

    def clear_busy(self, rows: np.ndarray | slice) -> None:
        """They have finished."""
        self._num_busy -= int(np.count_nonzero(self._table.is_busy[rows]))
        self._table.is_busy[rows] = False


def _cannot(rows: np.ndarray, _: np.ndarray) -> None:
    raise AssertionError(f"{len(rows)} sessions are in a state store, and there is none")


def _late() -> CapacityError:
    return CapacityError(
        Reason.DEADLINE_EXCEEDED,
        "timeout_milliseconds: the chunk had not begun by its deadline; nothing of it was applied",
        Detail(field="timeout_milliseconds"),
    )
