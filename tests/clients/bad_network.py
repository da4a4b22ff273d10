"""A bad network: a TCP proxy that cuts connections, also within a message, holds answers back, and refuses for a while.

Must not know what passes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager


class BadNetwork:
    """Forwards connections to a port.

    Args:
        target: the server's port; may be changed.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        # Changed by tests, too.
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.refuses = False
        self.num_connections = 0
        self._cuts: Iterator[int] = iter(())
        self._left: list[list[int]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[BadNetwork]:
        """Listens."""

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._forward(reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.refuses = True
            self.cut()
            await asyncio.gather(*self._tasks)

    def cut(self) -> None:
        """Breaks every connection that is open now."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self.may_answer.set()

    def plan(self, cuts: Iterable[int]) -> None:
        """Each connection, this one and those to come, is cut after so many bytes from now on, in either direction.

        The last ones, when there are no more cuts, are not.
        """
        self._cuts = iter(cuts)
        for left in self._left:
            left[0] = next(self._cuts, -1)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        if self.refuses:
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, server_writer}
        if self.refuses:  # Since it was accepted.
            self.cut()
        left = [next(self._cuts, -1)]
        self._left.append(left)
        await asyncio.gather(
            self._pump(reader, server_writer, writer, left, None),
            self._pump(server_reader, writer, server_writer, left, self.may_answer),
        )
        self._writers -= {writer, server_writer}
        self._left.remove(left)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        other: asyncio.StreamWriter,
        left: list[int],
        gate: asyncio.Event | None,
    ) -> None:
        with contextlib.suppress(OSError):  # Cut.
            while data := await reader.read(1 << 16):
                if gate is not None:
                    await gate.wait()
                if left[0] >= 0:
                    data, left[0] = data[: left[0]], max(0, left[0] - len(data))
                writer.write(data)
                await writer.drain()
                if not left[0]:
                    other.transport.abort()
                    break
        writer.transport.abort()
