"""A TCP proxy that is a bad network: it delays, cuts in the middle of messages, and refuses.

Owns the connections between clients and servers. Which connection suffers what is decided by the seed and the order in
which connections come. Must not know what is in the bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass

_READ_BYTES = 1 << 16
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Weather:
    """How bad the network is.

    Attributes:
        refuse_share: connections that are refused at once; cut_share: connections that are cut after some bytes.
        mean_bytes: bytes that such a connection carries on average; delay_share: reads that are delayed.
        max_delay_seconds: by how much at most; wait_seconds: how long a client's connection waits for a server.
    """

    refuse_share: float = 0.1
    cut_share: float = 0.5
    mean_bytes: float = 200_000.0
    delay_share: float = 0.02
    max_delay_seconds: float = 0.03
    wait_seconds: float = 5.0


CALM = Weather(0.0, 0.0, delay_share=0.0)


class Proxy:
    """The proxy; `port` is where clients connect, `backends` are the ports of the servers at the moment."""

    def __init__(self, seed: int, weather: Weather) -> None:
        self._seed = seed
        self._weather = weather
        # Changed on the event loop only.
        self.port = 0
        self.backends: list[int] = []
        self.num_connections = 0
        self.num_refused = 0
        self.num_cut = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Ends everything."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.cut_all()

    def calm(self) -> None:
        """From now on nothing is cut or refused."""
        self._weather = CALM

    def hold(self) -> None:
        """From now on nothing that a server says reaches a client."""
        self._open.clear()

    def release(self) -> None:
        """What was held goes on, where its connection still stands."""
        self._open.set()

    def cut_all(self) -> None:
        """Breaks every connection, and with it what was held."""
        self.num_cut += len(self._writers) // 2
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._carry(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # A broken connection is what this is for.
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        dice = random.Random(f"{self._seed}/{self.num_connections}")
        weather = self._weather
        if dice.random() < weather.refuse_share:
            self.num_refused += 1
            return
        upstream = await self._connect(dice)
        if upstream is None:
            return
        is_doomed = dice.random() < weather.cut_share
        budget = [dice.expovariate(1 / weather.mean_bytes) if is_doomed else float("inf")]
        self._writers |= {writer, upstream[1]}
        try:
            ways = [
                asyncio.ensure_future(self._pipe(reader, upstream[1], dice, budget, is_answer=False)),
                asyncio.ensure_future(self._pipe(upstream[0], writer, dice, budget, is_answer=True)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._writers.discard(upstream[1])
            upstream[1].transport.abort()

    async def _connect(self, dice: random.Random) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to one of the servers, which may only be starting."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._weather.wait_seconds
        while loop.time() < until:
            if self.backends:
                with contextlib.suppress(OSError):
                    return await asyncio.open_connection("127.0.0.1", dice.choice(self.backends))
            await asyncio.sleep(_LOOK_SECONDS)
        return None

    async def _pipe(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        dice: random.Random,
        budget: list[float],
        *,
        is_answer: bool,
    ) -> None:
        while data := await reader.read(_READ_BYTES):
            if dice.random() < self._weather.delay_share:
                await asyncio.sleep(dice.random() * self._weather.max_delay_seconds)
            if is_answer:
                await self._open.wait()
            budget[0] -= len(data)
            if budget[0] < 0 and self._weather.cut_share:
                self.num_cut += 1
                writer.write(data[: int(len(data) + budget[0])])
                await writer.drain()
                return
            writer.write(data)
            await writer.drain()
