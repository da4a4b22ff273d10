"""Handover: the open sessions of one model go on with another, which adopts them.

Owns the moving of states, kept replies and what waits, between two steps of those sessions. Must not know the wire, nor
why a model has an heir (`adoption`). A session keeps its row, id, handle, position and owner, and its client is told
nothing.

Sessions move all at once where the heir has slots for all of them. Where it has not, they move in parts, the least
recently used first, into cells, as far as the host's memory has room: what a part leaves is room for the next one. The
last part is the most recently used, who get the slots. Where there is no memory at first, slots are where it begins.

Who is the heir may change meanwhile: the parts that are left then go to the new one, and those that went to a model
which is not it any more go on from there. Where several versions of a model are about to be ready, nobody moves before.

Ordering rules: all on the event loop, but for the jobs that read and write states. Of each part
1. **Hold**: behind the chunks that were there before, its sessions are busy, so that what comes for them waits.
2. **Copy**: their states are read, and written into slots or cells of the heir, some at a time.
3. **Settle**: in one go the table says the new model, kept replies are its own, and what waited, waits there.
4. **Write**: the state store has them as the new model's before that answers anything: after a crash nobody's steps are
   run again by a model that has not answered them.
A reading job of somebody else that was formed before 3. ends before it, so that positions and states agree. All
sessions of a part move, or none; those whose user holds the model (`SessionTable.is_bound`) stay.

Dimension key: B sessions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from eddy.service.adoption import heir
from eddy.service.arena import INITIAL_SLOT
from eddy.service.chunk import Chunk
from eddy.service.errors import EddyError
from eddy.service.model import ServedModel
from eddy.service.sessions import ANY_ROUTE, MODEL_MASK, NOWHERE, SessionTable
from eddy.service.tick import Job

_LOG = logging.getLogger(__name__)

# Sessions whose states one job copies: other models' ticks wait for it.
_ROWS_OF_A_JOB = 4096
# Sessions that are held together where not all can be.
_ROWS_OF_A_PART = 16_384


@dataclass(slots=True, eq=False)
class _Plan:
    """The sessions of a model that are to move.

    Attributes:
        is_theirs: bool [N], of the table's rows; first_epochs: uint32 [N], of these when it was made: who was opened
            later is none of them.
        num_came: parts that had come to the old model then (`Handover`), and are dealt with by it.
        num_moved: sessions that have.
    """

    old: ServedModel
    new: ServedModel
    is_theirs: np.ndarray
    first_epochs: np.ndarray
    num_came: int
    num_moved: int = 0


@dataclass(slots=True, eq=False)
class _Move:
    """A part on its way.

    Attributes:
        rows: int64 [B]; slots, cells: int64 [B], the heir's; num_left: jobs that have not ended.
        bad: rows whose states are not finite; error: why it cannot be.
    """

    plan: _Plan
    rows: np.ndarray
    slots: np.ndarray
    cells: np.ndarray
    num_left: int = 0
    bad: list[np.ndarray] = field(default_factory=list)
    error: EddyError | None = None


class Handover:
    """Moves sessions to heirs.

    Args:
        table: sessions; models: all in memory; ready: those that open sessions.
        is_to_come: whether more versions of a model are about to be ready, or to go.
        notify: told of a model with work; on_settled: told when a model has no sessions left that move.
        persist: has sessions written to the state store, by rows; done also where it fails.
    """

    def __init__(
        self,
        table: SessionTable,
        models: Callable[[], Iterable[ServedModel]],
        ready: Callable[[], Iterable[ServedModel]],
        is_to_come: Callable[[str], bool],
        notify: Callable[[ServedModel], None],
        on_settled: Callable[[], None],
        persist: Callable[[np.ndarray], asyncio.Future[None]],
    ) -> None:
        self._table = table
        self._models = models
        self._ready = ready
        self._is_to_come = is_to_come
        self._notify = notify
        self._on_settled = on_settled
        self._persist = persist
        # Changed only on the event loop. By their old model; models of them, heirs included, are not freed.
        self._plans: dict[int, _Plan] = {}
        # Heirs that the sessions of a model went to once: while it is served itself, those opened later stay.
        self._settled: dict[int, int] = {}
        # By model, sessions that were handed over to it as to the latest, part by part: int64 rows and uint32 first
        # epochs, [n] each. They go on with a later one, also where the model's own are settled.
        self._came: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
        # Some sessions have been handed over: a client may send them together with others of their old model.
        self.has_moved = False

    def is_unused(self, model: ServedModel) -> bool:
        """No session is on its way from or to `model`."""
        return all(model is not plan.old and model is not plan.new for plan in self._plans.values())

    def forget(self, model: ServedModel) -> None:
        """The model is freed; its index may become another's."""
        self._settled = {old: new for old, new in self._settled.items() if model.index not in (old, new)}
        self._came.pop(model.index, None)

    def consider(self) -> int:
        """Begins to move sessions of models that have an heir; returns of how many models."""
        ready = list(self._ready())
        num_begun = 0
        for old in list(self._models()):
            if old.index in self._plans or self._is_to_come(old.file.name):
                continue
            new = heir(old, ready)
            if new is None:
                continue
            is_settled = old.retired_at is None and self._settled.get(old.index) == new.index
            if is_settled and old.index not in self._came:
                continue
            if not old.num_sessions:
                if old.retired_at is None:
                    self._settled[old.index] = new.index
                self._came.pop(old.index, None)
                continue
            num_begun += 1
            self._begin(old, new, only_who_came=is_settled)
        return num_begun

    def _begin(self, old: ServedModel, new: ServedModel, *, only_who_came: bool) -> None:
        first_epochs, came = self._table.first_epochs.copy(), self._came.get(old.index, [])
        is_theirs = np.full(len(first_epochs), not only_who_came)
        for rows, epochs in came:
            is_theirs[rows[first_epochs[rows] == epochs]] = True
        plan = self._plans[old.index] = _Plan(old, new, is_theirs, first_epochs, len(came))
        self._go_on(plan)

    def _is_heir(self, plan: _Plan) -> bool:
        """The sessions of the old model would still go to the new one."""
        return heir(plan.old, self._ready()) is plan.new

    # 1. Hold

    def _go_on(self, plan: _Plan) -> None:
        """Begins with the next part; ends where nobody is left, or nobody can go, or they are to go elsewhere."""
        rows = self._movable(plan)
        if not len(rows) or not self._is_heir(plan):
            self._end(plan, is_settled=not len(rows))
            return
        part, has_slots = self._part(plan, rows)
        if not len(part):
            why = "the new version has neither slots for all of them nor memory of the host (state.host_bytes)"
            self._stay(plan, len(rows), why)
            return
        plan.old.scheduler.queue.submit_control(part, partial(self._hold, plan, part, has_slots=has_slots))
        self._notify(plan.old)

    def _movable(self, plan: _Plan) -> np.ndarray:
        """Sessions that have still to move, int64 [n]."""
        table = self._table
        rows = table.open_rows(plan.old.index)
        rows = rows[rows < len(plan.first_epochs)]
        is_of_then = plan.is_theirs[rows] & (table.first_epochs[rows] == plan.first_epochs[rows])
        return np.asarray(rows[is_of_then & ~table.is_bound[rows]])

    def _part(self, plan: _Plan, rows: np.ndarray) -> tuple[np.ndarray, bool]:
        """Which of the sessions in `rows` int64 [n] go next: all, the least recently used, or none; and into slots."""
        residence = plan.new.residence
        num_slots = residence.slots.num_free
        if len(rows) <= num_slots:
            return rows, True
        if not residence.can_replace(plan.old.residence):
            return rows[:0], False
        if not residence.num_more:  # Where there is a state store, it can take what it has.
            plan.old.residence.make_way(_ROWS_OF_A_PART, is_on=True)
        if not residence.num_more:
            residence.shelve(_ROWS_OF_A_PART, rows)
        if num_more := residence.num_more:
            return self._oldest(rows, min(len(rows) - num_slots, num_more, _ROWS_OF_A_PART)), False
        return self._oldest(rows, min(num_slots, _ROWS_OF_A_PART)), True

    def _oldest(self, rows: np.ndarray, count: int) -> np.ndarray:
        """The `count` least recently used of `rows` int64 [n], or fewer: who was stepped together goes together."""
        if not count:
            return rows[:0]
        used = self._table.last_used[rows]
        latest = np.partition(used, count - 1)[count - 1]
        is_older, is_equal = used < latest, used == latest
        if np.count_nonzero(is_older) and np.count_nonzero(is_older | is_equal) > count:
            return np.asarray(rows[is_older])
        return np.asarray(rows[is_older | is_equal][:count])

    def _hold(self, plan: _Plan, part: np.ndarray, *, has_slots: bool) -> None:
        """The chunks that were there before are through."""
        old, new = plan.old, plan.new
        rows = np.intersect1d(part, self._movable(plan), assume_unique=True)
        room = new.residence.slots.num_free if has_slots else new.residence.num_more
        if not 0 < len(rows) <= room or self._table.is_busy[rows].any() or not self._is_heir(plan):
            self._go_on(plan)  # Something has changed meanwhile.
            return
        cells = np.full(len(rows), NOWHERE, np.int64)
        if has_slots:
            try:
                slots = new.residence.take(len(rows))
            except EddyError as error:
                self._stay(plan, len(rows), error.message)
                return
        else:
            slots = np.full(len(rows), NOWHERE, np.int64)
            # Who has no states needs no cell.
            taken, has_states = new.residence.take_cells(len(rows)), self._table.read_slot[rows] != INITIAL_SLOT
            cells[has_states] = taken[has_states]
            new.residence.cells.free(taken[~has_states])
        old.scheduler.queue.set_busy(rows, len(rows))
        self._copy(_Move(plan, rows, slots, cells))

    # 2. Copy

    def _copy(self, move: _Move) -> None:
        written = np.flatnonzero(self._table.read_slot[move.rows] != INITIAL_SLOT)
        parts = [written[begin : begin + _ROWS_OF_A_JOB] for begin in range(0, len(written), _ROWS_OF_A_JOB)]
        move.num_left = 1
        for part in parts:
            try:
                move.plan.old.read_states(move.rows[part], partial(self._write, move, part))
            except EddyError as error:
                move.error = error
                break
            move.num_left += 1
        self._count_down(move)
        self._notify(move.plan.old)

    def _write(self, move: _Move, part: np.ndarray, outcome: list[np.ndarray] | EddyError) -> None:
        """The states of some are read."""
        if isinstance(outcome, EddyError):
            move.error = outcome
            self._count_down(move)
            return
        move.bad.append(move.rows[part][~move.plan.old.finite_rows(outcome, len(part))])
        states, slots, cells = outcome, move.slots[part], move.cells[part]

        def write() -> list[bytes]:
            move.plan.new.residence.write(slots, cells, states)
            return []

        def done(result: list[bytes] | EddyError) -> None:
            if isinstance(result, EddyError):
                move.error = result
            self._count_down(move)

        move.plan.new.scheduler.queue.add_job(Job(write, done, len(part), 1))
        self._notify(move.plan.new)

    def _count_down(self, move: _Move) -> None:
        move.num_left -= 1
        if not move.num_left:
            self._settle(move)

    # 3. Settle

    def _settle(self, move: _Move) -> None:
        old, new, rows = move.plan.old, move.plan.new, move.rows
        if old.num_reads:  # Behind it.
            old.scheduler.queue.add_job(Job(list, lambda _: self._settle(move), 1, 1))
            self._notify(old)
            return
        waiting = None if move.error else old.scheduler.queue.withdraw(rows)
        if waiting is None:
            old.scheduler.queue.clear_busy(rows)
            new.residence.cells.free(move.cells[move.cells != NOWHERE])
            new.residence.give_back(move.slots)
            why = move.error.message if move.error else "somebody waits for sessions that move and for some that stay"
            self._stay(move.plan, len(rows), why)
            return
        old.scheduler.queue.clear_busy(rows)
        self._switch(move)
        self._remember(move)
        for item in waiting:
            if isinstance(item, Chunk):
                item.contract, item.route = new.contract, _rerouted(item.route, new.index)
        new.scheduler.queue.put_behind(waiting)
        new.stats.num_adopted_sessions += len(rows)
        move.plan.num_moved += len(rows)
        self.has_moved = True
        bad = np.concatenate(move.bad) if move.bad else rows[:0]
        if len(bad):
            new.quarantine_sessions(bad)
        self._write_through(new, np.setdiff1d(rows, bad))
        self._notify(old)
        self._notify(new)
        self._go_on(move.plan)

    # 4. Write

    def _write_through(self, model: ServedModel, rows: np.ndarray) -> None:
        """Sessions of `model` that the state store keeps are stepped once it has them as they are."""
        rows = rows[self._table.is_durable[rows]]
        if not len(rows):
            return
        queue = model.scheduler.queue
        queue.set_busy(rows, len(rows))

        def written(writing: asyncio.Future[None]) -> None:
            writing.exception()  # They go on; what the store has not is told as ever.
            queue.clear_busy(rows)
            self._notify(model)

        self._persist(rows).add_done_callback(written)

    def _stay(self, plan: _Plan, num_sessions: int, why: str) -> None:
        """Those that are left go on with the old model until somebody asks again."""
        del self._plans[plan.old.index]
        plan.old.residence.make_way(0, is_on=False)
        if plan.num_moved:
            moved = (_name(plan.old), plan.num_moved, plan.new.file.version)
            _LOG.info("%s: %d sessions go on with version %s, others wait for room", *moved)
        else:
            _LOG.warning("%s: %d sessions stay: %s", _name(plan.old), num_sessions, why)
        self._notify(plan.old)
        self._notify(plan.new)  # Somebody may wait there for the slots that they would have had.

    def _end(self, plan: _Plan, *, is_settled: bool) -> None:
        """Nobody is left who moves; or, without `is_settled`, they have another heir by now."""
        old, new = plan.old, plan.new
        del self._plans[old.index]
        old.residence.make_way(0, is_on=False)
        if is_settled:
            self._settled[old.index] = new.index
            if came := self._came.pop(old.index, [])[plan.num_came :]:
                self._came[old.index] = came
        if plan.num_moved:
            _LOG.info("%s: %d sessions go on with version %s", _name(old), plan.num_moved, new.file.version)
        self._on_settled()
        if plan.num_moved or not is_settled:
            self.consider()

    def _remember(self, move: _Move) -> None:
        """Those that have moved go on with a later model than theirs, unless that one was there already."""
        ready = list(self._ready())
        if heir(move.plan.new, ready) is not None and heir(move.plan.old, ready) is move.plan.new:
            return
        self._came.setdefault(move.plan.new.index, []).append((move.rows, self._table.first_epochs[move.rows]))

    def _switch(self, move: _Move) -> None:
        """The table, slots and kept replies say the heir."""
        table, old, new, rows = self._table, move.plan.old, move.plan.new, move.rows
        starts, sizes = table.ring_start[rows].copy(), table.ring_size[rows]
        rings = np.zeros_like(starts)
        for size in np.unique(sizes).tolist():
            mine = np.flatnonzero(sizes == size)
            rings[mine] = new.replies.open_rings(len(mine), size)
            new.replies.take_over(old.replies, starts[mine], rings[mine], size)
            new.scheduler.queue.uses_rings |= size > 1
        old.replies.close_rings(starts, sizes)
        old.residence.leave(rows)
        table.hand_over(rows, new.index, move.slots, move.cells, rings, INITIAL_SLOT)
        new.residence.settle_in(rows, move.slots)


def _rerouted(route: int | bytes, model: int) -> int | bytes:
    """The owner column's value, or the column, for another model."""
    if isinstance(route, bytes):
        column: np.ndarray = np.frombuffer(route, np.int64) & ~np.int64(MODEL_MASK) | np.int64(model)
        return column.tobytes()
    return route if route == ANY_ROUTE else route & ~MODEL_MASK | model


def _name(model: ServedModel) -> str:
    return f"model {model.file.name} version {model.file.version} package {model.file.package[:8]}"
