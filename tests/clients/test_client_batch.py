"""Many sessions stepped by arrays: subsets, rows that fail, messages that fail, steps at once."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import configure, until
from wire import connected, run

from eddy.clients.errors import BatchError, Fenced, InvalidInput, OutOfOrder, ServerBusy, SessionEnded


def test_more_sessions_than_a_message_takes(repository: Path) -> None:
    """150 sessions at 64 rows a message: three messages a step, and rows stay in their order."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (loopback, client, recorder):
            async with client.batch("history", 150) as batch:
                assert (len(batch), batch.model, batch.version) == (150, "history", "1")
                digits = np.arange(150) % 10
                assert (await batch.step(digits)).tolist() == digits.tolist()
                answers = await batch.step(np.stack([digits, digits], axis=1))
                assert answers.tolist() == [[11 * digit, 111 * digit] for digit in digits.tolist()]
                assert [len(handles) for handles in recorder.handles()] == [64, 64, 22] * 2
                assert batch.positions.tolist() == [3] * 150
            assert loopback.host.table.num_sessions == 0
            await batch.close()
            assert recorder.actions.count("close") == 1

    run(scenario())


def test_some_of_the_rows(repository: Path) -> None:
    """`rows` steps those sessions in that order; the others stay where they are."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, _), client.batch("history", 4) as batch:
            assert (await batch.step([3, 1], rows=[2, 0])).tolist() == [3, 1]
            assert (await batch.step([[5, 6]], rows=np.array([2]))).tolist() == [[35, 356]]
            assert batch.positions.tolist() == [1, 0, 3, 0]
            assert (await batch.step([1, 1, 1, 1])).tolist() == [11, 1, 3561, 1]

    run(scenario())


@pytest.mark.parametrize(
    ("rows", "inputs", "reason", "field"),
    [
        (None, [1, 2], "INVALID_SHAPE", "inputs"),
        ([0], [1, 2], "INVALID_SHAPE", "inputs"),
        (None, 1, "INVALID_SHAPE", "x"),
        ([], np.zeros(0, np.int64), "EMPTY_BATCH", "inputs"),
        (None, np.zeros((3, 0), np.int64), "ZERO_STEPS", "inputs"),
        ([0, 3], [1, 2], "OUT_OF_RANGE", "rows"),
        ([-1], [1], "OUT_OF_RANGE", "rows"),
        ([1, 1], [1, 2], "DUPLICATE_HANDLE", "rows"),
        ([True, False, True], [1, 2, 3], "INVALID_SHAPE", "rows"),
        ([[0, 1]], [1], "INVALID_SHAPE", "rows"),
        ([0.5], [1], "INVALID_SHAPE", "rows"),
    ],
)
def test_mistakes_in_a_batch(repository: Path, rows: Any, inputs: Any, reason: str, field: str) -> None:
    """Refused before anything is sent."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, recorder), client.batch("history", 3) as batch:
            recorder.requests.clear()
            with pytest.raises(InvalidInput) as caught:
                await batch.step(inputs, rows)
            assert (caught.value.reason, caught.value.field) == (reason, field)
            assert caught.value.received
            assert caught.value.expected
            assert not recorder.requests
            assert batch.positions.tolist() == [0, 0, 0]

    run(scenario())


def test_rows_that_fail_alone(repository: Path) -> None:
    """The error has their reasons and everybody's outputs; good rows went on, bad ones did not."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, _), client.batch("digits", 100) as batch:
            inputs = np.full(100, 2)
            inputs[[3, 70]] = 10
            with pytest.raises(BatchError, match="2 rows failed, row 3: ") as caught:
                await batch.step(inputs)
            errors, outputs = caught.value.errors, caught.value.outputs["y"]
            assert {row: error.reason for row, error in errors.items()} == {3: "OUT_OF_RANGE", 70: "OUT_OF_RANGE"}
            assert outputs.tolist() == [0 if row in (3, 70) else 2 for row in range(100)]
            answers = await batch.step(np.full(100, 5))
            assert answers.tolist() == [5 if row in (3, 70) else 25 for row in range(100)]
            with pytest.raises(BatchError) as caught:
                await batch.step([11, 7], rows=[1, 2])
            assert list(caught.value.errors) == [0]
            assert caught.value.outputs["y"].tolist() == [0, 257]

    run(scenario())


def test_a_message_that_fails_alone(repository: Path) -> None:
    """When the server begins to drain between a step's messages, the rows that went through are not lost."""

    async def scenario() -> None:
        config = configure(repository, model={"max_rows": 2})
        async with connected(config, reconnect_seconds=0) as (loopback, client, recorder):
            batch = await client.open_batch("history", 6)
            row = loopback.host.table.row_of_id(batch.ids[0])
            recorder.hold_after = 1
            step = asyncio.create_task(batch.step([1, 2, 3, 4, 5, 6]))
            await until(lambda: loopback.host.table.next_position[row] == 1)
            loopback.host.gate.is_draining = True
            recorder.may_send.set()
            with pytest.raises(BatchError) as caught:
                await step
            assert {row: type(error) for row, error in caught.value.errors.items()} == dict.fromkeys(
                range(2, 6), ServerBusy
            )
            assert caught.value.reason == "DRAINING"
            assert caught.value.outputs["y"].tolist() == [1, 2, 0, 0, 0, 0]
            loopback.host.gate.is_draining = False
            assert batch.positions.tolist() == [1, 1, 0, 0, 0, 0]
            assert (await batch.step([7] * 6)).tolist() == [17, 27, 7, 7, 7, 7]

    run(scenario())


