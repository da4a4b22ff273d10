"""One session through the client: shapes, refusals on either side, reset, close."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import configure
from wire import connected, run

from eddy.clients.errors import EddyError, InvalidInput, NotFound, SessionEnded


def test_one_step_and_many(repository: Path) -> None:
    """A scalar, a list, an array and a mapping are one step or T; one step's output has no time axis."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, _), client.session("history") as session:
            first = await session.step(1)
            assert (first.shape, first.dtype, int(first)) == ((), np.int64, 1)
            assert (await session.step([2, 3])).tolist() == [12, 123]
            assert (await session.step({"x": np.array([4], ">i4")})).tolist() == [1234]
            assert (await session.step_outputs({"x": 5}))["y"] == 12345
            assert session.position == 5
            assert (session.model, session.version, session.max_in_flight) == ("history", "1", 1)
            assert len(session.id) == 16

    run(scenario())


def test_features_and_several_ports(repository: Path) -> None:
    """[F] is one step, [T, F] are T; a model with several outputs gives each by name, and `step` refuses it."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, recorder):
            async with client.session("lstm") as session:
                assert (await session.step(np.zeros(4))).shape == (3,)
                assert (await session.step(np.zeros((2, 4)))).shape == (2, 3)
            async with client.session("two-inputs") as session:
                outputs = await session.step_outputs({"value": [[1, 2], [3, 4]], "restart": [True, False]})
                assert outputs["total"].tolist() == [[1, 2], [4, 6]]
                assert outputs["was_restarted"].tolist() == [True, True]
                one = await session.step_outputs({"value": [0.5, 0.5], "restart": False})
                assert (one["total"].tolist(), one["was_restarted"].shape) == ([4.5, 6.5], ())
                recorder.requests.clear()
                with pytest.raises(InvalidInput, match=r"total, was_restarted.*step_outputs"):
                    await session.step({"value": [0.5, 0.5], "restart": False})
                assert not recorder.requests

    run(scenario())


MISTAKES: list[tuple[str, Any, str, str, str, str]] = [
    ("history", [1.5], "INVALID_DTYPE", "x", "dtype float64", "int64"),
    ("history", "abc", "INVALID_DTYPE", "x", "dtype <U3", "int64"),
    ("history", None, "INVALID_DTYPE", "x", "dtype object", "int64"),
    ("history", np.array([1 << 63], np.uint64), "OUT_OF_RANGE", "x", str(1 << 63), "values that int64 can hold"),
    ("history", [[1, 2]], "INVALID_SHAPE", "x", "shape [1, 2]", "[] for one step or [T]"),
    ("history", [[1], [2, 3]], "INVALID_SHAPE", "x", "ragged", "an array"),
    ("history", np.zeros(0, np.int64), "ZERO_STEPS", "inputs", "T = 0 steps", "at least 1"),
    ("history", {"y": 1}, "UNKNOWN_INPUT", "inputs", "y", "x"),
    ("history", {}, "UNKNOWN_INPUT", "inputs", "none", "x"),
    ("history", {1: 1}, "UNKNOWN_INPUT", "inputs", "1", "x"),
    ("lstm", 1.0, "INVALID_SHAPE", "x", "shape []", "[4] for one step or [T, 4]"),
    ("lstm", np.zeros(3), "INVALID_SHAPE", "x", "shape [3]", "[4] for one step or [T, 4]"),
    ("lstm", np.zeros((1, 2, 4)), "INVALID_SHAPE", "x", "shape [1, 2, 4]", "[4] for one step or [T, 4]"),
    ("lstm", [1e300, 0, 0, 0], "OUT_OF_RANGE", "x", "1e+300", "values that float32 can hold"),
    ("two-inputs", [1.0, 2.0], "MISSING_FIELD", "inputs", "one array", "a mapping with value, restart"),
    (
        "two-inputs",
        {"value": [[1, 2], [3, 4]], "restart": [True]},
        "INVALID_SHAPE",
        "restart",
        "shape [1]",
        "[] for one step or [T]",
    ),
    ("two-inputs", {"value": [1, 2], "restart": 1}, "INVALID_DTYPE", "restart", "dtype int64", "bool"),
]


@pytest.mark.parametrize(("model", "inputs", "reason", "field", "received", "expected"), MISTAKES)
def test_mistakes_are_refused_before_anything_is_sent(
    repository: Path, model: str, inputs: Any, reason: str, field: str, received: str, expected: str
) -> None:
    """The error names the field, what came and what was expected; nothing is sent, and the session goes on."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, recorder), client.session(model) as session:
            recorder.requests.clear()
            with pytest.raises(InvalidInput) as caught:
                await session.step_outputs(inputs)
            error = caught.value
            assert (error.reason, error.field, error.expected) == (reason, field, expected)
            assert received in error.received
            assert all(part in str(error) for part in (field, received, expected))
            assert not recorder.requests
            assert session.position == 0
            if model == "history":
                assert await session.step(7) == 7

    run(scenario())


