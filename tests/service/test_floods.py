"""Too much of everything that is allowed: large messages, and opens by the ten thousand."""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import raw
from google.protobuf.message import Message
from graphs import family
from loopback import Loopback, StreamClient, array, chunk, column, configure, detail_of, serve, tensor
from target import SHIPPED, write_repository

from eddy.service.errors import Reason
from eddy.v1 import generation_pb2, inference_pb2, sessions_pb2

HISTORY = family("history")
LIMIT = 64 << 10


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models that abuse is thrown at."""
    return write_repository(tmp_path_factory.mktemp("models"))


def padded(message: Message, size: int) -> bytes:
    """The message with a field that nobody knows behind it, `size` bytes in all."""
    data = message.SerializeToString()
    left = size - len(data) - 5  # Key of two bytes, length of three.
    assert left >= 1 << 14
    return data + b"\xfa\x7f" + raw.varint(left) + bytes(left)


async def _outcome(loopback: Loopback, method: str, data: bytes) -> Any:
    """The response's bytes, the last of them where there are several, or the error that a call ends with."""
    try:
        if method.endswith("Generate"):
            last = None
            async for response in loopback.channel.unary_stream(f"/eddy.v1.{method}")(data):
                last = response
            return last
        return await loopback.channel.unary_unary(f"/eddy.v1.{method}")(data)
    except grpc.aio.AioRpcError as error:
        return error


def test_large_messages_on_every_call(repository: Path) -> None:
    """At the limit: carried out. One byte over, and at twice the limit: a typed error. Over that: gRPC's own.

    Another stream goes on throughout.
    """

    async def scenario() -> None:
        config = configure(repository, server={"max_message_bytes": LIMIT})
        async with serve(config) as loopback, loopback.stream() as stream, loopback.stream() as other:
            (mine,), (theirs,) = await stream.handles("history"), await other.handles("history")
            opened = await loopback.unary(
                "SessionService/OpenSession",
                sessions_pb2.OpenSessionRequest(model="history"),
                sessions_pb2.OpenSessionResponse,
            )
            digit = tensor("x", np.array([[4]], np.int64))
            requests: dict[str, Message] = {
                "InferenceService/Step": inference_pb2.StepRequest(
                    session_id=opened.session.session_id, epoch=opened.session.epoch, num_steps=1, inputs=[digit]
                ),
                "InferenceService/Infer": inference_pb2.InferRequest(
                    model="history",
                    lengths=np.array([1], "<u4").tobytes(),
                    inputs=[tensor("x", np.array([4], np.int64))],
                ),
                "GenerationService/Generate": generation_pb2.GenerateRequest(
                    open=generation_pb2.NewSession(model=SHIPPED), text=b"x", max_tokens=2
                ),
            }
            for number, (method, request) in enumerate(requests.items()):
                assert isinstance(await _outcome(loopback, method, padded(request, LIMIT)), bytes)
                for size in (LIMIT + 1, 2 * LIMIT):
                    error = await _outcome(loopback, method, padded(request, size))
                    detail = detail_of(error)
                    assert Reason(detail.reason) is Reason.MESSAGE_TOO_LARGE, method
                    assert (detail.received, detail.expected) == (f"{size} bytes", f"at most {LIMIT} bytes")
                error = await _outcome(loopback, method, padded(request, 2 * LIMIT + 1))
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                result = await other.step(HISTORY, [theirs], [number], [[number + 1]])
                assert array(result.outputs[0]).tolist() == [[int("123"[: number + 1])]]
            # On a stream.
            step = inference_pb2.StreamRequest(tag=0, step=chunk(HISTORY, [mine], [0], [[7]]))
            response = await stream.send_bytes(padded(step, LIMIT))
            assert array(response.step.outputs[0]).tolist() == [[7]]
            for size in (LIMIT + 1, 2 * LIMIT):
                response = await stream.send_bytes(padded(step, size))
                assert Reason(response.error.reason) is Reason.MESSAGE_TOO_LARGE
            result = await stream.step(HISTORY, [mine], [1], [[8]])
            assert array(result.outputs[0]).tolist() == [[78]]
            assert not loopback.host.table.is_busy.any()

    asyncio.run(scenario())


