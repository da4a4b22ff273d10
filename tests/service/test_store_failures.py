"""State stores that are away, slow, full or emptied, and two servers on one: a real Redis, and SQLite."""

import asyncio
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import redis
from graphs import family
from loopback import chunk
from redis_server import RedisServer, redis_server
from test_durable import Life, life, spelled, taken

from eddy.service.errors import Reason
from eddy.service.record import decode

HISTORY = family("history")
PATIENCE_SECONDS = 30.0
# A checkpoint is due ten times a second, so that nobody waits.
OFTEN = ("--set", "state.checkpoint_seconds=0.1")


@contextmanager
def _client(server: RedisServer) -> Iterator["redis.Redis"]:
    """A client of this test's own."""
    client = redis.Redis(port=server.port)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RedisServer]:
    """An empty one."""
    with redis_server(tmp_path, "--appendonly", "no") as server:
        yield server


def _url(server: RedisServer) -> str:
    """A call that hangs is given up after half a second."""
    return f"{server.url()}&socket_timeout=0.5"


def _get(server: Life, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}{path}", timeout=10) as response:
        return str(response.read().decode())


async def until(condition: Callable[[], bool]) -> None:
    """Returns once `condition` holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, "it did not come to pass"


async def until_works(server: Life, value: int) -> None:
    """Returns once the server says that its store works (1) or fails (0)."""
    await until(lambda: f"eddy_store_working {value}.0" in _get(server, "/metrics"))


async def until_durable(server: Life, handle: int, position: int, digit: int) -> None:
    """Repeats a session's last chunk until it is durable."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        result = await server.step(handle, position - 1, [digit])
        if np.frombuffer(result.durable_positions, "<i8").tolist() == [position]:
            return
    raise AssertionError("the step did not become durable")


@asynccontextmanager
async def session_on(server: Life) -> AsyncIterator[tuple[object, int]]:
    """A session whose first step is durable."""
    opened = await server.stream.open("history")
    (handle,) = np.frombuffer(opened.handles, "<u8").tolist()
    await server.step(handle, 0, [1])
    await until_durable(server, handle, 1, 1)
    yield opened, handle


def test_served_while_the_store_is_away(repository: Path, store: RedisServer) -> None:
    """Steps and openings go on, say that they are not durable, and are written when the store is back, though empty."""

    async def scenario() -> None:
        async with life(repository, _url(store), *OFTEN) as server, session_on(server) as (opened, handle):
            idle = await server.stream.open("history")
            store.kill()
            await server.step(handle, 1, [2])
            await until_works(server, 0)
            # The position that was durable stands still: it is told to who repeats, and otherwise no more.
            for position, digit, told in ((1, 2, [1]), (2, 3, [])):
                result = await server.step(handle, position, [digit])
                assert np.frombuffer(result.durable_positions, "<i8").tolist() == told
            later = await server.stream.open("history")
            assert not later.durable
            assert _get(server, "/readyz") == "ready\n"
            assert "the state store fails" in _get(server, "/healthz")
            store.start()
            await until_works(server, 1)
            await until_durable(server, handle, 3, 3)
            assert _get(server, "/healthz") == "ok\n"
            (second,) = np.frombuffer(later.handles, "<u8").tolist()
            await server.step(second, 0, [9])
            await until_durable(server, second, 1, 9)
            # Also the session of which nobody has heard since.
            with _client(store) as client:
                await until(lambda: client.exists(f"eddy:{idle.session_ids[0].hex()}") == 1)
            server.kill()
            async with life(repository, _url(store)) as after:
                assert (await taken(after, idle)).next_position == 0
                attached = await taken(after, opened)
                assert spelled(await after.step(attached.handle, 3, [4])) == 1234
                assert spelled(await after.step((await taken(after, later)).handle, 1, [8])) == 98

    asyncio.run(scenario())


def test_a_store_that_comes_back_with_less(repository: Path, store: RedisServer) -> None:
    """A Redis restarted from an older copy: what was durable is again, though nobody steps the session meanwhile."""

    async def scenario() -> None:
        async with life(repository, _url(store), *OFTEN) as server, session_on(server) as (opened, handle):
            key = f"eddy:{opened.session_ids[0].hex()}"

            def position() -> int:
                with _client(store) as client:
                    record = client.get(key)
                assert isinstance(record, bytes)
                return decode(record).next_position

            with _client(store) as client:
                client.save()
            await server.step(handle, 1, [2])
            await until_durable(server, handle, 2, 2)
            store.kill()
            store.start()
            await until(lambda: position() == 2)
            server.kill()
            async with life(repository, _url(store)) as after:
                again = await taken(after, opened)
                assert again.next_position == 2
                assert spelled(await after.step(again.handle, 2, [3])) == 123

    asyncio.run(scenario())


def test_refused_while_the_store_hangs(repository: Path, store: RedisServer) -> None:
    """With `refuse`, steps and openings are refused while the store answers nothing, and taken when it does again."""

    async def scenario() -> None:
        options = (*OFTEN, "--set", "state.on_failure=refuse", "--set", "state.max_lag_seconds=0.5")
        async with life(repository, _url(store), *options) as server, session_on(server) as (_, handle):
            store.signal(signal.SIGSTOP)
            await server.step(handle, 1, [2])
            await until_works(server, 0)
            detail = await server.stream.refusal(step=chunk(HISTORY, [handle], [2], [[3]]))
            assert detail.reason == Reason.STORE_UNAVAILABLE
            store.signal(signal.SIGCONT)
            await until_works(server, 1)
            assert spelled(await server.step(handle, 2, [3])) == 123
            await until_durable(server, handle, 3, 3)

    asyncio.run(scenario())


