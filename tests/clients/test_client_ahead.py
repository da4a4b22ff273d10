"""Models that look ahead: what a step gives, and the ends of streams, exactly once and in order."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import configure, until
from toys import LOOK_AHEAD
from wire import connected, run, spelled

from eddy import SyncClient
from eddy.clients.errors import BatchError, InvalidInput, OutOfOrder
from examples.server import ServerProcess


def test_a_step_gives_what_the_model_has_emitted(ahead: Path) -> None:
    """Nothing until the look-ahead is there, one array also for one step; the end gives the rest, and begins anew."""

    async def scenario() -> None:
        async with connected(configure(ahead)) as (_, client, recorder), client.session("ahead") as session:
            first = await session.step(1)
            assert (first.shape, first.dtype) == ((0,), np.int64)
            assert (await session.step([2, 3])).tolist() == []
            assert (await session.step(4)).tolist() == [1]
            assert (await session.step([5, 6])).tolist() == [12, 123]
            assert (await session.flush()).tolist() == [1234, 12345, 123456]
            assert session.position == 7
            assert (await session.flush()).tolist() == []
            assert (await session.step_outputs([7, 8, 9, 1]))["y"].tolist() == [7]
            assert (await session.flush_outputs())["y"].tolist() == [78, 789, 7891]
            ends = [chunk for chunk in recorder.chunks if chunk.flush]
            assert [(chunk.num_steps, len(chunk.inputs)) for chunk in ends] == [(0, 0)] * 3

    run(scenario())


def test_leaving_the_block_does_not_end_the_stream(ahead: Path) -> None:
    """What is held back when a session is closed is lost: closing sends no end."""

    async def scenario() -> None:
        async with connected(configure(ahead)) as (_, client, recorder):
            async with client.session("ahead") as session:
                await session.step([1, 2])
            assert recorder.actions == ["open", "step", "close"]
            assert not recorder.chunks[0].flush

    run(scenario())


def test_sessions_with_different_delays_share_a_message(ahead: Path) -> None:
    """Each gets its own outputs of one message, as many as it has emitted."""

    async def scenario() -> None:
        async with connected(configure(ahead)) as (_, client, recorder):
            sessions = [await client.open("ahead") for _ in range(5)]
            for number, session in enumerate(sessions):
                for digit in range(number):
                    await session.step(digit + 1)
            recorder.requests.clear()
            answers = await asyncio.gather(*(session.step([8, 9]) for session in sessions))
            assert [len(handles) for handles in recorder.handles()] == [5]
            for number, answer in enumerate(answers):
                whole = spelled([*range(1, number + 1), 8, 9])
                before = max(0, number - LOOK_AHEAD)
                assert answer.tolist() == whole[before : max(0, number + 2 - LOOK_AHEAD)]

    run(scenario())


def test_ends_share_messages_with_ends_only(ahead: Path) -> None:
    """Ends of many sessions go in one message, steps of others in another."""

    async def scenario() -> None:
        async with connected(configure(ahead)) as (_, client, recorder):
            sessions = [await client.open("ahead") for _ in range(8)]
            await asyncio.gather(*(session.step([1, 2, number]) for number, session in enumerate(sessions)))
            recorder.requests.clear()
            recorder.may_send.clear()
            held = asyncio.create_task(sessions[0].step(5))
            calls = [session.flush() if number % 2 else session.step(3) for number, session in enumerate(sessions[1:])]
            tasks = [asyncio.create_task(call) for call in calls]
            await until(lambda: all(not task.done() for task in tasks))
            recorder.may_send.set()
            answers = await asyncio.gather(held, *tasks)
            assert len(recorder.chunks) <= 4
            assert sum(len(chunk.handles) // 8 for chunk in recorder.chunks if chunk.flush) == 3
            assert [answer.tolist() for answer in answers[2::2]] == [spelled([1, 2, n]) for n in (2, 4, 6)]
            assert [answer.tolist() for answer in answers[1::2]] == [[1]] * 4

    run(scenario())


_ASKED = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=40)


@settings(max_examples=15)
@given(_ASKED, st.integers(1, 5))
def test_random_steps_and_ends(ahead: Path, asked: list[tuple[int, int]], max_in_flight: int) -> None:
    """Steps and ends on any sessions, all asked for at once: each stream's outputs, put together, spell its history."""

    async def scenario() -> None:
        async with connected(configure(ahead)) as (_, client, _):
            sessions = [await client.open("ahead", max_in_flight=max_in_flight) for _ in range(3)]
            streams: list[list[list[int]]] = [[[]] for _ in sessions]
            tasks: list[list[asyncio.Task[np.ndarray]]] = [[] for _ in sessions]
            for number, (which, num_steps) in enumerate([*asked, (0, 0), (1, 0), (2, 0)]):
                digits = [(3 * number + step) % 10 for step in range(num_steps)]
                call = sessions[which].step(digits) if digits else sessions[which].flush()
                tasks[which].append(asyncio.create_task(call))
                streams[which][-1] += digits
                if not digits:
                    streams[which].append([])
            for whole, mine in zip(streams, tasks, strict=True):
                answers = [int(value) for part in await asyncio.gather(*mine) for value in part]
                assert answers == [value for digits in whole for value in spelled(digits)]
            lengths = [sum(map(len, whole)) + len(whole) - 1 for whole in streams]
            assert [session.position for session in sessions] == lengths

    run(scenario())


