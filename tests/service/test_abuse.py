"""The process under abuse: connections that say nothing or nonsense, clients that vanish or do not read.

What is lost must come back: sessions, descriptors, memory. Beside it a well-behaved client steps `history`, whose
answers spell what was applied.
"""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import raw
from graphs import family
from loopback import StreamClient, array, tensor
from target import MAX_ROWS, MAX_STEPS, SHIPPED, Target, running

from eddy.service.errors import Reason
from eddy.v1 import generation_pb2, inference_pb2, sessions_pb2

HISTORY = family("history")
STREAM = "/eddy.v1.InferenceService/Stream"
_PATIENCE_SECONDS = 40.0


@asynccontextmanager
async def neighbour(target: Target, num_least: int = 3) -> AsyncIterator[None]:
    """Steps a session of its own as long as the block lasts; each answer is right and in time."""
    stop = asyncio.Event()
    num_steps = 0

    async def step() -> None:
        nonlocal num_steps
        async with grpc.aio.insecure_channel(target.address) as channel:
            stream = StreamClient(channel)
            (handle,) = await stream.handles("history")
            expected = np.zeros(1, np.int64)
            while not stop.is_set() or num_steps < num_least:
                expected = expected * 10 + num_steps % 10
                result = await stream.step(HISTORY, [handle], [num_steps], [[num_steps % 10]])
                assert not result.errors
                assert array(result.outputs[0])[0, 0] == expected[0]
                num_steps += 1
            await stream.send(close=inference_pb2.CloseSessions(handles=handle.to_bytes(8, "little")))
            await stream.close()

    task = asyncio.create_task(step())
    try:
        yield
    finally:
        stop.set()
        await task


async def eventually(condition: Callable[[], Any]) -> None:
    """Waits for something outside of this process, which sends no signal."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110  it has no event
            await asyncio.sleep(0.05)


async def num_sessions(target: Target) -> int:
    """Open sessions."""
    async with grpc.aio.insecure_channel(target.address) as channel:
        method = channel.unary_unary(
            "/eddy.v1.SessionService/ListSessions", None, sessions_pb2.ListSessionsResponse.FromString
        )
        return int((await method(b"")).total)


async def until_empty(target: Target) -> None:
    """Waits until every session has expired."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while await num_sessions(target):  # noqa: ASYNC110  it has no event
            await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server that is quick to give up on the silent."""
    with running(
        tmp_path_factory.mktemp("server"),
        server={"handshake_seconds": 1.0, "keepalive_seconds": 1.5, "max_message_bytes": 1 << 20},
        session={"idle_timeout_seconds": 2.0},
        model={"max_slots": 4096, "max_generated_tokens": 20_000, "max_kept_reply_bytes": 8 << 20},
    ) as server:
        yield server
        assert server.stop() == 0
        complaints = server.complaints()
        assert not complaints, complaints


def test_half_open_connections_are_let_go(target: Target) -> None:
    """Silence, half a preface, half a frame, a call that never sends: the server hangs up, and serves others."""

    async def scenario() -> None:
        async with neighbour(target):
            held: dict[int, asyncio.StreamWriter] = {}
            settings = raw.frame(raw.SETTINGS, 0, 0)
            call = raw.frame(raw.HEADERS, raw.END_HEADERS, 1, raw.request(STREAM))
            for said in (
                b"",
                raw.PREFACE[:10],
                raw.PREFACE,
                raw.PREFACE + settings[:5],
                raw.PREFACE + settings,
                raw.PREFACE + settings + call[:20],
                raw.PREFACE + settings + call,
                b"GET / HTTP/1.1\r\n",
            ):
                for _ in range(10):
                    _, writer = await asyncio.open_connection("127.0.0.1", target.port)
                    writer.write(said)
                    held[writer.get_extra_info("sockname")[1]] = writer
            await eventually(lambda: len(target.peers & set(held)) >= 40)
            # They stay open on this side.
            await eventually(lambda: not target.peers & set(held))
            for writer in held.values():
                writer.transport.abort()

    asyncio.run(scenario())


def test_a_handshake_has_a_time_of_its_own(tmp_path: Path) -> None:
    """Who never says the first words of HTTP/2 is let go by `handshake_seconds`, long before a keepalive would."""

    async def scenario(port: int) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        silent[1][1].write(raw.PREFACE[:10])
        async with asyncio.timeout(_PATIENCE_SECONDS):
            for reader, _ in silent:
                with suppress(ConnectionResetError):
                    while await reader.read(1 << 16):
                        pass
        for _, writer in silent:
            writer.transport.abort()

    with running(tmp_path, server={"handshake_seconds": 1.0, "keepalive_seconds": 300.0}) as server:
        asyncio.run(scenario(server.port))
        assert server.stop() == 0


_CLIENT = """
import sys
import grpc
from eddy.v1 import inference_pb2
from queue import SimpleQueue
import numpy as np