def test_a_full_store(repository: Path, store: RedisServer) -> None:
    """A Redis without room fails like one that is away, and recovers when there is room."""

    async def scenario() -> None:
        async with life(repository, _url(store), *OFTEN) as server, session_on(server) as (_, handle):
            with _client(store) as client:
                client.config_set("maxmemory-policy", "noeviction")
                client.config_set("maxmemory", "1")
                await server.step(handle, 1, [2])
                await until_works(server, 0)
                assert np.frombuffer((await server.step(handle, 1, [2])).durable_positions, "<i8").tolist() == [1]
                client.config_set("maxmemory", "0")
            await until_works(server, 1)
            await until_durable(server, handle, 2, 2)

    asyncio.run(scenario())


def test_the_second_server_fences_the_first(repository: Path, store: RedisServer) -> None:
    """A session taken over on another server goes on there from what was durable; the first ends it, and says so."""

    async def scenario() -> None:
        async with (
            life(repository, _url(store), "--set", "state.checkpoint_seconds=0.5") as first,
            life(repository, _url(store)) as second,
            session_on(first) as (opened, handle),
        ):
            attached = await taken(second, opened)
            assert (attached.next_position, attached.durable) == (1, True)
            assert spelled(await second.step(attached.handle, 1, [2])) == 12
            # Not durable, and never to be: another has the session.
            await first.step(handle, 1, [7])
            await until(lambda: bool(first.stream.notices))
            (notice,) = first.stream.notices
            assert notice.ended.error.reason == Reason.FENCED
            assert np.frombuffer(notice.ended.handles, "<u8").tolist() == [handle]
            detail = await first.stream.refusal(step=chunk(HISTORY, [handle], [2], [[8]]))
            assert detail.reason == Reason.FENCED
            assert spelled(await second.step(attached.handle, 2, [3])) == 123
            # And back again.
            again = await taken(first, opened)
            assert again.epoch > attached.epoch
            assert again.next_position in (1, 2, 3)

    asyncio.run(scenario())


def test_a_server_that_starts_without_its_store(repository: Path, store: RedisServer) -> None:
    """Told to serve, it starts, says so and finds the store later; told to refuse, it ends with one line."""
    store.kill()

    async def scenario() -> None:
        async with life(repository, _url(store), *OFTEN) as server:
            await until_works(server, 0)
            opened = await server.stream.open("history")
            assert not opened.durable
            (handle,) = np.frombuffer(opened.handles, "<u8").tolist()
            await server.step(handle, 0, [1])
            store.start()
            await until_durable(server, handle, 1, 1)
            _, log = server.end()
            assert log.count("the state store fails") == 1
            assert log.count("the state store works again") == 1

    asyncio.run(scenario())


def test_a_full_disk(repository: Path, tmp_path: Path) -> None:
    """A SQLite file that may not grow fails like a store that is away, and recovers when there is room."""

    async def scenario() -> None:
        async with life(repository, f"sqlite:{tmp_path}/store", *OFTEN) as server, session_on(server) as (_, handle):
            limited = psutil.Process(server.process.pid)
            limited.rlimit(psutil.RLIMIT_FSIZE, (1, psutil.RLIM_INFINITY))
            await server.step(handle, 1, [2])
            await until_works(server, 0)
            assert np.frombuffer((await server.step(handle, 1, [2])).durable_positions, "<i8").tolist() == [1]
            limited.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
            await until_works(server, 1)
            await until_durable(server, handle, 2, 2)

    asyncio.run(scenario())


def test_what_could_not_be_written_is_told_at_the_end(repository: Path, store: RedisServer) -> None:
    """A server that ends without its store says how many sessions were not written, in its log and its exit code."""

    async def scenario() -> None:
        options = (*OFTEN, "--set", "server.drain_seconds=0.5")
        async with life(repository, _url(store), *options) as server, session_on(server) as (_, handle):
            store.kill()
            await server.step(handle, 1, [2])
            await until_works(server, 0)
            code, log = await asyncio.to_thread(server.end)
            assert code == 1
            assert "1 sessions could not be written" in log

    asyncio.run(scenario())


@pytest.mark.parametrize("scheme", ["sqlite", "redis"])
def test_a_store_that_cannot_be_opened(repository: Path, tmp_path: Path, scheme: str) -> None:
    """A file that is no store ends the start with one line; so does a Redis that is away where it must be there."""
    (tmp_path / "store").write_bytes(b"something else" * 1000)
    url = f"sqlite:{tmp_path}/store" if scheme == "sqlite" else "redis://user:secret@127.0.0.1:1/0"
    command = [sys.executable, "-m", "eddy.cli", "serve", "--model-repository", str(repository), "--state-store", url]
    ports = ["--grpc-port", "0", "--http-port", "0", "--set", "state.on_failure=refuse"]
    done = subprocess.run([*command, *ports], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("eddy: ") and "state store" in line and "secret" not in line
