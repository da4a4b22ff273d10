"""Residence by itself: cells and their budget, who leaves, what is opened, and what failing moves leave behind."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from graphs import family
from hypothesis import given
from hypothesis import strategies as st
from simulation import STREAM, Rig, Shelf

from eddy.service.arena import INITIAL_SLOT
from eddy.service.cells import Cells, HostMemory
from eddy.service.chunk import NO_DEADLINE
from eddy.service.contract import read_contract
from eddy.service.errors import CapacityError, EddyError, Reason
from eddy.service.forks import fork_of_model
from eddy.service.lifecycle import Tier
from eddy.service.queue import Limits
from eddy.service.tick import Job

HISTORY = family("history")
STATE_BYTES = 8


def _rig(slots: int, cells: int, **settings: int) -> Rig:
    return Rig(HISTORY, max_slots=slots, host_bytes=STATE_BYTES * cells, **settings)


def _step(rig: Rig, rows: np.ndarray, position: int, digits: Sequence[int]) -> list[int]:
    """Steps sessions of the fake model whose answers spell their inputs."""
    result = rig.step(rows, [position] * len(rows), [np.array(digits)[:, None]])
    assert result.failure is None
    return list(rig.outputs(result, len(rows), 1)[0][:, 0].tolist())


def _tiers(rig: Rig, rows: np.ndarray) -> list[Tier]:
    return [Tier(each) for each in rig.table.tiers_of(rows)]


@given(counts=st.lists(st.integers(-40, 40), max_size=40))
def test_cells_hold_what_was_written(counts: list[int]) -> None:
    """However cells come and go, none is handed out twice, and each holds what was written to it last."""
    states = read_contract(HISTORY.model()).states
    cells = Cells(states, HostMemory(1 << 20), piece_bytes=7 * STATE_BYTES)
    held: dict[int, int] = {}
    stamp = 0
    for count in counts:
        if count > 0:
            taken = cells.allocate(count)
            assert not held.keys() & set(taken.tolist())
            assert len(set(taken.tolist())) == count
            stamps = np.arange(stamp, stamp + count)
            stamp += count
            cells.write(taken, [stamps])
            held |= dict(zip(taken.tolist(), stamps.tolist(), strict=True))
        else:
            leaving = list(held)[: min(-count, len(held))]
            cells.free(np.array(leaving, np.int64))
            for cell in leaving:
                del held[cell]
        assert cells.num_used == len(held)
        every = np.array(list(held), np.int64)
        assert cells.read(every)[0].tolist() == list(held.values())


def test_models_share_the_memory() -> None:
    """What one model has reserved is not there for another, until it gives it back."""
    states = read_contract(HISTORY.model()).states
    memory = HostMemory(10 * STATE_BYTES)
    first, second = Cells(states, memory), Cells(states, memory)
    assert first.reserve(7) == 7
    assert second.reserve(7) == 3
    assert first.reserve(2) == 2
    assert second.reserve(7) == 7
    second.close()
    assert first.reserve(20) == 10


def test_who_waited_longest_makes_room() -> None:
    """The least recently used session leaves its slot, never one that is not idle; who came back stays."""
    rig = _rig(3, 100)
    rows = rig.open(3)
    for row in rows:
        rig.clock.advance(1.0)
        _step(rig, rows[rows == row], 0, [1])
    rig.clock.advance(1.0)
    _step(rig, rows[:1], 1, [2])
    late = rig.open(1)
    assert _tiers(rig, late) == [Tier.INITIAL]
    rig.clock.advance(1.0)
    assert _step(rig, late, 0, [9]) == [9]
    assert _tiers(rig, np.concatenate([rows, late])) == [Tier.DEVICE, Tier.HOST, Tier.DEVICE, Tier.DEVICE]
    rig.clock.advance(1.0)
    assert _step(rig, rows[1:2], 1, [5]) == [15]
    assert _tiers(rig, np.concatenate([rows, late])) == [Tier.DEVICE, Tier.DEVICE, Tier.HOST, Tier.DEVICE]


def test_opening_takes_slots_while_there_are_enough() -> None:
    """Sessions that were opened together lie together, or have no slots; then they need no memory, either."""
    rig = _rig(5, 1000)
    first, second = rig.open(3), rig.open(3)
    assert np.diff(rig.table.slot[first]).tolist() == [1, 1]
    assert _tiers(rig, second) == [Tier.INITIAL] * 3
    assert rig.model.residence.cells.num_used == 0
    assert _tiers(rig, rig.open(2)) == [Tier.DEVICE] * 2


def test_what_there_is_no_room_for_is_not_opened() -> None:
    """As many sessions are opened as can all have states at once, with room to trade places; each of them can step."""
    rig = _rig(4, 10, max_rows=3)
    rows = rig.open(11)
    with pytest.raises(CapacityError) as refused:
        rig.open(1)
    assert refused.value.reason is Reason.TOO_MANY_SESSIONS
    assert refused.value.detail.expected == "at most 0"
    for position in range(3):
        for begin in range(0, 11, 3):
            mine = rows[begin : begin + 3]
            digits = [position + 1] * len(mine)
            assert _step(rig, mine, position, digits) == [[1, 12, 123][position]] * len(mine)
    rig.model.close_sessions(rows[:5])
    assert len(rig.open(5)) == 5
    rig.model.close_sessions(rig.table.open_rows())
    assert rig.model.residence.cells.num_used == rig.model.residence.cells.num_reserved == 0
    assert rig.model.slots.num_free == 4


def test_a_chunk_that_never_has_its_slots_is_refused() -> None:
    """More sessions at once than the arena has slots: typed, and nothing of it is applied."""
    rig = _rig(2, 100)
    rows = rig.open(3)
    result = rig.step(rows, [0, 0, 0], [np.array([[1], [2], [3]])])
    assert result.failure is not None
    assert result.failure.reason is Reason.TOO_MANY_ROWS
    assert _step(rig, rows[:2], 0, [4, 5]) == [4, 5]


def test_two_chunks_take_turns_over_too_few_slots() -> None:
    """Chunks that together are more than the slots run one after the other."""
    rig = _rig(3, 100)
    rows = rig.open(4)
    tags = [rig.submit(rows[part], [0, 0], [np.array([[1], [2]])]) for part in (slice(0, 2), slice(2, 4))]
    rig.run_all()
    assert all(rig.mailbox.results[tag].failure is None for tag in tags)
    assert rig.scheduler.num_ticks == 2


def test_states_are_placed_whoever_has_slots() -> None:
    """Given states are those of the next step, for sessions with a slot, in a cell, and not yet stepped."""
    rig = _rig(2, 100)
    rows = rig.open(2)
    _step(rig, rows, 0, [1, 1])
    rig.clock.advance(1.0)
    fresh = rig.open(2)
    _step(rig, fresh[:1], 0, [1])
    every = np.concatenate([rows, fresh])
    assert sorted(_tiers(rig, every)) == [Tier.DEVICE, Tier.DEVICE, Tier.HOST, Tier.INITIAL]
    rig.model.place_states(every, [np.array([3, 4, 5, 6])])
    rig.table.next_position[every] = 7
    rig.run_all()
    assert sorted(_tiers(rig, every)) == [Tier.DEVICE, Tier.DEVICE, Tier.HOST, Tier.HOST]
    assert [value for row in every for value in _step(rig, np.array([row]), 7, [1])] == [31, 41, 51, 61]


def test_a_slot_that_is_left_is_not_read_again() -> None:
    """A session that begins in another's slot begins with the initial states, whatever lies there."""
    rig = _rig(2, 100)
    rows = rig.open(2)
    _step(rig, rows, 0, [7, 7])
    late = rig.open(1)
    assert rig.table.read_slot[late].tolist() == [INITIAL_SLOT]
    assert _step(rig, late, 0, [1]) == [1]
    rig.model.reset_sessions(rows)
    assert _step(rig, rows, 0, [2, 3]) == [2, 3]


