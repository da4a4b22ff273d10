"""Every bad input over the wire: a typed error that names the field, what came and what was expected, and nothing else.

After each, the same stream and another session go on. The model is `history`: its answers spell what was applied.

Dimension key: B rows, T steps.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from graphs import family
from loopback import Loopback, StreamClient, array, chunk, column, configure, serve, tensor, write_model

from eddy.service.errors import Reason
from eddy.v1 import contract_pb2, inference_pb2, models_pb2, sessions_pb2

HISTORY = family("history")
LSTM = family("lstm")
MAX_BYTES = 64 << 10
MAX_ROWS, MAX_STEPS = 16, 128


class Scene:
    """One stream with two sessions of `history` (at position 1), one of `lstm`, one of `token-gru`."""

    def __init__(self, stream: StreamClient, handles: dict[str, list[int]], other: list[int]) -> None:
        self.stream = stream
        self.history = handles["history"]
        self.lstm = handles["lstm"]
        self.token = handles["token-gru"]
        # Of another client.
        self.other = other


@asynccontextmanager
async def _scene(repository: Path) -> AsyncIterator[tuple[Loopback, Scene]]:
    config = configure(
        repository, server={"max_message_bytes": MAX_BYTES}, model={"max_rows": MAX_ROWS, "max_steps": MAX_STEPS}
    )
    async with serve(config) as loopback, loopback.stream() as stream, loopback.stream() as neighbour:
        handles = {name: await stream.handles(name, 2) for name in ("history", "lstm", "token-gru")}
        other = await neighbour.handles("history", 2)
        await neighbour.step(HISTORY, other, [0, 0], [[7], [8]])
        await stream.step(HISTORY, handles["history"], [0, 0], [[1], [2]])
        yield loopback, Scene(stream, handles, other)
        # The stream and every session go on as if nothing had been.
        result = await stream.step(HISTORY, handles["history"], [1, 1], [[3], [4]])
        assert not result.errors
        assert array(result.outputs[0]).tolist() == [[13], [24]]
        result = await neighbour.step(HISTORY, other, [1, 1], [[9], [9]])
        assert array(result.outputs[0]).tolist() == [[79], [89]]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that load, and one that does not."""
    root = tmp_path_factory.mktemp("models")
    for name in ("history", "lstm", "token-gru", "two-inputs"):
        write_model(root, name)
    (root / "broken" / "1").mkdir(parents=True)
    (root / "broken" / "1" / "model.onnx").write_bytes(b"")
    return root


def _step(scene: Scene, **changes: Any) -> inference_pb2.StepChunk:
    """A good chunk of both history sessions, with some fields changed."""
    message = chunk(HISTORY, scene.history, [1, 1], [[5], [5]])
    for name, value in changes.items():
        message.ClearField(name)
        if isinstance(value, list):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


def _lstm(scene: Scene, values: np.ndarray) -> inference_pb2.StepChunk:
    return chunk(LSTM, scene.lstm, [0, 0], values)


def _with(values: np.ndarray, bad: float) -> np.ndarray:
    values[1, 0, 2] = bad
    return values


_ONES = np.ones((2, 1), np.int64)
_X = np.zeros((2, 1, 4), np.float32)