def test_a_chunk_larger_than_any_message_is_refused_here(repository: Path) -> None:
    """Sending it would end the stream for every session; the others do not notice."""

    async def scenario() -> None:
        config = configure(repository, server={"max_message_bytes": 8192}, model={"max_steps": 1 << 20})
        async with (
            connected(config) as (_, client, recorder),
            client.session("history") as session,
            client.batch("history", 2) as batch,
        ):
            with pytest.raises(
                InvalidInput, match=r"inputs: got 4000 steps, 32016 bytes, expected at most 8192"
            ) as caught:
                await session.step(np.ones(4000, np.int64))
            assert caught.value.reason == "MESSAGE_TOO_LARGE"
            with pytest.raises(InvalidInput, match="expected at most 8192 bytes a session"):
                await batch.step(np.ones((2, 4000), np.int64))
            assert "step" not in recorder.actions
            assert await session.step(1) == 1
            assert (await batch.step(np.full((2, 500), 0))).shape == (2, 500)
            assert len(recorder.chunks) == 3

    run(scenario())


def test_refusals_of_the_server_change_nothing(repository: Path) -> None:
    """NaN, a value out of range, too many steps: typed, nothing applied, and the next step is at the right position."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (loopback, client, _):
            async with client.session("lstm") as session, client.session("lstm") as calm:
                before = await session.step(np.ones(4))
                assert np.array_equal(before, await calm.step(np.ones(4)))
                with pytest.raises(InvalidInput) as caught:
                    await session.step([1, np.nan, 1, 1])
                assert (caught.value.reason, caught.value.field) == ("NON_FINITE", "inputs[x]")
                assert np.array_equal(await session.step(np.ones(4)), await calm.step(np.ones(4)))
            async with client.session("digits") as session:
                assert await session.step(1) == 1
                with pytest.raises(InvalidInput, match="got 10, expected 0 to 9") as caught:
                    await session.step([2, 10])
                assert (caught.value.reason, caught.value.received) == ("OUT_OF_RANGE", "10")
                with pytest.raises(InvalidInput) as caught:
                    await session.step([1] * 513)
                assert (caught.value.reason, caught.value.field) == ("TOO_MANY_STEPS", "step.num_steps")
                assert session.position == 1
                assert (await session.step([2, 3])).tolist() == [12, 123]
            assert loopback.host.table.num_sessions == 0

    run(scenario())


def test_a_session_that_others_moved_on(repository: Path) -> None:
    """A position that is not the server's is told once, with the right one; the next step uses it."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (loopback, client, _), client.session("history") as session:
            await session.step([1, 2])
            row = loopback.host.table.row_of_id(session.id)
            loopback.host.table.next_position[row] = 5
            with pytest.raises(EddyError) as caught:
                await session.step(3)
            assert (type(caught.value).__name__, caught.value.next_position) == ("OutOfOrder", 5)
            assert await session.step(3) == 123
            assert session.position == 6

    run(scenario())


def test_reset_and_close(repository: Path) -> None:
    """A reset begins again; a closed session refuses by itself; closing twice is fine."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (loopback, client, recorder):
            session = await client.open("history")
            await session.step([1, 2])
            old = session.handle
            await session.reset()
            assert (session.position, session.handle != old, session.is_open) == (0, True, True)
            assert await session.step(7) == 7
            await session.close()
            await session.close()
            assert (session.is_open, loopback.host.table.num_sessions) == (False, 0)
            assert recorder.actions.count("close") == 1
            for refused in (session.step(1), session.reset()):
                with pytest.raises(SessionEnded) as caught:
                    await refused
                assert caught.value.reason == "SESSION_CLOSED"
            assert recorder.actions == ["open", "step", "reset", "step", "close"]

    run(scenario())


def test_names_that_do_not_exist(repository: Path) -> None:
    """An unknown model, version or session is `NotFound`; bad arguments are `InvalidInput`."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (loopback, client, _):
            for refused in (client.open("nothing"), client.open("history", "9"), client.contract("nothing")):
                with pytest.raises(NotFound, match="got"):
                    await refused
            with pytest.raises(SessionEnded) as caught:
                await client.attach(bytes(16))
            assert caught.value.reason == "UNKNOWN_SESSION"
            for arguments in ({"max_in_flight": 65}, {"idle_timeout_seconds": -1.0}):
                with pytest.raises(InvalidInput) as caught_input:
                    await client.open("history", **arguments)
                assert caught_input.value.field == next(iter(arguments))
            assert loopback.host.table.num_sessions == 0

    run(scenario())