answers = SimpleQueue()

def requests():
    yield inference_pb2.StreamRequest(tag=1, open=inference_pb2.OpenSessions(model="history", count=64))
    handles = answers.get()
    position = 0
    while True:
        x = inference_pb2.Tensor(name="x", dtype=5, shape=[64, 96], data=bytes(64 * 96 * 8))
        positions = np.full(64, position, "<u8").tobytes()
        step = inference_pb2.StepChunk(handles=handles, positions=positions, num_steps=96, inputs=[x])
        yield inference_pb2.StreamRequest(tag=2, step=step)
        position += 96

with grpc.insecure_channel(sys.argv[1]) as channel:
    method = channel.stream_stream(
        "/eddy.v1.InferenceService/Stream",
        inference_pb2.StreamRequest.SerializeToString,
        inference_pb2.StreamResponse.FromString,
    )
    for number, response in enumerate(method(requests())):
        if response.WhichOneof("event") == "opened":
            answers.put(response.opened.handles)
        elif number == 5:
            print("stepping", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_client_process_that_vanishes(target: Target, number: signal.Signals) -> None:
    """Killed or stopped in the middle of its steps: its connection is let go, its sessions expire."""

    async def scenario() -> None:
        await until_empty(target)
        code = _CLIENT.replace("dtype=5", f"dtype={tensor('x', np.zeros(1, np.int64)).dtype}")
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, target.address, stdout=subprocess.PIPE
        )
        try:
            assert client.stdout is not None
            assert await asyncio.wait_for(client.stdout.readline(), _PATIENCE_SECONDS) == b"stepping\n"
            assert await num_sessions(target) == 64
            ports = {each.laddr.port for each in psutil.Process(client.pid).net_connections("tcp")}
            assert target.peers & ports
            client.send_signal(number)
            async with neighbour(target):
                pass
            await eventually(lambda: not target.peers & ports)
            await until_empty(target)
        finally:
            if client.returncode is None:
                client.kill()
            await client.wait()

    asyncio.run(scenario())


def test_slow_readers_of_streams_hold_no_more_than_their_limits(target: Target) -> None:
    """Eight clients ask for scores, thirty times what they send, and read nothing: memory stays, others are served."""
    num_streams = 8

    async def flood(channel: Any) -> tuple[Any, bool]:
        call = channel.stream_stream(STREAM, None, inference_pb2.StreamResponse.FromString)()
        opening = inference_pb2.OpenSessions(model=SHIPPED, count=MAX_ROWS, max_in_flight=8)
        await call.write(inference_pb2.StreamRequest(tag=1, open=opening).SerializeToString())
        handles = (await call.read()).opened.handles
        ids = tensor("tokens", np.ones((MAX_ROWS, MAX_STEPS), np.int64))
        for number in range(400):
            positions = np.full(MAX_ROWS, number * MAX_STEPS, "<u8").tobytes()
            step = inference_pb2.StepChunk(handles=handles, positions=positions, num_steps=MAX_STEPS, inputs=[ids])
            request = inference_pb2.StreamRequest(tag=2 + number, step=step).SerializeToString()
            try:
                await asyncio.wait_for(call.write(request), 1.0)
            except TimeoutError:
                return call, True
        return call, False

    async def scenario() -> None:
        async with grpc.aio.insecure_channel(target.address) as channel:
            async with neighbour(target):
                before = target.resident_bytes
                calls = await asyncio.gather(*(flood(channel) for _ in range(num_streams)))
                assert all(is_held_back for _, is_held_back in calls), "the server read everything that it was sent"
                grown = target.resident_bytes - before
            for call, _ in calls:
                call.cancel()
        # A stream: a message's limit in requests with their answers, one in answers, and one answer over each; what
        # gRPC has taken to write; the kept replies of the model.
        assert grown < num_streams * 12 * (1 << 20) + (48 << 20), f"{grown >> 20} MiB"
        await until_empty(target)

    asyncio.run(scenario())


