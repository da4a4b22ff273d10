"""The load generator: raw `grpc.aio` streams and hand-made messages, in a process of its own.

`python -m benchmarks.load` is a worker. Every load is a closed loop: a stream sends its next message when the reply to
the last has come. Eddy and the echo are loaded by the same code with messages of the same sizes.

Dimension key: B rows of a message, one session each, one step (T = 1).
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import psutil
import uvloop
from google.protobuf.message import DecodeError

from benchmarks.echo import METHOD as ECHO_METHOD
from benchmarks.echo import REPLY_BYTES
from benchmarks.message import StepMessage, reply_bytes
from benchmarks.shape import SHAPES, Shape
from benchmarks.worker import run_commands
from eddy.v1 import inference_pb2

_EDDY_METHOD = "/eddy.v1.InferenceService/Stream"
# More in one OpenSessions would only make one large reply.
_MAX_OPEN = 1024


class LoadError(Exception):
    """The server answered other than expected; the measurement means nothing."""


@dataclass(slots=True)
class Loop:
    """One stream and what it sends.

    Attributes:
        call: the bidirectional call; expected_bytes: of every reply.
        num_messages: answered so far; changed by `run_loops` only.
    """

    call: Any
    message: StepMessage
    expected_bytes: int
    num_messages: int = 0

    async def step(self) -> bytes:
        """One round trip."""
        await self.call.write(self.message.next())
        reply: bytes = await self.call.read()
        if reply is grpc.aio.EOF or len(reply) != self.expected_bytes:
            raise LoadError(f"expected a reply of {self.expected_bytes} bytes, got {_describe(reply)}")
        self.num_messages += 1
        return reply


# Connections


def open_channel(target: str) -> grpc.aio.Channel:
    """A connection of its own, as another client would have."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    return grpc.aio.insecure_channel(target, options=options)


async def open_sessions(call: Any, model: str, count: int) -> np.ndarray:
    """Opens sessions on a stream; returns their handles, uint64 [count]."""
    handles = []
    for begin in range(0, count, _MAX_OPEN):
        request = inference_pb2.OpenSessions(model=model, count=min(_MAX_OPEN, count - begin))
        response = await _exchange(call, inference_pb2.StreamRequest(open=request))
        handles.append(np.frombuffer(response.opened.handles, "<u8"))
    return np.concatenate(handles)


async def _exchange(call: Any, request: inference_pb2.StreamRequest) -> inference_pb2.StreamResponse:
    await call.write(request.SerializeToString())
    response = inference_pb2.StreamResponse.FromString(await call.read())
    if response.HasField("error"):
        raise LoadError(response.error.message)
    return response


@asynccontextmanager
async def eddy_loops(
    target: str, shape: Shape, num_streams: int, num_rows: int, one_connection: bool = False
) -> AsyncIterator[list[Loop]]:
    """Streams with B sessions each on Eddy; the sessions are closed in the end."""
    channels = [open_channel(target) for _ in range(1 if one_connection else num_streams)]
    loops, columns = [], []
    for number in range(num_streams):
        call: Any = channels[number % len(channels)].stream_stream(_EDDY_METHOD)()
        handles = await open_sessions(call, shape.name, num_rows)
        columns.append(handles)
        loops.append(Loop(call, StepMessage(shape, handles, number), reply_bytes(shape, num_rows)))
    yield loops
    for loop, handles in zip(loops, columns, strict=True):
        close = inference_pb2.CloseSessions(handles=handles.tobytes())
        await _exchange(loop.call, inference_pb2.StreamRequest(close=close))
        await loop.call.done_writing()
    for channel in channels:
        await channel.close()


@asynccontextmanager
async def echo_loops(
    target: str, shape: Shape, num_streams: int, num_rows: int, one_connection: bool = False
) -> AsyncIterator[list[Loop]]:
    """The same streams on the echo server."""
    channels = [open_channel(target) for _ in range(1 if one_connection else num_streams)]
    size = reply_bytes(shape, num_rows)
    loops = []
    for number in range(num_streams):
        call: Any = channels[number % len(channels)].stream_stream(ECHO_METHOD)(metadata=((REPLY_BYTES, str(size)),))
        message = StepMessage(shape, np.arange(num_rows, dtype=np.uint64), number)
        loops.append(Loop(call, message, size))
    yield loops
    for loop in loops:
        await loop.call.done_writing()
    for channel in channels:
        await channel.close()


_LOOPS = {"eddy": eddy_loops, "echo": echo_loops}


# Commands