def test_what_the_store_has_makes_room_in_memory() -> None:
    """Sessions beyond slots and cells are written, give up their cells, and come back; a store that is away refuses."""
    shelf = Shelf()
    rig = Rig(HISTORY, max_slots=2, host_bytes=STATE_BYTES * 4, shelf=shelf)
    rows = rig.open(8)
    for position, wanted in enumerate((1, 11, 111)):
        for row in rows:
            rig.clock.advance(1.0)
            assert _step(rig, np.array([row]), position, [1]) == [wanted]
    counts = {tier: _tiers(rig, rows).count(tier) for tier in Tier}
    assert counts[Tier.DEVICE] == 2
    assert counts[Tier.STORE] >= 3
    assert rig.model.residence.by_tier == counts
    assert shelf.num_recalled >= 8
    stored = rows[rig.table.tiers_of(rows) == Tier.STORE][:1]
    shelf.is_away = True
    result = rig.step(stored, [3], [np.array([[1]])])
    assert result.failure is not None
    assert result.failure.reason is Reason.STORE_UNAVAILABLE
    shelf.is_away = False
    rig.table.attach(int(stored[0]), 9)
    read: list[Any] = []
    rig.model.read_states(stored, read.append)
    rig.run_all()
    assert [values.tolist() for values in read[0]] == [[111]]
    assert _step(rig, rows[rows != stored][:1], 3, [1]) == [1111]
    rig.model.close_sessions(rows)
    assert rig.model.residence.by_tier == dict.fromkeys(Tier, 0)


