"""Polling: how the process waits for what comes on its sockets.

Owns which of gRPC's two pollers is asked for, and how long the event loop looks again before it sleeps. Must not know
gRPC's calls, sessions or models.

Waking a thread on a processor that has fallen idle costs more than a step of a small model. So a message should wake
as few threads as can be, and while a session alone steps in a closed loop the event loop does not sleep in between.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

# gRPC's event engine reads a socket on a thread of its own, which then wakes the thread that waits for completions,
# which wakes the event loop. Without it the thread that waits for completions reads.
COMPLETION_QUEUE_POLLS = "-event_engine_listener"


def let_completion_queue_poll() -> None:
    """Servers of this process read their sockets on one thread instead of two.

    Works before `grpc` is imported first. What the environment says about gRPC's experiments goes before.
    """
    os.environ.setdefault("GRPC_EXPERIMENTS", COMPLETION_QUEUE_POLLS)


class BusyPoll:
    """Keeps the event loop from sleeping between the steps of a session alone.

    A step that comes sooner than `seconds` after the one before is taken for one of a closed loop: the event loop then
    looks for the next one for so long before it sleeps. It lets go of Python's lock each time that it looks.

    Args:
        loop: the server's event loop; clock: monotonic seconds; seconds: 0 sleeps at once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float], seconds: float) -> None:
        self._loop = loop
        self._clock = clock
        # With one processor it would keep from it whom it waits for.
        self._seconds = seconds if _num_processors() > 1 else 0.0
        self._until = 0.0
        self._is_polling = False

    def stepped(self, now: float) -> None:
        """A session alone took a step, and was answered at `now`."""
        if now < self._until and not self._is_polling:
            self._is_polling = True
            self._loop.call_soon(self._look)
        self._until = now + self._seconds

    def _look(self) -> None:
        """The event loop has looked at its sockets once."""
        if self._clock() < self._until:
            # Whoever else could run on this processor goes first: it may be whom the next step comes from.
            _let_others_run()
            self._loop.call_soon(self._look)
        else:
            self._is_polling = False


def _let_others_run() -> None:
    if hasattr(os, "sched_yield"):  # Not on Windows.
        os.sched_yield()


def _num_processors() -> int:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