# name: (the message, reason, field, part of received, part of expected)
STEPS: dict[str, tuple[Callable[[Scene], inference_pb2.StepChunk], Reason, str, str, str]] = {
    "empty batch": (lambda s: _step(s, handles=b""), Reason.EMPTY_BATCH, "step.handles", "no rows", "at least one"),
    "ragged handles": (
        lambda s: _step(s, handles=b"123"),
        Reason.INVALID_BYTE_LENGTH,
        "step.handles",
        "3 bytes",
        "8 bytes a row",
    ),
    "too many rows": (
        lambda s: _step(s, handles=column(range(MAX_ROWS + 1))),
        Reason.TOO_MANY_ROWS,
        "step.handles",
        f"{MAX_ROWS + 1} rows",
        f"at most {MAX_ROWS}",
    ),
    "positions of another length": (
        lambda s: _step(s, positions=column([1])),
        Reason.INVALID_BYTE_LENGTH,
        "step.positions",
        "8 bytes",
        "16 bytes",
    ),
    "no steps": (lambda s: _step(s, num_steps=0), Reason.ZERO_STEPS, "step.num_steps", "0", "at least 1"),
    "too many steps": (
        lambda s: _step(s, num_steps=MAX_STEPS + 1),
        Reason.TOO_MANY_STEPS,
        "step.num_steps",
        f"{MAX_STEPS + 1}",
        f"at most {MAX_STEPS}",
    ),
    "no inputs": (lambda s: _step(s, inputs=[]), Reason.MISSING_FIELD, "inputs", "no 'x'", "x"),
    "unknown input": (
        lambda s: _step(s, inputs=[tensor("z", _ONES)]),
        Reason.UNKNOWN_INPUT,
        "inputs",
        "'z'",
        "each once: x",
    ),
    "an input twice": (
        lambda s: _step(s, inputs=[tensor("x", _ONES)] * 2),
        Reason.UNKNOWN_INPUT,
        "inputs",
        "'x'",
        "each once: x",
    ),
    "wrong dtype": (
        lambda s: _step(s, inputs=[tensor("x", _ONES.astype(np.int32))]),
        Reason.INVALID_DTYPE,
        "inputs[x].dtype",
        "INT32",
        "INT64",
    ),
    "unknown dtype": (
        lambda s: _step(s, inputs=[inference_pb2.Tensor(name="x", dtype=99, shape=[2, 1])]),  # type: ignore[arg-type]
        Reason.INVALID_DTYPE,
        "inputs[x].dtype",
        "99",
        "INT64",
    ),
    "wrong shape": (
        lambda s: _step(s, inputs=[tensor("x", np.ones((2, 2), np.int64))]),
        Reason.INVALID_SHAPE,
        "inputs[x].shape",
        "[2, 2]",
        "[2, 1]",
    ),
    "wrong rank": (
        lambda s: _step(s, inputs=[tensor("x", np.ones(2, np.int64))]),
        Reason.INVALID_SHAPE,
        "inputs[x].shape",
        "[2]",
        "[2, 1]",
    ),
    "negative shape": (
        lambda s: _step(s, inputs=[inference_pb2.Tensor(name="x", dtype=contract_pb2.DATA_TYPE_INT64, shape=[-2, -1])]),
        Reason.INVALID_SHAPE,
        "inputs[x].shape",
        "[-2, -1]",
        "[2, 1]",
    ),
    "wrong byte length": (
        lambda s: _step(
            s, inputs=[inference_pb2.Tensor(name="x", dtype=contract_pb2.DATA_TYPE_INT64, shape=[2, 1], data=b"1234")]
        ),
        Reason.INVALID_BYTE_LENGTH,
        "inputs[x].data",
        "4 bytes",
        "16 bytes",
    ),
    "not a number": (
        lambda s: _lstm(s, _with(_X.copy(), np.nan)),
        Reason.NON_FINITE,
        "inputs[x]",
        "nan",
        "finite values",
    ),
    "infinity": (
        lambda s: _lstm(s, _with(_X.copy(), -np.inf)),
        Reason.NON_FINITE,
        "inputs[x]",
        "-inf",
        "finite values",
    ),
    "token above the vocabulary": (
        lambda s: chunk(family("token-gru"), s.token, [0, 0], [[0], [7]]),
        Reason.OUT_OF_RANGE,
        "inputs[token]",
        "7",
        "0 to 6",
    ),
    "negative token": (
        lambda s: chunk(family("token-gru"), s.token, [0, 0], [[0], [-1]]),
        Reason.OUT_OF_RANGE,
        "inputs[token]",
        "-1",
        "0 to 6",
    ),
    "position gap": (lambda s: chunk(HISTORY, s.history[:1], [3], [[5]]), Reason.POSITION_AHEAD, "positions", "3", "1"),
    "position overlap": (
        lambda s: chunk(HISTORY, s.lstm[:0] + s.history[:1], [0], [[1, 1]]),
        Reason.REPEAT_MISMATCH,
        "positions",
        "0",
        "1",
    ),
    "a repeat with other inputs": (
        lambda s: chunk(HISTORY, s.history[:1], [0], [[5]]),
        Reason.REPEAT_MISMATCH,
        "positions",
        "0",
        "1",
    ),
    "a huge position": (
        lambda s: chunk(HISTORY, s.history[:1], [2**64 - 1], [[5]]),
        Reason.POSITION_AHEAD,
        "positions",
        "18446744073709551615",
        "1",
    ),
    "the same handle twice": (
        lambda s: chunk(HISTORY, [s.history[0]] * 2, [1, 1], [[5], [5]]),
        Reason.DUPLICATE_HANDLE,
        "handles",
        "",
        "at most once",
    ),
    "unknown handle": (
        lambda _: chunk(HISTORY, [123456789], [0], [[5]]),
        Reason.UNKNOWN_SESSION,
        "handles",
        "123456789",
        "a handle",
    ),
    "handle of no row": (lambda _: chunk(HISTORY, [0], [0], [[5]]), Reason.UNKNOWN_SESSION, "handles", "0", "a handle"),
    "the largest handle": (
        lambda _: chunk(HISTORY, [2**64 - 1], [0], [[5]]),
        Reason.UNKNOWN_SESSION,
        "handles",
        "",
        "a handle",
    ),
    "handle of a future epoch": (
        lambda s: chunk(HISTORY, [s.history[0] + (1 << 32)], [1], [[5]]),
        Reason.UNKNOWN_SESSION,
        "handles",
        "",
        "a handle",
    ),
    "somebody else's handle": (
        lambda s: chunk(HISTORY, s.other[:1], [1], [[5]]),
        Reason.UNKNOWN_SESSION,
        "handles",
        "",
        "a handle",
    ),
}