@pytest.mark.parametrize("num_closed", [1, 3])
def test_a_chunk_waits_for_cells_that_a_job_holds(num_closed: int) -> None:
    """Cells of sessions that ended while states are being read are free after that: a chunk is not refused for them."""
    rig = _rig(3, 100)
    rows = rig.open(9)
    for begin in (0, 3, 6):
        rig.clock.advance(1.0)
        _step(rig, rows[begin : begin + 3], 0, [1, 2, 3])
    found: list[list[np.ndarray] | EddyError] = []
    rig.model.read_states(rows[:1], found.append)
    assert rig.form_tick(), "the job is under way"
    rig.model.close_sessions(rows[3 : 3 + num_closed])
    tag = rig.submit(rows[:3], [1, 1, 1], [np.array([[4], [5], [6]])])
    assert not rig.form_tick() and tag not in rig.mailbox.results, "it waits"
    rig.run_all()
    result = rig.mailbox.results[tag]
    assert result.failure is None
    assert rig.outputs(result, 3, 1)[0][:, 0].tolist() == [14, 25, 36]
    [[values]] = found
    assert values.tolist() == [1], "what was read is what was there"


def test_a_chunk_waits_for_slots_that_are_being_cleared() -> None:
    """Slots of sessions that were quarantined come back once they are cleared: a chunk is not refused for them."""
    rig = _rig(3, 100)
    rows = rig.open(6)
    for begin in (0, 3):
        rig.clock.advance(1.0)
        _step(rig, rows[begin : begin + 3], 0, [1, 2, 3])
    rig.model.quarantine_sessions(rows[3:4])
    tags = [rig.submit(rows[:3], [1, 1, 1], [np.array([[4], [5], [6]])])]
    rig.run_all()
    rig.model.quarantine_sessions(rows[:1])
    assert rig.form_tick(), "the job is under way"
    fresh = rig.open(1)
    tags.append(rig.submit(np.array([rows[1], rows[2], fresh[0]]), [2, 2, 0], [np.array([[7], [8], [9]])]))
    rig.run_all()
    assert [rig.mailbox.results[tag].failure for tag in tags] == [None, None]
    assert rig.outputs(rig.mailbox.results[tags[1]], 3, 1)[0][:, 0].tolist() == [257, 368, 9]


