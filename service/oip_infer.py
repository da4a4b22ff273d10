"""Inference requests of the Open Inference Protocol: a message becomes a step of a sequence, or whole sequences.

Owns the way of a request from its message to the sequences or to `infer`, and back. The same for unary calls and
streams. Must not know gRPC.

A request with a sequence id is a step of that sequence. One without is refused for a model that streams, as Triton's
sequence batcher refuses it; a model that does not stream takes whole sequences [B, T, ...], each by itself.

Dimension key: B rows, T steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from eddy.oip import grpc_service_pb2 as oip
from eddy.service import codec
from eddy.service.chunk import NO_DEADLINE
from eddy.service.errors import ClientError, Detail, EddyError, Reason
from eddy.service.host import Host
from eddy.service.infer import InferCall
from eddy.service.model import ServedModel
from eddy.service.oip_codec import Form, Options, build_response, infer_response, read_options
from eddy.service.oip_layout import InferLayout, InferLayouts
from eddy.service.oip_sequences import Caller, Parts, Request, Sequence, Sequences, not_started
from eddy.service.oip_tensors import Feeds, Signature, read_inputs, signature
from eddy.v1 import inference_pb2


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request's answer needs: its own id, its model, and the answer's form (`Request.context`).

    Attributes:
        num_bytes: of its inputs and its answer.
        layout, data: where its layout is known, that and the request.
    """

    request_id: str
    model: ServedModel
    form: Form
    num_bytes: int
    layout: InferLayout | None = None
    data: bytes = b""


class Inference:
    """Takes inference requests for `host`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.sequences = Sequences(host)
        self.layouts = InferLayouts()
        # Changed only on the event loop.
        self._signatures: WeakKeyDictionary[ServedModel, Signature] = WeakKeyDictionary()

    def model(self, name: str, version: str) -> ServedModel:
        """The model that a request names.

        Raises:
            EddyError: it is not known, or not ready.
        """
        try:
            return self._host.catalog.ready(name, version)
        except ClientError as error:
            asked = f"'{name[:100]}'{f' version {version[:20]}' if version else ''}"
            raise ClientError(error.reason, f"Request for unknown model: {asked} is not found", error.detail) from None

    def signature_of(self, model: ServedModel) -> Signature:
        """What `model` takes and gives."""
        known = self._signatures.get(model)
        if known is None:
            known = self._signatures[model] = signature(model.file.name, model.contract)
        return known

    def accept(
        self, data: bytes, message: oip.ModelInferRequest, caller: Caller, timeout_seconds: float | None
    ) -> Awaitable[oip.ModelInferResponse] | None:
        """Hands a request over: `caller` is told its result, unless it is one for whole sequences, which is returned.

        Args:
            data: the request's bytes; message: the same, parsed.
            timeout_seconds: the call's own; it begins within this time or fails. None for no limit.

        Raises:
            EddyError: it is refused; nothing was applied.
        """
        self._host.gate.refuse_if_draining()
        arrival = self._host.clock()
        options = read_options(message)
        deadline = min(
            NO_DEADLINE if timeout_seconds is None else arrival + timeout_seconds,
            arrival + options.timeout_seconds if options.timeout_seconds else NO_DEADLINE,
        )
        sequence, model = self._find(message, options)
        wanted = self.signature_of(model)
        places = wanted.output_places([each.name for each in message.outputs])
        _refuse_shared_memory(message)
        feeds = read_inputs(message, wanted)
        form = Form(wanted, model.file.version, places, feeds.is_stepwise)
        answer_bytes = model.contract.answer_bytes(feeds.num_rows, feeds.num_steps)
        asked = Asked(message.id, model, form, sum(map(len, feeds.inputs)) + answer_bytes)
        if not model.contract.message.streaming.streamable:
            left = None if deadline == NO_DEADLINE else deadline - arrival
            return self._infer_whole(asked, feeds, left, arrival)
        self._check(model, feeds)
        if sequence is not None and not options.is_end and not model.contract.emits:
            self.layouts.learn(data, message, model, form, feeds.num_steps, options.timeout_seconds)
        request = Request(
            options.sequence_id,
            is_start=options.is_start,
            is_end=options.is_end,
            feeds=model.contract.feed(feeds.inputs, 1, feeds.num_steps),
            num_steps=feeds.num_steps,
            arrival=arrival,
            deadline=deadline,
            caller=caller,
            context=asked,
        )
        caller.expect(asked.num_bytes)
        if sequence is None:
            sequence = self.sequences.begin(model, message.model_version, options.sequence_id)
        self.sequences.submit(sequence, request)
        return None

    def accept_known(self, layout: InferLayout, data: bytes, caller: Caller) -> bool:
        """Hands over a request that fits `layout`; False when it must be parsed to say what is wrong with it.

        Raises:
            CapacityError: DRAINING.
        """
        sequence_id = layout.sequence_of(data)
        sequence = self.sequences.find(layout.name, layout.version, sequence_id)
        model = layout.model
        if sequence is None or model is None or sequence.model is not model:
            return False
        begin, end = layout.request_id
        arrival = self._host.clock()
        inputs = tuple([data[first:last] for first, last in layout.inputs])
        request = Request(
            sequence_id,
            is_start=False,
            is_end=False,
            feeds=model.contract.feed(inputs, 1, layout.num_steps),
            num_steps=layout.num_steps,
            arrival=arrival,
            deadline=arrival + layout.timeout_seconds if layout.timeout_seconds else NO_DEADLINE,
            caller=caller,
            context=Asked(data[begin:end].decode(), model, layout.form, layout.num_bytes, layout, data),
        )
        caller.expect(layout.num_bytes)
        self.sequences.submit(sequence, request)
        return True

    def _find(self, message: oip.ModelInferRequest, options: Options) -> tuple[Sequence | None, ServedModel]:
        """The sequence that the request goes on with, None where it begins one or is of none; and its model."""
        name, version, sequence_id = message.model_name, message.model_version, options.sequence_id
        sequence = None if options.is_start or not sequence_id else self.sequences.find(name, version, sequence_id)
        if sequence is not None:
            return sequence, sequence.model
        model = self.model(name, version)
        if model.contract.message.streaming.streamable:
            if not sequence_id:
                raise ClientError(
                    Reason.MISSING_FIELD,
                    f"inference request to model '{name}' must specify a non-zero or non-empty correlation ID",
                    Detail("parameters[sequence_id]", "none", "a number other than 0, or text"),
                )
            if not options.is_start:
                raise not_started(name, sequence_id)
        return None, model

    def _check(self, model: ServedModel, feeds: Feeds) -> None:
        """The request is one step, or several, of one sequence, and not too many."""
        if feeds.num_rows != 1:
            raise ClientError(
                Reason.INVALID_SHAPE,
                f"inference request to model '{model.file.name}' must specify batch-size 1 due to requirements of "
                "sequence batcher",
                Detail("inputs", f"batch {feeds.num_rows}", "batch 1"),
            )
        codec.check_steps(feeds.num_steps, model.config.max_steps, "inputs")
        codec.check_answer(model.contract, 1, feeds.num_steps, self._host.config.server.max_message_bytes, "inputs")

    async def _infer_whole(
        self, asked: Asked, feeds: Feeds, timeout_seconds: float | None, arrival: float
    ) -> oip.ModelInferResponse:
        """Whole sequences, [B, T, ...], each from the beginning."""
        model = asked.model
        request = inference_pb2.InferRequest(
            model=model.file.name,
            version=model.file.version,
            lengths=np.full(feeds.num_rows, feeds.num_steps, "<u4").tobytes(),
        )
        flat = feeds.num_rows * feeds.num_steps
        for port, data in zip(model.contract.inputs, feeds.inputs, strict=True):
            tensor = request.inputs.add(name=port.name, shape=[flat, *port.shape], data=data)
            tensor.dtype = port.wire_dtype  # type: ignore[assignment]  # the stub wants its own enum type
        try:
            given = await InferCall(self._host, request).run(timeout_seconds)
        except EddyError:
            self.count_failure(model, arrival)
            raise
        blocks = [given.outputs[place].data for place in asked.form.places]
        # Sequences of equal length give outputs of equal length, one after the other.
        num_steps = [given.outputs[place].shape[0] // feeds.num_rows for place in asked.form.places]
        return build_response(asked.request_id, asked.form, feeds.num_rows, num_steps, blocks)

    def response(self, request: Request, parts: Parts) -> oip.ModelInferResponse:
        """The answer to a request that was carried out."""
        asked = asked_of(request)
        return infer_response(asked.request_id, asked.form, asked.model.contract, 1, parts)

    def count_failure(self, model: ServedModel, arrival: float) -> None:
        """Counts a request of `model`, which came at `arrival`, that was answered with an error."""
        model.stats.num_failed_requests += 1
        model.stats.failure_seconds += self._host.clock() - arrival


def asked_of(request: Request) -> Asked:
    """What a request's answer needs."""
    assert isinstance(request.context, Asked), "requests are made by `Inference.accept`"
    return request.context


