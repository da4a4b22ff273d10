"""The servers that a client may ask, and which of them it asks.

Owns the channels, and whose turn it is: whatever does not get an answer, the stream or a call, moves all on to the next
one. Must not know what is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eddy.clients.errors import Disconnected


class Addresses:
    """One open `grpc.aio` channel each; none before the client is open, and after it was closed."""

    def __init__(self, channels: Sequence[Any]) -> None:
        # Changed only by `open`, `close` and `leave`, on one event loop.
        self._channels = list(channels)
        self._place = 0

    def __len__(self) -> int:
        return len(self._channels)

    @property
    def channel(self) -> Any:
        """To the server to ask.

        Raises:
            Disconnected: there is none.
        """
        if not self._channels:
            raise Disconnected("the client is not open: use it within `async with`", "CLOSED")
        return self._channels[self._place]

    def leave(self, channel: Any) -> None:
        """Who was asked there had no answer: the next one is asked, if that is not so already."""
        if self._channels and self._channels[self._place] is channel:
            self._place = (self._place + 1) % len(self._channels)

    def open(self, channels: Sequence[Any]) -> None:
        """There are these now."""
        self._channels = list(channels)
        self._place = 0

    async def close(self) -> None:
        """Closes all."""
        channels, self._channels = self._channels, []
        for channel in channels:
            await channel.close()
