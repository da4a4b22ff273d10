"""The store's thread: blocking calls of the state store, one after the other, away from the event loop.

Owns the thread and the store that it uses: a store that could not be opened is opened again with the next call. Must
not know what is asked of the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from eddy.service.store import StateStore, StoreError

_T = TypeVar("_T")


class StoreThread:
    """One thread for one store.

    Args:
        open_store: opens the store, or raises `StoreError`.
    """

    def __init__(self, open_store: Callable[[], StateStore]) -> None:
        self._open_store = open_store
        # Changed on the store's thread only, once there is one.
        self._store: StateStore | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="eddy-store")
        self._is_closed = False

    def open(self) -> None:
        """Opens the store, on the caller's thread, before anything is asked.

        Raises:
            StoreError: it cannot be opened; with the next call it is tried again.
        """
        self._store = self._open_store()

    def call(self, work: Callable[[StateStore], _T]) -> asyncio.Future[_T]:
        """Has `work` done with the store behind what was asked before; its result, or its error (`StoreError`)."""
        loop = asyncio.get_running_loop()
        if self._is_closed:
            late: asyncio.Future[_T] = loop.create_future()
            late.set_exception(StoreError("the state store is closed: the server is ending"))
            return late
        return loop.run_in_executor(self._executor, self._do, work)

    def _do(self, work: Callable[[StateStore], _T]) -> _T:
        if self._store is None:
            self._store = self._open_store()
        return work(self._store)

    def close(self) -> None:
        """Ends the thread after what was asked, and lets the store go."""
        self._is_closed = True
        self._executor.shutdown(wait=True)
        if self._store is not None:
            self._store.close()
            self._store = None