def _check(detail: Any, reason: Reason, field: str, received: str, expected: str) -> None:
    assert Reason(detail.reason) is reason
    assert detail.field == field
    assert received in detail.received
    assert expected in detail.expected
    assert detail.message
    assert detail.grpc_code


def test_every_bad_step_is_refused_with_its_reason(repository: Path) -> None:
    """Each bad step message gets one typed error with field, received and expected; nothing is applied."""

    async def scenario() -> None:
        for name, (build, reason, field, received, expected) in STEPS.items():
            async with _scene(repository) as (_, scene):
                detail = await scene.stream.refusal(step=build(scene))
                try:
                    _check(detail, reason, field, received, expected)
                except AssertionError as error:
                    raise AssertionError(f"{name}: {detail}") from error

    asyncio.run(scenario())


def test_one_bad_row_fails_alone(repository: Path) -> None:
    """In one message a bad row is refused, its outputs are zero, and the good row is stepped."""

    async def scenario() -> None:
        config = configure(repository)
        async with serve(config) as loopback, loopback.stream() as stream, loopback.stream() as neighbour:
            mine = await stream.handles("history", 2)
            foreign = await neighbour.handles("lstm", 1)
            result = await stream.step(HISTORY, [mine[0], 99, mine[1]], [0, 0, 7], [[4], [5], [6]])
            assert array(result.outputs[0]).tolist() == [[4], [0], [0]]
            reasons = {error.row: Reason(error.error.reason) for error in result.errors}
            assert reasons == {1: Reason.UNKNOWN_SESSION, 2: Reason.POSITION_AHEAD}
            assert result.errors[1].error.next_position == 0
            # The first row is somebody else's session of another model: it must not decide what the message is.
            result = await stream.step(HISTORY, [foreign[0], mine[1]], [0, 0], [[5], [6]])
            assert array(result.outputs[0]).tolist() == [[0], [6]]
            assert [error.row for error in result.errors] == [0]

    asyncio.run(scenario())


def test_sessions_of_two_models_in_one_message(repository: Path) -> None:
    """The first session's model decides; rows of another model are refused, the others are stepped."""

    async def scenario() -> None:
        async with _scene(repository) as (loopback, scene):
            extra = await scene.stream.handles("history")
            result = await scene.stream.step(HISTORY, [extra[0], scene.lstm[0]], [0, 0], [[5], [5]])
            assert [(error.row, Reason(error.error.reason)) for error in result.errors] == [(1, Reason.MIXED_MODELS)]
            assert array(result.outputs[0]).tolist() == [[5], [0]]
            assert loopback.host.refusals[Reason.MIXED_MODELS] == 1

    asyncio.run(scenario())


