"""Many steps at once: what shares a message, in which order, in flight, cancelled, and after a failure."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import configure, until
from wire import Recorder, connected, run, spelled

from eddy import Session
from eddy.clients.errors import EddyError, InvalidInput, OutOfOrder, SessionEnded


def test_coroutines_share_messages(repository: Path) -> None:
    """Hundred coroutines that step their own sessions need a few messages a round, not hundred."""

    async def scenario() -> None:
        async with connected(configure(repository, model={"max_rows": 128})) as (loopback, client, recorder):
            sessions = [await client.open("history") for _ in range(100)]

            async def drive(number: int, session: Session) -> None:
                digits = [(number + step) % 10 for step in range(8)]
                assert [int(await session.step(digit)) for digit in digits] == spelled(digits)

            await asyncio.gather(*(drive(number, session) for number, session in enumerate(sessions)))
            assert sum(map(len, recorder.handles())) == 800
            assert len(recorder.chunks) <= 8 * 4
            assert loopback.host.catalog.find("history", "").model.scheduler.num_ticks <= len(recorder.chunks)

    run(scenario())


def test_messages_keep_to_the_limits(repository: Path) -> None:
    """No message has more rows than the server takes, nor rows of two models."""

    async def scenario() -> None:
        async with connected(configure(repository, model={"max_rows": 8})) as (_, client, recorder):
            sessions = [await client.open(model) for model in ("history", "digits") for _ in range(20)]
            answers = await asyncio.gather(*(session.step(number % 10) for number, session in enumerate(sessions)))
            assert [int(answer) for answer in answers] == [number % 10 for number in range(40)]
            assert {len(handles) for handles in recorder.handles()} <= set(range(1, 9))
            by_model = {int.from_bytes(session.handle, "little"): session.model for session in sessions}
            assert all(len({by_model[handle] for handle in handles}) == 1 for handles in recorder.handles())

    run(scenario())


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=40), st.integers(1, 5))
def test_random_steps_equal_the_oracle(repository: Path, steps: list[tuple[int, int]], max_in_flight: int) -> None:
    """Steps of any lengths on any sessions, all asked for at once: each session's answers spell its own history."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, recorder):
            sessions = [await client.open("history", max_in_flight=max_in_flight) for _ in range(5)]
            asked: list[list[int]] = [[] for _ in sessions]
            tasks: list[list[asyncio.Task[np.ndarray]]] = [[] for _ in sessions]
            for number, (which, num_steps) in enumerate(steps):
                digits = [(3 * number + step) % 10 for step in range(num_steps)]
                asked[which] += digits
                tasks[which].append(asyncio.create_task(sessions[which].step(digits)))
            for digits, mine in zip(asked, tasks, strict=True):
                answers = [int(value) for part in await asyncio.gather(*mine) for value in part]
                assert answers == spelled(digits)
            assert [session.position for session in sessions] == list(map(len, asked))
            for handles in recorder.handles():
                assert len(set(handles)) == len(handles)

    run(scenario())


# In flight


def test_pipelining(repository: Path) -> None:
    """With room for four, messages go out before the first is answered; with room for one, they do not."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, recorder):
            for max_in_flight, num_sent in ((4, 2), (1, 1)):
                session = await client.open("history", max_in_flight=max_in_flight)
                recorder.may_receive.clear()
                recorder.requests.clear()
                tasks = [asyncio.create_task(session.step(digit)) for digit in (1, 2, 3, 4)]
                await until(lambda wanted=num_sent: len(recorder.chunks) == wanted)
                recorder.may_receive.set()
                assert [int(await task) for task in tasks] == [1, 12, 123, 1234]

    run(scenario())


@pytest.mark.parametrize("max_in_flight", [2, 3, 8])
def test_a_failure_in_the_pipeline(repository: Path, max_in_flight: int) -> None:
    """What was asked for behind a step that is refused fails, sent or not; then the session goes on from there."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, _):
            session = await client.open("digits", max_in_flight=max_in_flight)
            results = await asyncio.gather(
                *(session.step(digits) for digits in ([1, 2], [3, 10], [4], [5], [6, 7])), return_exceptions=True
            )
            assert isinstance(results[0], np.ndarray)
            assert results[0].tolist() == [1, 12]
            assert isinstance(results[1], InvalidInput)
            assert [type(result) for result in results[2:]] == [OutOfOrder] * 3
            assert session.position == 2
            assert (await session.step([3, 4])).tolist() == [123, 1234]

    run(scenario())


