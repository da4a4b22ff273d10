"""Two servers over one Redis: a session goes from one to the other and back, and what is left behind does no harm."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from graphs import family
from loopback import Loopback, array, attach_request, chunk, configure, serve, write_model
from redis_server import needs_redis, redis_server

from eddy.service.errors import EddyError, Reason
from eddy.v1 import inference_pb2

pytestmark = needs_redis
HISTORY = family("history")


@asynccontextmanager
async def _servers(folder: Path) -> AsyncIterator[tuple[Loopback, Loopback, inference_pb2.SessionsOpened]]:
    """Two servers that write when they are asked to, and a session that the first one has opened."""
    write_model(folder / "models", "history")
    with redis_server(folder) as redis:
        state = {"store": redis.url(), "checkpoint_seconds": 1000.0, "max_lag_seconds": 1e6}
        config = configure(folder / "models", state=state)
        async with serve(config) as first, serve(config) as second:
            async with first.stream() as stream:
                opened = await stream.open("history")
            yield first, second, opened


async def _attach(server: Loopback, opened: inference_pb2.SessionsOpened, digit: int, position: int) -> int:
    """Takes the session over on `server`, steps it, and cuts the connection; returns its answer."""
    async with server.stream() as stream:
        response = await stream.send(attach=attach_request(opened))
        assert response.WhichOneof("event") == "attached", response
        assert response.attached.next_position == position
        handle = response.attached.handle
        await asyncio.wait_for(server.host.persistence.persist(np.array([handle & 0xFFFFFFFF])), 30)
        answer = await stream.send(step=chunk(HISTORY, [handle], [position], [[digit]]))
        assert not answer.step.errors, answer
        await asyncio.wait_for(server.host.persistence.persist(np.array([handle & 0xFFFFFFFF])), 30)
        return int(array(answer.step.outputs[0])[0, 0])


def test_a_session_that_comes_back_is_the_one_in_the_store(tmp_path: Path) -> None:
    """Its old copy is still open on the first server: it ends, and the session goes on where the other one left it."""

    async def go() -> None:
        async with _servers(tmp_path) as (first, second, opened):
            assert await _attach(first, opened, 1, 0) == 1
            assert await _attach(second, opened, 2, 1) == 12
            assert await _attach(first, opened, 3, 2) == 123
            assert await _attach(second, opened, 4, 3) == 1234

    asyncio.run(go())


def test_an_attach_whose_client_has_gone_takes_nothing(tmp_path: Path) -> None:
    """A server that gets to a request when its client has gone leaves the session alone: another server may have it."""

    async def go() -> None:
        async with _servers(tmp_path) as (first, second, opened):
            assert await _attach(second, opened, 1, 0) == 1
            async with serve(first.host.config) as third:
                durability = third.host.durability
                assert durability is not None
                with pytest.raises(EddyError) as caught:
                    await durability.recaller.find(opened.session_ids[0], lambda: False)
                assert caught.value.reason is Reason.UNKNOWN_SESSION
            async with second.stream() as stream:
                attached = await stream.send(attach=attach_request(opened))
                assert attached.attached.epoch == 4, "opened 1, brought back 2, attached 3 and 4, and nobody else"

    asyncio.run(go())


def test_who_asks_when_another_has_gone_is_answered(tmp_path: Path) -> None:
    """Two ask for one session at once, and the first has gone: the second has it, whoever began to bring it back."""

    async def go() -> None:
        async with _servers(tmp_path) as (_, second, opened):
            durability = second.host.durability
            assert durability is not None
            find = durability.recaller.find
            asked = [find(opened.session_ids[0], lambda: False), find(opened.session_ids[0])]
            gone, there = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30)
            assert gone == there == second.host.table.row_of_id(opened.session_ids[0])

    asyncio.run(go())
