"""The gRPC server: binds the services of `eddy.v1`, health and reflection to the host.

Owns the listening port, the unary calls and the shutdown. Must not know ticks or states. Requests arrive as bytes and
are parsed here, so that garbage is answered with a typed error.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_status import rpc_status

from eddy.service import codec
from eddy.service.calls import CallCounter
from eddy.service.catalog import Entry
from eddy.service.certificates import CertificateFiles
from eddy.service.chunk import NO_DEADLINE, Chunk, ChunkResult
from eddy.service.config import Config
from eddy.service.credentials import server_credentials
from eddy.service.errors import ClientError, Detail, EddyError, Reason, ServerBug, invalid
from eddy.service.generate import GenerateCall
from eddy.service.host import Host
from eddy.service.infer import InferCall
from eddy.service.layout import Layouts
from eddy.service.sessions import ANY_ROUTE, NO_STREAM, SESSION_ID_BYTES, SessionInfo
from eddy.service.stream import StreamConnection, limits_message
from eddy.v1 import generation_pb2, inference_pb2, models_pb2, sessions_pb2

_LOG = logging.getLogger(__name__)

_Request = TypeVar("_Request", bound=Message)

_MAX_PAGE = 1000
_DEFAULT_PAGE = 100


def _is_no_hang_up(record: logging.LogRecord) -> bool:
    """A filter of gRPC's log: it writes a traceback for every answer whose client has hung up, which is no error."""
    is_hang_up = record.exc_info is not None and isinstance(record.exc_info[1], grpc.aio.InternalError)
    if is_hang_up:
        _LOG.debug("a client hung up before its answer: %s", record.getMessage())
    return not is_hang_up


class PortInUse(Exception):
    """The address cannot be listened on."""


