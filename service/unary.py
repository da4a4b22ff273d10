"""The unary `Step`: one chunk of one session, for callers without a stream.

Owns its checks and the wait for its result. Must not know gRPC: a deadline comes as seconds.
"""

from __future__ import annotations

import asyncio

from eddy.service import codec
from eddy.service.chunk import NO_DEADLINE, Chunk, ChunkResult
from eddy.service.errors import Reason, invalid
from eddy.service.host import Host
from eddy.service.sessions import ANY_ROUTE
from eddy.v1 import inference_pb2


async def step(
    host: Host, request: inference_pb2.StepRequest, timeout_seconds: float | None
) -> inference_pb2.StepResponse:
    """Takes the step that `request` asks for; it begins within `timeout_seconds` or not at all (None: no limit).

    Raises:
        EddyError: the step was refused or failed.
    """
    info = host.table.info(await host.persistence.recall_in_epoch(request.session_id, request.epoch))
    model = host.catalog.served[info.model]
    if request.flush:
        codec.check_end(request.num_steps, "num_steps")
    else:
        codec.check_steps(request.num_steps, model.config.max_steps, "num_steps")
    num_steps = 1 if request.flush else request.num_steps
    if request.position >= 1 << 63:
        raise invalid(Reason.OUT_OF_RANGE, "position", request.position, "less than 2**63")
    limit = host.config.server.max_message_bytes
    codec.check_answer(model.contract, 1, request.num_steps, limit, "num_steps")
    inputs = codec.read_feeds(model.contract, request.inputs, 1, num_steps, is_end=request.flush)
    now = host.clock()
    call = _Call()
    chunk = Chunk(
        info.handle.to_bytes(8, "little"),
        request.position.to_bytes(8, "little"),
        num_steps,
        inputs,
        ANY_ROUTE,
        call,
        0,
        model.contract,
        now,
        NO_DEADLINE if timeout_seconds is None else now + timeout_seconds,
    )
    host.submit(model, chunk)
    result = await call.result()
    durable_position = host.persistence.durable_position(info.handle)
    return codec.unary_step_response(model.contract, request, result, durable_position, info.epoch)


class _Call:
    """The source of a unary step's chunk."""

    def __init__(self) -> None:
        self.is_gone = False
        self._future: asyncio.Future[ChunkResult] = asyncio.get_running_loop().create_future()

    def deliver(self, chunk: Chunk, result: ChunkResult) -> None:
        """Takes the chunk's result (`chunk.Source`)."""
        if not self._future.done():
            self._future.set_result(result)

    async def result(self) -> ChunkResult:
        try:
            return await self._future
        except asyncio.CancelledError:
            self.is_gone = True
            raise