def test_slow_readers_of_generations_stop_their_models(tmp_path: Path) -> None:
    """Generations whose tokens nobody reads wait; memory stays, and others are served."""
    request = generation_pb2.GenerateRequest(
        open=generation_pb2.NewSession(model=SHIPPED), text=b"x", log_probabilities=True, num_alternatives=20
    ).SerializeToString()
    call = raw.frame(raw.HEADERS, raw.END_HEADERS, 1, raw.request("/eddy.v1.GenerationService/Generate"))
    call += raw.frame(raw.DATA, raw.END_STREAM, 1, raw.message(request))

    async def scenario(server: Target) -> None:
        before = server.resident_bytes
        # A window of nothing: the server may write no byte.
        connections = [await raw.Connection.open(server.port, window=0) for _ in range(20)]
        for connection in connections:
            await connection.send(call)
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while await num_sessions(server) < 20:  # noqa: ASYNC110  it has no event
                await asyncio.sleep(0.02)
        async with neighbour(server, num_least=500):
            pass
        assert server.resident_bytes - before < 32 << 20
        for connection in connections:
            connection.abort()
        await until_empty(server)

    with running(tmp_path, session={"idle_timeout_seconds": 30.0}, model={"max_generated_tokens": 20_000}) as server:
        asyncio.run(scenario(server))


def test_bytes_that_are_no_grpc(target: Target) -> None:
    """Wrong frames, flags, lengths, paths, types and metadata: each call or connection ends, and nothing else does."""
    good = inference_pb2.StreamRequest(tag=3, open=inference_pb2.OpenSessions(model="history", count=1))
    body = good.SerializeToString()
    open_path = "/eddy.v1.SessionService/OpenSession"

    def call(data: bytes, path: str = open_path, **others: str) -> bytes:
        return raw.frame(raw.HEADERS, raw.END_HEADERS, 1, raw.request(path, **others)) + raw.frame(
            raw.DATA, raw.END_STREAM, 1, data
        )

    cases = {
        "compressed, it says": call(raw.message(body, flag=1)),
        "compressed by a codec that does not exist": call(raw.message(body, flag=1), grpc_encoding="zip9"),
        "gzip that is none": call(raw.message(body, flag=1), grpc_encoding="gzip"),
        "a flag that does not exist": call(raw.message(body, flag=7)),
        "longer than it is": call(raw.message(body, length=1000)),
        "shorter than it is": call(raw.message(body, length=3)),
        "four gigabytes long": call(raw.message(body, length=(1 << 32) - 1)),
        "no message": call(b""),
        "half a head": call(b"\0\0"),
        "an unknown method": call(raw.message(body), "/eddy.v1.InferenceService/Nothing"),
        "an unknown service": call(raw.message(body), "/x/y"),
        "no path": call(raw.message(body), ""),
        "the wrong type": call(raw.message(body), content_type="text/html"),
        "the wrong verb": call(raw.message(body), **{":method": "GET"}),
        "a deadline that is none": call(raw.message(body), grpc_timeout="soon"),
        "much metadata": call(raw.message(body), x_much="m" * 12_000),
        "a frame too long": raw.frame(raw.DATA, 0, 1, bytes(70_000)),
        "data of no stream": raw.frame(raw.DATA, 0, 77, b"x"),
        "headers that are none": raw.frame(raw.HEADERS, raw.END_HEADERS, 1, b"\xff" * 30),
        "settings of odd length": raw.frame(raw.SETTINGS, 0, 0, b"123"),
        "an even stream": raw.frame(raw.HEADERS, raw.END_HEADERS | raw.END_STREAM, 2, raw.request(STREAM)),
        "garbage on a stream": call(raw.message(b"\xff" * 50), STREAM),
    }

    async def one(name: str, data: bytes) -> None:
        connection = await raw.Connection.open(target.port)
        try:
            await connection.send(data)
            kinds = await connection.frames_until_end(1)
            assert kinds, f"{name}: not a word"
        except ConnectionError:
            pass  # It hung up while we spoke.
        finally:
            connection.abort()

    async def scenario() -> None:
        async with neighbour(target):
            for _ in range(2):
                await asyncio.gather(*(one(name, data) for name, data in cases.items()))
            generator = np.random.default_rng(5)
            for size in (1, 9, 24, 100, 20_000):
                for begin in (b"", raw.PREFACE):
                    _, writer = await asyncio.open_connection("127.0.0.1", target.port)
                    writer.write(begin + generator.bytes(size))
                    writer.close()
        await until_empty(target)

    asyncio.run(scenario())


