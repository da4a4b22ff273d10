"""The session table: growth, identity, epochs, fencing and what a refused handle is told."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation import Clock

from eddy.service.errors import CapacityError, ClientError, EddyError, ModelError, Reason
from eddy.service.lifecycle import Event, Status
from eddy.service.sessions import MODEL_BITS, NO_STREAM, SessionTable

STREAM, OTHER_STREAM = 3, 4


def _table(max_sessions: int = 10_000, clock: Clock | None = None) -> SessionTable:
    return SessionTable(max_sessions, clock or Clock(), np.random.default_rng(1).bytes)


def _open(
    table: SessionTable, count: int = 1, *, stream: int = STREAM, model: int = 0, idle: float = 60.0
) -> np.ndarray:
    return table.open(
        np.arange(count) + 100,
        model=model,
        stream=stream,
        initial_slot=0,
        ring_starts=np.arange(count),
        ring_size=1,
        idle_timeout_seconds=idle,
    )


def _reason(error: EddyError) -> Reason:
    return error.reason


def test_rows_and_ids_are_distinct_across_growth() -> None:
    """Opening more sessions than the first columns hold grows them; nothing moves, nothing is handed out twice."""
    table = _table()
    first = _open(table, 1000)
    handles = table.handle[first].copy()
    ids = table.ids_of(first)
    table.next_position[first] = np.arange(1000)
    second = _open(table, 3000)
    assert table.num_rows >= 4001
    assert len({*first.tolist(), *second.tolist()}) == 4000
    assert 0 not in {*first.tolist(), *second.tolist()}
    np.testing.assert_array_equal(table.handle[first], handles)
    np.testing.assert_array_equal(table.next_position[first], np.arange(1000))
    assert table.ids_of(first) == ids
    assert len({*ids, *table.ids_of(second)}) == 4000
    assert [table.row_of_id(session_id) for session_id in ids] == first.tolist()
    np.testing.assert_array_equal(table.rows_of(table.handle[second]), second)


def test_the_cap_refuses_all_or_nothing() -> None:
    """A request over the cap opens nothing and says what came and what is left; the last place can be taken."""
    table = _table(max_sessions=5)
    _open(table, 3)
    with pytest.raises(CapacityError) as caught:
        _open(table, 3)
    assert caught.value.reason is Reason.TOO_MANY_SESSIONS
    assert (caught.value.detail.field, caught.value.detail.received) == ("count", "3")
    assert caught.value.detail.expected == "at most 2"
    assert table.num_sessions == 3
    _open(table, 2)
    assert table.num_sessions == 5


@given(
    st.lists(st.tuples(st.sampled_from(["open", "close", "attach", "reset", "detach"]), st.integers(0, 9)), max_size=60)
)
def test_old_handles_are_never_good_again(actions: list[tuple[str, int]]) -> None:
    """Whatever happens to a row, a handle that was replaced stays bad, and every open session has one good handle."""
    table = _table(max_sessions=12)
    live: dict[bytes, int] = {}
    dead: set[int] = set()
    for action, pick in actions:
        ids = list(live)
        if action == "open" and len(live) < 12:
            row = int(_open(table)[0])
            live[table.ids_of(np.array([row]))[0]] = int(table.handle[row])
            continue
        if not ids:
            continue
        session_id = ids[pick % len(ids)]
        row = table.row_of_id(session_id)
        if action == "detach":
            if table.info(row).is_attached:
                table.detach(np.array([row]))
            continue
        dead.add(live[session_id])
        if action == "close":
            table.end(np.array([row]), Event.CLOSE)
            del live[session_id]
        else:
            if action == "attach":
                table.attach(row, OTHER_STREAM)
            elif action == "reset":
                table.reset(np.array([row]), 0)
            live[session_id] = int(table.handle[row])
            if action == "open":
                dead.discard(live[session_id])
    assert not dead & set(live.values())
    assert table.num_sessions == len(live)
    for handle in dead:
        assert int(table.handle[handle & 0xFFFFFFFF]) != handle
    for session_id, handle in live.items():
        assert int(table.handle[table.row_of_id(session_id)]) == handle


def test_what_a_refused_handle_is_told() -> None:
    """Fenced with the present epoch; closed, expired, failed; unknown when it is nobody's business."""
    table = _table()
    taken, reset, closed, expired, failed, kept = _open(table, 6).tolist()
    old = {row: int(table.handle[row]) for row in (taken, reset, closed, expired, failed, kept)}
    table.attach(taken, OTHER_STREAM)
    table.reset(np.array([reset]), 0)
    table.end(np.array([closed]), Event.CLOSE)
    table.end(np.array([expired]), Event.EXPIRE)
    table.end(np.array([failed]), Event.FAIL)
    for row in (taken, reset):
        error = table.explain(old[row])
        assert error.reason is Reason.FENCED
        assert error.detail.epoch == int(table.handle[row]) >> 32
    assert _reason(table.explain(old[closed])) is Reason.SESSION_CLOSED
    assert _reason(table.explain(old[expired])) is Reason.SESSION_EXPIRED
    failure = table.explain(old[failed])
    assert isinstance(failure, ModelError)
    assert failure.reason is Reason.MODEL_FAILED
    unknown = [0, kept, 2**64 - 1, 1 << 32, (5 << 32) | 9999, old[kept] + (1 << 32), old[kept]]
    assert {_reason(table.explain(handle)) for handle in unknown} == {Reason.UNKNOWN_SESSION}


