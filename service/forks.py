"""Forks: new sessions that stand where others stand.

Owns the opening of a session beside each of some others, and the copying of what those are: states (one row each, on
the device), position and kept replies. Must not know the wire.

Ordering rules: a fork keeps its place among its parent's chunks. From then until its states are copied neither takes a
step, so that what is copied is where the parent stood.

Dimension key: B sessions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from eddy.service.arena import INITIAL_SLOT
from eddy.service.errors import ClientError, Detail, EddyError, Reason
from eddy.service.host import Host
from eddy.service.model import ServedModel
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
        CapacityError: DRAINING.
    """
    host.refuse_if_draining()
    rows, errors = np.zeros(len(parents), np.int64), dict[int, EddyError]()
    order = np.argsort(parents)
    missed: list[np.ndarray] = []
    # Models whose sessions are under way, and the pass over the models itself.
    left = [1]

    def finish() -> None:
        left[0] -= 1
        if not left[0]:
            done(Forked(rows, np.concatenate(missed), errors))

    def places(some: np.ndarray) -> np.ndarray:
        return np.asarray(order[np.searchsorted(parents, some, sorter=order)])

    def apply(model: ServedModel, mine: np.ndarray) -> None:
        def opened(outcome: np.ndarray | EddyError) -> None:
            if isinstance(outcome, EddyError):
                errors.update(dict.fromkeys(places(mine).tolist(), outcome))
            else:
                rows[places(mine)] = outcome
            finish()

        left[0] += 1
        if host.has_stream(stream):
            _fork_of_model(host, model, mine, stream, opened)
        else:
            opened(ClientError(Reason.SESSION_CLOSED, "the stream ended", Detail(field="handles")))

    def applied(late: np.ndarray) -> None:
        missed.append(places(late))
        finish()

    host.by_model(parents, apply, applied)


def _fork_of_model(
    host: Host, model: ServedModel, parents: np.ndarray, stream: int, done: Callable[[np.ndarray | EddyError], None]
) -> None:
    """Forks sessions of one model, which are not busy now; `done` is told the new rows, or why there are none."""
    try:
        rows = _open_beside(host, model, parents, stream)
    except EddyError as error:
        done(error)
        return
    table, queue = host.table, model.scheduler.queue
    table.clone(rows, parents, INITIAL_SLOT)
    # Where nothing was written there is nothing to copy.
    written = np.flatnonzero(table.read_slot[parents] != INITIAL_SLOT)
    if not len(written):
        done(rows)
        return
    columns = (table.read_slot[parents], table.home_slot[parents], table.slot[rows])
    read, home, write = (slots[written].astype(np.int64) for slots in columns)
    most = max(1, queue.most_rows(1))
    parts = [slice(begin, begin + most) for begin in range(0, len(written), most)]
    involved = np.concatenate((parents, rows))
    outcomes: list[list[bytes] | EddyError] = []

    def copy(part: slice) -> list[bytes]:
        model.engine.copy_states(read[part], home[part], write[part])
        return []

    def copied(outcome: list[bytes] | EddyError) -> None:
        outcomes.append(outcome)
        if len(outcomes) < len(parts):
            return
        queue.clear_busy(involved)
        failure = next((each for each in outcomes if isinstance(each, EddyError)), None)
        if failure is not None:
            model.close_sessions(rows)
        done(failure or rows)

    try:
        queue.submit_job(*[Job(partial(copy, part), copied, len(read[part]), 1) for part in parts])
    except EddyError as error:
        model.close_sessions(rows)
        done(error)
        return
    queue.set_busy(involved, len(involved))
    host.dispatcher.notify(model)


def _open_beside(host: Host, model: ServedModel, parents: np.ndarray, stream: int) -> np.ndarray:
    """New sessions with limits, timeouts and kept replies of `parents`; their rows, int64 [B].

    Raises:
        CapacityError: no room; none was opened.
    """
    table = host.table
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
