"""A real server on a free port in this process, and a client that speaks raw messages to it.

Owns the making of model repositories, the server's life within a test, and a stream client that matches responses to
requests by tag and keeps notices. Must not interpret errors: tests do.

Dimension key: B rows, T steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
from google.rpc import status_pb2
from graphs import PRIME_FILE, Family, family

from eddy.service.config import (
    Config,
    InspectionConfig,
    ModelConfig,
    RepositoryConfig,
    ServerConfig,
    SessionConfig,
    StateConfig,
)
from eddy.service.host import Host
from eddy.service.server import Server
from eddy.v1 import contract_pb2, errors_pb2, inference_pb2

# Far beyond what any answer takes: a test that would hang fails instead.
PATIENCE_SECONDS = 30.0

_DTYPES: dict[np.dtype, int] = {
    np.dtype(np.float32): contract_pb2.DATA_TYPE_FLOAT32,
    np.dtype(np.float64): contract_pb2.DATA_TYPE_FLOAT64,
    np.dtype(np.float16): contract_pb2.DATA_TYPE_FLOAT16,
    np.dtype(np.int32): contract_pb2.DATA_TYPE_INT32,
    np.dtype(np.int64): contract_pb2.DATA_TYPE_INT64,
    np.dtype(np.bool_): contract_pb2.DATA_TYPE_BOOL,
}
_NUMPY = {number: dtype for dtype, number in _DTYPES.items()}


def write_model(repository: Path, name: str, version: str = "1", model: onnx.ModelProto | None = None) -> Path:
    """Puts a model, or the family of that name, into a repository; returns the file."""
    folder = repository / name / version
    folder.mkdir(parents=True)
    path = folder / "model.onnx"
    if model is None:
        spec = family(name)
        model = spec.model()
        if spec.prime is not None:
            (folder / PRIME_FILE).write_bytes(spec.prime.graph().SerializeToString())
    path.write_bytes(model.SerializeToString())
    return path


def configure(
    folder: Path,
    *,
    server: Any = None,
    session: Any = None,
    model: Any = None,
    state: Any = None,
    inspection: Any = None,
    repository: Any = None,
) -> Config:
    """A configuration for tests: free ports, small arenas and nothing beyond, further fields by section."""
    return Config(
        ServerConfig(**({"grpc_port": 0, "http_port": 0, "model_repository": str(folder)} | (server or {}))),
        SessionConfig(**(session or {})),
        ModelConfig(**({"max_slots": 256, "max_rows": 64, "max_steps": 512} | (model or {}))),
        StateConfig(**({"host_bytes": 0} | (state or {}))),
        InspectionConfig(**(inspection or {})),
        repository=RepositoryConfig(**(repository or {})),
    )


class Loopback:
    """A running server and a channel to it."""

    def __init__(self, host: Host, server: Server, channel: Any) -> None:
        self.host = host
        self.server = server
        self.channel = channel

    async def unary(self, method: str, request: Any, response_type: Any, **options: Any) -> Any:
        """Calls `service/method`; `request` is a message or raw bytes."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        call = self.channel.unary_unary(f"/eddy.v1.{method}", None, response_type.FromString)
        return await asyncio.wait_for(call(data, **options), PATIENCE_SECONDS)

    async def refusal(self, method: str, request: Any, response_type: Any) -> errors_pb2.ErrorDetail:
        """Calls `service/method`, which must fail with a typed error, and returns that."""
        try:
            response = await self.unary(method, request, response_type)
        except grpc.aio.AioRpcError as error:
            return detail_of(error)
        raise AssertionError(f"{method} was carried out: {response}")

    async def answer(self, method: str, request: Any, response_type: Any) -> Any:
        """Calls `service/method`, and returns its response or the typed error that it fails with."""
        try:
            return await self.unary(method, request, response_type)
        except grpc.aio.AioRpcError as error:
            return detail_of(error)

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[StreamClient]:
        """A stream, ended by the client at the end."""
        client = StreamClient(self.channel)
        try:
            yield client
        finally:
            await client.close()


def detail_of(error: grpc.aio.AioRpcError) -> errors_pb2.ErrorDetail:
    """The `ErrorDetail` in a failed call's `google.rpc.Status`."""
    raw = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    assert isinstance(raw, bytes), f"an error without details: {error.code()} {error.details()}"
    status = status_pb2.Status.FromString(raw)
    detail = errors_pb2.ErrorDetail()
    assert status.details[0].Unpack(detail)
    assert error.code().value[0] == status.code == detail.grpc_code
    assert error.details() == status.message == detail.message
    return detail


@asynccontextmanager
async def serve(config: Config, **options: Any) -> AsyncIterator[Loopback]:
    """Runs a server for the models of `config`; `options` are the host's (clock, ids)."""
    host = Host(config, **options)
    host.load()
    server = Server(config, host)
    await server.start()
    try:
        limits = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=limits) as channel:
            yield Loopback(host, server, channel)
    finally:
        await server.drain()


