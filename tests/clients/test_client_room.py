"""What a client keeps of steps that a server could still lose, and how it learns that it need not any more."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from loopback import Loopback, configure, serve
from test_client_returns import impatient
from test_client_survives import Server, server
from wire import run

from eddy import Client, Session, SessionBatch
from eddy.clients.errors import BatchError, ReplayFull
from eddy.clients.rows import RowFlow
from eddy.v1 import inference_pb2


def _impatient(port: int, num_bytes: int, seconds: float = 2.0) -> Client:
    """Who has room for so much."""
    patience = impatient(max_replay_bytes=num_bytes, reconnect_seconds=seconds)
    return Client(f"127.0.0.1:{port}", patience=patience)


@asynccontextmanager
async def _writing_often(repository: Path, folder: Path, **model: Any) -> AsyncIterator[Loopback]:
    state = {"store": f"sqlite:{folder}/store", "checkpoint_seconds": 0.1, "max_lag_seconds": 1e6}
    async with serve(configure(repository, state=state, model=model)) as loopback:
        yield loopback


def test_killed_while_a_batch_waits_for_room(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent again comes in its order, though it is asked what is durable just before the sessions are back."""
    attached = RowFlow.attached

    def ask_first(self: RowFlow, number: int, answer: inference_pb2.SessionAttached) -> None:
        self.ask_durable()
        attached(self, number, answer)

    monkeypatch.setattr(RowFlow, "attached", ask_first)

    async def scenario() -> None:
        async with (
            server(repository, tmp_path, seconds=3600) as killed,
            _impatient(killed.network.port, 1500, 4.0) as client,
        ):
            batch = await client.open_batch("history", 2)
            done = [(await batch.step([place, place])).tolist() for place in range(3)]
            waiting = asyncio.create_task(batch.step([3, 3]))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            killed.kill()
            await killed.start()
            with pytest.raises(ReplayFull):
                await waiting
            assert done == [[0, 0], [1, 1], [12, 12]]
            assert batch.positions.tolist() == [3, 3]
            await batch.reset()
            assert (await batch.step([4, 4])).tolist() == [4, 4]

    run(scenario(), 120)


def test_a_row_that_has_ended_keeps_no_room(repository: Path, tmp_path: Path) -> None:
    """Its steps never become durable, and nobody sends them again."""

    async def scenario() -> None:
        async with (
            _writing_often(repository, tmp_path) as loopback,
            _impatient(loopback.server.port, 1500, 5.0) as client,
        ):
            batch = await client.open_batch("history", 2)
            await batch.step([1, 1])
            row = loopback.host.table.find(batch.ids[0])
            loopback.host.endings.close(np.array([row]), lambda _: None)
            with pytest.raises(BatchError):
                await batch.step([2, 2])
            for _ in range(8):
                await batch.step([3], rows=[1])

    run(scenario(), 60)


async def _open_while_the_store_fails(killed: Server, client: Client, count: int) -> Session | SessionBatch:
    """Sessions of a server whose disk is full, which has room again afterwards; two steps of them are answered."""
    process = psutil.Process(killed.pid)
    process.rlimit(psutil.RLIMIT_FSIZE, (1, psutil.RLIM_INFINITY))
    opened = await (client.open_batch("history", count) if count else client.open("history"))
    for digit in (1, 2):
        await opened.step([digit] * count if count else digit)
    assert not (await client.find_session(opened.ids[0] if count else opened.id)).durable_position > 0
    process.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
    return opened


@pytest.mark.parametrize("count", [0, 2])
def test_opened_while_the_store_failed(repository: Path, tmp_path: Path, count: int) -> None:
    """As soon as the store works a session is as durable as any: its client has what the server's end takes."""

    async def scenario() -> None:
        async with (
            server(repository, tmp_path) as killed,
            Client(f"127.0.0.1:{killed.network.port}", patience=impatient()) as client,
        ):
            opened = await _open_while_the_store_fails(killed, client, count)
            session_id = opened.ids[0] if count else opened.id
            while (await client.find_session(session_id)).durable_position < 1:  # noqa: ASYNC110  it has no event
                await asyncio.sleep(0.02)
            # Nobody knows how much of these comes into the store.
            for digit in (3, 4, 5):
                await opened.step([digit] * count if count else digit)
            killed.kill()
            await killed.start()
            answer = await opened.step([6] * count if count else 6)
            assert np.asarray(answer).tolist() == ([123456] * count if count else 123456)

    run(scenario(), 120)


def test_a_batch_is_asked_for_all_its_rows(repository: Path, tmp_path: Path) -> None:
    """Its halves step in turn: what the one keeps is told, too, while the other waits."""

    async def scenario() -> None:
        async with _writing_often(repository, tmp_path) as loopback, _impatient(loopback.server.port, 1000) as client:
            batch = await client.open_batch("history", 2)
            for digit in (1, 2, 3):
                await batch.step([digit], rows=[0])
                await batch.step([digit], rows=[1])
            assert (await batch.step([4, 4])).tolist() == [1234, 1234]

    run(scenario(), 60)


def test_idle_sessions_give_room(repository: Path, tmp_path: Path) -> None:
    """Nobody else would ask for what they keep, sessions or batches."""

    async def scenario() -> None:
        async with _writing_often(repository, tmp_path) as loopback, _impatient(loopback.server.port, 1) as client:
            idle, batch = await client.open("history"), await client.open_batch("history", 2)
            assert await idle.step(1) == 1
            assert (await batch.step([2, 2])).tolist() == [2, 2]
            busy = await client.open("history")
            for digit in (3, 4):
                await busy.step(digit)
            assert await idle.step(5) == 15
            assert (await batch.step([6, 6])).tolist() == [26, 26]

    run(scenario(), 60)


@pytest.mark.parametrize("count", [0, 2])
def test_who_is_asked_in_vain_goes_on(repository: Path, tmp_path: Path, count: int) -> None:
    """The server has given up the replies: nothing is told by them, and the sessions are as they were."""

    async def scenario() -> None:
        async with (
            _writing_often(repository, tmp_path, max_kept_reply_bytes=1) as loopback,
            _impatient(loopback.server.port, 1) as client,
        ):
            opened = await (client.open_batch("history", count) if count else client.open("history"))
            await opened.step([1] * count if count else 1)
            async with Client(f"127.0.0.1:{loopback.server.port}") as stranger:
                await (await stranger.open_batch("history", 2)).step([8, 8])
            other = await client.open("history")
            with pytest.raises(ReplayFull):
                await other.step(7)
            client._room.bytes.most = 1 << 20  # noqa: SLF001  as if there had been more from the start
            answer = await opened.step([2] * count if count else 2)
            assert np.asarray(answer).tolist() == ([12] * count if count else 12)
            assert await other.step(7) == 7

    run(scenario(), 60)
