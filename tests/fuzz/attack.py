"""The attack: clients that send valid requests, damaged ones and bytes that are none, in any order, and hang up.

Owns what is thrown and the judgement of what comes back, as far as that can be said of damaged requests: one answer
for each, never an internal error, no silence. Must not know the server's inside.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from material import Builder, Session
from mutation import Mutator
from target import MAX_BYTES, Target

from eddy.v1 import errors_pb2, generation_pb2, inference_pb2

_PATIENCE_SECONDS = 60.0
_READ_WHOLE_BYTES = 16 << 10
_BUGS = (errors_pb2.ERROR_REASON_INTERNAL, errors_pb2.ERROR_REASON_MODEL_FAILED, errors_pb2.ERROR_REASON_UNSPECIFIED)
# What a call may end with that has no typed error: our own cancelling, our deadline, and gRPC's limit of a message.
_UNTYPED = (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


@dataclass
class Tally:
    """What was thrown, and what came of it."""

    thrown: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def num_thrown(self) -> int:
        """Requests in all."""
        return sum(self.thrown.values())

    def judge(self, detail: errors_pb2.ErrorDetail, request: bytes) -> None:
        """Counts an error; some are never right."""
        name = errors_pb2.ErrorReason.Name(detail.reason).removeprefix("ERROR_REASON_")
        self.reasons[name] += 1
        if detail.reason in _BUGS:
            raise AssertionError(f"{name}: {detail.message} for {request[:2000].hex()}")
        assert detail.message, request.hex()


def tag_of(data: bytes) -> int:
    """The tag that the answer to a stream's request must have; of one that does not parse, what it begins with."""
    try:
        return inference_pb2.StreamRequest.FromString(data).tag
    except DecodeError:
        return leading_tag(data)


def leading_tag(data: bytes) -> int:
    """The tag that a message begins with, 0 if it does not."""
    match = re.match(rb"\x08([\x80-\xff]{0,9}[\x00-\x7f])", data)
    if match is None:
        return 0
    return sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(match[1])) & ((1 << 64) - 1)


class StreamAttack:
    """One stream after the other: pipelined requests, each answered once, or broken off."""

    def __init__(self, target: Target, random: Random, tally: Tally, shared: list[Session]) -> None:
        self._target = target
        self._random = random
        self._tally = tally
        self._shared = shared
        self._mutator = Mutator(random)

    async def run(self, stop: asyncio.Event) -> None:
        """Throws until told to stop."""
        while not stop.is_set():
            async with grpc.aio.insecure_channel(self._target.address) as channel:
                while not stop.is_set() and self._random.random() > 0.1:
                    await asyncio.wait_for(self._stream(channel, stop), 4 * _PATIENCE_SECONDS)

    async def _stream(self, channel: Any, stop: asyncio.Event) -> None:
        random = self._random
        call = channel.stream_stream("/eddy.v1.InferenceService/Stream", None, None)()
        builder = Builder(random, self._shared)
        sent: Counter[int] = Counter()
        actions: dict[int, inference_pb2.StreamRequest] = {}
        for _ in range(random.randrange(1, 120)):
            for _ in range(random.choice((1, 1, 3, 20))):
                data, request = self._request(builder)
                tag = tag_of(data)
                if len(data) > _READ_WHOLE_BYTES and tag != leading_tag(data):
                    continue  # Which of its tags it is answered under depends on whether it is refused unread.
                # Damaged tags may be those of others: from such answers nothing is learned.
                actions.pop(tag, None)
                if request is not None and tag and not sent[tag]:
                    actions[tag] = request
                sent[tag] += 1
                try:
                    await asyncio.wait_for(call.write(data), _PATIENCE_SECONDS)
                except grpc.aio.AioRpcError as error:
                    ending = f"{await call.code()} {await call.details()}"
                    raise AssertionError(f"the server ended the call: {ending}: {data[:2000].hex()}") from error
            if random.random() < 0.02:
                call.cancel()
                return
            while sum(sent.values()) > random.choice((0, 0, 5, 40)):
                await self._answer(call, sent, actions, builder)
            if stop.is_set():
                break
        if random.random() < 0.1:
            call.cancel()
            return
        # What was read is answered before the stream ends.
        await call.done_writing()
        while await self._answer(call, sent, actions, builder):
            pass
        missing = {tag: count for tag, count in sent.items() if count}
        assert not missing, f"no answers for tags {missing}"
        assert await call.code() is grpc.StatusCode.OK

    def _request(self, builder: Builder) -> tuple[bytes, inference_pb2.StreamRequest | None]:
        """A request, and what it is if it is valid. None is over twice the limit, which would end the call."""
        request = builder.stream_request()
        kind = str(request.WhichOneof("action"))
        self._tally.thrown[f"Stream.{kind}"] += 1
        if self._random.random() < 0.45:
            return request.SerializeToString(), request
        if self._random.random() < 0.15:
            request.ClearField("tag")
            return self._mutator.retag(request.SerializeToString()), None
        return self._mutator.damage(request)[: 2 * MAX_BYTES - 100], None

    async def _answer(
        self, call: Any, sent: Counter[int], actions: dict[int, inference_pb2.StreamRequest], builder: Builder
    ) -> bool:
        """Reads one response; False at the end of the stream."""
        data = await asyncio.wait_for(call.read(), _PATIENCE_SECONDS)
        if data is grpc.aio.EOF:
            return False
        response = inference_pb2.StreamResponse.FromString(data)
        kind = response.WhichOneof("event")
        assert kind is not None, data
        if kind in ("ended", "draining"):
            return True
        tag = response.tag
        assert sent[tag] > 0, f"an answer to nothing: {response}"
        sent[tag] -= 1
        request = actions.pop(response.tag, None) if response.tag else None
        text = request.SerializeToString() if request is not None else b""
        if kind == "error":
            self._tally.judge(response.error, text)
        else:
            for error in getattr(getattr(response, kind), "errors", ()):
                self._tally.judge(error.error, text)
            self._tally.reasons["ok"] += 1
        if request is not None:
            builder.learn(request, response)
        return True