def test_garbage_to_health_and_reflection(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The services that are not ours answer bytes that do not parse as ours do: typed, and nothing in the log."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback:
            channel = loopback.channel
            reflect = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
            calls = [
                channel.unary_unary("/grpc.health.v1.Health/Check")(b"\xff\xff"),
                channel.unary_stream("/grpc.health.v1.Health/Watch")(b"\xff\xff").read(),
            ]
            stream = channel.stream_stream(reflect)()
            await stream.write(b"\xff\xff")
            for call in (*calls, stream.read()):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert Reason(detail_of(caught.value).reason) is Reason.MALFORMED_MESSAGE

    asyncio.run(scenario())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_handles_by_the_hundred_thousand_are_not_explained_one_by_one(repository: Path) -> None:
    """A close or reset of more strangers' handles than a message has rows is refused as a whole, at once.

    A client may close more sessions of its own than that.
    """

    async def scenario() -> None:
        config = configure(repository, server={"max_message_bytes": 1 << 20})
        async with serve(config) as loopback, loopback.stream() as stream:
            strangers = column(range(1 << 33, (1 << 33) + 100_000))
            begin = time.monotonic()
            for action in ({"close": inference_pb2.CloseSessions}, {"reset": inference_pb2.ResetSessions}):
                ((name, kind),) = action.items()
                response = await stream.send(**{name: kind(handles=strangers)})
                assert Reason(response.error.reason) is Reason.TOO_MANY_ROWS
            # Explaining them took ten seconds.
            assert time.monotonic() - begin < 2.0
            handles = await stream.handles("history", 200)
            response = await stream.send(close=inference_pb2.CloseSessions(handles=column([*handles, 77])))
            assert [error.row for error in response.closed.errors] == [200]
            assert loopback.host.table.num_sessions == 0

    asyncio.run(scenario())


async def _open_and_close(stream: StreamClient, count: int, rounds: int, max_in_flight: int) -> int:
    """Sessions opened and closed, many requests at a time."""
    total = 0
    for _ in range(rounds):
        opening = inference_pb2.OpenSessions(model="history", count=count, max_in_flight=max_in_flight)
        pending = [await stream.post(open=opening) for _ in range(64 if count == 1 else 2)]
        opened = [(await asyncio.wait_for(future, 30)).opened for future in pending]
        assert all(len(each.handles) == 8 * count for each in opened)
        total += count * len(opened)
        closing = [
            await stream.post(close=inference_pb2.CloseSessions(handles=handles))
            for handles in ([each.handles for each in opened] if count > 1 else [b"".join(e.handles for e in opened)])
        ]
        for future in closing:
            assert not (await asyncio.wait_for(future, 30)).closed.errors
    return total


def test_opens_by_the_ten_thousand(repository: Path) -> None:
    """Open and close, one by one and by the thousand, up to the cap and over it: everything comes back.

    Tables, index, rings and slots are as they were, and memory does not grow from round to round.
    """
    num_slots = 8192

    async def scenario() -> None:
        config = configure(repository, model={"max_slots": num_slots, "max_rows": 1024})
        async with serve(config) as loopback, loopback.stream() as stream:
            host = loopback.host
            model = host.catalog.find("history", "").model
            assert model is not None
            process = psutil.Process()

            def assert_empty() -> None:
                assert host.table.num_sessions == model.num_sessions == 0
                assert model.slots.num_free == num_slots
                assert not len(host.table.open_rows())
                assert model.replies.held_bytes == 0

            async def fill() -> None:
                """Through the cap."""
                opening = inference_pb2.OpenSessions(model="history", count=1024)
                handles = [(await stream.send(open=opening)).opened.handles for _ in range(num_slots // 1024)]
                for count in (1, 1024):
                    detail = await stream.refusal(open=inference_pb2.OpenSessions(model="history", count=count))
                    assert Reason(detail.reason) is Reason.TOO_MANY_SESSIONS
                    assert (detail.received, detail.expected) == (str(count), "at most 0")
                response = await stream.send(close=inference_pb2.CloseSessions(handles=b"".join(handles)))
                assert not response.closed.errors

            sizes = []
            total = 0
            for turn in range(4):
                total += await _open_and_close(stream, 1, 20, 1 + turn)
                total += await _open_and_close(stream, 1024, 6, 1 + 7 * turn)
                await fill()
                assert_empty()
                sizes.append(process.memory_info().rss)
            assert total > 50_000
            assert sizes[-1] - sizes[1] < 24 << 20, [size >> 20 for size in sizes]
            assert host.table.num_rows <= 2 * num_slots
            # What is opened now is served.
            (handle,) = await stream.handles("history")
            assert array((await stream.step(HISTORY, [handle], [0], [[5]])).outputs[0]).tolist() == [[5]]

    asyncio.run(scenario())


def test_a_generation_that_is_refused_leaves_no_session(repository: Path) -> None:
    """A kept session whose generation could not begin is closed: nobody was told its id."""

    async def scenario() -> None:
        config = configure(repository, model={"max_queued_chunks": 1})
        async with serve(config) as loopback:
            request = generation_pb2.GenerateRequest(
                open=generation_pb2.NewSession(model=SHIPPED), text=b"x" * 20, max_tokens=5, keep_session=True
            ).SerializeToString()
            outcomes = await asyncio.gather(
                *(_outcome(loopback, "GenerationService/Generate", request) for _ in range(40))
            )
            refused = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
            kept = [each for each in outcomes if isinstance(each, bytes)]
            assert refused, "the queue was never full"
            assert {Reason(detail_of(each).reason) for each in refused} == {Reason.QUEUE_FULL}
            # Those that were refused at their first chunk are gone; others were told their session's id.
            assert len(kept) <= loopback.host.table.num_sessions < 40

    asyncio.run(scenario())
