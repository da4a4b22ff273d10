"""The gRPC server: binds the services of `eddy.v1`, the Open Inference Protocol, health and reflection to the host.

Owns the listening port, the unary calls and the shutdown. Must not know ticks or states. Requests arrive as bytes and
are parsed here, so that garbage is answered with a typed error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_status import rpc_status

from eddy.oip import grpc_service_pb2
from eddy.service import codec, unary
from eddy.service.calls import CallCounter
from eddy.service.certificates import CertificateFiles
from eddy.service.coalescer import Coalescer
from eddy.service.config import Config
from eddy.service.connection import Connection
from eddy.service.credentials import server_credentials
from eddy.service.errors import EddyError, Reason, ServerBug
from eddy.service.generate import GenerateCall
from eddy.service.host import Host
from eddy.service.infer import InferCall
from eddy.service.layout import Layouts
from eddy.service.model import ServedModel
from eddy.service.model_calls import ModelCalls
from eddy.service.oip_calls import SERVICE as OIP_SERVICE
from eddy.service.oip_calls import InferenceCalls
from eddy.service.session_calls import SessionCalls
from eddy.service.stream import StreamConnection
from eddy.v1 import generation_pb2, inference_pb2, models_pb2, sessions_pb2

_LOG = logging.getLogger(__name__)

_Request = TypeVar("_Request", bound=Message)


def _is_no_hang_up(record: logging.LogRecord) -> bool:
    """A filter of gRPC's log: it writes a traceback for every answer whose client has hung up, which is no error."""
    is_hang_up = record.exc_info is not None and isinstance(record.exc_info[1], grpc.aio.InternalError)
    if is_hang_up:
        _LOG.debug("a client hung up before its answer: %s", record.getMessage())
    return not is_hang_up


