"""The session's life: every status x event pair, in the transition table and in the session table."""

import itertools

import numpy as np
import pytest
from simulation import Clock

from eddy.service.lifecycle import Event, IllegalTransition, Status, transition
from eddy.service.sessions import NO_STREAM, SessionTable, route

# Written out, not taken from the module: the whole table, illegal pairs included.
_ALLOWED = {
    (Status.FREE, Event.OPEN_ATTACHED): Status.ATTACHED,
    (Status.FREE, Event.OPEN_DETACHED): Status.DETACHED,
    (Status.ATTACHED, Event.ATTACH): Status.ATTACHED,
    (Status.ATTACHED, Event.DETACH): Status.DETACHED,
    (Status.ATTACHED, Event.STEP): Status.ATTACHED,
    (Status.ATTACHED, Event.RESET): Status.ATTACHED,
    (Status.ATTACHED, Event.CLOSE): Status.FREE,
    (Status.ATTACHED, Event.EXPIRE): Status.FREE,
    (Status.ATTACHED, Event.FAIL): Status.FREE,
    (Status.ATTACHED, Event.RETIRE): Status.FREE,
    (Status.ATTACHED, Event.QUARANTINE): Status.FREE,
    (Status.ATTACHED, Event.FENCE): Status.FREE,
    (Status.DETACHED, Event.ATTACH): Status.ATTACHED,
    (Status.DETACHED, Event.STEP): Status.DETACHED,
    (Status.DETACHED, Event.RESET): Status.DETACHED,
    (Status.DETACHED, Event.CLOSE): Status.FREE,
    (Status.DETACHED, Event.EXPIRE): Status.FREE,
    (Status.DETACHED, Event.FAIL): Status.FREE,
    (Status.DETACHED, Event.RETIRE): Status.FREE,
    (Status.DETACHED, Event.QUARANTINE): Status.FREE,
    (Status.DETACHED, Event.FENCE): Status.FREE,
}
_PAIRS = list(itertools.product(Status, Event))


@pytest.mark.parametrize(("status", "event"), _PAIRS)
def test_every_pair_of_the_transition_table(status: Status, event: Event) -> None:
    """A legal event leads to one status; an illegal one raises and names both."""
    statuses = np.array([status, status], np.int8)
    if (status, event) in _ALLOWED:
        assert transition(statuses, event).tolist() == [_ALLOWED[status, event]] * 2
    else:
        with pytest.raises(IllegalTransition, match=f"{event.name} in status {status.name}"):
            transition(statuses, event)
    assert statuses.tolist() == [status, status]


def test_one_illegal_row_refuses_all() -> None:
    """A transition of several rows happens for all of them or for none."""
    statuses = np.array([Status.ATTACHED, Status.FREE], np.int8)
    with pytest.raises(IllegalTransition, match="CLOSE in status FREE"):
        transition(statuses, Event.CLOSE)
    assert statuses.tolist() == [Status.ATTACHED, Status.FREE]


def _table() -> SessionTable:
    return SessionTable(10, Clock(), np.random.default_rng(1).bytes)


def _open(table: SessionTable, stream: int) -> int:
    rows = table.open(
        np.array([5]),
        model=2,
        stream=stream,
        initial_slot=0,
        ring_starts=np.array([0]),
        ring_size=1,
        idle_timeout_seconds=60.0,
    )
    return int(rows[0])


def _in_status(table: SessionTable, status: Status) -> int:
    row = _open(table, NO_STREAM if status is Status.DETACHED else 3)
    if status is Status.FREE:
        table.end(np.array([row]), Event.CLOSE)
    return row


def _apply(table: SessionTable, row: int, event: Event) -> None:
    rows = np.array([row])
    if event is Event.ATTACH:
        table.attach(row, 4)
    elif event is Event.DETACH:
        table.detach(rows)
    elif event is Event.RESET:
        table.reset(rows, 0)
    else:
        table.end(rows, event)


@pytest.mark.parametrize(("status", "event"), [pair for pair in _PAIRS if pair[1] not in (0, 1, Event.STEP)])
def test_every_pair_through_the_table(status: Status, event: Event) -> None:
    """The table's methods obey the transition table; an illegal move changes nothing.

    Opening takes free rows only, and a step is an advance of columns: neither is a method that takes a row.
    """
    table = _table()
    row = _in_status(table, status)
    before = (int(table.handle[row]), int(table.route[row]), table.num_sessions)
    if (status, event) not in _ALLOWED:
        with pytest.raises(IllegalTransition):
            _apply(table, row, event)
        assert (int(table.handle[row]), int(table.route[row]), table.num_sessions) == before
        return
    _apply(table, row, event)
    after = _ALLOWED[status, event]
    assert table.num_sessions == int(after is not Status.FREE)
    assert table.open_rows().tolist() == ([row] if after is not Status.FREE else [])
    wanted = {Status.FREE: -1, Status.DETACHED: route(0, 2), Status.ATTACHED: route(3, 2)}[after]
    assert int(table.route[row]) == (route(4, 2) if event is Event.ATTACH else wanted)
    # Detaching keeps the handle: the same client may be on its way back by unary calls.
    is_new_epoch = int(table.handle[row]) != before[0]
    assert is_new_epoch == (event is not Event.DETACH)