class UnaryCall:
    """A request that came by a call of its own (`oip_sequences.Caller`)."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self.is_gone = False
        self._future: asyncio.Future[oip.ModelInferResponse] = asyncio.get_running_loop().create_future()

    async def run(
        self, data: bytes, message: oip.ModelInferRequest, timeout_seconds: float | None
    ) -> oip.ModelInferResponse:
        """Carries out `message`, whose bytes are `data`; it begins within `timeout_seconds` or fails.

        Raises:
            EddyError: it was refused or failed.
        """
        whole = self._inference.accept(data, message, self, timeout_seconds)
        if whole is not None:
            return await whole
        try:
            return await self._future
        finally:
            self.is_gone = True

    def expect(self, num_bytes: int) -> None:
        """A call has one request."""

    def take(self, request: Request, parts: Parts) -> None:
        """The request was carried out."""
        if not self._future.done():
            self._future.set_result(self._inference.response(request, parts))

    def fail(self, request: Request, error: EddyError) -> None:
        """The request was refused, or failed."""
        self._inference.count_failure(asked_of(request).model, request.arrival)
        if not self._future.done():
            self._future.set_exception(error)


def _refuse_shared_memory(message: oip.ModelInferRequest) -> None:
    for output in message.outputs:
        if "shared_memory_region" in output.parameters:
            raise ClientError(
                Reason.UNKNOWN_INPUT,
                f"output '{output.name[:100]}' is wanted in shared memory, which this server does not write",
                Detail(f"outputs[{output.name[:100]}].parameters", "shared_memory_region", "none"),
            )
        if output.parameters["classification"].int64_param if "classification" in output.parameters else 0:
            raise ClientError(
                Reason.WRONG_TASK,
                f"output '{output.name[:100]}' is wanted as a classification, which this server does not make; ask "
                "for its values",
                Detail(f"outputs[{output.name[:100]}].parameters", "classification", "none"),
            )