def test_an_end_behind_a_failure(ahead: Path) -> None:
    """A pipelined end behind a step that is refused fails with it, ends nothing, and can be asked for again."""

    async def scenario() -> None:
        async with connected(configure(ahead)) as (_, client, _):
            session = await client.open("ahead-digits", max_in_flight=4)
            results = await asyncio.gather(
                session.step([1, 2]), session.step([3, 10]), session.flush(), session.step([4]), return_exceptions=True
            )
            assert [type(result) for result in results] == [np.ndarray, InvalidInput, OutOfOrder, OutOfOrder]
            assert session.position == 2
            assert (await session.step([3, 4])).tolist() == [1]
            assert (await session.flush()).tolist() == [12, 123, 1234]

    run(scenario())


@pytest.mark.parametrize("num_yields", range(8))
def test_cancelling_an_end_at_any_moment(ahead: Path, num_yields: int) -> None:
    """An end that is cancelled takes effect once or not at all, and the position says which."""

    async def scenario() -> None:
        async with connected(configure(ahead)) as (_, client, _), client.session("ahead") as session:
            await session.step([1, 2])
            task = asyncio.create_task(session.flush())
            for _ in range(num_yields):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            rest = (await session.step([3, 4, 5])).tolist() + (await session.flush()).tolist()
            assert rest == (spelled([1, 2, 3, 4, 5]) if session.position == 6 else spelled([3, 4, 5]))
            assert session.position in (6, 7)

    run(scenario())


def test_an_end_survives_a_takeover(ahead: Path) -> None:
    """The session that another connection takes over goes on after the end, in the new stream."""

    async def scenario() -> None:
        async with connected(configure(ahead)) as (_, client, _):
            session = await client.open("ahead")
            await session.step([1, 2, 3, 4])
            await session.flush()
            again = await client.attach(session.id, session.resume_token)
            assert again.position == 5
            await again.step([5])
            assert (await again.flush()).tolist() == [5]

    run(scenario())


def test_models_without_ends(ahead: Path) -> None:
    """Ending streams of a model that holds nothing back is refused here, and nothing is sent."""

    async def scenario() -> None:
        async with connected(configure(ahead)) as (_, client, recorder):
            session, batch = await client.open("history"), await client.open_batch("history", 2)
            for call in (session.flush, session.flush_outputs, batch.flush, batch.flush_outputs):
                with pytest.raises(InvalidInput) as error:
                    await call()
                assert (error.value.reason, error.value.field) == ("WRONG_TASK", "flush")
            assert not recorder.chunks

    run(scenario())


# Batches


