"""Room for what is kept of steps that a server could still lose.

Owns who waits for room. Must not know what is kept.

Ordering rule: nobody waits where steps of a server that keeps nothing are asked for.
"""

from __future__ import annotations

import asyncio
from typing import Protocol
from weakref import WeakValueDictionary

from eddy.clients.backoff import Patience
from eddy.clients.errors import ReplayFull
from eddy.clients.log import ReplayBytes

# How often the server is asked, while somebody waits, what is durable by now; and of how many at once.
_ASK_SECONDS = 0.1
_MOST_ASKED = 1024


class Keeper(Protocol):
    """Whose steps are kept."""

    def ask_durable(self) -> bool:
        """Has the server say what is durable, where no other answer is on its way; whether it was asked."""


class Room:
    """All that the sessions of a client may keep."""

    def __init__(self, patience: Patience) -> None:
        self.bytes = ReplayBytes(patience.max_replay_bytes)
        self._patience = patience
        # Changed only by the methods below, on one event loop.
        self._changed = asyncio.Event()
        self._keepers: WeakValueDictionary[int, Keeper] = WeakValueDictionary()
        self._num_joined = 0
        # Who is asked next, by its place among them.
        self._turn = 0

    def join(self, keeper: Keeper) -> None:
        """Somebody may keep steps from now on, for as long as there is a use for it."""
        self._keepers[self._num_joined] = keeper
        self._num_joined += 1

    @property
    def is_full(self) -> bool:
        """Nothing more may be kept."""
        return self.bytes.used >= self.bytes.most

    def tell(self) -> None:
        """Something more is durable, or is kept no more."""
        if not self.is_full:
            self._changed.set()

    async def wait(self, keeper: Keeper) -> None:
        """Returns once there is room.

        Raises:
            ReplayFull: there was none for as long as the client's patience lasts.
        """
        patience = self._patience
        begun = patience.clock()
        while self.is_full:
            if patience.clock() - begun >= patience.reconnect_seconds:
                raise ReplayFull(
                    f"{self.bytes.used} bytes of steps are kept because the server could still lose them, at most"
                    f" {self.bytes.most} may be (max_replay_bytes), and nothing became durable in"
                    f" {patience.reconnect_seconds:g} s",
                    "REPLAY_FULL",
                )
            keeper.ask_durable()
            self._ask_others()
            self._changed.clear()
            asking = asyncio.ensure_future(patience.sleep(_ASK_SECONDS))
            room = asyncio.ensure_future(self._changed.wait())
            try:
                await asyncio.wait((asking, room), return_when=asyncio.FIRST_COMPLETED)
            finally:
                asking.cancel()
                room.cancel()

    def _ask_others(self) -> None:
        """What has the room may be idle sessions' last steps: nobody else would ask for those."""
        keepers = list(self._keepers.values())
        first, num_asked = self._turn, 0
        for place in range(first, first + len(keepers)):
            num_asked += keepers[place % len(keepers)].ask_durable()
            self._turn = (place + 1) % len(keepers)
            if num_asked >= _MOST_ASKED:
                return
