"""Handover: the open sessions of one model go on with another, which adopts them.

Owns the moving of states, kept replies and what waits, between two steps of those sessions. Must not know the wire, nor
why a model has an heir (`adoption`). A session keeps its row, id, handle, position and owner, and its client is told
nothing.

Ordering rules: all on the event loop, but for the jobs that read and write states.
1. **Hold**: behind the chunks that were there before, all sessions are busy, so that what comes for them waits.
2. **Copy**: their states are read, and written into slots or cells of the heir, some at a time.
3. **Settle**: in one go the table says the new model, kept replies are its own, and what waited, waits there.
A reading job of somebody else that was formed before 3. ends before it, so that positions and states agree. All
sessions of a model move, or none; those whose user holds the model (`SessionTable.is_bound`) stay.

Dimension key: B sessions.
"""

from __future__ import annotations

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


@dataclass(slots=True, eq=False)
class _Move:
    """Sessions on their way.

    Attributes:
        rows: int64 [B]; slots, cells: int64 [B], the heir's; num_left: jobs that have not ended.
        bad: rows whose states are not finite; error: why it cannot be.
    """

    old: ServedModel
    new: ServedModel
    rows: np.ndarray
    slots: np.ndarray
    cells: np.ndarray
    num_left: int = 0
    bad: list[np.ndarray] = field(default_factory=list)
    error: EddyError | None = None


