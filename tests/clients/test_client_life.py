"""The client's life: expiry, take-over, a server that goes, draining, listings, threads."""

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from loopback import PATIENCE_SECONDS, Loopback, configure, serve, until
from simulation import Clock
from wire import Proxy, channel_to, connected, run, spelled

from eddy import Client, SyncClient
from eddy.clients.errors import Disconnected, Fenced, InvalidInput, NotFound, ServerBusy, SessionEnded


def test_a_session_that_expires(repository: Path) -> None:
    """The notice ends it: further steps are refused without being sent; other sessions go on."""

    async def scenario() -> None:
        clock = Clock()
        async with connected(configure(repository), clock=clock) as (loopback, client, recorder):
            short = await client.open("history", idle_timeout_seconds=5)
            long = await client.open("history")
            await short.step(1)
            clock.advance(6)
            assert loopback.host.endings.expire() == 1
            await until(lambda: not short.is_open)
            recorder.requests.clear()
            with pytest.raises(SessionEnded) as caught:
                await short.step(2)
            assert caught.value.reason == "SESSION_EXPIRED"
            await short.close()
            assert not recorder.requests
            assert await long.step(2) == 2

    run(scenario())


def test_taking_a_session_over(repository: Path) -> None:
    """By its id, at the position it has reached; whoever had it before is fenced."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (loopback, first, _), Client(channel=loopback.channel) as second:
            session = await first.open("history", max_in_flight=3)
            await session.step([1, 2])
            taken = await second.attach(session.id, session.resume_token)
            assert (taken.position, taken.max_in_flight, taken.model, taken.id) == (2, 3, "history", session.id)
            assert await taken.step(3) == 123
            with pytest.raises(Fenced) as caught:
                await session.step(9)
            assert caught.value.epoch == int.from_bytes(taken.handle, "little") >> 32
            await session.close()
            assert await taken.step(4) == 1234
            again = await second.attach(session.id, session.resume_token)
            assert await again.step(5) == 12345
            await taken.close()
            assert await again.step(6) == 123456

    run(scenario())


def test_the_connection_breaks(repository: Path) -> None:
    """A client that does not come back by itself: every call that waits fails with `Disconnected`; sessions stay."""

    async def scenario() -> None:
        async with (
            serve(configure(repository)) as loopback,
            Proxy(loopback.server.port).serve() as proxy,
            channel_to(proxy.port) as channel,
            Client(channel=channel, reconnect_seconds=0) as client,
        ):
            sessions = [await client.open("history", max_in_flight=2) for _ in range(6)]
            batch = await client.open_batch("history", 2)
            await asyncio.gather(*(session.step(1) for session in sessions))
            proxy.may_answer.clear()
            waiting = [asyncio.create_task(session.step(digit)) for session in sessions for digit in (2, 3, 4)]
            waiting += [asyncio.create_task(batch.step([1, 1]))]
            waiting += [asyncio.create_task(client.open("history"))]
            waiting += [asyncio.create_task(sessions[0].reset()), asyncio.create_task(client.models())]
            row = loopback.host.table.row_of_id(sessions[5].id)
            await until(lambda: loopback.host.table.next_position[row] >= 2)
            proxy.cut()
            async with asyncio.timeout(PATIENCE_SECONDS):
                results = await asyncio.gather(*waiting, return_exceptions=True)
            assert {type(result) for result in results} == {Disconnected}
            with pytest.raises(Disconnected):
                await sessions[1].step(5)
            await sessions[1].close()
            taken = None
            async with asyncio.timeout(PATIENCE_SECONDS):
                while taken is None:
                    # gRPC may begin a stream on a connection that has been cut and not yet closed on this side.
                    with contextlib.suppress(Disconnected):
                        taken = await client.attach(sessions[5].id, sessions[5].resume_token)
            applied = taken.position
            assert applied in (2, 3)
            digits = [1, 2, 3, 4][:applied]
            assert await taken.step(9) == spelled([*digits, 9])[-1]
            assert taken.is_open

    run(scenario())


def test_a_server_that_stops(repository: Path) -> None:
    """A step that waits when the server goes is told; so is a client of a port where nobody listens."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback:
            client = Client(f"127.0.0.1:{loopback.server.port}", reconnect_seconds=0)
            await client.__aenter__()
            session = await client.open("history")
            assert await session.step(1) == 1
        async with client:
            with pytest.raises(Disconnected):
                await session.step(1)
            with pytest.raises(Disconnected):
                await client.open("history")
            with pytest.raises(Disconnected, match="UNAVAILABLE"):
                await client.models()
        with pytest.raises(Disconnected, match="not open"):
            await client.models()

    run(scenario())