_REQUESTS: dict[str, tuple[Callable[[Scene], dict[str, Any]], Reason, str]] = {
    "nothing asked": (lambda _: {}, Reason.MISSING_FIELD, "action"),
    "unknown model": (
        lambda _: {"open": inference_pb2.OpenSessions(model="nobody", count=1)},
        Reason.UNKNOWN_MODEL,
        "model",
    ),
    "unknown version": (
        lambda _: {"open": inference_pb2.OpenSessions(model="history", version="9", count=1)},
        Reason.UNKNOWN_VERSION,
        "version",
    ),
    "a model that is not ready": (
        lambda _: {"open": inference_pb2.OpenSessions(model="broken", count=1)},
        Reason.MODEL_NOT_READY,
        "",
    ),
    "no sessions": (lambda _: {"open": inference_pb2.OpenSessions(model="history")}, Reason.OUT_OF_RANGE, "count"),
    "more sessions than there are slots": (
        lambda _: {"open": inference_pb2.OpenSessions(model="history", count=2**32 - 1)},
        Reason.TOO_MANY_SESSIONS,
        "count",
    ),
    "too many in flight": (
        lambda _: {"open": inference_pb2.OpenSessions(model="history", count=1, max_in_flight=65)},
        Reason.OUT_OF_RANGE,
        "max_in_flight",
    ),
    "idle for too long": (
        lambda _: {"open": inference_pb2.OpenSessions(model="history", count=1, idle_timeout_seconds=604_801)},
        Reason.OUT_OF_RANGE,
        "idle_timeout_seconds",
    ),
    "idle for less than nothing": (
        lambda _: {"open": inference_pb2.OpenSessions(model="history", count=1, idle_timeout_seconds=-1)},
        Reason.OUT_OF_RANGE,
        "idle_timeout_seconds",
    ),
    "idle for no number": (
        lambda _: {"open": inference_pb2.OpenSessions(model="history", count=1, idle_timeout_seconds=float("nan"))},
        Reason.OUT_OF_RANGE,
        "idle_timeout_seconds",
    ),
    "attach to nothing": (
        lambda _: {"attach": inference_pb2.AttachSession(session_id=bytes(16))},
        Reason.UNKNOWN_SESSION,
        "session_id",
    ),
    "attach to half an id": (
        lambda _: {"attach": inference_pb2.AttachSession(session_id=b"half")},
        Reason.INVALID_BYTE_LENGTH,
        "session_id",
    ),
    "close nothing": (lambda _: {"close": inference_pb2.CloseSessions()}, Reason.EMPTY_BATCH, "close.handles"),
    "close ragged handles": (
        lambda _: {"close": inference_pb2.CloseSessions(handles=b"12345")},
        Reason.INVALID_BYTE_LENGTH,
        "close.handles",
    ),
    "close a session twice": (
        lambda s: {"close": inference_pb2.CloseSessions(handles=column([s.history[0]] * 2))},
        Reason.DUPLICATE_HANDLE,
        "close.handles",
    ),
    "close somebody else's session": (
        lambda s: {"close": inference_pb2.CloseSessions(handles=column(s.other[:1]))},
        Reason.UNKNOWN_SESSION,
        "handles",
    ),
    "close an unknown session": (
        lambda _: {"close": inference_pb2.CloseSessions(handles=column([77]))},
        Reason.UNKNOWN_SESSION,
        "handles",
    ),
    "reset nothing": (lambda _: {"reset": inference_pb2.ResetSessions()}, Reason.EMPTY_BATCH, "reset.handles"),
    "reset somebody else's session": (
        lambda s: {"reset": inference_pb2.ResetSessions(handles=column(s.other[:1]))},
        Reason.UNKNOWN_SESSION,
        "handles",
    ),
}


def test_every_bad_request_is_refused_with_its_reason(repository: Path) -> None:
    """Each bad open, attach, close and reset gets one typed error; the stream and all sessions go on."""

    async def scenario() -> None:
        for name, (build, reason, field) in _REQUESTS.items():
            async with _scene(repository) as (_, scene):
                detail = await scene.stream.refusal(**build(scene))
                assert (Reason(detail.reason), detail.field) == (reason, field), name
                assert detail.message, name

    asyncio.run(scenario())


def test_garbage_bytes_are_refused_and_the_stream_goes_on(repository: Path) -> None:
    """Bytes that are no message, random ones included, are answered with a typed error."""

    async def scenario() -> None:
        generator = np.random.default_rng(3)
        async with _scene(repository) as (_, scene):
            for data in (b"\xff" * 7, b"\x0a\xff\xff\xff\xff\x0f", *(generator.bytes(size) for size in (1, 30, 3000))):
                response = await scene.stream.send_bytes(data)
                detail = response.error
                assert Reason(detail.reason) in (Reason.MALFORMED_MESSAGE, Reason.MISSING_FIELD), data[:30]
                assert detail.received
                assert detail.expected

    asyncio.run(scenario())