def test_a_chunk_that_never_finds_slots_is_refused_behind_jobs_that_are_gone() -> None:
    """Jobs that nobody waits for any more, or that are late, are none to wait for."""
    rig = _rig(3, 100)
    rows = rig.open(6)
    _step(rig, rows[:3], 0, [1, 2, 3])
    _step(rig, rows[3:], 0, [1, 2, 3])
    outcomes: list[list[bytes] | EddyError] = []
    gone, late = (Job(list, outcomes.append, 1, 1, deadline) for deadline in (NO_DEADLINE, rig.clock() - 1.0))
    gone.is_gone = True
    rig.scheduler.queue.submit_job(gone, late)
    result = rig.step(rows[:4], [1] * 4, [np.ones((4, 1))])
    assert isinstance(result.failure, CapacityError) and result.failure.reason is Reason.TOO_MANY_ROWS
    assert len(outcomes) == 1 and isinstance(outcomes[0], CapacityError)


def _shelved(num_slots: int, num_sessions: int) -> tuple[Rig, np.ndarray]:
    """A rig with a state store, and sessions of one step each; all but those in slots are in the store only."""
    rig = Rig(HISTORY, max_slots=num_slots, max_rows=num_slots, host_bytes=STATE_BYTES * 4 * num_slots, shelf=Shelf())
    rows = rig.open(num_sessions)
    for begin in range(0, num_sessions, num_slots):
        rig.clock.advance(1.0)
        mine = rows[begin : begin + num_slots]
        _step(rig, mine, 0, [1 + number % 9 for number in range(begin, begin + len(mine))])
    _shelve(rig)
    return rig, rows


def _shelve(rig: Rig) -> None:
    """Has all sessions kept that have changed, and takes the cells of those that may leave them."""
    assert rig.shelf is not None
    rig.shelf.checkpoint(rig.model)
    rig.run_all()
    rig.model.residence.shelve(1, np.empty(0, np.int64))
    rig.check_places(is_quiet=True)


def test_a_session_that_was_reset_leaves_nothing_behind() -> None:
    """It stands at its start wherever it has been before: it takes no cell and is never stored, and begins anew."""
    rig, rows = _shelved(1, 4)
    first = rows[:1]
    rig.clock.advance(1.0)
    assert _step(rig, first, 1, [2]) == [12], "it is in the slot that it was moved into"
    rig.model.reset_sessions(first)
    for row in rows[1:]:
        rig.clock.advance(1.0)
        _step(rig, np.array([row]), 1, [5])
    assert _tiers(rig, first) == [Tier.INITIAL]
    _shelve(rig)
    assert _step(rig, first, 0, [7]) == [7]
    rig.check_places(is_quiet=True)


def test_a_session_that_is_reset_in_the_store_begins_anew() -> None:
    """Nobody brings back what it had."""
    rig, rows = _shelved(1, 4)
    stored = rows[rig.table.tiers_of(rows) == Tier.STORE][:1]
    assert rig.shelf is not None
    num_recalled = rig.shelf.num_recalled
    rig.model.reset_sessions(stored)
    rig.check_places(is_quiet=True)
    assert _step(rig, stored, 0, [7]) == [7]
    assert rig.shelf.num_recalled == num_recalled


def test_states_that_cannot_be_placed_leave_the_session_where_it_was() -> None:
    """No cell of somebody before is taken for theirs."""
    rig, rows = _shelved(1, 4)
    stored = rows[rig.table.tiers_of(rows) == Tier.STORE][:2]
    num_used = rig.model.residence.cells.num_used
    for states in ([], [np.zeros((2, 3))]):
        with pytest.raises(ValueError, match=r"zip\(\)|shape mismatch|broadcast"):
            rig.model.place_states(stored, states)
        assert _tiers(rig, stored) == [Tier.STORE] * 2
        assert rig.model.residence.cells.num_used == num_used
    number = rows.tolist().index(stored[0])
    assert _step(rig, stored[:1], 1, [5]) == [10 * (number + 1) + 5]