def test_garbage_from_the_server_ends_the_stream(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A response that is no message, or of no request, fails whoever waits; the next stream works."""

    class Garbage:
        """A channel that damages what one stream answers."""

        def __init__(self, loopback: Loopback) -> None:
            self._channel = loopback.channel
            self.unary_unary = loopback.channel.unary_unary
            self.is_damaged = False

        def stream_stream(self, method: str) -> object:
            begin = self._channel.stream_stream(method)

            def call() -> object:
                inner = begin()
                read = inner.read

                async def damaged() -> object:
                    data = await read()
                    return b"\xff\xff" if self.is_damaged else data

                inner.read = damaged
                return inner

            return call

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback:
            channel = Garbage(loopback)
            async with Client(channel=channel) as client:
                session = await client.open("history")
                channel.is_damaged = True
                with pytest.raises(Disconnected, match="DecodeError"):
                    await session.step(1)
                channel.is_damaged = False
                again = await client.attach(session.id, session.resume_token)
                assert await again.step(2) == 12

    run(scenario())
    assert "unexpected error" in caplog.text


def test_closing_the_client_and_cancelling_everything(repository: Path) -> None:
    """Nothing hangs: not steps that wait when the client is closed, nor a loop whose tasks are all cancelled."""

    async def closing() -> None:
        async with connected(configure(repository)) as (_, client, recorder):
            session = await client.open("history", max_in_flight=2)
            recorder.may_receive.clear()
            waiting = [asyncio.create_task(session.step(digit)) for digit in range(5)]
            await until(lambda: recorder.chunks)
            await client.close()
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert {type(result) for result in results} == {Disconnected}

    async def cancelling() -> None:
        async with (
            connected(configure(repository)) as (_, client, recorder),
            client.session("history") as session,
            client.batch("history", 3) as batch,
        ):
            recorder.may_receive.clear()
            waiting = [asyncio.create_task(session.step(digit)) for digit in range(5)]
            waiting.append(asyncio.create_task(batch.step([1, 2, 3])))
            await until(lambda: len(recorder.chunks) > 1)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                if "Connection" in repr(task) or task in waiting:
                    task.cancel()
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert {type(result) for result in results} <= {asyncio.CancelledError, Disconnected}

    run(closing())
    run(cancelling())


def test_a_draining_server(repository: Path) -> None:
    """Steps and openings are refused with DRAINING and applied nowhere; closing still works."""

    async def scenario() -> None:
        async with connected(configure(repository), reconnect_seconds=0) as (loopback, client, _):
            session = await client.open("history")
            batch = await client.open_batch("history", 2)
            await session.step(1)
            assert await loopback.host.drain()
            for refused in (
                session.step(2),
                batch.step([1, 2]),
                client.open("history"),
                client.attach(session.id, session.resume_token),
            ):
                with pytest.raises(ServerBusy) as caught:
                    await refused
                assert caught.value.reason == "DRAINING"
            assert session.position == 1
            assert batch.positions.tolist() == [0, 0]
            await batch.close()
            async with Client(channel=loopback.channel, reconnect_seconds=0) as late:
                with pytest.raises(ServerBusy) as caught:
                    await late.open("history")
                assert caught.value.reason == "DRAINING"
            assert loopback.host.table.num_sessions == 1

    run(scenario())


def test_a_full_server(repository: Path) -> None:
    """No room for more sessions is `ServerBusy`, and nothing of a batch is opened."""

    async def scenario() -> None:
        async with connected(configure(repository, session={"max_sessions": 4})) as (loopback, client, _):
            await client.open_batch("history", 3)
            with pytest.raises(ServerBusy) as caught:
                await client.open_batch("history", 2)
            assert caught.value.reason == "TOO_MANY_SESSIONS"
            assert loopback.host.table.num_sessions == 3

    run(scenario())


def test_models_contracts_and_listings(repository: Path) -> None:
    """What is served, a contract, and every open session over several pages, by model or all."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, _):
            models = await client.models()
            assert sorted(model.name for model in models) == ["digits", "history", "lstm", "token-gru", "two-inputs"]
            assert all(model.ready for model in models)
            contract = await client.contract("token-gru")
            assert [(spec.name, spec.range.maximum) for spec in contract.inputs] == [("token", 6)]
            with pytest.raises(NotFound) as caught:
                await client.contract("history", "2")
            assert caught.value.reason == "UNKNOWN_VERSION"
            async with client.batch("history", 7), client.batch("lstm", 3):
                listed = [session async for session in client.sessions(page_size=4)]
                assert len({session.fingerprint for session in listed}) == len(listed) == 10
                assert [session.model async for session in client.sessions("lstm", page_size=1)] == ["lstm"] * 3
                assert not any(session.session_id for session in listed)
                with pytest.raises(InvalidInput):
                    _ = [session async for session in client.sessions(page_size=5000)]

    run(scenario())


# The synchronous face


class ServerThread:
    """A server on a thread of its own."""

    def __init__(self, repository: Path) -> None:
        self._config = configure(repository)
        self._stop = asyncio.Event()
        self._is_up = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.target = ""

    async def _serve(self) -> None:
        async with serve(self._config) as loopback:
            self._loop = asyncio.get_running_loop()
            self.target = f"127.0.0.1:{loopback.server.port}"
            self._is_up.set()
            await self._stop.wait()

    def __enter__(self) -> "ServerThread":
        self._thread.start()
        assert self._is_up.wait(PATIENCE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


def test_several_threads_share_a_blocking_client(repository: Path) -> None:
    """Each thread's sessions get their own answers; errors arrive where the call was made."""

    def drive(client: SyncClient, number: int) -> list[int]:
        with client.session("history") as session:
            answers = [int(session.step(digit)) for digit in (number, 2, 3)]
            with pytest.raises(InvalidInput):
                session.step(0.5)
            session.reset()
            return [*answers, int(session.step_outputs(number)["y"])]

    with ServerThread(repository) as server, SyncClient(server.target) as client:
        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(lambda number: drive(client, number), range(1, 10)))
        assert results == [[*spelled([number, 2, 3]), number] for number in range(1, 10)]
        assert len(client.models()) == 5
        assert client.contract("history").name == "history"
        with client.batch("history", 3) as batch:
            assert len(batch) == 3
            assert batch.step([1, 2, 3]).tolist() == [1, 2, 3]
            assert batch.step_outputs([4], rows=[1])["y"].tolist() == [24]
            batch.reset()
            assert batch.step([1, 2, 3]).tolist() == [1, 2, 3]
            taken = client.attach(batch.batch.ids[0], batch.batch.resume_tokens[0])
            assert taken.step(np.array([2, 3])).tolist() == [12, 123]


def test_a_blocking_client_that_is_closed(repository: Path) -> None:
    """Calls of other threads that wait, or come later, are told that the client is gone; none hangs."""
    with ServerThread(repository) as server, ThreadPoolExecutor(4) as pool:
        client = SyncClient(server.target)
        with pytest.raises(Disconnected, match="not open"):
            client.models()
        has_stepped = threading.Event()

        def drive(_: int) -> str:
            try:
                with client.session("history") as session:
                    while True:
                        session.step(0)
                        has_stepped.set()
            except Disconnected as error:
                return error.reason

        with client:
            futures = [pool.submit(drive, number) for number in range(4)]
            assert has_stepped.wait(PATIENCE_SECONDS)
        assert [future.result(PATIENCE_SECONDS) for future in futures] == ["CLOSED"] * 4
        with pytest.raises(Disconnected):
            client.models()
