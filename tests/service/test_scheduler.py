"""The scheduler by hand: cutting, order, fairness, deadlines, repeats, failures.

The model is `history` (state' = 10 state + x): the answer spells what was applied, in which order.
"""

import numpy as np
import pytest
from graphs import family
from hypothesis import given
from hypothesis import strategies as st
from simulation import STREAM, Mailbox, Rig

from eddy.service.arena import SlotAllocator
from eddy.service.chunk import ChunkResult
from eddy.service.cost import Budget
from eddy.service.errors import CapacityError, EddyError, ModelError, Reason
from eddy.service.queue import ChunkQueue, Limits
from eddy.service.tick import Tick, slice_steps

HISTORY = family("history")


def _rig(**limits: int) -> Rig:
    return Rig(HISTORY, **limits)


def _digits(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(rows, np.int64)]


def _answers(result: ChunkResult, num_rows: int = 1) -> list[list[int]]:
    assert result.failure is None
    values = np.frombuffer(result.outputs[0], "<i8")
    answers: list[list[int]] = values.reshape(num_rows, len(values) // num_rows).tolist()
    return answers


def _reason(result: ChunkResult, row: int = 0) -> Reason:
    error: EddyError = result.failure or result.errors[row]
    return error.reason


@given(st.integers(1, 10_000), st.integers(1, 2048), st.integers(1, 1 << 20))
def test_slices_are_powers_of_two_within_the_budget(remaining: int, rows: int, budget: int) -> None:
    """A slice is the largest power of two that fits the rest and the budget, and at least one step."""
    steps = slice_steps(remaining, budget // rows)
    assert steps & (steps - 1) == 0
    assert 1 <= steps <= remaining
    assert steps == 1 or steps * rows <= budget
    assert 2 * steps > remaining or 2 * steps * rows > budget


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 4096))
def test_slices_add_up(num_steps: int, rows: int, budget: int) -> None:
    """Cutting until nothing remains covers every step once."""
    done = 0
    while done < num_steps:
        done += slice_steps(num_steps - done, budget // rows)
    assert done == num_steps


def test_the_answer_spells_the_history() -> None:
    """Inputs 1, 2, 3 answer 1, 12, 123, whether sent together or apart."""
    rig = _rig()
    rows = rig.open(2)
    assert _answers(rig.step(rows[:1], [0], _digits([1, 2, 3]))) == [[1, 12, 123]]
    for position, digit in enumerate((1, 2, 3)):
        result = rig.step(rows[1:], [position], _digits([digit]))
    assert _answers(result) == [[123]]


def test_chunks_of_one_length_share_a_tick() -> None:
    """What waits and fits goes together, in the order of arrival; another length waits for its own tick."""
    rig = _rig()
    rows = rig.open(4)
    for index, digits in enumerate(([1], [2], [3, 3], [4])):
        rig.submit(rows[index : index + 1], [0], _digits(digits))
    tick = rig.scheduler.next_tick(0.0)
    assert tick is not None
    assert isinstance(tick, Tick)
    assert (tick.num_steps, tick.rows.tolist(), tick.positions.tolist()) == (1, rows[[0, 1, 3]].tolist(), [0, 0, 0])


def test_a_tick_keeps_to_its_rows() -> None:
    """No tick has more rows than allowed, but for one chunk that alone has more steps than the budget."""
    rig = _rig(max_rows=3)
    rows = rig.open(8)
    for index in range(8):
        rig.submit(rows[index : index + 1], [0], _digits([1]))
    sizes = []
    while (tick := rig.scheduler.next_tick(0.0)) is not None:
        sizes.append(tick.num_rows)
        outputs = rig.model.engine.run(tick.inputs, tick.read_slots, tick.write_slots, tick.num_rows, 1)
        rig.scheduler.commit(tick, outputs, 0.0)
    assert sizes == [3, 3, 2]


def test_a_long_chunk_takes_turns() -> None:
    """Between two slices of a long chunk a short one that waits is answered."""
    rig = _rig(row_steps_budget=4)
    long, short = rig.open(2)
    long_tag = rig.submit(np.array([long]), [0], _digits([1] * 64))
    assert rig.run_tick()
    for position in range(3):
        tag = rig.submit(np.array([short]), [position], _digits([2]))
        while tag not in rig.mailbox.results:
            assert long_tag not in rig.mailbox.results, "the short chunk waited for all of the long one"
            assert rig.run_tick()
    rig.run_all()
    assert _answers(rig.mailbox.results[long_tag])[0][15] == int("1" * 16)


def test_a_sliced_chunk_shows_nothing_before_its_end() -> None:
    """While a chunk is half-way its session is where it was; at the last slice it is at the end."""
    rig = _rig(row_steps_budget=2)
    rows = rig.open()
    rig.step(rows, [0], _digits([7]))
    before = rig.state(int(rows[0]))
    rig.submit(rows, [1], _digits([1, 2, 3, 4]))
    assert rig.run_tick()
    assert int(rig.table.next_position[rows[0]]) == 1
    np.testing.assert_array_equal(rig.state(int(rows[0])), before)
    assert rig.table.is_busy[rows[0]]
    rig.run_all()
    assert int(rig.table.next_position[rows[0]]) == 5
    assert rig.state(int(rows[0]))[0] == 71234


def test_a_failing_slice_changes_nothing() -> None:
    """The chunk fails as a whole; its session is where it was, and the same chunk can be sent again."""
    rig = _rig(row_steps_budget=2)
    rows = rig.open()
    rig.step(rows, [0], _digits([7]))
    tag = rig.submit(rows, [1], _digits([1, 2, 3, 4]))
    assert rig.fail_tick()
    assert _reason(rig.mailbox.results[tag]) is Reason.MODEL_FAILED
    assert rig.ended == []
    assert _answers(rig.step(rows, [1], _digits([1, 2, 3, 4]))) == [[71, 712, 7123, 71234]]


def test_a_failing_last_slice_ends_its_sessions() -> None:
    """States that may have been touched are not gone on with: those sessions end, with notice; others go on."""
    rig = _rig(row_steps_budget=2)
    rows = rig.open(3)
    rig.step(rows, [0] * 3, _digits([1], [2], [3]))
    tag = rig.submit(rows[:1], [1], _digits([1, 2, 3, 4]))
    assert rig.run_tick()
    handle = int(rig.table.handle[rows[0]])
    assert rig.fail_tick()
    assert _reason(rig.mailbox.results[tag]) is Reason.MODEL_FAILED
    ((stream, handles, error),) = rig.ended
    assert (stream, handles, error.reason) == (STREAM, [handle], Reason.MODEL_FAILED)
    late = rig.chunk([handle], [5], _digits([1]))
    rig.scheduler.queue.submit(late)
    rig.run_all()
    assert _reason(rig.mailbox.results[late.tag]) is Reason.MODEL_FAILED
    assert _answers(rig.step(rows[1:], [1, 1], _digits([4], [5])), 2) == [[24], [35]]


def test_a_failing_tick_ends_all_of_its_sessions_and_no_other() -> None:
    """Every row of a failed fast tick ends; the slot is used again without a trace."""
    rig = Rig(HISTORY, max_slots=2)
    rows = rig.open(2)
    tag = rig.submit(rows, [0, 0], _digits([8], [9]))
    assert rig.fail_tick()
    assert _reason(rig.mailbox.results[tag]) is Reason.MODEL_FAILED
    assert rig.table.num_sessions == 0
    again = rig.open(2)
    assert _answers(rig.step(again, [0, 0], _digits([1], [2])), 2) == [[1], [2]]


def test_a_late_chunk_is_refused_and_a_begun_one_is_finished() -> None:
    """A deadline counts until the first slice is formed, not after."""
    rig = _rig(row_steps_budget=1)
    rows = rig.open(2)
    begun = rig.submit(rows[:1], [0], _digits([1, 2, 3]), deadline=rig.clock() + 1)
    late = rig.submit(rows[1:], [0], _digits([1, 2, 3]), deadline=rig.clock() + 1)
    assert rig.run_tick()
    rig.clock.advance(1.0)
    rig.run_all()
    assert _answers(rig.mailbox.results[begun]) == [[1, 12, 123]]
    assert _reason(rig.mailbox.results[late]) is Reason.DEADLINE_EXCEEDED
    assert int(rig.table.next_position[rows[1]]) == 0


def test_a_chunk_of_a_client_that_left() -> None:
    """Not begun: dropped, neither carried out nor answered. Begun: finished, and takes effect."""
    rig = _rig(row_steps_budget=2)
    rows = rig.open(2)
    gone = Mailbox()
    rig.submit(rows[:1], [0], _digits([1, 2, 3, 4]), source=gone)
    rig.submit(rows[1:], [0], _digits([5, 6]), source=gone)
    assert rig.run_tick()
    gone.is_gone = True
    rig.run_all()
    assert int(rig.table.next_position[rows[0]]) == 4
    assert int(rig.table.next_position[rows[1]]) in (0, 2)
    # Whoever takes over asks again and gets the reply that nobody heard.
    result = rig.step(rows[:1], [0], _digits([1, 2, 3, 4]))
    assert _answers(result) == [[1, 12, 123, 1234]]
    assert list(result.replayed) == [0]


@pytest.mark.parametrize("max_in_flight", [1, 3])
def test_kept_replies_are_as_many_as_may_be_in_flight(max_in_flight: int) -> None:
    """The last chunks are answered again, bit for bit, without running; an older one is refused with `next`."""
    rig = _rig()
    rows = rig.open(max_in_flight=max_in_flight)
    firsts = [rig.step(rows, [position], _digits([position + 1])) for position in range(5)]
    num_ticks = rig.scheduler.num_ticks
    for position in range(5):
        result = rig.step(rows, [position], _digits([position + 1]))
        if position >= 5 - max_in_flight:
            assert list(result.replayed) == [0]
            assert [bytes(b) for b in result.outputs] == [bytes(b) for b in firsts[position].outputs]
        else:
            assert _reason(result) is Reason.POSITION_BEHIND
            assert result.errors[0].detail.next_position == 5
    assert rig.scheduler.num_ticks == num_ticks


def test_repeats_that_are_not() -> None:
    """The same position with other inputs, another T, or inside of a kept chunk is refused and applies nothing."""
    rig = _rig()
    rows = rig.open(max_in_flight=2)
    rig.step(rows, [0], _digits([1, 2]))
    rig.step(rows, [2], _digits([3, 4]))
    for position, digits, reason in (
        (2, [3, 5], Reason.REPEAT_MISMATCH),
        (2, [3], Reason.REPEAT_MISMATCH),
        (2, [3, 4, 5], Reason.REPEAT_MISMATCH),
        (0, [1, 3], Reason.REPEAT_MISMATCH),
        (1, [2], Reason.POSITION_BEHIND),
        (3, [4], Reason.POSITION_BEHIND),
        (5, [5], Reason.POSITION_AHEAD),
    ):
        result = rig.step(rows, [position], _digits(digits))
        assert _reason(result) is reason, (position, digits)
        assert result.errors[0].detail.next_position == 4
    assert _answers(rig.step(rows, [4], _digits([5]))) == [[12345]]


def test_a_reply_that_is_no_longer_kept_is_not_run_again() -> None:
    """Over the budget the reply is forgotten, the chunk is known to be applied, and the session goes on."""
    rig = Rig(HISTORY, max_kept_reply_bytes=1)
    rows = rig.open()
    rig.step(rows, [0], _digits([1, 2]))
    result = rig.step(rows, [0], _digits([1, 2]))
    assert _reason(result) is Reason.REPLY_NOT_KEPT
    assert _reason(rig.step(rows, [0], _digits([1]))) in (Reason.REPLY_NOT_KEPT, Reason.REPEAT_MISMATCH)
    assert _answers(rig.step(rows, [2], _digits([3]))) == [[123]]


def test_a_reset_forgets_the_replies() -> None:
    """After a reset no reply of the session's former life is given, though its position was passed again."""
    rig = _rig()
    rows = rig.open(max_in_flight=3)
    for position in range(3):
        rig.step(rows, [position], _digits([position + 1]))
    rig.model.reset_sessions(rows)
    assert _answers(rig.step(rows, [0], _digits([9, 9, 9, 9, 9]))) == [[9, 99, 999, 9999, 99999]]
    assert _reason(rig.step(rows, [2], _digits([3]))) is Reason.POSITION_BEHIND


def test_a_reused_ring_knows_nothing_of_its_former_session() -> None:
    """A session that is opened where another was closed is not answered with the other's replies."""
    rig = Rig(HISTORY, max_slots=1)
    rows = rig.open(max_in_flight=3)
    for position in range(3):
        rig.step(rows, [position], _digits([position + 1]))
    rig.model.close_sessions(rows)
    rows = rig.open(max_in_flight=3)
    assert _answers(rig.step(rows, [0], _digits([9, 9, 9]))) == [[9, 99, 999]]
    assert _reason(rig.step(rows, [2], _digits([3]))) is Reason.POSITION_BEHIND


def test_a_duplicate_in_the_queue_is_answered_from_the_first() -> None:
    """The same chunk twice before any tick: one runs, the other is replayed, with equal answers."""
    rig = _rig()
    rows = rig.open()
    first = rig.submit(rows, [0], _digits([4, 5]))
    second = rig.submit(rows, [0], _digits([4, 5]))
    rig.run_all()
    assert _answers(rig.mailbox.results[first]) == _answers(rig.mailbox.results[second]) == [[4, 45]]
    assert list(rig.mailbox.results[second].replayed) == [0]
    assert rig.scheduler.num_row_steps == 2


def test_a_pipelined_session_is_never_in_two_ticks() -> None:
    """While a session's chunk is away its next chunk waits, and others do not wait for it."""
    rig = _rig()
    rows = rig.open(2, max_in_flight=3)
    tags = [rig.submit(rows[:1], [position], _digits([position + 1])) for position in range(3)]
    assert rig.form_tick()
    assert not rig.form_tick()
    other = rig.submit(rows[1:], [0], _digits([9]))
    assert rig.form_tick()
    assert rig.commit_tick()
    assert rig.commit_tick()
    rig.run_all()
    assert [_answers(rig.mailbox.results[tag])[0][0] for tag in tags] == [1, 12, 123]
    assert _answers(rig.mailbox.results[other]) == [[9]]


def test_control_waits_for_what_came_before() -> None:
    """A control operation runs after the chunks that came before it, and at once when nothing waits or runs."""
    rig = _rig()
    rows = rig.open(2)
    order: list[str] = []
    rig.scheduler.queue.submit_control(rows, lambda: order.append("at once"))
    assert order == ["at once"]
    rig.submit(rows[:1], [0], _digits([1]))
    assert rig.form_tick()
    rig.scheduler.queue.submit_control(rows[:1], lambda: order.append("behind the tick"))
    rig.scheduler.queue.submit_control(rows[1:], lambda: order.append("another session"))
    assert not rig.form_tick()
    assert "behind the tick" not in order
    rig.run_all()
    assert order == ["at once", "another session", "behind the tick"]


def test_a_full_queue_refuses_and_takes_nothing() -> None:
    """One chunk more than may wait is refused by reason; those that wait are carried out."""
    rig = _rig()
    rig.scheduler.queue.limits = Limits(64, Budget(64), 2)
    rows = rig.open(3)
    for index in range(2):
        rig.submit(rows[index : index + 1], [0], _digits([1]))
    with pytest.raises(CapacityError) as caught:
        rig.submit(rows[2:], [0], _digits([1]))
    assert caught.value.reason is Reason.QUEUE_FULL
    rig.run_all()
    assert len(rig.mailbox.results) == 2


def test_working_slots_bound_what_is_half_way() -> None:
    """When all working slots are taken a further long chunk waits, and all of them come back in the end."""
    rig = _rig(row_steps_budget=8, max_rows=4)
    rows = rig.open(8)
    tags = [rig.submit(rows[start : start + 4], [0] * 4, _digits(*[[1] * 8] * 4)) for start in (0, 4)]
    assert rig.form_tick()
    assert not rig.form_tick(), "the second chunk has no working slots"
    rig.run_all()
    assert all(_answers(rig.mailbox.results[tag], 4) == [[int("1" * n) for n in range(1, 9)]] * 4 for tag in tags)
    again = rig.open(4)
    assert _answers(rig.step(again, [0] * 4, _digits(*[[1] * 8] * 4)), 4)[0][-1] == int("1" * 8)


def test_a_model_failure_is_the_models_fault() -> None:
    """The error of a failed tick is a model error, not a client's."""
    rig = _rig()
    rows = rig.open()
    tag = rig.submit(rows, [0], _digits([1]))
    rig.fail_tick()
    assert isinstance(rig.mailbox.results[tag].failure, ModelError)


def test_a_chunk_that_breaks_the_forming_of_a_tick_is_answered() -> None:
    """Chunks that were picked when it broke are back in the queue, fail once with it, and their sessions go on."""
    rig = Rig(HISTORY)
    rows = rig.open(3)
    broken = rig.chunk(rig.table.handle[rows[:1]], [0], [np.array([[5]])])
    broken.inputs = (b"123",)  # No codec lets that pass.
    rig.scheduler.queue.submit(broken)
    fine = rig.submit(rows[1:], [0, 0], [np.array([[5], [6]])])
    with pytest.raises(ValueError, match="buffer size"):
        rig.run_all()
    rig.scheduler.fail_queue(CapacityError(Reason.QUEUE_FULL, "as the dispatcher does"))
    assert rig.mailbox.order == [broken.tag, fine]
    assert all(rig.mailbox.results[tag].failure is not None for tag in (broken.tag, fine))
    assert rig.scheduler.queue.is_idle
    result = rig.step(rows, [0, 0, 0], [np.array([[1], [2], [3]])])
    assert [values.tolist() for values in rig.outputs(result, 3, 1)] == [[[1], [2], [3]]]


def test_passes_of_two_models_are_told_apart() -> None:
    """What one model's pass has marked means nothing to another's, whose session has got the row since.

    The column of marks is one for all models; a chunk that looked marked would wait for ever.
    """
    rig = Rig(HISTORY)
    queue, limits = rig.scheduler.queue, rig.scheduler.queue.limits
    other = ChunkQueue(rig.table, SlotAllocator(2, 4), limits, rig.model.residence)
    passes = [each.begin_pass() for each in (queue, other, queue, other)]
    assert len(set(passes)) == len(passes)