class CallAttack:
    """Unary calls and generations, valid and damaged, some cancelled on the way."""

    def __init__(self, target: Target, random: Random, tally: Tally, shared: list[Session]) -> None:
        self._target = target
        self._random = random
        self._tally = tally
        self._builder = Builder(random, shared)
        self._mutator = Mutator(random)

    async def run(self, stop: asyncio.Event) -> None:
        """Throws until told to stop."""
        options = [("grpc.max_send_message_length", -1)]
        while not stop.is_set():
            async with grpc.aio.insecure_channel(self._target.address, options=options) as channel:
                for _ in range(self._random.randrange(1, 300)):
                    group = [self._call(channel) for _ in range(self._random.choice((1, 1, 1, 2, 8)))]
                    await asyncio.gather(*group)
                    if stop.is_set():
                        break

    async def _call(self, channel: Any) -> None:
        random = self._random
        method, request, response_type = self._builder.call_request()
        self._tally.thrown[method.rsplit("/", 1)[1]] += 1
        data = request.SerializeToString() if random.random() < 0.45 else self._mutator.damage(request)
        if random.random() < 0.01:
            data += b"\x7a\x03abc" * random.choice((10, 13_000, 26_215, 26_500))
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                if response_type is generation_pb2.GenerateResponse:
                    await self._read(channel.unary_stream(method)(data, timeout=self._timeout()))
                    return
                call = channel.unary_unary(method)(data, timeout=self._timeout())
                if random.random() < 0.05:
                    call.cancel()
                self._builder.learn_call(request, response_type.FromString(await call))
                self._tally.reasons["ok"] += 1
        except grpc.aio.AioRpcError as error:
            self._judge(error, method, data)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            assert current is not None and not current.cancelling(), "silence"

    def _timeout(self) -> float:
        return self._random.choice((30.0, 30.0, 30.0, 0.001, 0.01))

    async def _read(self, call: Any) -> None:
        """Reads a generation to its end, or to where it is broken off."""
        most = self._random.choice((0, 1, 3, 10_000, 10_000))
        events = []
        try:
            while len(events) < most and (data := await call.read()) is not grpc.aio.EOF:
                response = generation_pb2.GenerateResponse.FromString(data)
                events.append(str(response.WhichOneof("event")))
                if response.HasField("started"):
                    started = response.started
                    self._builder.share(
                        Session(
                            started.session_id,
                            started.epoch << 32,
                            started.model,
                            started.position,
                            started.resume_token,
                        )
                    )
        finally:
            call.cancel()
        if events and events[-1] == "finished":
            assert events[0] == "started", events
            assert events.count("finished") == 1
        self._tally.reasons["ok"] += 1

    def _judge(self, error: grpc.aio.AioRpcError, method: str, data: bytes) -> None:
        raw = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
        if raw is None:
            is_known = error.code() in _UNTYPED or (
                method.startswith("/grpc.health.") and error.code() is grpc.StatusCode.NOT_FOUND
            )
            assert is_known, f"{method}: {error.code()} {error.details()} for {data[:2000].hex()}"
            self._tally.reasons[f"gRPC {error.code().name}"] += 1
            return
        detail = errors_pb2.ErrorDetail()
        status_pb2.Status.FromString(raw).details[0].Unpack(detail)
        self._tally.judge(detail, data)


class SocketAttack:
    """Raw bytes on the port."""

    _PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

    def __init__(self, target: Target, random: Random, tally: Tally) -> None:
        self._target = target
        self._random = random
        self._tally = tally

    async def run(self, stop: asyncio.Event) -> None:
        """Throws until told to stop."""
        while not stop.is_set():
            self._tally.thrown["socket"] += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", self._target.port)
            try:
                writer.write(self._bytes())
                await writer.drain()
                if self._random.random() < 0.9:
                    await asyncio.wait_for(reader.read(100), 5)
            except OSError:
                pass  # The server hung up, as it may.
            finally:
                writer.transport.abort()

    def _bytes(self) -> bytes:
        random = self._random
        settings = b"\0\0\0\x04\0\0\0\0\0"
        frame = random.randrange(1 << 16).to_bytes(3, "big") + random.randbytes(6) + random.randbytes(50)
        return random.choice(
            (
                random.randbytes(random.choice((1, 24, 1000))),
                b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + random.randbytes(40),
                self._PREFACE[: random.randrange(len(self._PREFACE))] + b"\n",
                self._PREFACE + settings + frame,
                self._PREFACE + settings + random.randbytes(random.choice((1, 8, 9, 40, 3000))),
            )
        )
