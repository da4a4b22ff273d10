"""An event loop on a thread of its own, for blocking code.

Owns the thread, and the way of a result or an exception, Ctrl-C included, between it and whoever calls. Must not know
clients.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from eddy.clients.errors import Disconnected

_T = TypeVar("_T")


class LoopThread:
    """The thread. Safe to call from several others."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="eddy-client", daemon=True)
        # Guards `_is_open`: nothing is handed to the loop once it may stop.
        self._lock = threading.Lock()
        self._is_open = False

    def start(self) -> None:
        """Starts it; once."""
        self._thread.start()
        self._is_open = True

    def stop(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs `close` there, cancels what other threads still wait for, and ends."""

        async def end() -> None:
            await close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        with self._lock:
            self._is_open = False
        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, begin: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Runs what `begin` gives on the loop and returns its result.

        The coroutine is made there: Ctrl-C, which comes to the main thread, never leaves one behind that has not run,
        and cancels the one that has.

        Raises:
            Disconnected: the client is not open, or is closed meanwhile.
        """
        result: Future[_T] = Future()
        with self._lock:
            if not self._is_open:
                raise Disconnected("the client is not open: use it within `with`", "CLOSED")
            self._loop.call_soon_threadsafe(self._begin, begin, result)
        try:
            return result.result()
        except CancelledError:
            raise Disconnected("the client was closed", "CLOSED") from None
        except (KeyboardInterrupt, SystemExit):
            result.cancel()
            raise

    def _begin(self, begin: Callable[[], Coroutine[Any, Any, _T]], result: Future[_T]) -> None:
        """On the loop: starts the work and passes its result on."""

        async def work() -> _T:
            return await begin()

        def done(task: asyncio.Task[_T]) -> None:
            if task.cancelled():
                result.cancel()
            elif not result.set_running_or_notify_cancel():
                task.exception()  # Nobody waits any more.
            elif error := task.exception():
                result.set_exception(error)
            else:
                result.set_result(task.result())

        def cancelled(result: Future[_T]) -> None:
            if result.cancelled() and not task.done():
                self._loop.call_soon_threadsafe(task.cancel)

        task = self._loop.create_task(work())
        task.add_done_callback(done)
        result.add_done_callback(cancelled)
