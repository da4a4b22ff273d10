"""A connection: one bidirectional call, whatever its messages are.

Owns its flow: how many requests may be unanswered, and the outbox. Must not know what messages mean.

Ordering rules: requests are handed over in the order read. When `max_stream_requests` are unanswered, or requests or
answers of more than one message's limit wait, the call is not read further, so gRPC's flow control holds a client
back that sends faster than it reads.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import grpc
import numpy as np

from eddy.service.errors import EddyError
from eddy.service.host import Host

_LOG = logging.getLogger(__name__)


class Connection(ABC):
    """One client's call.

    Args:
        host: sessions and models; context: the call's `grpc.aio.ServicerContext`.
    """

    def __init__(self, host: Host, context: Any) -> None:
        self._host = host
        self._context = context
        self._max_bytes = host.config.server.max_message_bytes
        self._max_requests = host.config.server.max_stream_requests
        # Changed only on the event loop.
        self.is_gone = False
        self.number = host.streams.add(self._tell_ended)
        self._num_unanswered = 0
        # Of chunks that were handed over and are not answered yet.
        self._chunk_bytes = 0
        self._outbox: list[tuple[bytes, int]] = []
        # Not yet written to the connection.
        self._outbox_bytes = 0
        # The writer waits on it while the outbox is empty; a bare future costs half of what an Event does.
        self._wake: asyncio.Future[None] | None = None
        self._room = asyncio.Event()

    async def serve(self) -> None:
        """Serves the call until the client ends it; everything read by then is answered."""
        writer = asyncio.create_task(self._write())
        # Without a writer nobody would be answered: the call ends.
        reader = asyncio.current_task()
        assert reader is not None, "a call is served by a task"
        writer.add_done_callback(partial(self._writer_ended, reader))
        try:
            while (data := await self._context.read()) is not grpc.aio.EOF:
                self._num_unanswered += 1
                self._receive(data)
                if self._num_unanswered >= self._max_requests:
                    await self._wait_until(self._max_requests - 1)
                if self._outbox_bytes > self._max_bytes or self._chunk_bytes > self._max_bytes:
                    await self._wait_until_light()
            await self._wait_until(0)
        finally:
            self.is_gone = True
            writer.cancel()
            self._host.streams.remove(self.number)

    @abstractmethod
    def _receive(self, data: bytes) -> None:
        """Acts on one message, which is answered once."""

    @abstractmethod
    def _tell_ended(self, handles: np.ndarray, error: EddyError) -> None:
        """The server has ended sessions that this connection owns."""

    @abstractmethod
    def tell_draining(self, grace_seconds: float) -> None:
        """The server is shutting down."""

    def _writer_ended(self, reader: asyncio.Task[Any], writer: asyncio.Task[None]) -> None:
        """Nobody is answered any more: the call ends."""
        if not writer.cancelled() and (error := writer.exception()) is not None:
            _LOG.info("stream %d: its connection is gone: %s", self.number, error)
        if not self.is_gone:
            reader.cancel()

    async def flush(self, timeout_seconds: float) -> None:
        """Waits until what was answered is written, for so long at most (a reader may have stopped reading)."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._wait_until(0)
        except TimeoutError:
            return

    async def _wait_until(self, num_unanswered: int) -> None:
        while self._num_unanswered > num_unanswered:
            self._room.clear()
            await self._room.wait()

    async def _wait_until_light(self) -> None:
        while self._outbox_bytes > self._max_bytes or self._chunk_bytes > self._max_bytes:
            self._room.clear()
            await self._room.wait()

    def expect(self, num_bytes: int) -> None:
        """Counts a request of `num_bytes`, with its answer, that was handed over."""
        self._chunk_bytes += num_bytes

    def answer(self, num_bytes: int, data: bytes) -> None:
        """Sends the answer to one request of `num_bytes`."""
        self._chunk_bytes -= num_bytes
        if not self.is_gone:
            self._put(data, 1)

    def _put(self, data: bytes, num_answered: int) -> None:
        self._outbox.append((data, num_answered))
        self._outbox_bytes += len(data)
        if self._wake is not None and not self._wake.done():  # Done: the writer was cancelled, the call ends.
            self._wake.set_result(None)
            self._wake = None

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._outbox:
                wake = self._wake = loop.create_future()
                await wake
            batch, self._outbox = self._outbox, []
            for data, num_answered in batch:
                await self._context.write(data)
                self._num_unanswered -= num_answered
                self._outbox_bytes -= len(data)
                self._room.set()