def test_damaged_messages_get_one_answer_each(repository: Path) -> None:
    """Good messages with bytes changed, cut and doubled: one answer each, whatever they have become.

    The sessions of other streams are as they were.
    """

    async def scenario() -> None:
        generator = np.random.default_rng(8)
        async with _scene(repository) as (loopback, _), loopback.stream() as stream:
            handles = await stream.handles("history", 3)
            good = [
                inference_pb2.StreamRequest(tag=0, **action).SerializeToString()
                for action in (
                    {"step": chunk(HISTORY, handles, [0] * 3, [[1], [2], [3]])},
                    {"open": inference_pb2.OpenSessions(model="history", count=1, max_in_flight=2)},
                    {"attach": inference_pb2.AttachSession(session_id=bytes(16))},
                    {"close": inference_pb2.CloseSessions(handles=column([77]))},
                    {"reset": inference_pb2.ResetSessions(handles=column(handles[:1]))},
                )
            ]
            for number in range(300):
                data = bytearray(good[number % len(good)])
                for _ in range(int(generator.integers(1, 4))):
                    place = int(generator.integers(0, len(data) + 1))
                    kind = generator.integers(0, 3)
                    if kind == 0:
                        data[place : place + 1] = generator.bytes(1)
                    elif kind == 1:
                        del data[place : place + int(generator.integers(1, 9))]
                    else:
                        data[place:place] = data[: int(generator.integers(1, 20))]
                await stream.send_damaged(bytes(data))
            assert loopback.host.is_idle

    asyncio.run(scenario())


