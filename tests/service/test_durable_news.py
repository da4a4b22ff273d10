"""Durable positions in answers: told when they have changed, to the stream that they are for, and not again."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from graphs import family
from loopback import Loopback, StreamClient, array, attach_request, configure, serve, until

from eddy.v1 import inference_pb2, sessions_pb2

HISTORY = family("history")


@asynccontextmanager
async def _serving(repository: Path, folder: Path) -> AsyncIterator[tuple[Loopback, StreamClient]]:
    """A server that writes when it is asked to, and a stream."""
    state = {"store": f"sqlite:{folder}/store", "checkpoint_seconds": 1000.0, "max_lag_seconds": 1e6}
    async with serve(configure(repository, state=state)) as server, server.stream() as stream:
        yield server, stream


async def _open(stream: StreamClient, count: int) -> list[int]:
    return [int(handle) for handle in np.frombuffer((await stream.open("history", count)).handles, "<u8")]


async def _step(stream: StreamClient, handles: Sequence[int], positions: Sequence[int]) -> list[int]:
    """Steps sessions; the durable positions that the answer tells."""
    result = await stream.step(HISTORY, handles, positions, [[1]] * len(handles))
    assert len(result.errors) == sum(position > 90 for position in positions), result.errors
    return [int(position) for position in np.frombuffer(result.durable_positions, "<i8")]


async def _persist(server: Loopback, handles: Sequence[int]) -> None:
    """The sessions are written as they are."""
    await server.host.persistence.persist(server.host.table.rows_of(np.array(handles, np.uint64)))


def test_they_are_told_once(repository: Path, tmp_path: Path) -> None:
    """In the first answer after they have changed; of all rows where one has, however the rows lie."""

    async def scenario() -> None:
        async with _serving(repository, tmp_path) as (server, stream):
            handles = await _open(stream, 4)
            assert await _step(stream, handles, [0] * 4) == [0] * 4
            assert await _step(stream, handles, [1] * 4) == []
            await _persist(server, handles[1:2])
            assert await _step(stream, handles, [2] * 4) == [0, 2, 0, 0]
            assert await _step(stream, handles, [3] * 4) == []
            # Rows that lie in no row of the table: as pairs, against their order, alone.
            await _persist(server, handles)
            assert await _step(stream, handles[::2], [4] * 2) == [4] * 2
            assert await _step(stream, handles[::2], [5] * 2) == []
            assert await _step(stream, handles[::-1], [4, 6, 4, 6]) == [4] * 4
            assert await _step(stream, handles[::-1], [5, 7, 5, 7]) == []
            await _persist(server, handles[3:])
            assert await _step(stream, handles[3:], [6]) == [6]
            assert await _step(stream, handles[3:], [7]) == []

    asyncio.run(scenario())


def test_a_repeat_is_told_in_any_case(repository: Path, tmp_path: Path) -> None:
    """Whoever repeats may have missed the answer that told it."""

    async def scenario() -> None:
        async with _serving(repository, tmp_path) as (server, stream):
            handles = await _open(stream, 2)
            await _step(stream, handles, [0, 0])
            await _persist(server, handles)
            for _ in range(3):
                assert await _step(stream, handles, [0, 0]) == [1, 1]
                assert await _step(stream, handles[:1], [0]) == [1]
            assert await _step(stream, handles, [1, 1]) == []

    asyncio.run(scenario())


def test_what_is_refused_has_not_been_told(repository: Path, tmp_path: Path) -> None:
    """Clients do not look at it: the next answer of that row tells it; nor is a stream told for another one."""

    async def scenario() -> None:
        async with _serving(repository, tmp_path) as (server, stream), server.stream() as stranger:
            handles = await _open(stream, 2)
            await _step(stream, handles, [0, 0])
            await _persist(server, handles)
            assert await _step(stream, handles, [99, 1]) == [1, 1]
            refused = await stranger.send(step=_chunk(handles))
            assert len(refused.step.errors) == 2 and not refused.step.durable_positions
            assert await _step(stream, handles, [1, 2]) == [1, 1]
            assert await _step(stream, handles, [2, 3]) == []

    asyncio.run(scenario())


def _chunk(handles: Sequence[int]) -> inference_pb2.StepChunk:
    """A step of the sessions that nobody may send."""
    raw = np.array(handles, "<u8").tobytes()
    return inference_pb2.StepChunk(handles=raw, positions=bytes(len(raw)), num_steps=1)


def test_they_go_back_with_a_reset(repository: Path, tmp_path: Path) -> None:
    """The first answer of the new epoch says so; and who takes the session over is told."""

    async def scenario() -> None:
        async with _serving(repository, tmp_path) as (server, stream):
            opened = await stream.open("history")
            (handle,) = (int(each) for each in np.frombuffer(opened.handles, "<u8"))
            await _step(stream, [handle], [0])
            await _persist(server, [handle])
            assert await _step(stream, [handle], [1]) == [1]
            request = sessions_pb2.ResetSessionRequest(session_id=opened.session_ids[0])
            answer = await server.unary("SessionService/ResetSession", request, sessions_pb2.ResetSessionResponse)
            mine = answer.session.epoch << 32 | handle & 0xFFFFFFFF
            assert await _step(stream, [mine], [0]) == [0]
            assert await _step(stream, [mine], [1]) == []
            await _persist(server, [mine])
            async with server.stream() as other:
                attached = (await other.send(attach=attach_request(opened))).attached
                assert attached.durable_position == 2
                await until(lambda: server.host.table.durable_position.max() == 2)
                result = await other.step(HISTORY, [attached.handle], [2], [[1]])
                assert array(result.outputs[0]).tolist() == [[111]]

    asyncio.run(scenario())