def test_steps_at_once_on_the_same_rows(repository: Path) -> None:
    """They take effect in the order of asking; so does a reset behind them."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, _), client.batch("history", 3) as batch:
            first, second, _ = await asyncio.gather(batch.step([1, 2, 3]), batch.step([4, 5, 6]), batch.reset())
            assert (first.tolist(), second.tolist()) == ([1, 2, 3], [14, 25, 36])
            assert batch.positions.tolist() == [0, 0, 0]
            assert (await batch.step([7, 8, 9])).tolist() == [7, 8, 9]

    run(scenario())


def test_a_failure_ahead_of_a_step_at_once(repository: Path) -> None:
    """A row that fails fails in the step behind it, too, and is then where it was."""

    async def scenario() -> None:
        async with (
            connected(configure(repository)) as (_, client, _),
            client.batch("digits", 2, max_in_flight=2) as batch,
        ):
            results = await asyncio.gather(batch.step([1, 10]), batch.step([2, 2]), return_exceptions=True)
            assert [type(result) for result in results] == [BatchError, BatchError]
            assert isinstance(results[1], BatchError)
            assert {row: type(error) for row, error in results[1].errors.items()} == {1: OutOfOrder}
            assert results[1].outputs["y"].tolist() == [12, 0]
            assert batch.positions.tolist() == [2, 0]
            assert (await batch.step([3, 3])).tolist() == [123, 3]

    run(scenario())


@pytest.mark.parametrize("is_sent", [False, True])
def test_a_cancelled_step_of_a_batch(repository: Path, *, is_sent: bool) -> None:
    """Dropped when it was not sent, carried out when it was; positions are right for the next step in either case."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, recorder), client.batch("history", 2) as batch:
            (recorder.may_receive if is_sent else recorder.may_send).clear()
            if not is_sent:
                blocked = asyncio.create_task(batch.step([0, 0]))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            step = asyncio.create_task(batch.step([1, 2]))
            await asyncio.sleep(0)
            if is_sent:
                await until(lambda: recorder.chunks)
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)
            recorder.may_receive.set()
            recorder.may_send.set()
            if not is_sent:
                await blocked
            following = await batch.step([3, 4])
            assert following.tolist() == ([13, 24] if is_sent else [3, 4])

    run(scenario())


def test_reset_and_ended_sessions_of_a_batch(repository: Path) -> None:
    """A session taken away by another client is fenced alone; nothing goes after the batch is closed."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, _):
            batch = await client.open_batch("history", 3)
            await batch.step([1, 2, 3])
            taken = await client.attach(batch.ids[1], batch.resume_tokens[1])
            assert await taken.step(5) == 25
            with pytest.raises(Fenced):
                await batch.reset()
            # The others were reset.
            with pytest.raises(BatchError) as caught:
                await batch.step([7, 8, 9])
            assert {row: type(error) for row, error in caught.value.errors.items()} == {1: Fenced}
            assert caught.value.outputs["y"].tolist() == [7, 0, 9]
            assert await taken.step(6) == 256
            await batch.close()
            assert await taken.step(7) == 2567
            with pytest.raises(SessionEnded):
                await batch.step([1, 1, 1])

    run(scenario())


def test_several_outputs_of_a_batch(repository: Path) -> None:
    """`step_outputs` gives each output by name, `step` refuses the model."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, _), client.batch("two-inputs", 3) as batch:
            inputs = {"value": np.ones((3, 2, 2)), "restart": np.zeros((3, 2), np.bool_)}
            outputs = await batch.step_outputs(inputs)
            assert outputs["total"][2].tolist() == [[1.25, 1.25], [2.25, 2.25]]
            assert outputs["was_restarted"].shape == (3, 2)
            with pytest.raises(InvalidInput, match="step_outputs"):
                await batch.step(inputs)

    run(scenario())
