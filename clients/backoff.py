"""How long to wait before the next attempt, and for how long to try at all.

Owns the delays: they double from attempt to attempt, and a random half of each is left out, so that clients that were
cut off together do not come back together. Must not know what is tried.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

# Longer than a server takes to start again with its models.
RECONNECT_SECONDS = 60.0
MAX_REPLAY_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Patience:
    """How a client comes back after it was cut off.

    Attributes:
        reconnect_seconds: how long it tries, from the cut on; 0: never.
        first_delay_seconds: before the second attempt; the first one is made at once.
        max_delay_seconds: between two attempts at most.
        max_replay_bytes: what is kept of steps that a server with a durable state store could still lose, in all
            sessions of the client; when it is full, steps wait until more is durable.
        clock: monotonic seconds; sleep; draw: a number in [0, 1); holder: a number that no other client draws.

    Raises:
        ValueError: a time or size is not positive.
    """

    reconnect_seconds: float = RECONNECT_SECONDS
    first_delay_seconds: float = 0.05
    max_delay_seconds: float = 2.0
    max_replay_bytes: int = MAX_REPLAY_BYTES
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    draw: Callable[[], float] = random.random
    holder: Callable[[], int] = lambda: random.SystemRandom().randrange(1, 1 << 64)

    def __post_init__(self) -> None:
        if self.reconnect_seconds < 0:
            raise ValueError(f"reconnect_seconds: got {self.reconnect_seconds}, expected 0 or more")
        for name in ("first_delay_seconds", "max_delay_seconds", "max_replay_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected more than 0")

    @property
    def is_any(self) -> bool:
        """It tries at all."""
        return self.reconnect_seconds > 0


@dataclass(slots=True)
class Contact:
    """Whether the server has answered anything: what never did is not waited for, and neither is what is given up."""

    is_made: bool = False


class Backoff:
    """The attempts since something worked last."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        # Changed only by the methods below.
        self._num_failures = 0
        self._since = 0.0

    @property
    def num_failures(self) -> int:
        """Attempts that failed since something worked."""
        return self._num_failures

    def worked(self) -> None:
        """Whatever fails next is a new cut."""
        self._num_failures = 0

    def failed(self) -> None:
        """One more attempt, or the connection that had worked, is over."""
        if not self._num_failures:
            self._since = self._patience.clock()
        self._num_failures += 1

    def delay_seconds(self) -> float | None:
        """Before the next attempt; None: there is none, the patience is over."""
        patience = self._patience
        if not self._num_failures:
            return 0.0
        left = patience.reconnect_seconds - (patience.clock() - self._since)
        if left <= 0:
            return None
        if self._num_failures == 1:
            return 0.0
        # Beyond 32 doublings every delay is the longest one.
        num_doublings = min(32, self._num_failures - 2)
        longest = min(patience.max_delay_seconds, patience.first_delay_seconds * (1 << num_doublings))
        return min(left, longest * (1 - patience.draw() / 2))