def test_forks_without_slots_are_not_taken_for_sessions_in_the_store() -> None:
    """However many are opened beside one session, others are brought back before they are stepped."""
    rig, rows = _shelved(2, 8)
    stored = rows[rig.table.tiers_of(rows) == Tier.STORE]
    assert len(stored) >= 3
    forked: list[np.ndarray] = []

    def keep(outcome: np.ndarray | EddyError) -> None:
        assert not isinstance(outcome, EddyError), outcome
        rig.table.is_durable[outcome] = True
        forked.append(outcome)

    for _ in range(len(stored) + 1):
        fork_of_model(rig.model, rows[-1:], STREAM, lambda _: None, keep)
        rig.run_all()
    rig.check_places(is_quiet=True)
    assert rig.model.residence.num_stored == np.count_nonzero(rig.table.tiers_of(rows) == Tier.STORE)
    for number, row in enumerate(rows[:-1].tolist()):
        assert _step(rig, np.array([row]), 1, [9]) == [10 * (number + 1) + 9]
    for children in forked:
        assert _step(rig, children, 1, [3]) == [83]


def test_forks_that_find_the_queue_full_leave_nothing_behind() -> None:
    """What was opened for them is closed, and nothing is counted that is not there."""
    rig, rows = _shelved(2, 8)
    queue = rig.scheduler.queue
    queue.limits = Limits(queue.limits.max_rows, queue.limits.budget, 0)
    forked: list[np.ndarray | EddyError] = []
    fork_of_model(rig.model, rows[-1:], STREAM, lambda _: None, forked.append)
    assert isinstance(forked[0], CapacityError) and forked[0].reason is Reason.QUEUE_FULL
    rig.check_places(is_quiet=True)


def test_parents_wait_while_one_of_them_is_brought_back() -> None:
    """What comes for a parent behind the fork is no part of it, also where another parent is in the store."""
    rig, rows = _shelved(2, 8)
    parents = np.array([rows[rig.table.tiers_of(rows) == Tier.STORE][0], rows[-1]])
    before = [1 + rows.tolist().index(row) for row in parents.tolist()]
    forked: list[np.ndarray | EddyError] = []
    fork_of_model(rig.model, parents, STREAM, lambda _: None, forked.append)
    tag = rig.submit(parents[1:], [1], [np.array([[4]])])
    while rig.run_tick():
        pass
    assert not forked and tag not in rig.mailbox.results, "it waits for the store"
    rig.run_all()
    rig.check_places(is_quiet=True)
    assert rig.outputs(rig.mailbox.results[tag], 1, 1)[0].tolist() == [[10 * before[1] + 4]]
    (children,) = forked
    assert not isinstance(children, EddyError)
    assert _step(rig, children, 1, [5, 6]) == [10 * before[0] + 5, 10 * before[1] + 6]


def test_who_is_to_be_read_keeps_its_cell() -> None:
    """Between the asking for states and their turn nobody gives them up to the store; afterwards they may go."""
    rig, rows = _shelved(2, 8)
    for row in rows[:2]:  # Back in memory, where another two push them out of their slots.
        _step(rig, np.array([row]), 1, [5])
    rig.clock.advance(1.0)
    _step(rig, rows[2:4], 1, [5, 5])
    assert rig.shelf is not None
    rig.shelf.checkpoint(rig.model)
    rig.run_all()
    mine = rows[:2]
    assert _tiers(rig, mine) == [Tier.HOST] * 2
    found: list[list[np.ndarray] | EddyError] = []
    rig.model.read_states(mine, found.append)
    rig.model.residence.shelve(100, np.empty(0, np.int64))
    assert _tiers(rig, mine) == [Tier.HOST] * 2
    rig.run_all()
    assert [values.tolist() for values in found[0]] == [[15, 25]]
    rig.model.residence.shelve(100, np.empty(0, np.int64))
    assert _tiers(rig, mine) == [Tier.STORE] * 2
    rig.check_places(is_quiet=True)


def test_who_is_about_to_step_keeps_its_cell() -> None:
    """A session that is sent for takes no room from one that the same tick steps."""
    rig, rows = _shelved(1, 4)
    stored = rows[rig.table.tiers_of(rows) == Tier.STORE]
    first, second = stored[:1], stored[1:2]
    rig.clock.advance(1.0)
    _step(rig, first, 1, [5])
    rig.clock.advance(1.0)
    _step(rig, rows[-1:], 1, [5])
    assert rig.shelf is not None
    rig.shelf.checkpoint(rig.model)
    rig.run_all()
    assert _tiers(rig, first) == [Tier.HOST]
    rig.model.residence.cells.allocate(rig.model.residence.cells.num_free - 1)  # There is hardly any room.
    tags = [rig.submit(first, [2], [np.array([[6]])]), rig.submit(second, [1], [np.array([[6]])])]
    rig.run_all()
    numbers = [1 + rows.tolist().index(row) for row in (first[0], second[0])]
    answers = [rig.outputs(rig.mailbox.results[tag], 1, 1)[0].item() for tag in tags]
    assert answers == [100 * numbers[0] + 56, 10 * numbers[1] + 6]


