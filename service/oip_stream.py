"""One `ModelStreamInfer` call: reads requests, hands them on, writes answers.

Owns which answer is of which request. Must not know how requests are carried out. An error is an answer as well: the
stream goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any

import numpy as np

from eddy.oip import grpc_service_pb2 as oip
from eddy.service import codec
from eddy.service.connection import Connection
from eddy.service.errors import EddyError, Reason, ServerBug
from eddy.service.host import Host
from eddy.service.oip_coalescer import InferCoalescer
from eddy.service.oip_codec import FINAL, stream_error
from eddy.service.oip_infer import Inference, asked_of
from eddy.service.oip_layout import InferLayout
from eddy.service.oip_sequences import Parts, Request

_LOG = logging.getLogger(__name__)


class InferStream(Connection):
    """One client's stream (`oip_sequences.Caller`).

    Args:
        host: sessions and models; context: the call's `grpc.aio.ServicerContext`.
        inference, coalescer: of all streams of the server.
    """

    def __init__(self, host: Host, context: Any, inference: Inference, coalescer: InferCoalescer) -> None:
        super().__init__(host, context)
        self._inference = inference
        self._coalescer = coalescer
        # Of requests for whole sequences, so that they end with the stream.
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Serves the call until the client ends it; everything read by then is answered."""
        try:
            await super().serve()
        finally:
            for task in self._tasks:
                task.cancel()

    def _receive(self, data: bytes) -> None:
        if not self._coalescer.add(self, data):
            self.receive_alone(data)

    def receive_alone(self, data: bytes) -> None:
        """Acts on one message."""
        message = oip.ModelInferRequest()
        try:
            known = self._inference.layouts.find(data)
            if known is not None and self._inference.accept_known(known, data, self):
                return
            codec.check_size(data, self._max_bytes)
            message = codec.parse(oip.ModelInferRequest, data)
            whole = self._inference.accept(data, message, self, None)
        except EddyError as error:
            self._refuse(message, error)
            return
        except Exception:  # noqa: BLE001  the request's root: it fails, with its traceback in the log; the stream goes on
            _LOG.exception("a request of stream %d failed", self.number)
            self._refuse(message, _bug())
            return
        if whole is not None:
            task = asyncio.create_task(self._answer_whole(message, whole))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer_whole(self, message: oip.ModelInferRequest, whole: Awaitable[oip.ModelInferResponse]) -> None:
        try:
            response = await whole
        except EddyError as error:
            self._refuse(message, error)
        except Exception:  # noqa: BLE001  the request's root, as above
            _LOG.exception("a request of stream %d failed", self.number)
            self._refuse(message, _bug())
        else:
            self.answer(0, _encoded(response))

    def take(self, request: Request, parts: Parts) -> None:
        """The request was carried out."""
        asked = asked_of(request)
        if asked.layout is None:
            self.answer(asked.num_bytes, _encoded(self._inference.response(request, parts)))
        else:
            self.answer(asked.num_bytes, asked.layout.answer(asked.data, parts[0][1]))

    def fail(self, request: Request, error: EddyError) -> None:
        """The request was refused, or failed."""
        asked = asked_of(request)
        self._inference.count_failure(asked.model, request.arrival)
        self._fail(asked.num_bytes, asked.request_id, asked.form.signature.model, asked.form.version, error)

    def answer_error(self, layout: InferLayout, data: bytes, arrival: float, error: EddyError) -> None:
        """The request `data`, which came at `arrival`, was refused (`oip_coalescer.Sender`)."""
        begin, end = layout.request_id
        if layout.model is not None:
            self._inference.count_failure(layout.model, arrival)
        self._fail(layout.num_bytes, data[begin:end].decode(), layout.name, layout.form.version, error)

    def _refuse(self, message: oip.ModelInferRequest, error: EddyError) -> None:
        self._fail(0, message.id, message.model_name, message.model_version, error)

    def _fail(self, num_bytes: int, request_id: str, model: str, version: str, error: EddyError) -> None:
        self._host.count_refusal(error)
        self.answer(num_bytes, stream_error(request_id, model, version, error).SerializeToString())

    def _tell_ended(self, handles: np.ndarray, error: EddyError) -> None:
        """Sequences belong to no stream."""

    def tell_draining(self, grace_seconds: float) -> None:
        """The protocol has no word for it; requests from now on are refused."""


def _encoded(response: oip.ModelInferResponse) -> bytes:
    response.parameters[FINAL].bool_param = True
    return oip.ModelStreamInferResponse(infer_response=response).SerializeToString()


def _bug() -> ServerBug:
    return ServerBug(Reason.INTERNAL, "the server failed to carry out this request")
