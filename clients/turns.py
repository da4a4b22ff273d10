"""Turns: the limit of what is under way at once, given in the order of asking.

Owns who waits for room, and for how much. Must not know what the room is for.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Room for `max_in_flight` at once."""

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        # Changed only by `take` and `release`.
        self._num_in_flight = 0
        # Who waits, and for how much room, in the order of asking.
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    async def take(self, room: int = 1) -> None:
        """Waits for room; `release` hands it on."""
        if not self._waiting and self._num_in_flight + room <= self._max_in_flight:
            self._num_in_flight += room
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, room))
        try:
            await turn
        except asyncio.CancelledError:
            # It may have been this one's turn already; if not, others may have waited behind it only.
            self.release(0 if turn.cancelled() else room)
            raise

    def release(self, room: int = 1) -> None:
        """Gives room back: whoever has waited longest gets it."""
        self._num_in_flight -= room
        while self._waiting:
            turn, wanted = self._waiting[0]
            if not turn.cancelled():
                if self._num_in_flight + wanted > self._max_in_flight:
                    return
                self._num_in_flight += wanted
                turn.set_result(None)
            self._waiting.popleft()