def test_a_batch_gives_each_row_its_own(ahead: Path) -> None:
    """`step_ragged` and `flush` answer with an array a row, over several messages, also for some of the rows."""

    async def scenario() -> None:
        config = configure(ahead, model={"max_rows": 4})
        async with connected(config) as (_, client, recorder), client.batch("ahead", 10) as batch:
            digits = np.arange(10)
            assert [row.tolist() for row in await batch.step_ragged(digits)] == [[]] * 10
            rows = [7, 2]
            answers = await batch.step_ragged([[1, 2, 3], [4, 5, 6]], rows=rows)
            assert [row.tolist() for row in answers] == [[7], [2]]
            recorder.requests.clear()
            ended = await batch.flush(rows=[2, 3])
            assert [row.tolist() for row in ended] == [spelled([2, 4, 5, 6])[1:], [3]]
            assert [(chunk.flush, len(chunk.handles) // 8) for chunk in recorder.chunks] == [(True, 2)]
            ended = (await batch.flush_outputs())["y"]
            assert [row.tolist() for row in ended[:2]] == [[0], [1]]
            assert [row.tolist() for row in ended[2:4]] == [[], []]
            assert ended[7].tolist() == [71, 712, 7123]
            assert batch.positions.tolist() == [2, 2, 6, 3, 2, 2, 2, 5, 2, 2]

    run(scenario())


def test_a_batch_of_a_model_without_delay(ahead: Path) -> None:
    """`step_ragged` serves every model, with a time axis also for one step."""

    async def scenario() -> None:
        async with connected(configure(ahead)) as (_, client, _), client.batch("history", 2) as batch:
            assert [row.tolist() for row in await batch.step_ragged([1, 2])] == [[1], [2]]
            assert [row.tolist() for row in await batch.step_ragged([[3, 4], [5, 6]])] == [[13, 134], [25, 256]]

    run(scenario())


def test_a_batch_step_refuses_what_it_cannot_stack(ahead: Path) -> None:
    """`step` of a model that looks ahead names the call that can."""

    async def scenario() -> None:
        async with connected(configure(ahead)) as (_, client, recorder), client.batch("ahead", 2) as batch:
            with pytest.raises(InvalidInput, match="step_ragged") as error:
                await batch.step([1, 2])
            assert error.value.reason == "WRONG_TASK"
            assert not recorder.chunks
            with pytest.raises(InvalidInput) as error:
                await batch.flush(rows=[])
            assert error.value.reason == "EMPTY_BATCH"

    run(scenario())


def test_rows_that_fail(ahead: Path) -> None:
    """Rows that are refused are empty and stay where they are; the others have their outputs in the error."""

    async def scenario() -> None:
        async with connected(configure(ahead)) as (_, client, _), client.batch("ahead-digits", 3) as batch:
            with pytest.raises(BatchError) as error:
                await batch.step_ragged([[1, 2, 3, 4], [1, 2, 10, 4], [5, 6, 7, 8]])
            assert [row.tolist() for row in error.value.ragged["y"]] == [[1], [], [5]]
            assert (list(error.value.errors), error.value.outputs) == ([1], {})
            assert batch.positions.tolist() == [4, 0, 4]
            with pytest.raises(BatchError) as error:
                await batch.step_ragged([[10], [11], [12]])
            assert [row.tolist() for row in error.value.ragged["y"]] == [[], [], []]
            assert [row.tolist() for row in await batch.flush()] == [[12, 123, 1234], [], [56, 567, 5678]]

    run(scenario())


def test_whole_sequences_are_answered_at_once(ahead: Path) -> None:
    """`infer` runs the whole graph: as many outputs as steps, whatever the look-ahead."""

    async def scenario() -> None:
        async with connected(configure(ahead)) as (_, client, _):
            short, long = await client.infer("ahead", [[1, 2], [3, 4, 5, 6]])
            assert (short.tolist(), long.tolist()) == (spelled([1, 2]), spelled([3, 4, 5, 6]))

    run(scenario())


def test_the_synchronous_face(ahead: Path) -> None:
    """Sessions and batches of blocking code do the same."""
    with ServerProcess(ahead) as server, SyncClient(server.target) as client:
        with client.session("ahead") as session:
            assert session.step([1, 2, 3, 4]).tolist() == [1]
            assert session.flush().tolist() == [12, 123, 1234]
            session.step([5, 6])
            assert session.flush_outputs()["y"].tolist() == [5, 56]
        with client.batch("ahead", 2) as batch:
            assert batch.step_ragged([[1, 2, 3, 4], [5, 6, 7, 8]])[1].tolist() == [5]
            assert batch.step_ragged_outputs([[5], [9]])["y"][1].tolist() == [56]
            assert batch.flush(rows=[1])[0].tolist() == [567, 5678, 56789]
            assert batch.flush_outputs()["y"][0].tolist() == [123, 1234, 12345]
