"""The calls of the Open Inference Protocol: `inference.GRPCInferenceService`, bound to gRPC.

Owns the handlers, the open streams, and how an error ends a call. Must not know what requests mean.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_status import rpc_status

from eddy.oip import grpc_service_pb2 as oip
from eddy.service import codec
from eddy.service.connection import Connection
from eddy.service.errors import EddyError, Reason, ServerBug
from eddy.service.host import Host
from eddy.service.oip_coalescer import InferCoalescer
from eddy.service.oip_codec import status_of
from eddy.service.oip_infer import Inference, UnaryCall
from eddy.service.oip_models import ModelAnswers
from eddy.service.oip_stream import InferStream

_LOG = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"

# Calls that are known and not carried out, and why.
_SHARED_MEMORY = "this server does not read or write shared memory; send tensors in the request"
_REFUSED = {
    "SystemSharedMemoryStatus": _SHARED_MEMORY,
    "SystemSharedMemoryRegister": _SHARED_MEMORY,
    "SystemSharedMemoryUnregister": _SHARED_MEMORY,
    "CudaSharedMemoryStatus": _SHARED_MEMORY,
    "CudaSharedMemoryRegister": _SHARED_MEMORY,
    "CudaSharedMemoryUnregister": _SHARED_MEMORY,
    "TraceSetting": "this server writes no traces; its metrics have the time of every part of a request",
    "LogSettings": "this server's log level is set when it starts",
}


class InferenceCalls:
    """The service on `host`.

    Args:
        connections: the server's open streams; this service's are there while they are open.
    """

    def __init__(self, host: Host, connections: set[Connection]) -> None:
        self._host = host
        self._connections = connections
        self._inference = Inference(host)
        self._coalescer = InferCoalescer(host, self._inference.layouts, self._inference.sequences)
        self._models = ModelAnswers(host, self._inference)

    def handlers(self) -> dict[str, Any]:
        """By method."""
        models = self._models
        answers: dict[str, tuple[type[Message], Callable[[Any], Awaitable[Message]]]] = {
            "ServerLive": (oip.ServerLiveRequest, models.live),
            "ServerReady": (oip.ServerReadyRequest, models.ready),
            "ModelReady": (oip.ModelReadyRequest, models.model_ready),
            "ServerMetadata": (oip.ServerMetadataRequest, models.server_metadata),
            "ModelMetadata": (oip.ModelMetadataRequest, models.metadata),
            "ModelConfig": (oip.ModelConfigRequest, models.config),
            "ModelStatistics": (oip.ModelStatisticsRequest, models.statistics),
            "RepositoryIndex": (oip.RepositoryIndexRequest, models.index),
            "RepositoryModelLoad": (oip.RepositoryModelLoadRequest, models.load),
            "RepositoryModelUnload": (oip.RepositoryModelUnloadRequest, models.unload),
        }
        return {
            **{name: self._unary(kind, method) for name, (kind, method) in answers.items()},
            **{name: self._refusal(why) for name, why in _REFUSED.items()},
            "ModelInfer": grpc.unary_unary_rpc_method_handler(self._infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._stream),
        }

    def _unary(self, kind: type[Message], method: Callable[[Any], Awaitable[Message]]) -> Any:
        async def call(data: bytes, context: Any) -> bytes:
            async with self._typed_errors(context, kind):
                return (await method(self._parse(kind, data))).SerializeToString()
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(call)

    @staticmethod
    def _refusal(why: str) -> Any:
        async def call(_: bytes, context: Any) -> bytes:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, why)
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(call)

    async def _infer(self, data: bytes, context: Any) -> bytes:
        async with self._typed_errors(context, oip.ModelInferRequest):
            message = self._parse(oip.ModelInferRequest, data)
            return (await UnaryCall(self._inference).run(data, message, context.time_remaining())).SerializeToString()
        raise AssertionError("abort raises")

    async def _stream(self, _: Any, context: Any) -> None:
        async with self._typed_errors(context, oip.ModelInferRequest):
            self._host.gate.refuse_if_draining()
        connection = InferStream(self._host, context, self._inference, self._coalescer)
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)

    def _parse(self, kind: type[Message], data: bytes) -> Any:
        codec.check_size(data, self._host.config.server.max_message_bytes)
        return codec.parse(kind, data)

    @asynccontextmanager
    async def _typed_errors(self, context: Any, kind: type[Message]) -> AsyncIterator[None]:
        """Whatever goes wrong within ends the call with a typed error."""
        try:
            yield
        except EddyError as error:
            self._host.count_refusal(error)
            await _abort(context, error)
        except Exception:  # noqa: BLE001  the task's root: one call fails, with its traceback in the log
            _LOG.exception("%s failed", kind.DESCRIPTOR.full_name)
            await _abort(context, ServerBug(Reason.INTERNAL, "the server failed to carry out this call"))


async def _abort(context: Any, error: EddyError) -> None:
    status = rpc_status.to_status(status_of(error))
    try:
        await context.abort(status.code, status.details, status.trailing_metadata)
    except grpc.aio.InternalError as gone:
        raise asyncio.CancelledError from gone  # Nobody is there to be told.
