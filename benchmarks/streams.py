"""Streams of the load generator: raw `grpc.aio` calls in closed loops, to Eddy and to the echo alike.

Owns connections, sessions and round trips. Must not know time or what is measured.

Dimension key: B rows of a message, one session each, one step (T = 1).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from benchmarks.echo import METHOD as ECHO_METHOD
from benchmarks.echo import REPLY_BYTES
from benchmarks.message import InferMessage, StepMessage, Turns, open_message, reply_sizes
from benchmarks.values import phases_of
from eddy.oip import grpc_service_pb2
from eddy.service.contract import Contract
from eddy.v1 import inference_pb2

EDDY_METHOD = "/eddy.v1.InferenceService/Stream"
OIP_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
# More in one OpenSessions would only make one large reply.
_MAX_OPEN = 1024


class LoadError(Exception):
    """The server answered other than expected; the measurement means nothing."""


@dataclass(slots=True)
class Loop:
    """One stream and what it sends.

    Attributes:
        call: the bidirectional call; sizes: bytes that a reply may have.
        num_messages: answered so far; changed by `step` only.
    """

    call: Any
    message: StepMessage | Turns | InferMessage
    sizes: frozenset[int]
    num_messages: int = 0

    async def step(self) -> bytes:
        """One round trip."""
        await self.call.write(self.message.next())
        reply: bytes = await self.call.read()
        if reply is grpc.aio.EOF or len(reply) not in self.sizes:
            raise LoadError(f"expected a reply of {sorted(self.sizes)} bytes, got {_describe(reply)}")
        self.num_messages += 1
        return reply


# Connections


def open_channel(target: str) -> grpc.aio.Channel:
    """A connection of its own, as another client would have."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    return grpc.aio.insecure_channel(target, options=options)


async def open_sessions(call: Any, contract: Contract, count: int, seed: int = 0) -> np.ndarray:
    """Opens sessions on a stream; returns their handles, uint64 [count]."""
    handles = []
    for begin in range(0, count, _MAX_OPEN):
        request = open_message(contract, min(_MAX_OPEN, count - begin), seed)
        response = await _exchange(call, inference_pb2.StreamRequest(open=request))
        handles.append(np.frombuffer(response.opened.handles, "<u8"))
    return np.concatenate(handles)


async def begin_blocks(call: Any, contract: Contract, handles: np.ndarray) -> np.ndarray:
    """Brings sessions that have taken no step to their phases; returns those, their positions now, int64 [B]."""
    phases = phases_of(contract, len(handles))
    for step in range(int(phases.max())):
        mine = handles[phases > step]
        message = StepMessage(contract, mine, np.full(len(mine), step))
        await Loop(call, message, reply_sizes(contract, len(mine))).step()
    return phases


async def _exchange(call: Any, request: inference_pb2.StreamRequest) -> inference_pb2.StreamResponse:
    await call.write(request.SerializeToString())
    response = inference_pb2.StreamResponse.FromString(await call.read())
    if response.HasField("error"):
        raise LoadError(response.error.message)
    return response


@asynccontextmanager
async def eddy_loops(
    target: str, contract: Contract, num_streams: int, num_rows: int, one_connection: bool = False, num_turns: int = 1
) -> AsyncIterator[list[Loop]]:
    """Streams on Eddy of messages of B sessions, `num_turns` of them in turn; the sessions are closed in the end."""
    channels = [open_channel(target) for _ in range(1 if one_connection else num_streams)]
    loops, columns = [], []
    for number in range(num_streams):
        call: Any = channels[number % len(channels)].stream_stream(EDDY_METHOD)()
        handles = await open_sessions(call, contract, num_rows * num_turns, number)
        parts = np.split(handles, num_turns)
        positions = [await begin_blocks(call, contract, part) for part in parts]
        columns.append(parts)
        messages = [StepMessage(contract, part, at, number) for part, at in zip(parts, positions, strict=True)]
        loops.append(Loop(call, Turns(messages), reply_sizes(contract, num_rows)))
    yield loops
    for loop, parts in zip(loops, columns, strict=True):
        for part in parts:
            close = inference_pb2.CloseSessions(handles=part.tobytes())
            await _exchange(loop.call, inference_pb2.StreamRequest(close=close))
        await loop.call.done_writing()
    for channel in channels:
        await channel.close()


@asynccontextmanager
async def oip_loops(
    target: str, contract: Contract, num_streams: int, num_rows: int, one_connection: bool = False
) -> AsyncIterator[list[Loop]]:
    """The same streams by the Open Inference Protocol, a sequence each; the sequences end in the end."""
    assert num_rows == 1, "a message of that protocol steps one sequence"
    channels = [open_channel(target) for _ in range(1 if one_connection else num_streams)]
    loops = []
    for number in range(num_streams):
        call: Any = channels[number % len(channels)].stream_stream(OIP_METHOD)()
        reply = await _exchange_infer(call, InferMessage(contract, number, is_start=True))
        loops.append(Loop(call, InferMessage(contract, number), frozenset([len(reply)])))
    yield loops
    for number, loop in enumerate(loops):
        await _exchange_infer(loop.call, InferMessage(contract, number, is_end=True))
        await loop.call.done_writing()
    for channel in channels:
        await channel.close()


async def _exchange_infer(call: Any, message: InferMessage) -> bytes:
    await call.write(message.next())
    reply: bytes = await call.read()
    response = grpc_service_pb2.ModelStreamInferResponse.FromString(reply)
    if response.error_message:
        raise LoadError(response.error_message)
    return reply


@asynccontextmanager
async def echo_loops(
    target: str, contract: Contract, num_streams: int, num_rows: int, one_connection: bool = False
) -> AsyncIterator[list[Loop]]:
    """The same streams on the echo server."""
    channels = [open_channel(target) for _ in range(1 if one_connection else num_streams)]
    # Those of a server that keeps nothing are the smallest.
    size = min(reply_sizes(contract, num_rows))
    loops = []
    for number in range(num_streams):
        call: Any = channels[number % len(channels)].stream_stream(ECHO_METHOD)(metadata=((REPLY_BYTES, str(size)),))
        message = StepMessage(contract, np.arange(num_rows, dtype=np.uint64), np.zeros(num_rows), number)
        loops.append(Loop(call, message, frozenset([size])))
    yield loops
    for loop in loops:
        await loop.call.done_writing()
    for channel in channels:
        await channel.close()


def _describe(reply: Any) -> str:
    if reply is grpc.aio.EOF:
        return "the end of the stream"
    try:
        return f"{len(reply)} bytes: {inference_pb2.StreamResponse.FromString(reply)!s:.500}"
    except DecodeError:
        return f"{len(reply)} bytes that do not parse"
