"""What becomes of one session is its own: its steps fail with its error, and the others on the stream go on."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from loopback import configure, until
from test_client_returns import impatient
from test_client_survives import server
from wire import connected, run, spelled

from eddy import Client, Session
from eddy.clients.connection import MAX_MESSAGES
from eddy.clients.errors import Fenced, SessionEnded

# What somebody else does to a session by its id, and how its steps end then.
Deed = Callable[[Client, Session], Awaitable[object]]
DEEDS: dict[str, tuple[Deed, type[Exception]]] = {
    "reset": (lambda other, session: other.reset_session(session.id), Fenced),
    "closed": (lambda other, session: other.close_session(session.id), SessionEnded),
    "taken": (lambda other, session: other.attach(session.id, session.resume_token), Fenced),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_a_session_that_ends_while_its_steps_wait(repository: Path, deed: str) -> None:
    """Those that were not sent yet fail with the session, once; what shares messages with them goes on."""
    act, kind = DEEDS[deed]

    async def scenario() -> None:
        async with (
            connected(configure(repository)) as (loopback, client, recorder),
            Client(channel=loopback.channel) as other,
        ):
            bystander = await client.open("history", max_in_flight=4)
            session = await client.open("history", max_in_flight=8)
            assert await session.step(1) == 1
            recorder.may_receive.clear()
            await act(other, session)
            beside = [asyncio.create_task(bystander.step(digit)) for digit in (1, 2, 3)]
            steps = [asyncio.create_task(session.step(digit)) for digit in range(10)]
            await until(lambda: len(recorder.chunks) == 1 + MAX_MESSAGES)
            recorder.may_receive.set()
            results = await asyncio.gather(*steps, return_exceptions=True)
            assert [type(result) for result in results] == [kind] * 10
            assert [int(await step) for step in beside] == [1, 12, 123]
            with pytest.raises(kind):
                await session.step(1)
            assert await bystander.step(4) == 1234

    run(scenario())


def test_steps_that_are_cancelled_behind_a_replay(repository: Path, tmp_path: Path) -> None:
    """They are not sent, and what was asked for after them is, although they wait in the same queue."""

    async def scenario() -> None:
        async with (
            server(repository, tmp_path, seconds=3600) as killed,
            Client(f"127.0.0.1:{killed.network.port}", patience=impatient(reconnect_seconds=60.0)) as client,
        ):
            session = await client.open("history", max_in_flight=2)
            for _ in range(9):
                await session.step(1)
            killed.network.refuses = True
            before = killed.network.num_connections
            killed.kill()
            await until(lambda: killed.network.num_connections > before)
            steps = [asyncio.create_task(session.step(digit)) for digit in (7, 2)]
            await asyncio.sleep(0)
            steps[0].cancel()
            await killed.start()
            killed.network.refuses = False
            assert await steps[1] == spelled([1] * 9 + [2])[-1]

    run(scenario(), 120.0)
