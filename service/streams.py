"""Streams: who owns sessions, by number.

Owns the numbers and whom the server tells of sessions that it ends. Must not know connections or the wire: a stream is
a number and a callback.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from eddy.service.errors import EddyError
from eddy.service.sessions import NO_STREAM, SessionTable


class Streams:
    """The streams of a server.

    Args:
        table: sessions.
    """

    def __init__(self, table: SessionTable) -> None:
        self._table = table
        # Changed only by the methods below, on the event loop.
        self._listeners: dict[int, Callable[[np.ndarray, EddyError], None]] = {}
        self._next_stream = NO_STREAM + 1
        self._num_owners = 0

    @property
    def num_streams(self) -> int:
        """Streams that are open."""
        return len(self._listeners) - self._num_owners

    def __contains__(self, stream: int) -> bool:
        """`stream` is there: it has begun and not ended."""
        return stream in self._listeners

    def has(self, stream: int) -> bool:
        """Whether sessions may be given to `stream`: it has not ended, or is nobody."""
        return stream == NO_STREAM or stream in self._listeners

    def add(self, on_ended: Callable[[np.ndarray, EddyError], None]) -> int:
        """A number for a new stream; `on_ended` is told the handles of its sessions that the server ends."""
        stream = self._next_stream
        self._next_stream += 1
        self._listeners[stream] = on_ended
        return stream

    def add_owner(self, on_ended: Callable[[np.ndarray, EddyError], None]) -> int:
        """The same as `add` for an owner that is no stream and never goes: a front door that keeps sessions itself."""
        self._num_owners += 1
        return self.add(on_ended)

    def remove(self, stream: int) -> None:
        """The stream has ended: its sessions stay open, owned by nobody, until they are idle for too long."""
        del self._listeners[stream]
        rows = self._table.rows_of_stream(stream)
        if len(rows):
            self._table.detach(rows)

    def tell_ended(self, stream: int, handles: np.ndarray, error: EddyError) -> None:
        """Tells `stream`, if it is there, that its sessions of `handles` uint64 [n] have ended, and why."""
        listener = self._listeners.get(stream)
        if listener is not None:
            listener(handles, error)