class Server:
    """One process's gRPC server.

    Args:
        config: everything; host: sessions and models, loaded.
        certificates: for TLS, None for plaintext.
    """

    def __init__(self, config: Config, host: Host, certificates: CertificateFiles | None = None) -> None:
        self._config = config
        self._certificates = certificates
        self._host = host
        self._server: Any = None
        self._health = health.aio.HealthServicer()
        # Changed only on the event loop.
        self._connections: set[StreamConnection] = set()
        self._layouts = Layouts()
        self._responses = codec.StepResponses()
        self.port = 0

    async def start(self) -> None:
        """Begins to serve; `port` is then the port in use.

        Raises:
            PortInUse: the address is taken.
        """
        limit = self._config.server.max_message_bytes
        options = [
            # Twice the limit: messages in between are refused with a typed error, and the stream goes on.
            ("grpc.max_receive_message_length", 2 * limit),
            ("grpc.max_send_message_length", -1),
            # Two servers on one port would share its connections, and a session lives in one.
            ("grpc.so_reuseport", 0),
            # A client that vanished without a word is found by unanswered pings.
            ("grpc.keepalive_time_ms", int(1000 * self._config.server.keepalive_seconds)),
            ("grpc.keepalive_timeout_ms", int(1000 * self._config.server.keepalive_seconds / 3)),
            # The shorter of the two is not enough: without this one it takes a minute whatever the other says.
            ("grpc.http2.ping_timeout_ms", int(1000 * self._config.server.keepalive_seconds / 3)),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # One that connects and never says the first words of HTTP/2 holds a file descriptor.
            ("grpc.server_handshake_timeout_ms", int(1000 * self._config.server.handshake_seconds)),
        ]
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_hang_up)
        self._host.start()
        self._server = grpc.aio.server(interceptors=(CallCounter(self._host.calls),), options=options)
        for service, methods in self._methods().items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        address = str(self._config.server.grpc_address)
        try:
            if self._certificates is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, server_credentials(self._certificates))
        except RuntimeError as error:
            await self._host.stop()
            raise PortInUse(f"cannot listen on {address}: {error}") from error
        await self._server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Refuses new work, finishes what was accepted, then ends every call and stops."""
        _LOG.info("draining")
        # A watcher that does not read must not hold up the end.
        telling = asyncio.create_task(self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING))
        await asyncio.wait([telling], timeout=1.0)
        grace = self._config.server.drain_seconds
        for connection in list(self._connections):
            connection.tell_draining(grace)
        if not await self._host.drain():
            _LOG.warning("accepted requests were not finished within %.1f s", grace)
        await asyncio.gather(*(connection.flush(1.0) for connection in self._connections))
        await self._server.stop(1.0)
        await self._host.stop()
        _LOG.info("stopped")

    async def _set_health(self, status: Any) -> None:
        await self._health.set("", status)
        for name in self._own_methods():
            await self._health.set(name, status)
        for entry in self._host.catalog:
            ready = status if entry.model else health_pb2.HealthCheckResponse.NOT_SERVING
            await self._health.set(f"models/{entry.file.name}/{entry.file.version}", ready)

    # Methods

    def _methods(self) -> dict[str, dict[str, Any]]:
        return self._own_methods() | {
            health.SERVICE_NAME: {
                "Check": self._unary(health_pb2.HealthCheckRequest, self._check_health),
                "Watch": grpc.unary_stream_rpc_method_handler(
                    self._watch_health, response_serializer=health_pb2.HealthCheckResponse.SerializeToString
                ),
            },
            reflection.SERVICE_NAME: {
                "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
                    self._reflect, response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString
                ),
            },
        }

    def _own_methods(self) -> dict[str, dict[str, Any]]:
        unary = self._unary
        return {
            "eddy.v1.InferenceService": {
                "Stream": grpc.stream_stream_rpc_method_handler(self._stream),
                "Step": unary(inference_pb2.StepRequest, self._step),
                "Infer": unary(inference_pb2.InferRequest, self._infer),
            },
            "eddy.v1.GenerationService": {
                "Generate": grpc.unary_stream_rpc_method_handler(self._generate),
            },
            "eddy.v1.SessionService": {
                "OpenSession": unary(sessions_pb2.OpenSessionRequest, self._open_session),
                "GetSession": unary(sessions_pb2.GetSessionRequest, self._get_session),
                "ListSessions": unary(sessions_pb2.ListSessionsRequest, self._list_sessions),
                "CloseSession": unary(sessions_pb2.CloseSessionRequest, self._close_session),
                "ResetSession": unary(sessions_pb2.ResetSessionRequest, self._reset_session),
            },
            "eddy.v1.ModelService": {
                "ListModels": unary(models_pb2.ListModelsRequest, self._list_models),
                "GetModel": unary(models_pb2.GetModelRequest, self._get_model),
            },
        }

    def _unary(self, request_type: type[Message], method: Callable[[Any, Any], Awaitable[Message]]) -> Any:
        async def call(data: bytes, context: Any) -> bytes:
            async with self._typed_errors(context, request_type):
                return (await method(self._parse(request_type, data), context)).SerializeToString()
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(call)

    async def _generate(self, data: bytes, context: Any) -> None:
        async with self._typed_errors(context, generation_pb2.GenerateRequest):
            await GenerateCall(self._host, context, self._parse(generation_pb2.GenerateRequest, data)).serve()

    def _parse(self, request_type: type[_Request], data: bytes) -> _Request:
        codec.check_size(data, self._config.server.max_message_bytes)
        return codec.parse(request_type, data)

    async def _check_health(self, request: health_pb2.HealthCheckRequest, context: Any) -> Message:
        check: Any = self._health.Check  # Annotated as giving nothing.
        response: Message = await check(request, context)
        return response

    async def _watch_health(self, data: bytes, context: Any) -> None:
        async with self._typed_errors(context, health_pb2.HealthCheckRequest):
            await self._health.Watch(self._parse(health_pb2.HealthCheckRequest, data), context)

    async def _reflect(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Message]:
        names = (*self._own_methods(), health.SERVICE_NAME, reflection.SERVICE_NAME)
        servicer = reflection.aio.ReflectionServicer(names)

        async def parsed() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            async for data in requests:
                yield self._parse(reflection_pb2.ServerReflectionRequest, data)

        async with self._typed_errors(context, reflection_pb2.ServerReflectionRequest):
            async for response in servicer.ServerReflectionInfo(parsed(), context):
                yield response

    @asynccontextmanager
    async def _typed_errors(self, context: Any, request_type: type[Message]) -> AsyncIterator[None]:
        """Whatever goes wrong within ends the call with a typed error."""
        try:
            yield
        except EddyError as error:
            self._host.count_refusal(error)
            await self._abort(context, error)
        except grpc.aio.AbortError:  # Health and reflection answer with a status of their own.
            raise
        except grpc.aio.InternalError as gone:  # A write to a client that has hung up.
            raise asyncio.CancelledError from gone
        except Exception:  # noqa: BLE001  the task's root: one call fails, with its traceback in the log
            _LOG.exception("%s failed", request_type.DESCRIPTOR.full_name)
            await self._abort(context, ServerBug(Reason.INTERNAL, "the server failed to carry out this call"))

    @staticmethod
    async def _abort(context: Any, error: EddyError) -> None:
        status = rpc_status.to_status(codec.error_status(error))
        try:
            await context.abort(status.code, status.details, status.trailing_metadata)
        except grpc.aio.InternalError as gone:
            raise asyncio.CancelledError from gone  # Nobody is there to be told.

    async def _stream(self, _: Any, context: Any) -> None:
        if self._host.is_draining:
            try:
                self._host.refuse_if_draining()
            except EddyError as error:
                await self._abort(context, error)
        connection = StreamConnection(self._host, context, self._layouts, self._responses)
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)

    # InferenceService

    async def _step(self, request: inference_pb2.StepRequest, context: Any) -> Message:
        host = self._host
        row = host.table.row_of_id(_session_id(request.session_id))
        info = host.table.info(row)
        if request.epoch != info.epoch:
            raise ClientError(
                Reason.FENCED,
                f"epoch: got {request.epoch}, the session is in epoch {info.epoch}",
                Detail("epoch", str(request.epoch), str(info.epoch), epoch=info.epoch),
            )
        model = host.catalog.served[info.model]
        codec.check_steps(request.num_steps, model.config.max_steps, "num_steps")
        if request.position >= 1 << 63:
            raise invalid(Reason.OUT_OF_RANGE, "position", request.position, "less than 2**63")
        inputs = codec.read_inputs(model.contract, request.inputs, (1, request.num_steps))
        now = host.clock()
        remaining = context.time_remaining()
        call = _UnaryCall()
        chunk = Chunk(
            info.handle.to_bytes(8, "little"),
            request.position.to_bytes(8, "little"),
            request.num_steps,
            inputs,
            ANY_ROUTE,
            call,
            0,
            model.contract,
            now,
            NO_DEADLINE if remaining is None else now + remaining,
        )
        host.submit(model, chunk)
        return codec.unary_step_response(model.contract, request, await call.result())

    async def _infer(self, request: inference_pb2.InferRequest, context: Any) -> Message:
        return await InferCall(self._host, request).run(context.time_remaining())

    # SessionService

    async def _open_session(self, request: sessions_pb2.OpenSessionRequest, context: Any) -> Message:
        opened = self._host.open(
            request.model, request.version, 1, request.max_in_flight, request.idle_timeout_seconds, NO_STREAM
        )
        info = self._host.table.info(int(opened.rows[0]))
        return sessions_pb2.OpenSessionResponse(
            session=self._session(info, with_id=True), limits=limits_message(self._host, opened.model)
        )

    async def _get_session(self, request: sessions_pb2.GetSessionRequest, context: Any) -> Message:
        row = self._host.table.row_of_id(_session_id(request.session_id))
        return sessions_pb2.GetSessionResponse(session=self._session(self._host.table.info(row), with_id=True))

    async def _list_sessions(self, request: sessions_pb2.ListSessionsRequest, context: Any) -> Message:
        size = request.page_size or _DEFAULT_PAGE
        if size > _MAX_PAGE:
            raise invalid(Reason.OUT_OF_RANGE, "page_size", size, f"at most {_MAX_PAGE}")
        try:
            after = int(request.page_token or "0")
        except ValueError:
            raise invalid(
                Reason.OUT_OF_RANGE, "page_token", repr(request.page_token), "a token of the previous page"
            ) from None
        rows = self._rows_of_model(request.model)
        page = rows[rows > after][: size + 1]
        more = len(page) > size
        sessions = [self._session(self._host.table.info(row), with_id=False) for row in page[:size].tolist()]
        token = str(int(page[size - 1])) if more else ""
        return sessions_pb2.ListSessionsResponse(sessions=sessions, next_page_token=token, total=len(rows))

    def _rows_of_model(self, name: str) -> np.ndarray:
        if not name:
            return self._host.table.open_rows()
        self._host.catalog.find(name, "")
        indices = [model.index for model in self._host.catalog.served if model.file.name == name]
        rows = [self._host.table.open_rows(index) for index in indices]
        return np.sort(np.concatenate([np.empty(0, np.int64), *rows]))

    async def _close_session(self, request: sessions_pb2.CloseSessionRequest, context: Any) -> Message:
        await self._control(self._host.close, _session_id(request.session_id))
        return sessions_pb2.CloseSessionResponse()

    async def _reset_session(self, request: sessions_pb2.ResetSessionRequest, context: Any) -> Message:
        session_id = _session_id(request.session_id)
        await self._control(self._host.reset, session_id)
        row = self._host.table.row_of_id(session_id)
        return sessions_pb2.ResetSessionResponse(session=self._session(self._host.table.info(row), with_id=True))

    async def _control(
        self, apply: Callable[[np.ndarray, Callable[[np.ndarray], None]], None], session_id: bytes
    ) -> None:
        """Applies `apply` to a session, again if it was taken over while this waited."""
        is_missed = True
        while is_missed:
            row = self._host.table.row_of_id(session_id)
            done: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
            apply(np.array([row]), partial(_resolve, done))
            is_missed = len(await done) > 0

    def _session(self, info: SessionInfo, *, with_id: bool) -> sessions_pb2.Session:
        file = self._host.catalog.served[info.model].file
        return sessions_pb2.Session(
            session_id=info.session_id if with_id else b"",
            fingerprint=hashlib.sha256(info.session_id).hexdigest()[:8],
            model=file.name,
            version=file.version,
            epoch=info.epoch,
            next_position=info.next_position,
            max_in_flight=info.max_in_flight,
            idle_seconds=info.idle_seconds,
            idle_timeout_seconds=info.idle_timeout_seconds,
            attached=info.is_attached,
        )

    # ModelService

    async def _list_models(self, request: models_pb2.ListModelsRequest, context: Any) -> Message:
        return models_pb2.ListModelsResponse(models=[_status(entry) for entry in self._host.catalog])

    async def _get_model(self, request: models_pb2.GetModelRequest, context: Any) -> Message:
        entry = self._host.catalog.find(request.name, request.version)
        response = models_pb2.GetModelResponse(status=_status(entry))
        if entry.model is not None:
            response.contract.CopyFrom(entry.model.contract.message)
            response.limits.CopyFrom(limits_message(self._host, entry.model))
        return response


class _UnaryCall:
    """The source of a unary step's chunk."""

    def __init__(self) -> None:
        self.is_gone = False
        self._future: asyncio.Future[ChunkResult] = asyncio.get_running_loop().create_future()

    def deliver(self, chunk: Chunk, result: ChunkResult) -> None:
        """Takes the chunk's result (`chunk.Source`)."""
        _resolve(self._future, result)

    async def result(self) -> ChunkResult:
        try:
            return await self._future
        except asyncio.CancelledError:
            self.is_gone = True
            raise


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _session_id(value: bytes) -> bytes:
    if len(value) != SESSION_ID_BYTES:
        raise invalid(Reason.INVALID_BYTE_LENGTH, "session_id", f"{len(value)} bytes", f"{SESSION_ID_BYTES} bytes")
    return value


def _status(entry: Entry) -> models_pb2.ModelStatus:
    status = models_pb2.ModelStatus(
        name=entry.file.name,
        version=entry.file.version,
        ready=entry.model is not None,
        digest=entry.file.digest,
        load_seconds=entry.load_seconds,
    )
    if entry.error is not None:
        status.error.CopyFrom(codec.error_detail(entry.error))
    if entry.model is not None:
        status.provider = entry.model.engine.provider
        status.num_slots = entry.model.slots.num_slots
        status.num_sessions = entry.model.num_sessions
        status.state_bytes_per_session = entry.model.contract.state_bytes
    return status