def test_a_reused_row_says_nothing_of_its_former_session() -> None:
    """Once a row is another's, an old handle of it is unknown: not closed, not fenced."""
    table = _table(max_sessions=1)
    row = int(_open(table)[0])
    old = int(table.handle[row])
    table.end(np.array([row]), Event.CLOSE)
    again = int(_open(table)[0])
    assert again == row
    assert int(table.handle[row]) != old
    assert _reason(table.explain(old)) is Reason.UNKNOWN_SESSION
    table.reset(np.array([row]), 0)
    assert _reason(table.explain(old)) is Reason.UNKNOWN_SESSION


def test_nothing_of_a_former_session_is_left() -> None:
    """A reused row begins at position 0, with the initial slot, not busy, used just now."""
    clock = Clock()
    table = _table(1, clock)
    row = int(_open(table)[0])
    table.next_position[row], table.read_slot[row], table.is_busy[row], table.ring_next[row] = 9, 100, True, 3
    table.end(np.array([row]), Event.FAIL)
    clock.advance(5)
    _open(table, idle=7.0)
    info = table.info(row)
    assert (info.next_position, info.idle_seconds, info.idle_timeout_seconds) == (0, 0.0, 7.0)
    assert (int(table.read_slot[row]), bool(table.is_busy[row]), int(table.ring_next[row])) == (0, False, 0)


def test_ending_forgets_the_ids() -> None:
    """The ids of ended sessions are unknown from then on."""
    table = _table()
    rows = _open(table, 4)
    ids = table.ids_of(rows)
    table.end(rows[[2, 0]], Event.CLOSE)
    for index in (0, 2):
        with pytest.raises(ClientError):
            table.row_of_id(ids[index])
    assert table.open_rows().tolist() == sorted([int(rows[1]), int(rows[3])])


def test_idle_rows() -> None:
    """A session is idle after its own timeout; a busy one never; what was used lately is not."""
    clock = Clock()
    table = _table(clock=clock)
    short, long, busy = (int(_open(table, idle=idle)[0]) for idle in (10.0, 100.0, 10.0))
    table.is_busy[busy] = True
    clock.advance(10.0)
    assert table.idle_rows().tolist() == []
    clock.advance(0.5)
    assert table.idle_rows().tolist() == [short]
    table.last_used[short] = clock()
    assert table.idle_rows().tolist() == []
    clock.advance(95.0)
    assert sorted(table.idle_rows().tolist()) == sorted([short, long])


def test_rows_by_stream_and_model() -> None:
    """Sessions are found by owner and by model; a detached one has no owner and keeps its model."""
    table = _table()
    mine = _open(table, 2, model=1)
    others = _open(table, 2, stream=OTHER_STREAM, model=2)
    free = _open(table, 1, stream=NO_STREAM, model=1)
    assert table.rows_of_stream(STREAM).tolist() == sorted(mine.tolist())
    assert table.open_rows(1).tolist() == sorted([*mine.tolist(), *free.tolist()])
    assert table.models_of(others).tolist() == [2, 2]
    table.detach(mine)
    assert table.rows_of_stream(STREAM).tolist() == []
    assert table.rows_of_stream(OTHER_STREAM).tolist() == sorted(others.tolist())
    assert table.open_rows(1).tolist() == sorted([*mine.tolist(), *free.tolist()])
    assert (table.route[mine] >> MODEL_BITS).tolist() == [NO_STREAM] * 2


def test_handles_outside_the_table() -> None:
    """Handles of no row point to row 0, which is nobody's and whose handle none equals."""
    table = _table()
    handles = np.array([0, 1 << 31, 2**64 - 1, 2**32 - 1], np.uint64)
    assert table.rows_of(handles).tolist() == [0, 0, 0, 0]
    assert not (table.handle[table.rows_of(handles[:2])] == handles[:2]).any()
    assert int(table.route[0]) == -1


def test_sessions_are_counted_by_model_and_status() -> None:
    """Each open session counts once, under its model and whether a stream owns it; ended ones do not count."""
    table = _table()
    first = _open(table, 5, model=0)
    _open(table, 2, model=0, stream=NO_STREAM)
    other = _open(table, 3, model=2, stream=OTHER_STREAM)
    table.detach(first[:1])
    table.end(other[:2], Event.CLOSE)
    counts = table.count_by_model(3)
    assert counts[:, [Status.ATTACHED, Status.DETACHED]].tolist() == [[4, 3], [0, 0], [1, 0]]
    assert table.count_by_model(0).shape == (0, len(Status))


def test_sessions_are_counted_while_the_table_grows() -> None:
    """Another thread may count at any moment: it never sees more sessions than there are, and all of them at last."""
    table = _table(max_sessions=200_000)
    is_done = threading.Event()
    seen: list[int] = []

    def count() -> None:
        while not is_done.is_set():
            seen.append(int(table.count_by_model(1).sum()))

    with ThreadPoolExecutor(1) as pool:
        counting = pool.submit(count)
        for _ in range(500):
            _open(table, 400)
        is_done.set()
        counting.result()
    assert max(seen, default=0) <= 200_000
    assert table.count_by_model(1)[0, Status.ATTACHED] == 200_000