def _descriptors() -> DescriptorPool:
    """All that reflection tells of; the Open Inference Protocol's messages have a pool of their own elsewhere."""
    pool, known = DescriptorPool(), set()

    def add(file: Any) -> None:
        if file.name not in known:
            known.add(file.name)
            for needed in file.dependencies:
                add(needed)
            pool.AddSerializedFile(file.serialized_pb)

    modules = (inference_pb2, generation_pb2, sessions_pb2, models_pb2, health_pb2, reflection_pb2, grpc_service_pb2)
    for module in modules:
        add(module.DESCRIPTOR)
    return pool


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
        self._connections: set[Connection] = set()
        self._layouts = Layouts()
        self._responses = codec.StepResponses()
        self._coalescer = Coalescer(host, self._layouts, self._responses)
        self._oip = InferenceCalls(host, self._connections)
        self._descriptors = _descriptors()
        self._health_task: asyncio.Task[None] | None = None
        self._health_status: Any = health_pb2.HealthCheckResponse.NOT_SERVING
        self._is_health_stale = False
        # Names of models in the health service.
        self._health_names: set[str] = set()
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
        self._host.on_models_changed(self._models_changed)
        self._host.on_model_released(self._forget)

    def _models_changed(self) -> None:
        self._is_health_stale = True
        if self._health_task is None or self._health_task.done():
            self._health_task = asyncio.create_task(self._set_model_health())

    def _forget(self, model: ServedModel) -> None:
        self._layouts.forget(model.index)
        self._responses.forget(model.contract)

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
        self._health_status = status
        await self._health.set("", status)
        for name in self._own_methods():
            await self._health.set(name, status)
        await self._set_model_health()

    async def _set_model_health(self) -> None:
        """Health of every version of every model; of those that are gone, that they are not known."""
        kinds = health_pb2.HealthCheckResponse
        self._is_health_stale = True
        while self._is_health_stale:
            self._is_health_stale = False
            statuses: dict[str, Any] = {
                f"models/{entry.file.name}/{entry.file.version}": (
                    self._health_status if entry.model else kinds.NOT_SERVING
                )
                for entry in self._host.catalog
            }
            gone = self._health_names - statuses.keys()
            self._health_names |= statuses.keys()
            for name, status in (statuses | dict.fromkeys(gone, kinds.SERVICE_UNKNOWN)).items():
                await self._health.set(name, status)

    # Methods

    def _methods(self) -> dict[str, dict[str, Any]]:
        return self._own_methods() | {
            health.SERVICE_NAME: {
                "Check": self._unary_in_context(health_pb2.HealthCheckRequest, self._check_health),
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
        call, sessions, models = self._unary, SessionCalls(self._host), ModelCalls(self._host)
        return {
            "eddy.v1.InferenceService": {
                "Stream": grpc.stream_stream_rpc_method_handler(self._stream),
                "Step": self._unary_in_context(inference_pb2.StepRequest, self._step),
                "Infer": self._unary_in_context(inference_pb2.InferRequest, self._infer),
            },
            "eddy.v1.GenerationService": {
                "Generate": grpc.unary_stream_rpc_method_handler(self._generate),
            },
            "eddy.v1.SessionService": {
                "OpenSession": call(sessions_pb2.OpenSessionRequest, sessions.open),
                "GetSession": call(sessions_pb2.GetSessionRequest, sessions.get),
                "ListSessions": call(sessions_pb2.ListSessionsRequest, sessions.list),
                "CloseSession": call(sessions_pb2.CloseSessionRequest, sessions.close),
                "ResetSession": call(sessions_pb2.ResetSessionRequest, sessions.reset),
                "SnapshotSession": call(sessions_pb2.SnapshotSessionRequest, sessions.snapshot),
                "RestoreSession": call(sessions_pb2.RestoreSessionRequest, sessions.restore),
                "ForkSession": call(sessions_pb2.ForkSessionRequest, sessions.fork),
            },
            "eddy.v1.ModelService": {
                "ListModels": call(models_pb2.ListModelsRequest, models.list),
                "GetModel": call(models_pb2.GetModelRequest, models.get),
                "LoadModel": call(models_pb2.LoadModelRequest, models.load),
                "UnloadModel": call(models_pb2.UnloadModelRequest, models.unload),
            },
            OIP_SERVICE: self._oip.handlers(),
        }

    def _unary(self, request_type: type[Message], method: Callable[[Any], Awaitable[Message]]) -> Any:
        return self._unary_in_context(request_type, lambda request, _: method(request))

    def _unary_in_context(self, request_type: type[Message], method: Callable[[Any, Any], Awaitable[Message]]) -> Any:
        async def call(data: bytes, context: Any) -> bytes:
            async with self._typed_errors(context, request_type):
                return (await method(self._parse(request_type, data), context)).SerializeToString()
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(call)

    async def _generate(self, data: bytes, context: Any) -> None:
        async with self._typed_errors(context, generation_pb2.GenerateRequest):
            request = self._parse(generation_pb2.GenerateRequest, data)
            if request.HasField("existing"):
                existing = request.existing
                await self._host.persistence.recall_in_epoch(existing.session_id, existing.epoch, "existing.")
            await GenerateCall(self._host, context, request).serve()

    def _parse(self, request_type: type[_Request], data: bytes) -> _Request:
        codec.check_size(data, self._config.server.max_message_bytes)
        return codec.parse(request_type, data)

    async def _check_health(self, request: health_pb2.HealthCheckRequest, context: Any) -> Message:
        check: Any = self._health.Check  # Annotated as giving nothing.
        response: Any = await check(request, context)
        if response.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            # A model that is gone, to the health service's books one that it knows.
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return cast("Message", response)

    async def _watch_health(self, data: bytes, context: Any) -> None:
        async with self._typed_errors(context, health_pb2.HealthCheckRequest):
            await self._health.Watch(self._parse(health_pb2.HealthCheckRequest, data), context)

    async def _reflect(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Message]:
        names = (*self._own_methods(), health.SERVICE_NAME, reflection.SERVICE_NAME)
        servicer = reflection.aio.ReflectionServicer(names, self._descriptors)

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
        if self._host.gate.is_draining:
            try:
                self._host.gate.refuse_if_draining()
            except EddyError as error:
                await self._abort(context, error)
        connection = StreamConnection(self._host, context, self._layouts, self._responses, self._coalescer)
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)

    async def _step(self, request: inference_pb2.StepRequest, context: Any) -> Message:
        return await unary.step(self._host, request, context.time_remaining())

    async def _infer(self, request: inference_pb2.InferRequest, context: Any) -> Message:
        return await InferCall(self._host, request).run(context.time_remaining())