def test_a_message_over_the_limit_is_refused_and_the_stream_goes_on(repository: Path) -> None:
    """Between the limit and twice the limit: a typed error."""

    async def scenario() -> None:
        async with _scene(repository) as (_, scene):
            response = await scene.stream.send_bytes(bytes(MAX_BYTES + 1))
            _check(response.error, Reason.MESSAGE_TOO_LARGE, "", f"{MAX_BYTES + 1} bytes", f"at most {MAX_BYTES} bytes")
            # One that parses is answered under its own tag.
            large = chunk(HISTORY, scene.history, [1, 1], np.ones((2, MAX_BYTES // 16)))
            assert Reason((await scene.stream.send(step=large)).error.reason) is Reason.MESSAGE_TOO_LARGE

    asyncio.run(scenario())


def test_a_message_over_twice_the_limit_ends_its_own_call_only(repository: Path) -> None:
    """The call of a message over twice the limit is ended by gRPC; other streams and their sessions go on."""

    async def scenario() -> None:
        async with _scene(repository) as (loopback, _):
            abuser = StreamClient(loopback.channel)
            with pytest.raises((ConnectionError, asyncio.InvalidStateError, grpc.aio.AioRpcError)):
                await abuser.send_bytes(bytes(2 * MAX_BYTES + 100))
            assert await abuser.call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await abuser.close()

    asyncio.run(scenario())


# Unary calls

_ID = bytes(16)
_SERVICE = "SessionService"
_UNARY: dict[str, tuple[str, Any, Any, Reason, str]] = {
    "unknown model": (
        "OpenSession",
        sessions_pb2.OpenSessionRequest(model="nobody"),
        sessions_pb2.OpenSessionResponse,
        Reason.UNKNOWN_MODEL,
        "model",
    ),
    "a huge model name": (
        "OpenSession",
        sessions_pb2.OpenSessionRequest(model="ü" * 30_000),
        sessions_pb2.OpenSessionResponse,
        Reason.UNKNOWN_MODEL,
        "model",
    ),
    "unknown version": (
        "OpenSession",
        sessions_pb2.OpenSessionRequest(model="history", version="2"),
        sessions_pb2.OpenSessionResponse,
        Reason.UNKNOWN_VERSION,
        "version",
    ),
    "model not ready": (
        "OpenSession",
        sessions_pb2.OpenSessionRequest(model="broken"),
        sessions_pb2.OpenSessionResponse,
        Reason.MODEL_NOT_READY,
        "",
    ),
    "unknown session": (
        "GetSession",
        sessions_pb2.GetSessionRequest(session_id=_ID),
        sessions_pb2.GetSessionResponse,
        Reason.UNKNOWN_SESSION,
        "session_id",
    ),
    "half an id": (
        "GetSession",
        sessions_pb2.GetSessionRequest(session_id=b"half"),
        sessions_pb2.GetSessionResponse,
        Reason.INVALID_BYTE_LENGTH,
        "session_id",
    ),
    "close an unknown session": (
        "CloseSession",
        sessions_pb2.CloseSessionRequest(session_id=_ID),
        sessions_pb2.CloseSessionResponse,
        Reason.UNKNOWN_SESSION,
        "session_id",
    ),
    "reset an unknown session": (
        "ResetSession",
        sessions_pb2.ResetSessionRequest(session_id=_ID),
        sessions_pb2.ResetSessionResponse,
        Reason.UNKNOWN_SESSION,
        "session_id",
    ),
    "a page too long": (
        "ListSessions",
        sessions_pb2.ListSessionsRequest(page_size=1001),
        sessions_pb2.ListSessionsResponse,
        Reason.OUT_OF_RANGE,
        "page_size",
    ),
    "no page token": (
        "ListSessions",
        sessions_pb2.ListSessionsRequest(page_token="soon"),  # noqa: S106  no password
        sessions_pb2.ListSessionsResponse,
        Reason.OUT_OF_RANGE,
        "page_token",
    ),
    "list an unknown model": (
        "ListSessions",
        sessions_pb2.ListSessionsRequest(model="nobody"),
        sessions_pb2.ListSessionsResponse,
        Reason.UNKNOWN_MODEL,
        "model",
    ),
    "garbage": (
        "OpenSession",
        b"\xff\xff\xff",
        sessions_pb2.OpenSessionResponse,
        Reason.MALFORMED_MESSAGE,
        "",
    ),
}


def test_every_bad_unary_call_is_refused_with_its_reason(repository: Path) -> None:
    """Status code, message and `google.rpc` details of each agree and name the field."""

    async def scenario() -> None:
        async with _scene(repository) as (loopback, _):
            for name, (method, request, response_type, reason, field) in _UNARY.items():
                detail = await loopback.refusal(f"{_SERVICE}/{method}", request, response_type)
                assert (Reason(detail.reason), detail.field) == (reason, field), name
            detail = await loopback.refusal(
                "ModelService/GetModel", models_pb2.GetModelRequest(name="nobody"), models_pb2.GetModelResponse
            )
            assert Reason(detail.reason) is Reason.UNKNOWN_MODEL

    asyncio.run(scenario())


def test_every_bad_unary_step_is_refused_with_its_reason(repository: Path) -> None:
    """The unary step checks what the stream checks, and a refused step applies nothing."""

    async def scenario() -> None:
        async with _scene(repository) as (loopback, _):
            opened = await loopback.unary(
                "SessionService/OpenSession",
                sessions_pb2.OpenSessionRequest(model="history"),
                sessions_pb2.OpenSessionResponse,
            )
            session = opened.session

            def request(**changes: Any) -> inference_pb2.StepRequest:
                fields: dict[str, Any] = {
                    "session_id": session.session_id,
                    "epoch": session.epoch,
                    "position": 0,
                    "num_steps": 1,
                    "inputs": [tensor("x", np.array([[4]]))],
                }
                return inference_pb2.StepRequest(**(fields | changes))

            async def refused(reason: Reason, field: str, message: inference_pb2.StepRequest | bytes) -> Any:
                detail = await loopback.refusal("InferenceService/Step", message, inference_pb2.StepResponse)
                assert (Reason(detail.reason), detail.field) == (reason, field)
                return detail

            await refused(Reason.INVALID_BYTE_LENGTH, "session_id", request(session_id=b"1"))
            await refused(Reason.UNKNOWN_SESSION, "session_id", request(session_id=bytes(16)))
            fenced = await refused(Reason.FENCED, "epoch", request(epoch=session.epoch + 1))
            assert fenced.epoch == session.epoch
            await refused(Reason.ZERO_STEPS, "num_steps", request(num_steps=0))
            await refused(Reason.TOO_MANY_STEPS, "num_steps", request(num_steps=MAX_STEPS + 1))
            await refused(Reason.OUT_OF_RANGE, "position", request(position=1 << 63))
            ahead = await refused(Reason.POSITION_AHEAD, "positions", request(position=1))
            assert ahead.next_position == 0
            await refused(Reason.INVALID_SHAPE, "inputs[x].shape", request(inputs=[tensor("x", np.array([[1, 2]]))]))
            await refused(Reason.INVALID_DTYPE, "inputs[x].dtype", request(inputs=[tensor("x", np.ones((1, 1)))]))
            await refused(Reason.MISSING_FIELD, "inputs", request(inputs=[]))
            await refused(Reason.MALFORMED_MESSAGE, "", b"\xff\xff")
            done = await loopback.unary("InferenceService/Step", request(), inference_pb2.StepResponse)
            assert array(done.outputs[0]).tolist() == [[4]]

    asyncio.run(scenario())
