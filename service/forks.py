"""Forks: new sessions that stand where others stand.

Owns the opening of a session beside each of some others, and the copying of what those are: states (one row each, on
the device), position and kept replies. Must not know the wire.

Ordering rules: a fork keeps its place among its parent's chunks. From then until its states are copied neither takes a
step, so that what is copied is where the parent stood.

Dimension key: B sessions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from eddy.service.arena import INITIAL_SLOT
from eddy.service.errors import ClientError, Detail, EddyError, ModelError, Reason
from eddy.service.host import Host
from eddy.service.model import ServedModel
from eddy.service.residence import Places
from eddy.service.sessions import NOWHERE
from eddy.service.tick import Job


@dataclass(frozen=True, slots=True)
class Forked:
    """What became of B sessions that were to be forked.

    Attributes:
        rows: table rows of the new sessions, int64 [B]; 0 where there is none.
        missed: places in `rows` of parents that had ended or were taken over, int64 [n].
        errors: why others were not forked, by their place.
    """

    rows: np.ndarray
    missed: np.ndarray
    errors: dict[int, EddyError] = field(default_factory=dict)


def fork(host: Host, parents: np.ndarray, stream: int, done: Callable[[Forked], None]) -> None:
    """Forks the sessions in `parents` int64 [B], open and distinct, for `stream` or nobody.

    A new session has its parent's limits and timeout, an id, a token and an epoch of its own.

    Args:
        done: told once, when the new sessions can be stepped.

    Raises:
        CapacityError: DRAINING, STORE_UNAVAILABLE.
    """
    host.gate.refuse_if_draining()
    if host.table.is_durable[parents].any():
        host.persistence.refuse_without_store()
    forking = _Forking(host, parents, stream, done)
    host.turns.by_model(parents, forking.apply, forking.finish)


class _Forking:
    """One request under way: what became of which of its parents by now."""

    def __init__(self, host: Host, parents: np.ndarray, stream: int, done: Callable[[Forked], None]) -> None:
        self._host = host
        self._parents = parents
        self._order = np.argsort(parents)
        self._stream = stream
        self._done = done
        # Changed only by the methods below.
        self._rows = np.zeros(len(parents), np.int64)
        self._errors: dict[int, EddyError] = {}
        self._missed = np.empty(0, np.int64)
        # Models whose sessions are under way, and the pass over the models itself.
        self._num_left = 1

    def apply(self, model: ServedModel, parents: np.ndarray) -> None:
        """It is the turn of the sessions of one model."""
        self._num_left += 1
        if self._host.streams.has(self._stream):
            fork_of_model(model, parents, self._stream, self._host.dispatcher.notify, partial(self._copied, parents))
        else:
            error = ClientError(Reason.SESSION_CLOSED, "the stream that asked has ended", Detail(field="handles"))
            self._settle(parents, error)

    def finish(self, missed: np.ndarray) -> None:
        """Every model has had its turn, but for the parents in `missed`."""
        self._missed = self._places(missed)
        self._count_down()

    def _copied(self, parents: np.ndarray, outcome: np.ndarray | EddyError) -> None:
        """Forks of sessions that the state store keeps are in it before anybody is told of them."""
        table = self._host.table
        if isinstance(outcome, EddyError) or not table.is_durable[parents].any():
            self._settle(parents, outcome)
            return
        table.is_durable[outcome] = True
        writing = asyncio.ensure_future(self._host.persistence.make_durable(outcome, table.handle[outcome]))
        writing.add_done_callback(partial(self._written, parents, outcome))

    def _written(self, parents: np.ndarray, rows: np.ndarray, writing: asyncio.Future[None]) -> None:
        error = writing.exception()
        assert error is None or isinstance(error, EddyError), "the host tells typed errors"
        self._settle(parents, rows if error is None else error)

    def _settle(self, parents: np.ndarray, outcome: np.ndarray | EddyError) -> None:
        places = self._places(parents)
        if isinstance(outcome, EddyError):
            self._errors |= dict.fromkeys(places.tolist(), outcome)
        else:
            self._rows[places] = outcome
        self._count_down()

    def _count_down(self) -> None:
        self._num_left -= 1
        if not self._num_left:
            self._done(Forked(self._rows, self._missed, self._errors))

    def _places(self, parents: np.ndarray) -> np.ndarray:
        return np.asarray(self._order[np.searchsorted(self._parents, parents, sorter=self._order)])


def fork_of_model(
    model: ServedModel,
    parents: np.ndarray,
    stream: int,
    notify: Callable[[ServedModel], None],
    done: Callable[[np.ndarray | EddyError], None],
) -> None:
    """Forks sessions of one model, which are not busy now; `done` is told the new rows, or why there are none.

    Args:
        notify: told of the model when it has a job.
    """
    table, queue = model.table, model.scheduler.queue
    if len(stored := model.residence.stored_of(parents)):

        def recalled(error: EddyError | None) -> None:
            queue.clear_busy(parents)
            if error is None:
                fork_of_model(model, parents, stream, notify, done)
            else:
                done(error)

        # All of them: none may be stepped meanwhile, nor end.
        queue.set_busy(parents, len(parents))
        model.recall_states(stored, recalled)
        return
    try:
        rows = _open_beside(model, parents, stream)
    except EddyError as error:
        done(error)
        return
    table.clone(rows, parents, INITIAL_SLOT)
    # Where nothing was written there is nothing to copy.
    written = np.flatnonzero(table.read_slot[parents] != INITIAL_SLOT)
    if not len(written):
        done(rows)
        return
    # Both stay where they are until then, because they are busy; cells are taken where there are no slots.
    origins, slots = parents[written], table.slot[rows[written]].astype(np.int64)
    cells = np.full(len(written), NOWHERE, np.int64)
    most = max(1, queue.most_rows(1))
    parts = [slice(begin, begin + most) for begin in range(0, len(written), most)]
    involved = np.concatenate((parents, rows))
    outcomes: list[list[bytes] | EddyError] = []

    found: dict[int, Places] = {}

    def prepare(part: slice) -> None:
        found[part.start] = model.residence.locate(origins[part])

    def copy(part: slice) -> list[bytes]:
        places = found[part.start]
        if (places.cells == NOWHERE).all() and (slots[part] != NOWHERE).all():
            model.engine.copy_states(places.read_slots, places.home_slots, slots[part])
        else:
            model.residence.write(slots[part], cells[part], model.residence.read(places))
        return []

    def copied(part: slice, outcome: list[bytes] | EddyError) -> None:
        if (places := found.pop(part.start, None)) is not None:
            model.residence.finish()
            if not model.residence.are_good(origins[part], places):
                outcome = ModelError(Reason.MODEL_FAILED, "handles: states that were to be copied could not be moved")
        outcomes.append(outcome)
        if len(outcomes) < len(parts):
            return
        queue.clear_busy(involved)
        failure = next((each for each in outcomes if isinstance(each, EddyError)), None)
        if failure is not None:
            model.close_sessions(rows)
        done(failure or rows)

    try:
        jobs = [
            Job(partial(copy, part), partial(copied, part), len(slots[part]), 1, prepare=partial(prepare, part))
            for part in parts
        ]
        queue.submit_job(*jobs)
    except EddyError as error:
        model.close_sessions(rows)
        done(error)
        return
    queue.set_busy(involved, len(involved))
    is_parked = slots == NOWHERE
    if is_parked.any():
        cells[is_parked] = model.residence.enter_cells(rows[written[is_parked]])
    notify(model)


def _open_beside(model: ServedModel, parents: np.ndarray, stream: int) -> np.ndarray:
    """New sessions with limits, timeouts and kept replies of `parents`; their rows, int64 [B].

    Raises:
        CapacityError: no room; none was opened.
    """
    table = model.table
    rows, sizes = np.zeros(len(parents), np.int64), table.ring_size[parents]
    try:
        for size in np.unique(sizes).tolist():
            mine = np.flatnonzero(sizes == size)
            rows[mine] = model.open_sessions(len(mine), stream, size, table.idle_timeouts_of(parents[mine]))
            model.replies.copy_rings(table.ring_start[parents[mine]], table.ring_start[rows[mine]], size)
    except EddyError:
        model.close_sessions(rows[rows > 0])
        raise
    return rows