def test_garbage_at_full_speed_disturbs_nobody(target: Target) -> None:
    """For a second a client sends garbage as fast as it can: one answer each, and another's steps go on."""

    async def scenario() -> None:
        generator = np.random.default_rng(6)
        junk = [generator.bytes(int(size)) for size in generator.integers(1, 300, 64)]
        junk += [b"\x12" + bytes((len(data) & 127,)) + data for data in junk]
        loop = asyncio.get_running_loop()
        num_sent = num_read = 0
        async with grpc.aio.insecure_channel(target.address) as channel, neighbour(target, num_least=20):
            call = channel.stream_stream(STREAM, None, inference_pb2.StreamResponse.FromString)()

            async def read() -> None:
                nonlocal num_read
                while await call.read() is not grpc.aio.EOF:
                    num_read += 1

            reader = asyncio.create_task(read())
            end = loop.time() + 1.0
            while loop.time() < end:
                await call.write(junk[num_sent % len(junk)])
                num_sent += 1
            await call.done_writing()
            await asyncio.wait_for(reader, _PATIENCE_SECONDS)
        assert num_sent > 100
        assert num_read == num_sent

    asyncio.run(scenario())


def test_messages_of_a_million_fields_cost_nothing(target: Target) -> None:
    """Empty tensors by the hundred thousand, a shape of a million axes: refused unparsed, memory stays."""

    def step(payload: bytes) -> bytes:
        return b"\x08\x05\x12" + raw.varint(len(payload)) + payload

    shape = b"\x1a" + raw.varint(900_000) + b"\x01" * 900_000
    messages = {
        step(b"\x22\x00" * 500_000): Reason.MALFORMED_MESSAGE,
        step(b"\x22" + raw.varint(len(shape)) + shape): Reason.INVALID_SHAPE,
        b"\x08\x05" + b"\x0b\x0c" * 400_000: Reason.MALFORMED_MESSAGE,
    }

    async def scenario() -> None:
        async with grpc.aio.insecure_channel(target.address) as channel, neighbour(target):
            stream = StreamClient(channel)
            before = target.resident_bytes
            for data, reason in messages.items():
                assert len(data) < 1 << 20
                for _ in range(5):
                    response = await stream.send_damaged(data)
                    assert response.tag == 5
                    assert Reason(response.error.reason) is reason
            assert target.resident_bytes - before < 24 << 20
            await stream.close()

    asyncio.run(scenario())


def test_a_health_watcher_that_does_not_read_holds_up_nothing(tmp_path: Path) -> None:
    """A watcher with a window of nothing: the server drains and ends as if it were not there."""
    with running(tmp_path) as server:

        async def scenario() -> None:
            connection = await raw.Connection.open(server.port, window=0)
            block = raw.request("/grpc.health.v1.Health/Watch")
            await connection.send(
                raw.frame(raw.HEADERS, raw.END_HEADERS, 1, block)
                + raw.frame(raw.DATA, raw.END_STREAM, 1, raw.message(b""))
            )
            async with neighbour(server):
                pass
            assert await asyncio.to_thread(server.stop) == 0
            connection.abort()

        asyncio.run(scenario())
        assert not server.complaints()