def test_an_old_failure_does_not_move_a_session_that_went_on(repository: Path) -> None:
    """A step sent after a failure is known counts, although one sent before that is refused later."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, _):
            session = await client.open("digits", max_in_flight=2)
            refused = asyncio.create_task(session.step(10))
            behind = asyncio.create_task(session.step(1))
            with pytest.raises(InvalidInput):
                await refused
            # `behind` may not have been answered yet.
            assert (await session.step([1, 2, 3])).tolist() == [1, 12, 123]
            with pytest.raises(OutOfOrder):
                await behind
            assert session.position == 3
            assert await session.step(4) == 1234

    run(scenario())


def test_turns_are_taken_in_the_order_of_asking(repository: Path) -> None:
    """Whoever asks again at once does not overtake those who already wait."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, _), client.session("history") as session:
            asked: list[int] = []
            answers: dict[int, int] = {}

            async def drive(digits: list[int]) -> None:
                for digit in digits:
                    place = len(asked)
                    asked.append(digit)
                    answers[place] = int(await session.step(digit))

            await asyncio.gather(*(drive([number, number + 3]) for number in (1, 2, 3)))
            assert [answers[place] for place in range(6)] == spelled(asked)
            assert asked[:3] == [1, 2, 3]

    run(scenario())


def test_a_turn_that_is_given_to_somebody_cancelled_goes_on(repository: Path) -> None:
    """Who is cancelled at the very moment its turn comes does not keep it from the next."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, _), client.session("history") as session:
            first = asyncio.create_task(session.step(1))
            second = asyncio.create_task(session.step(2))
            third = asyncio.create_task(session.step(3))
            await first
            second.cancel()
            assert await third in (13, 123)
            await asyncio.gather(second, return_exceptions=True)
            assert session.position == (1 + (not second.cancelled()) + 1)

    run(scenario())


@pytest.mark.parametrize("num_yields", range(12))
def test_cancelling_at_any_moment(repository: Path, num_yields: int) -> None:
    """However far a step has come when it is cancelled, those after it take effect once, in order, and none hangs."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, _), client.session("history") as session:
            tasks = [asyncio.create_task(session.step(digit)) for digit in (1, 2, 3)]
            for _ in range(num_yields):
                await asyncio.sleep(0)
            tasks[0].cancel()
            tasks[1].cancel()
            last = int(await tasks[2])
            assert last in (3, 13, 23, 123)
            assert session.position == len(str(last))
            assert await session.step(4) == last * 10 + 4

    run(scenario())


def test_a_step_cancelled_before_it_is_sent(repository: Path) -> None:
    """It is not carried out, and the next one is at its position."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, recorder), client.session("history") as session:
            recorder.requests.clear()
            recorder.may_send.clear()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.step(1), 0)
            task = asyncio.create_task(session.step(2))
            await asyncio.sleep(0)
            task.cancel()
            recorder.may_send.set()
            assert await session.step(3) == 3
            assert session.position == 1
            assert len(recorder.chunks) == 1

    run(scenario())


async def _abandon(recorder: Recorder, work: Coroutine[Any, Any, Any], action: str) -> asyncio.Task[Any]:
    """Cancels `work` once its request is sent; answers are held back from then on."""
    recorder.may_receive.clear()
    task = asyncio.create_task(work)
    await until(lambda: action in recorder.actions)
    task.cancel()
    return task


@pytest.mark.parametrize("max_in_flight", [1, 3])
def test_a_step_cancelled_after_it_was_sent(repository: Path, max_in_flight: int) -> None:
    """It is carried out, and the next one follows it; room in flight is not given away before it is answered."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, recorder):
            session = await client.open("history", max_in_flight=max_in_flight)
            task = await _abandon(recorder, session.step([1, 2]), "step")
            following = asyncio.create_task(session.step(3))
            if max_in_flight > 1:
                await until(lambda: len(recorder.chunks) == 2)
            recorder.may_receive.set()
            assert await following == 123
            assert task.cancelled()
            assert session.position == 3

    run(scenario())


