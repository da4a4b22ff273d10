"""A raw client of the Open Inference Protocol: many requests in flight, on streams and by calls, answers by their ids.

Owns the building of its messages and the matching of answers. Must not interpret errors: tests do. Triton's own client
is in `triton`; this one is for schedules that it cannot make.

Dimension key: B rows, T steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import numpy as np
from loopback import PATIENCE_SECONDS, Loopback

from eddy.oip import grpc_service_pb2
from eddy.service.oip_tensors import datatype_of

Answer = grpc_service_pb2.ModelStreamInferResponse
SERVICE = "/inference.GRPCInferenceService"
_DTYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}


def request(
    model: str,
    inputs: dict[str, np.ndarray],
    *,
    sequence: int | str = 0,
    start: bool = False,
    end: bool = False,
    request_id: str = "",
    version: str = "",
    outputs: Sequence[str] = (),
) -> grpc_service_pb2.ModelInferRequest:
    """An inference request with raw contents."""
    message = grpc_service_pb2.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, values in inputs.items():
        message.inputs.add(name=name, datatype=datatype_of(values.dtype), shape=values.shape)
        message.raw_input_contents.append(values.tobytes())
    for name in outputs:
        message.outputs.add(name=name)
    if isinstance(sequence, str):
        message.parameters["sequence_id"].string_param = sequence
    elif sequence:
        message.parameters["sequence_id"].int64_param = sequence
    if sequence:
        message.parameters["sequence_start"].bool_param = start
        message.parameters["sequence_end"].bool_param = end
    return message


def arrays(response: grpc_service_pb2.ModelInferResponse) -> list[np.ndarray]:
    """The outputs of an answer."""
    return [
        np.frombuffer(raw, _DTYPES[output.datatype]).reshape(tuple(output.shape))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    ]


async def call(loopback: Loopback, method: str, message: Any, kind: Any, **options: Any) -> Any:
    """A unary call."""
    method_of = loopback.channel.unary_unary(f"{SERVICE}/{method}", None, kind.FromString)
    data = message if isinstance(message, bytes) else message.SerializeToString()
    return await asyncio.wait_for(method_of(data, **options), PATIENCE_SECONDS)


async def infer(
    loopback: Loopback, message: grpc_service_pb2.ModelInferRequest, **options: Any
) -> grpc_service_pb2.ModelInferResponse:
    """One `ModelInfer`."""
    response: grpc_service_pb2.ModelInferResponse = await call(
        loopback, "ModelInfer", message, grpc_service_pb2.ModelInferResponse, **options
    )
    return response


class InferStream:
    """A client of one `ModelStreamInfer` call."""

    def __init__(self, loopback: Loopback) -> None:
        method = loopback.channel.stream_stream(
            f"{SERVICE}/ModelStreamInfer", None, grpc_service_pb2.ModelStreamInferResponse.FromString
        )
        self.call = method()
        self._numbers = count(1)
        self._lock = asyncio.Lock()
        self._waiting: dict[str, asyncio.Future[grpc_service_pb2.ModelStreamInferResponse]] = {}
        self.strangers: list[grpc_service_pb2.ModelStreamInferResponse] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for response in self.call:
            future = self._waiting.pop(response.infer_response.id, None)
            if future is None:
                self.strangers.append(response)
            elif not future.done():
                future.set_result(response)

    async def post(
        self, message: grpc_service_pb2.ModelInferRequest
    ) -> asyncio.Future[grpc_service_pb2.ModelStreamInferResponse]:
        """Writes a request, under an id of its own; returns the future of its answer."""
        # As many characters always, so that steps of one shape are of one length.
        message.id = f"{next(self._numbers):08d}"
        future = self._waiting[message.id] = asyncio.get_running_loop().create_future()
        async with self._lock:  # One write at a time is what a call takes.
            await self.call.write(message.SerializeToString())
        return future

    async def send(self, message: grpc_service_pb2.ModelInferRequest) -> grpc_service_pb2.ModelStreamInferResponse:
        """Writes a request and waits for its answer."""
        return await asyncio.wait_for(await self.post(message), PATIENCE_SECONDS)

    async def close(self) -> None:
        """Ends the stream as a client does that has finished."""
        await self.call.done_writing()
        await asyncio.wait_for(self._reader, PATIENCE_SECONDS)
        assert not self.strangers, "an answer to no request"

    async def abandon(self) -> None:
        """Breaks the stream off."""
        self.call.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


@asynccontextmanager
async def stream(loopback: Loopback) -> AsyncIterator[InferStream]:
    """A stream, ended by the client at the end."""
    client = InferStream(loopback)
    try:
        yield client
    finally:
        await client.close()