async def throughput(
    server: str,
    target: str,
    pid: int,
    model: str,
    streams: int,
    rows: int,
    warm_up_seconds: float,
    seconds: float,
    one_connection: bool = False,
) -> Mapping[str, Any]:
    """Closed loops for a while: messages/s, steps/s and the server's CPU a message, after a warm-up.

    Args:
        server: "eddy" or "echo"; pid: its process, to read its CPU time.
        streams: closed loops; rows: B of each message.
        one_connection: all streams share one, otherwise each has its own.
    """
    async with _LOOPS[server](target, SHAPES[model], streams, rows, one_connection) as loops:
        stop = asyncio.Event()
        tasks = [asyncio.create_task(_run(loop, stop)) for loop in loops]
        watch = asyncio.create_task(
            _window(lambda: sum(each.num_messages for each in loops), pid, warm_up_seconds, seconds)
        )
        await asyncio.wait([watch, *tasks], return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        await asyncio.gather(*tasks)
        window = await watch
    return window.report(rows)


async def latency(
    eddy: str, echo: str, model: str, block_steps: int, num_blocks: int, warm_up_steps: int = 200
) -> Mapping[str, Any]:
    """One session alone, and the echo alone, in alternating blocks of closed-loop steps: median and p99, seconds."""
    shape = SHAPES[model]
    samples: dict[str, list[float]] = {"eddy": [], "echo": []}
    async with eddy_loops(eddy, shape, 1, 1) as ours, echo_loops(echo, shape, 1, 1) as bare:
        ways = {"eddy": ours[0], "echo": bare[0]}
        with _no_collection():
            for loop in ways.values():
                await _block(loop, warm_up_steps)
            for number in range(num_blocks):
                for way in sorted(ways, reverse=bool(number % 2)):
                    samples[way] += await _block(ways[way], block_steps)
    return {way: _percentiles(values) for way, values in samples.items()}


async def coalescing(
    target: str, pid: int, model: str, sessions: int, warm_up_seconds: float, seconds: float
) -> Mapping[str, Any]:
    """Coroutines that each await their own session's steps through the client library: steps/s."""
    from eddy import Client

    shape = SHAPES[model]
    num_steps = [0]
    stop = asyncio.Event()
    values = np.random.default_rng(0).standard_normal((sessions, shape.features), np.float32)

    async def steps(client: Any, x: np.ndarray) -> None:
        async with client.session(model) as session:
            while not stop.is_set():
                await session.step(x)
                num_steps[0] += 1

    async with Client(target) as client:
        tasks = [asyncio.create_task(steps(client, x)) for x in values]
        watch = asyncio.create_task(_window(lambda: num_steps[0], pid, warm_up_seconds, seconds))
        await asyncio.wait([watch, *tasks], return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        await asyncio.gather(*tasks)
        window = await watch
    return window.report(1)


async def fill(target: str, pid: int, model: str, sessions: int, rows: int) -> Mapping[str, Any]:
    """Opens many sessions, then steps each once: the server's resident bytes before, between and after.

    The sessions stay open until `release`.
    """
    shape = SHAPES[model]
    process = psutil.Process(pid)
    channel = open_channel(target)
    call: Any = channel.stream_stream(_EDDY_METHOD)()
    _HELD.append((channel, call))
    warm = await open_sessions(call, model, 2 * rows)
    for handles in np.split(warm, 2):
        await Loop(call, StepMessage(shape, handles), reply_bytes(shape, len(handles))).step()
    before = await _settled_bytes(process)
    handles = await open_sessions(call, model, sessions)
    opened = await _settled_bytes(process)
    for begin in range(0, sessions, rows):
        mine = handles[begin : begin + rows]
        await Loop(call, StepMessage(shape, mine), reply_bytes(shape, len(mine))).step()
    stepped = await _settled_bytes(process)
    return {"before_bytes": before, "opened_bytes": opened, "stepped_bytes": stepped, "warm_sessions": 2 * rows}


async def release() -> Mapping[str, Any]:
    """Ends the streams of `fill`."""
    while _HELD:
        channel, call = _HELD.pop()
        call.cancel()
        await channel.close()
    return {}


# Streams of `fill`; changed only by it and by `release`.
_HELD: list[tuple[grpc.aio.Channel, Any]] = []


# Measuring


@dataclass(frozen=True, slots=True)
class Window:
    """What happened in a span of time."""

    seconds: float
    num_messages: int
    server_cpu_seconds: float
    load_cpu_seconds: float

    def report(self, rows: int) -> Mapping[str, Any]:
        """JSON of the window; `rows` steps a message."""
        return {
            "messages_per_second": self.num_messages / self.seconds,
            "steps_per_second": rows * self.num_messages / self.seconds,
            "server_cpu_seconds_per_message": self.server_cpu_seconds / self.num_messages,
            "server_cpu_share": self.server_cpu_seconds / self.seconds,
            "load_cpu_share": self.load_cpu_seconds / self.seconds,
        }


async def _run(loop: Loop, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await loop.step()


async def _window(count: Any, pid: int, warm_up_seconds: float, seconds: float) -> Window:
    process = psutil.Process(pid)
    await asyncio.sleep(warm_up_seconds)
    with _no_collection():
        begin, before = time.perf_counter(), count()
        cpu, own = _cpu_seconds(process), time.process_time()
        await asyncio.sleep(seconds)
        end, after = time.perf_counter(), count()
        return Window(end - begin, after - before, _cpu_seconds(process) - cpu, time.process_time() - own)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _settled_bytes(process: psutil.Process) -> int:
    """Resident bytes, once what was asked for is over."""
    await asyncio.sleep(0.3)
    return int(process.memory_info().rss)


async def _block(loop: Loop, num_steps: int) -> list[float]:
    durations = []
    for _ in range(num_steps):
        begin = time.perf_counter()
        await loop.step()
        durations.append(time.perf_counter() - begin)
    return durations


def _percentiles(durations: list[float]) -> Mapping[str, float]:
    median, high = np.percentile(durations, [50, 99]).tolist()
    return {"median_seconds": median, "p99_seconds": high}


class _no_collection:  # noqa: N801  (used as a verb)
    """No garbage collection within: a pause of the load generator is no latency of the server."""

    def __enter__(self) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()
        gc.unfreeze()


def _describe(reply: Any) -> str:
    if reply is grpc.aio.EOF:
        return "the end of the stream"
    try:
        return f"{len(reply)} bytes: {inference_pb2.StreamResponse.FromString(reply)!s:.500}"
    except DecodeError:
        return f"{len(reply)} bytes that do not parse"


if __name__ == "__main__":
    uvloop.run(
        run_commands(
            {
                "throughput": throughput,
                "latency": latency,
                "coalescing": coalescing,
                "fill": fill,
                "release": release,
            }
        )
    )
