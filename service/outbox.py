"""The outbox: answers of one stream on their way to its connection.

Owns their order, and that one write at a time is under way. Must not know what is written, or gRPC.

A write begins where its answer is put, not in a task that would first have to be woken: that costs as much as forming
the answer does. `asyncio.Task` can do so from Python 3.12 on (`eager_start`); until then the outbox takes the steps of
a write itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

Write = Coroutine[Any, Any, None]


class Outbox:
    """Writes in the order of `put`.

    Args:
        write: begins to write; its coroutine ends when the connection has taken the bytes.
        on_written: told how many requests a written answer answers.
        on_broken: told once why the connection takes nothing any more; what waits is dropped.
    """

    def __init__(
        self,
        write: Callable[[bytes], Write],
        on_written: Callable[[int], None],
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self._start = write
        self._on_written = on_written
        self._on_broken = on_broken
        # Changed only on the event loop. Bytes not yet written; answers that wait, each with how many requests it
        # answers; the write under way, with its length and the like.
        self.num_bytes = 0
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._write: Write | None = None
        self._length = 0
        self._num_answered = 0
        self._is_broken = False

    def put(self, data: bytes, num_answered: int) -> None:
        """Writes `data`, an answer to so many requests, as soon as what was put before is written."""
        if self._is_broken:
            return
        self.num_bytes += len(data)
        if self._write is not None:
            self._waiting.append((data, num_answered))
            return
        self._begin(data, num_answered)
        self._step()

    def close(self) -> None:
        """Drops what is not under way; nothing is told any more."""
        self._is_broken = True
        self._waiting.clear()

    def _begin(self, data: bytes, num_answered: int) -> None:
        self._write = self._start(data)
        self._length = len(data)
        self._num_answered = num_answered

    def _step(self, _: object = None) -> None:
        """Takes the next steps of the write under way, and of those after it, until one has to wait."""
        while (write := self._write) is not None:
            try:
                waited: asyncio.Future[Any] = write.send(None)
            except StopIteration:
                self._finish()
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  however it fails, it is told
                self._write = None
                self._break(error)
            else:
                # What a task does with a future that its coroutine awaits.
                waited._asyncio_future_blocking = False  # noqa: SLF001  asyncio's duck type of a future
                waited.add_done_callback(self._step)
                return

    def _finish(self) -> None:
        self._write = None
        if self._is_broken:
            return
        self.num_bytes -= self._length
        self._on_written(self._num_answered)
        if self._waiting:
            self._begin(*self._waiting.popleft())

    def _break(self, error: BaseException) -> None:
        if not self._is_broken:
            self.close()
            self._on_broken(error)