def test_a_refused_step_that_was_cancelled(repository: Path) -> None:
    """Nobody hears of the refusal, and the next step is where it should be."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, recorder), client.session("digits") as session:
            await _abandon(recorder, session.step([1, 10]), "step")
            following = asyncio.create_task(session.step(3))
            recorder.may_receive.set()
            assert await following == 3
            assert session.position == 1

    run(scenario())


# Control among steps


@pytest.mark.parametrize("max_in_flight", [1, 4])
def test_a_reset_keeps_its_place(repository: Path, max_in_flight: int) -> None:
    """Steps asked for before a reset belong to the old history, those after it to the new one."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, _):
            session = await client.open("history", max_in_flight=max_in_flight)
            steps = [session.step(1), session.step(2), session.reset(), session.step(3), session.reset()]
            results = await asyncio.gather(*steps, session.step(4), session.step(5))
            assert results == [1, 12, None, 3, None, 4, 45]
            assert session.position == 2

    run(scenario())


def test_a_reset_that_was_cancelled_after_it_was_sent(repository: Path) -> None:
    """The session has its new handle although nobody waited for it."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, recorder), client.session("history") as session:
            await session.step(9)
            await _abandon(recorder, session.reset(), "reset")
            following = asyncio.create_task(session.step(3))
            recorder.may_receive.set()
            assert await following == 3
            assert session.position == 1

    run(scenario())


def test_steps_that_wait_when_their_session_is_closed(repository: Path) -> None:
    """Those whose turn has not come are told that it was closed."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, recorder):
            session = await client.open("history")
            recorder.may_receive.clear()
            tasks = [asyncio.create_task(session.step(digit)) for digit in (1, 2, 3)]
            await until(lambda: recorder.chunks)
            closing = asyncio.create_task(session.close())
            await until(lambda: "close" in recorder.actions)
            recorder.may_receive.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await closing
            assert results[0] == 1
            assert [type(result) for result in results[1:]] == [SessionEnded] * 2

    run(scenario())


def test_sessions_that_nobody_got_are_closed(repository: Path) -> None:
    """Opening that is cancelled leaves nothing on the server: held back, sent, answered, or fetching a contract."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (loopback, client, recorder):
            table = loopback.host.table
            recorder.may_receive.clear()
            task = asyncio.create_task(client.open("history"))
            await until(lambda: table.num_sessions == 1)
            task.cancel()
            recorder.may_receive.set()
            await until(lambda: table.num_sessions == 0)
            assert recorder.actions == ["open", "close"]
            for num_yields in range(40):
                name = ("history", "lstm", "digits", "token-gru")[num_yields % 4]
                task = asyncio.create_task(client.open(name))
                for _ in range(num_yields):
                    await asyncio.sleep(0)
                task.cancel()
                (opened,) = await asyncio.gather(task, return_exceptions=True)
                if isinstance(opened, Session):
                    await opened.close()
            async with client.session("history") as session:  # Behind all of them.
                await until(lambda: table.num_sessions == 1)
                assert await session.step(1) == 1

    run(scenario())


def test_errors_have_a_common_root() -> None:
    """Whoever catches `EddyError` catches all of them; bad input is a `ValueError`, too."""
    assert issubclass(InvalidInput, ValueError)
    assert all(issubclass(kind, EddyError) for kind in (InvalidInput, OutOfOrder, SessionEnded))