class Handover:
    """Moves sessions to heirs.

    Args:
        table: sessions; models: all in memory; ready: those that open sessions; notify: told of a model with work.
        on_settled: told when a model has no sessions left that move.
    """

    def __init__(
        self,
        table: SessionTable,
        models: Callable[[], Iterable[ServedModel]],
        ready: Callable[[], Iterable[ServedModel]],
        notify: Callable[[ServedModel], None],
        on_settled: Callable[[], None],
    ) -> None:
        self._table = table
        self._models = models
        self._ready = ready
        self._notify = notify
        self._on_settled = on_settled
        # Changed only on the event loop. Models whose sessions are under way, heirs included: they are not freed.
        self._under_way: list[_Move] = []
        self._holding: set[int] = set()
        # Heirs that the sessions of a model went to once: while it is served itself, those opened later stay.
        self._settled: dict[int, int] = {}
        # Some sessions have been handed over: a client may send them together with others of their old model.
        self.has_moved = False

    def is_unused(self, model: ServedModel) -> bool:
        """No session is on its way from or to `model`."""
        return model.index not in self._holding and all(move.new is not model for move in self._under_way)

    def forget(self, model: ServedModel) -> None:
        """The model is freed; its index may become another's."""
        self._settled = {old: new for old, new in self._settled.items() if model.index not in (old, new)}

    def consider(self) -> int:
        """Begins to move sessions of models that have an heir; returns of how many models."""
        ready = list(self._ready())
        num_begun = 0
        for old in self._models():
            if old.index in self._holding:
                continue
            new = heir(old, ready)
            if new is None or (old.retired_at is None and self._settled.get(old.index) == new.index):
                continue
            if not old.num_sessions:
                self._settled[old.index] = new.index
                continue
            self._holding.add(old.index)
            num_begun += 1
            self._ask(old, new)
        return num_begun

    # 1. Hold

    def _ask(self, old: ServedModel, new: ServedModel) -> None:
        old.scheduler.queue.submit_control(self._movable(old), partial(self._hold, old, new))
        self._notify(old)

    def _movable(self, old: ServedModel) -> np.ndarray:
        rows = self._table.open_rows(old.index)
        return np.asarray(rows[~self._table.is_bound[rows]])

    def _hold(self, old: ServedModel, new: ServedModel) -> None:
        """The chunks that were there before are through."""
        rows = self._movable(old)
        if self._table.is_busy[rows].any():  # Some were opened meanwhile.
            self._ask(old, new)
            return
        if not len(rows) or new.retired_at is not None:
            self._holding.discard(old.index)
            self._settled[old.index] = new.index
            return
        try:
            slots = new.residence.take(len(rows))
        except EddyError as error:
            self._holding.discard(old.index)
            _LOG.warning("%s: %d sessions stay: %s", _name(old), len(rows), error.message)
            return
        old.scheduler.queue.set_busy(rows, len(rows))
        # Who has states and gets no slot gets a cell.
        is_parked = (slots == NOWHERE) & (self._table.read_slot[rows] != INITIAL_SLOT)
        cells = np.full(len(rows), NOWHERE, np.int64)
        cells[is_parked] = new.residence.cells.allocate(int(np.count_nonzero(is_parked)))
        move = _Move(old, new, rows, slots, cells)
        self._under_way.append(move)
        self._copy(move)

    # 2. Copy

    def _copy(self, move: _Move) -> None:
        written = np.flatnonzero(self._table.read_slot[move.rows] != INITIAL_SLOT)
        parts = [written[begin : begin + _ROWS_OF_A_JOB] for begin in range(0, len(written), _ROWS_OF_A_JOB)]
        move.num_left = 1
        for part in parts:
            try:
                move.old.read_states(move.rows[part], partial(self._write, move, part))
            except EddyError as error:
                move.error = error
                break
            move.num_left += 1
        self._count_down(move)
        self._notify(move.old)

    def _write(self, move: _Move, part: np.ndarray, outcome: list[np.ndarray] | EddyError) -> None:
        """The states of some are read."""
        if isinstance(outcome, EddyError):
            move.error = outcome
            self._count_down(move)
            return
        move.bad.append(move.rows[part][~move.old.finite_rows(outcome, len(part))])
        states, slots, cells = outcome, move.slots[part], move.cells[part]

        def write() -> list[bytes]:
            move.new.residence.write(slots, cells, states)
            return []

        def done(result: list[bytes] | EddyError) -> None:
            if isinstance(result, EddyError):
                move.error = result
            self._count_down(move)

        move.new.scheduler.queue.add_job(Job(write, done, len(part), 1))
        self._notify(move.new)

    def _count_down(self, move: _Move) -> None:
        move.num_left -= 1
        if not move.num_left:
            self._settle(move)

    # 3. Settle

    def _settle(self, move: _Move) -> None:
        old, new, rows = move.old, move.new, move.rows
        if old.num_reads:  # Behind it.
            old.scheduler.queue.add_job(Job(list, lambda _: self._settle(move), 1, 1))
            self._notify(old)
            return
        self._under_way.remove(move)
        self._holding.discard(old.index)
        waiting = None if move.error else old.scheduler.queue.withdraw(rows)
        if waiting is None:
            old.scheduler.queue.clear_busy(rows)
            new.residence.cells.free(move.cells[move.cells != NOWHERE])
            new.residence.give_back(move.slots)
            why = move.error.message if move.error else "somebody waits for sessions that move and for some that stay"
            _LOG.warning("%s: %d sessions stay: %s", _name(old), len(rows), why)
            self._notify(old)
            return
        old.scheduler.queue.clear_busy(rows)
        self._switch(move)
        for item in waiting:
            if isinstance(item, Chunk):
                item.contract, item.route = new.contract, _rerouted(item.route, new.index)
        new.scheduler.queue.put_behind(waiting)
        new.stats.num_adopted_sessions += len(rows)
        self._settled[old.index] = new.index
        self.has_moved = True
        _LOG.info("%s: %d sessions go on with version %s", _name(old), len(rows), new.file.version)
        bad = np.concatenate(move.bad) if move.bad else rows[:0]
        if len(bad):
            new.quarantine_sessions(bad)
        self._notify(old)
        self._notify(new)
        self._on_settled()

    def _switch(self, move: _Move) -> None:
        """The table, slots and kept replies say the heir."""
        table, old, new, rows = self._table, move.old, move.new, move.rows
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