class StreamClient:
    """A client of one `Stream` call."""

    def __init__(self, channel: Any) -> None:
        method = channel.stream_stream(
            "/eddy.v1.InferenceService/Stream", None, inference_pb2.StreamResponse.FromString
        )
        self.call = method()
        self.notices: list[inference_pb2.StreamResponse] = []
        self._tags = count(1)
        self._waiting: dict[int, asyncio.Future[inference_pb2.StreamResponse]] = {}
        self._noticed = asyncio.Event()
        self._lock = asyncio.Lock()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for response in self.call:
                future = self._waiting.pop(response.tag, None)
                if future is not None:
                    if not future.done():
                        future.set_result(response)
                    continue
                self.notices.append(response)
                self._noticed.set()
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ConnectionError(f"the stream ended: {error}"))
                    future.exception()  # Some tests do not ask.

    async def close(self) -> None:
        """Ends the stream as a client does that has finished."""
        if not self._reader.done():
            await self.call.done_writing()
        await asyncio.wait_for(self._reader, PATIENCE_SECONDS)

    def cancel(self) -> None:
        """Breaks the stream off."""
        self.call.cancel()

    async def notice(self, kind: str) -> Any:
        """The first notice of a kind, once it has come."""
        while True:
            for response in self.notices:
                if response.WhichOneof("event") == kind:
                    self.notices.remove(response)
                    return getattr(response, kind)
            self._noticed.clear()
            await asyncio.wait_for(self._noticed.wait(), PATIENCE_SECONDS)

    async def post(self, **action: Any) -> asyncio.Future[inference_pb2.StreamResponse]:
        """Writes a request; returns the future of its response."""
        tag = next(self._tags)
        request = inference_pb2.StreamRequest(tag=tag, **action)
        future = self._waiting[tag] = asyncio.get_running_loop().create_future()
        async with self._lock:  # One write at a time is what a call takes.
            await self.call.write(request.SerializeToString())
        return future

    async def send(self, **action: Any) -> inference_pb2.StreamResponse:
        """Writes a request and waits for its response."""
        return await asyncio.wait_for(await self.post(**action), PATIENCE_SECONDS)

    async def send_bytes(self, data: bytes) -> inference_pb2.StreamResponse:
        """Writes raw bytes, whose response will carry tag 0, and waits for that."""
        future = self._waiting[0] = asyncio.get_running_loop().create_future()
        await self.call.write(data)
        return await asyncio.wait_for(future, PATIENCE_SECONDS)

    async def send_damaged(self, data: bytes) -> inference_pb2.StreamResponse:
        """Writes bytes that may have any tag, and waits for the one response."""
        self._noticed.clear()
        await self.call.write(data)
        await asyncio.wait_for(self._noticed.wait(), PATIENCE_SECONDS)
        assert len(self.notices) == 1, "more than one response to one request"
        return self.notices.pop()

    async def refusal(self, **action: Any) -> errors_pb2.ErrorDetail:
        """Sends a request that must be refused, as a whole or for each of its rows, and returns why."""
        response = await self.send(**action)
        kind = response.WhichOneof("event")
        if kind == "error":
            return response.error
        errors: list[inference_pb2.RowError] = list(getattr(response, str(kind)).errors)
        assert errors, f"the request was carried out: {response}"
        return errors[0].error

    async def open(self, model: str, num_sessions: int = 1, **fields: Any) -> inference_pb2.SessionsOpened:
        """Opens sessions."""
        request = inference_pb2.OpenSessions(model=model, count=num_sessions, **fields)
        response = await self.send(open=request)
        assert response.WhichOneof("event") == "opened", response
        return response.opened

    async def handles(self, model: str, num_sessions: int = 1, **fields: Any) -> list[int]:
        """Opens sessions and returns their handles."""
        opened = await self.open(model, num_sessions, **fields)
        handles: list[int] = np.frombuffer(opened.handles, "<u8").tolist()
        return handles

    async def step(self, model: Family, handles: Sequence[int], positions: Sequence[int], *inputs: Any) -> Any:
        """Steps sessions by `inputs` [B, T, ...] each; returns the `StepResult`."""
        response = await self.send(step=chunk(model, handles, positions, *inputs))
        assert response.WhichOneof("event") == "step", response
        return response.step


async def until(condition: Callable[[], object]) -> None:
    """Lets the event loop go on until something inside of the server is so; that sends no signal to wait for."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110  it has no event
            await asyncio.sleep(0)


def tensor(name: str, values: np.ndarray) -> inference_pb2.Tensor:
    """An array for the wire."""
    values = np.ascontiguousarray(values)
    dtype: Any = _DTYPES[values.dtype]  # The stub wants its own enum type.
    return inference_pb2.Tensor(name=name, dtype=dtype, shape=values.shape, data=values.tobytes())


def array(message: inference_pb2.Tensor) -> np.ndarray:
    """An array from the wire."""
    return np.frombuffer(message.data, _NUMPY[message.dtype]).reshape(tuple(message.shape))


def attach_request(opened: inference_pb2.SessionsOpened, number: int = 0) -> inference_pb2.AttachSession:
    """The request to take over one of the sessions that `opened` told of."""
    token = opened.resume_tokens[16 * number : 16 * number + 16]
    return inference_pb2.AttachSession(session_id=opened.session_ids[number], resume_token=token)


def column(values: Sequence[int]) -> bytes:
    """A column of uint64."""
    return np.asarray(values, "<u8").tobytes()


def chunk(
    model: Family, handles: Sequence[int], positions: Sequence[int], *inputs: Any, **fields: Any
) -> inference_pb2.StepChunk:
    """A step message with `inputs` [B, T, ...] each."""
    arrays: list[np.ndarray] = [
        np.asarray(values, port.dtype) for values, port in zip(inputs, model.inputs, strict=True)
    ]
    return inference_pb2.StepChunk(
        handles=column(handles),
        positions=column(positions),
        num_steps=arrays[0].shape[1],
        inputs=[tensor(port.name, values) for port, values in zip(model.inputs, arrays, strict=True)],
        **fields,
    )


def end_chunk(handles: Sequence[int], positions: Sequence[int]) -> inference_pb2.StepChunk:
    """The end of streams, as a step message."""
    return inference_pb2.StepChunk(handles=column(handles), positions=column(positions), flush=True)
