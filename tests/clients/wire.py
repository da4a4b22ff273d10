"""What a client test needs of the wire: a channel that records and holds messages, and a proxy that can be cut.

Owns the running of scenarios: bounded in time, and nothing may be reported to the event loop's exception handler (a
task destroyed while pending, an exception that nobody retrieved).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
from loopback import PATIENCE_SECONDS, Loopback, serve

from eddy import Client
from eddy.clients.backoff import RECONNECT_SECONDS
from eddy.service.config import Config
from eddy.v1 import inference_pb2


def run(scenario: Coroutine[Any, Any, None], patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Runs a scenario to its end."""
    problems: list[str] = []

    def report(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not _is_of_an_earlier_loop(context):
            problems.append(str(context))

    async def bounded() -> None:
        asyncio.get_running_loop().set_exception_handler(report)
        async with asyncio.timeout(patience_seconds):
            await scenario

    asyncio.run(bounded())
    gc.collect()
    assert not problems, problems


def _is_of_an_earlier_loop(context: dict[str, Any]) -> bool:
    """All event loops share one poller of gRPC: the present one is told what an earlier test did not wait for."""
    is_closed = str(context.get("exception")) == "Event loop is closed"
    return is_closed and "PollerCompletionQueue" in str(context.get("handle"))


def spelled(digits: Sequence[int]) -> list[int]:
    """What `history` answers to each of `digits`, in 64 bits."""
    answers, total = [], 0
    for digit in digits:
        total = (total * 10 + digit + (1 << 63)) % (1 << 64) - (1 << 63)
        answers.append(total)
    return answers


class Recorder:
    """A channel that keeps the requests of its streams and holds either direction back on demand."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.requests: list[inference_pb2.StreamRequest] = []
        self.may_send = asyncio.Event()
        self.may_receive = asyncio.Event()
        self.may_send.set()
        self.may_receive.set()
        # Holds requests back once this many step messages were sent.
        self.hold_after = -1

    def unary_unary(self, method: str) -> Any:
        """As the channel."""
        return self._channel.unary_unary(method)

    def unary_stream(self, method: str) -> Any:
        """As the channel."""
        return self._channel.unary_stream(method)

    def stream_stream(self, method: str) -> Any:
        """As the channel, for calls that are recorded."""
        begin = self._channel.stream_stream(method)
        return lambda: RecordedCall(begin(), self)

    @property
    def chunks(self) -> list[inference_pb2.StepChunk]:
        """The step messages, in the order sent."""
        return [request.step for request in self.requests if request.HasField("step")]

    @property
    def actions(self) -> list[str | None]:
        """What the requests asked for, in the order sent."""
        return [request.WhichOneof("action") for request in self.requests]

    def handles(self) -> list[list[int]]:
        """The sessions of each step message."""
        return [np.frombuffer(chunk.handles, "<u8").tolist() for chunk in self.chunks]


class RecordedCall:
    """One stream of a `Recorder`."""

    def __init__(self, call: Any, recorder: Recorder) -> None:
        self._call = call
        self._recorder = recorder
        self.cancel = call.cancel
        self.code = call.code
        self.details = call.details

    async def write(self, data: bytes) -> None:
        """Passes a request on, once that is allowed."""
        await self._recorder.may_send.wait()
        self._recorder.requests.append(inference_pb2.StreamRequest.FromString(data))
        if len(self._recorder.chunks) == self._recorder.hold_after:
            self._recorder.may_send.clear()
        await self._call.write(data)

    async def read(self) -> Any:
        """Passes a response on, once that is allowed."""
        data = await self._call.read()
        await self._recorder.may_receive.wait()
        return data


@asynccontextmanager
async def connected(config: Config, **options: Any) -> AsyncIterator[tuple[Loopback, Client, Recorder]]:
    """A server, and a client over a recorder; `reconnect_seconds` is the client's, other options are the server's."""
    reconnect_seconds = options.pop("reconnect_seconds", RECONNECT_SECONDS)
    async with serve(config, **options) as loopback:
        recorder = Recorder(loopback.channel)
        async with Client(channel=recorder, reconnect_seconds=reconnect_seconds) as client:
            yield loopback, client, recorder


class Proxy:
    """Forwards connections to a server's port until it is cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._writers: list[asyncio.StreamWriter] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.port = 0

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Proxy]:
        """Listens."""
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        """Breaks every connection that is open now."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self.may_answer.set()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, server_writer]
        await asyncio.gather(self._pump(reader, server_writer), self._pump(server_reader, writer, self.may_answer))

    @staticmethod
    async def _pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event | None = None
    ) -> None:
        with contextlib.suppress(OSError):  # Cut.
            while data := await reader.read(1 << 16):
                if gate is not None:
                    await gate.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def channel_to(port: int) -> AsyncIterator[Any]:
    """A channel of its own to a port."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