def test_states_that_a_step_has_just_written_are_read() -> None:
    """A session is read behind its first step, which is under way: not as it was at its start."""
    rig = _rig(2, 100)
    rig.is_late = True
    rows = rig.open(1)
    tag = rig.submit(rows, [0], [np.array([[7]])])
    assert rig.form_tick()
    found: list[tuple[int, list[np.ndarray] | EddyError]] = []
    rig.model.read_states(rows, lambda states: found.append((rig.table.next_position.item(rows[0]), states)))
    assert rig.form_tick(), "the reading is under way, too"
    rig.run_all()
    assert rig.mailbox.results[tag].failure is None
    position, states = found[0]
    assert not isinstance(states, EddyError)
    assert (position, states[0].tolist()) == (1, [7])


def test_states_are_read_again_where_moves_before_have_failed() -> None:
    """What a move that failed should have brought is not taken for a session's states."""
    rig = _rig(1, 100)
    rig.is_late = True
    rows = rig.open(2)
    _step(rig, rows[:1], 0, [7])
    rig.clock.advance(1.0)
    rig.submit(rows[1:], [0], [np.array([[8]])])
    assert rig.fail_moves(gets_out=False)
    found: list[list[np.ndarray] | EddyError] = []
    rig.model.read_states(rows[:1], found.append)
    assert rig.form_tick(), "the reading is under way, of a cell that nothing is written to"
    rig.run_all()
    assert [values.tolist() for values in found[0]] == [[7]]
    rig.check_places(is_quiet=True)


def test_slots_that_are_being_cleared_are_not_counted_as_room() -> None:
    """A chunk that would need one waits until it is cleared."""
    rig = _rig(2, 100)
    rows = rig.open(5)
    for begin in (0, 2):
        rig.clock.advance(1.0)
        _step(rig, rows[begin : begin + 2], 0, [1, 2])
    tag = rig.submit(rows[:2], [1, 1], [np.array([[3], [4]])])
    rig.model.quarantine_sessions(rows[2:3])
    rig.run_all()
    assert rig.outputs(rig.mailbox.results[tag], 2, 1)[0][:, 0].tolist() == [13, 24]
    rig.check_places(is_quiet=True)


def test_a_session_without_states_is_never_stepped() -> None:
    """Whatever went wrong before: nothing is changed, and no other session's states are read."""
    rig, rows = _shelved(1, 4)
    stored = rows[rig.table.tiers_of(rows) == Tier.STORE][:1]
    rig.table.is_stored[stored] = False
    slots, cells = rig.table.slot[rows].copy(), rig.table.cell[rows].copy()
    with pytest.raises(AssertionError, match="a session without states is to be stepped"):
        rig.model.residence.bring(stored)
    assert rig.table.slot[rows].tolist() == slots.tolist()
    assert rig.table.cell[rows].tolist() == cells.tolist()


def test_chunks_that_never_find_slots_do_not_keep_each_other_waiting() -> None:
    """Neither is answered by pushing out what the other one has just had brought back: both are refused."""
    rig, rows = _shelved(1, 6)
    stored = rows[rig.table.tiers_of(rows) == Tier.STORE][:4]
    tags = [rig.submit(part, [1, 1], [np.array([[1], [2]])]) for part in (stored[:2], stored[2:])]
    rig.run_all()
    for tag in tags:
        failure = rig.mailbox.results[tag].failure
        assert failure is not None and failure.reason is Reason.TOO_MANY_ROWS
    number = rows.tolist().index(stored[0])
    assert _step(rig, stored[:1], 1, [5]) == [10 * (number + 1) + 5]
