"""Calls about an open session find it where its caller has brought it, also when the server has just lost that."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import until
from test_client_returns import impatient
from test_client_survives import Server, server
from wire import run

from eddy import Client, Session
from examples.server import MODELS

_SECONDS = 120.0
_MODEL = "text-lstm"
_STEPS = np.arange(5, 27)
_TEXT: Any = {"prompt": "The ", "max_tokens": 8, "seed": 3}


async def _find(client: Client, session: Session) -> list[Any]:
    return [(await client.find_session(session.id)).next_position]


async def _fork(client: Client, session: Session) -> list[Any]:
    fork = await client.fork(session)
    return [fork.position, (await fork.step([9])).tobytes()]


async def _fork_by_id(client: Client, session: Session) -> list[Any]:
    return [(await client.fork_session(session.id)).position]


async def _snapshot(client: Client, session: Session) -> list[Any]:
    restored = await client.restore(await client.snapshot(session))
    return [restored.position, (await restored.step([9])).tobytes()]


async def _complete(client: Client, session: Session) -> list[Any]:
    return [(await client.complete(session=session, **_TEXT)).text]


async def _reset(_: Client, session: Session) -> list[Any]:
    await session.reset()
    return []


async def _reset_to(client: Client, session: Session) -> list[Any]:
    states = (await client.contract(_MODEL)).states
    await client.reset(session, {state.name: np.full(tuple(state.shape), 0.25, np.float32) for state in states})
    return []


CALLS: dict[str, Callable[[Client, Session], Awaitable[list[Any]]]] = {
    "find": _find,
    "fork": _fork,
    "fork by id": _fork_by_id,
    "snapshot": _snapshot,
    "complete": _complete,
    "reset": _reset,
    "reset to states": _reset_to,
}


@asynccontextmanager
async def fragile(tmp_path: Path, seconds: float = 3600.0) -> AsyncIterator[tuple[Server, Client]]:
    """A server that makes nothing durable for so long but sessions themselves, and a client."""
    repository = tmp_path / "models"
    shutil.copytree(MODELS / _MODEL, repository / _MODEL)
    async with (
        server(repository, tmp_path, seconds) as killed,
        Client(f"127.0.0.1:{killed.network.port}", patience=impatient(reconnect_seconds=60.0)) as client,
    ):
        yield killed, client


@pytest.mark.parametrize("is_noticed", [False, True], ids=["at once", "while away"])
@pytest.mark.parametrize("name", CALLS)
def test_after_the_server_was_killed(tmp_path: Path, name: str, *, is_noticed: bool) -> None:
    """The next server has none of the session's steps: they are run again before anything else is done with it."""

    async def scenario() -> None:
        async with fragile(tmp_path) as (killed, client):

            async def drive(kills: bool) -> list[Any]:
                session = await client.open(_MODEL)
                await session.step(_STEPS)
                if kills:
                    killed.network.refuses = is_noticed
                    before = killed.network.num_connections
                    killed.kill()
                    if is_noticed:
                        await until(lambda: killed.network.num_connections > before)
                    await killed.start()
                    killed.network.refuses = False
                seen = await CALLS[name](client, session)
                seen += [session.position, (await session.step([5, 6])).tobytes(), session.position]
                await session.close()
                return seen

            wanted = await drive(kills=False)
            assert await drive(kills=True) == wanted

    run(scenario(), _SECONDS)


@pytest.mark.parametrize("num_kills", [1, 2])
def test_killed_after_a_generation_that_was_durable_in_part(tmp_path: Path, num_kills: int) -> None:
    """The next server has the session from the midst of the generation, and is fed the rest of its tokens again."""

    async def scenario() -> None:
        present, old = tmp_path / "present", tmp_path / "old"
        present.mkdir()
        async with fragile(present, seconds=0.02) as (killed, client):

            async def drive(kills: bool) -> list[Any]:
                session = await client.open(_MODEL)
                await session.step(_STEPS)
                async with client.generate(session=session, prompt="The ", max_tokens=900, seed=3) as generation:
                    taken = [await anext(generation)]
                    if kills:
                        while (await client.find_session(session.id)).durable_position <= len(_STEPS) + 4:  # noqa: ASYNC110  it has no event
                            await asyncio.sleep(0)
                        os.kill(killed.pid, signal.SIGSTOP)
                        shutil.copytree(present, old)
                        os.kill(killed.pid, signal.SIGCONT)
                    taken += [piece async for piece in generation]
                for number in range(num_kills if kills else 0):
                    killed.kill()
                    if not number:  # Nothing was written since.
                        shutil.rmtree(present)
                        shutil.copytree(old, present)
                    await killed.start()
                    await client.find_session(session.id)
                seen = ["".join([piece.text for piece in taken]), session.position]
                seen += [(await session.step([5, 6])).tobytes(), session.position]
                await session.close()
                return seen

            wanted = await drive(kills=False)
            assert await drive(kills=True) == wanted

    run(scenario(), _SECONDS)
