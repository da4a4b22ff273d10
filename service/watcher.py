"""The watcher: keeps what is served as the repository folder is, and as people ask.

Owns when files are looked at, the order of loads and the thread that carries them out. Must not know the wire; what is
to be done is `changes.plan`'s to say, and doing it the catalog's.

Ordering rules: one thing is done at a time, so a request waits for at most the one load under way. Files are read and
models built on a thread of their own; entries change on the event loop, in one go. What follows from one look, or one
request, belongs together: until all of it is done for a model, more `is_to_come`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from eddy.service.catalog import Catalog
from eddy.service.changes import Change, Deed, Key, Known, plan
from eddy.service.entry import Entry, State
from eddy.service.errors import ClientError, EddyError, ModelError, Reason
from eddy.service.inventory import Inventory, take_inventory

_LOG = logging.getLogger(__name__)

_T = TypeVar("_T")


class Watcher:
    """Looks at the repository folder again and again.

    Args:
        catalog: what is served.
        clock: monotonic seconds.
        poll_seconds: between two looks; 0: it looks only when asked to.
        on_changed: told when an entry has changed, on the event loop.
    """

    def __init__(
        self, catalog: Catalog, clock: Callable[[], float], poll_seconds: float, on_changed: Callable[[], None]
    ) -> None:
        self._catalog = catalog
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._on_changed = on_changed
        # Changed only on the event loop.
        self._task: asyncio.Task[None] | None = None
        self._requests: set[asyncio.Task[list[Entry]]] = set()
        self._lock = asyncio.Lock()
        # Of looks and requests under way: what they have still to do.
        self._to_do: list[list[Change]] = []
        self._is_stopped = False
        self._before = Inventory(problem="nobody has looked yet")
        self._thread: threading.Thread | None = None
        # Why the repository folder, or one model's, cannot be looked at; empty when it can. What was said is not
        # repeated.
        self.problem = ""
        self._unreadable: frozenset[str] = frozenset()

    def start(self) -> None:
        """Begins to look, if it is to, on the running event loop."""
        if self._poll_seconds:
            self._task = asyncio.create_task(self._watch())

    @property
    def is_idle(self) -> bool:
        """Nothing that somebody asked for is under way."""
        return not self._requests

    def stop(self) -> None:
        """Looks and loads no more; what is under way for somebody is finished."""
        self._is_stopped = True
        if self._task is not None:
            self._task.cancel()

    async def close(self, timeout_seconds: float) -> None:
        """Waits for the thread, for so long at most: ONNX Runtime must not be at work when the process ends."""
        self.stop()
        for request in self._requests:
            request.cancel()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, timeout_seconds)

    async def _watch(self) -> None:
        while True:
            try:
                await self.poll()
            except Exception:  # noqa: BLE001  the task's root: what is served is served on, the next look may do better
                _LOG.exception("the model repository could not be looked at")
            await asyncio.sleep(self._poll_seconds)

    async def poll(self) -> None:
        """Looks once, and does what follows from this look and the one before."""
        now = await self._in_thread(partial(take_inventory, self._catalog.root))
        self._tell_problems(now)
        before, self._before = self._before, now
        with self._doing(plan(before, now, self._catalog.known())) as left:
            while left:
                async with self._lock:
                    # Somebody may have asked for something meanwhile.
                    if not self._is_stopped and left[0] in plan(before, now, self._catalog.known()):
                        await self._carry_out(left[0])
                    del left[0]
                    self._on_changed()

    def is_to_come(self, name: str) -> bool:
        """More changes to the versions of a model are about to be carried out."""
        return any(change.key[0] == name for left in self._to_do for change in left)

    @contextmanager
    def _doing(self, changes: list[Change]) -> Iterator[list[Change]]:
        """What is left of them; whoever has carried one out takes it off, then tells of it."""
        left = [*changes]
        self._to_do.append(left)
        try:
            yield left
        finally:
            self._to_do = [each for each in self._to_do if each is not left]

    def _tell_problems(self, now: Inventory) -> None:
        """Says once that something cannot be looked at, and once that it can be again."""
        if now.problem and now.problem != self.problem:
            _LOG.error("%s; the models loaded before are still served", now.problem)
        elif self.problem and not now.problem:
            _LOG.info("the model repository can be read again")
        self.problem = now.problem
        unreadable = frozenset(
            f"model {found.name} version {found.version}: {found.problem}"
            for found in now.found.values()
            if found.is_unreadable
        )
        for text in sorted(unreadable - self._unreadable):
            _LOG.error("%s; what was loaded before is still served", text)
        self._unreadable = unreadable

    async def _carry_out(self, change: Change) -> None:
        catalog = self._catalog
        if change.found is None:
            catalog.remove(change.key, self._clock())
        elif change.deed is Deed.REFUSE:
            catalog.refuse(change.found)
        else:
            loading = catalog.begin(change.found)
            self._on_changed()
            outcome = await self._in_thread(partial(catalog.carry_out, loading))
            catalog.finish(loading, outcome, self._clock())

    # Requests

    async def load(self, name: str) -> list[Entry]:
        """Loads what lies in a model's folder now and is not served, whether it was settled or unloaded or not.

        Raises:
            ClientError: UNKNOWN_MODEL; ModelError: MODEL_NOT_READY, a version cannot be served.
        """
        return await self._request(self._load(name))

    async def unload(self, name: str) -> list[Entry]:
        """Unloads every version of a model.

        Raises:
            ClientError: UNKNOWN_MODEL.
        """
        return await self._request(self._unload(name))

    async def _request(self, work: Coroutine[Any, Any, list[Entry]]) -> list[Entry]:
        """Carries out a request to its end, whether its caller waits for that or not."""
        task = asyncio.create_task(work)
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)
        return await asyncio.shield(task)

    async def _load(self, name: str) -> list[Entry]:
        async with self._lock:
            now = await self._in_thread(partial(take_inventory, self._catalog.root))
            mine = Inventory({key: found for key, found in now.found.items() if key[0] == name}, now.problem)
            if now.problem:
                raise ModelError(Reason.MODEL_NOT_READY, now.problem)
            if not mine.found:
                raise _unknown(name, now)
            with self._doing(plan(mine, mine, self._wanted(name))) as left:
                while left:
                    await self._carry_out(left[0])
                    del left[0]
                    self._on_changed()
        entries = self._entries(name)
        failures = [entry.error.message for entry in entries if entry.error and entry.state is not State.RETIRING]
        if failures:
            raise ModelError(Reason.MODEL_NOT_READY, "; ".join(failures))
        return entries

    def _wanted(self, name: str) -> dict[Key, Known]:
        """What is known of a model, but for what is to be tried again."""
        again = (State.REFUSED, State.UNLOADED)
        return {
            key: known for key, known in self._catalog.known().items() if key[0] == name and known.state not in again
        }

    async def _unload(self, name: str) -> list[Entry]:
        async with self._lock:
            for entry in self._catalog.versions(name).values():
                self._catalog.unload((name, entry.file.version), self._clock())
            self._on_changed()
        return self._entries(name)

    def _entries(self, name: str) -> list[Entry]:
        return [entry for entry in self._catalog if entry.file.name == name]

    # The thread

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        """The result of `work`, carried out on a thread of its own.

        No pool: its threads are waited for when the process ends, and a folder on a network that is gone may hold one
        for ever.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_T] = loop.create_future()

        def tell(result: _T | None, error: Exception | None) -> None:
            if done.done():  # Cancelled.
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            result: _T | None = None
            failure: Exception | None = None
            try:
                result = work()
            except Exception as error:  # noqa: BLE001  the thread's root: whoever waits is told
                failure = error
            try:
                loop.call_soon_threadsafe(tell, result, failure)
            except RuntimeError:  # The loop has ended: nobody waits.
                _LOG.debug("a look at the model repository ended after the server")

        self._thread = threading.Thread(target=run, name="eddy-loader", daemon=True)
        self._thread.start()
        return await done


def _unknown(name: str, now: Inventory) -> EddyError:
    known = ", ".join(dict.fromkeys(each for each, _ in now.found)) or "none"
    return ClientError(Reason.UNKNOWN_MODEL, f"name: got {name!r}, the model repository has {known}")
