"""The synchronous face: the same client for code without an event loop.

Owns one background thread with an event loop; every call runs there and waits. Must add nothing else.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import numpy as np
from numpy.typing import ArrayLike

from eddy.clients.batch import SessionBatch
from eddy.clients.client import Client
from eddy.clients.errors import Disconnected
from eddy.clients.generation import Completion, Continued, Generation
from eddy.clients.pieces import Finished, KeptSession, Piece, Started
from eddy.clients.sampling import GenerateOptions, Prompt
from eddy.clients.session import Session
from eddy.clients.tensors import Inputs, Outputs, Sequences
from eddy.clients.tls import Tls
from eddy.v1 import contract_pb2, models_pb2, sessions_pb2

_T = TypeVar("_T")


class SyncClient:
    """A client for plain, blocking code. Safe to use from several threads.

    Example:
        with SyncClient("127.0.0.1:8500") as client, client.session("forecast-gru") as session:
            quantiles = session.step([20.5])

    Args:
        target: host:port of the server.
        tls: for a server with TLS; plaintext without.
    """

    def __init__(self, target: str = "127.0.0.1:8500", *, tls: Tls | None = None) -> None:
        self._client = Client(target, tls=tls)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="eddy-client", daemon=True)
        # Guards `_is_open`: nothing is handed to the loop once it may stop.
        self._lock = threading.Lock()
        self._is_open = False

    def __enter__(self) -> Self:
        self._thread.start()
        self._is_open = True
        try:
            self.call(self._client.__aenter__)
        except BaseException:  # Certificate files that cannot be read: no thread stays behind.
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._is_open = False
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        """Closes the client, and cancels what other threads still wait for."""
        await self._client.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def call(self, begin: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Runs what `begin` gives on the client's event loop and returns its result.

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

    def models(self) -> list[models_pb2.ModelStatus]:
        """As `Client.models`."""
        return self.call(self._client.models)

    def contract(self, model: str, version: str = "") -> contract_pb2.ModelContract:
        """As `Client.contract`."""
        return self.call(lambda: self._client.contract(model, version))

    @contextmanager
    def session(
        self, model: str, version: str = "", *, max_in_flight: int = 1, idle_timeout_seconds: float = 0.0
    ) -> Iterator[SyncSession]:
        """As `Client.session`."""
        session = SyncSession(
            self,
            self.call(
                lambda: self._client.open(
                    model, version, max_in_flight=max_in_flight, idle_timeout_seconds=idle_timeout_seconds
                )
            ),
        )
        try:
            yield session
        finally:
            session.close()

    @contextmanager
    def batch(self, model: str, count: int, version: str = "") -> Iterator[SyncBatch]:
        """As `Client.batch`."""
        batch = SyncBatch(self, self.call(lambda: self._client.open_batch(model, count, version)))
        try:
            yield batch
        finally:
            batch.close()

    def attach(self, session_id: bytes) -> SyncSession:
        """As `Client.attach`."""
        return SyncSession(self, self.call(lambda: self._client.attach(session_id)))

    def sessions(self, model: str = "", page_size: int = 100) -> list[sessions_pb2.Session]:
        """As `Client.sessions`, all of them."""

        async def listing() -> list[sessions_pb2.Session]:
            return [session async for session in self._client.sessions(model, page_size)]

        return self.call(listing)

    def find_session(self, session_id: bytes) -> sessions_pb2.Session:
        """As `Client.find_session`."""
        return self.call(lambda: self._client.find_session(session_id))

    def close_session(self, session_id: bytes) -> None:
        """As `Client.close_session`."""
        self.call(lambda: self._client.close_session(session_id))

    def infer(
        self, model: str, sequences: Sequences, version: str = "", *, timeout_seconds: float | None = None
    ) -> list[np.ndarray]:
        """As `Client.infer`."""
        return self.call(lambda: self._client.infer(model, sequences, version, timeout_seconds=timeout_seconds))

    def infer_outputs(
        self, model: str, sequences: Sequences, version: str = "", *, timeout_seconds: float | None = None
    ) -> dict[str, list[np.ndarray]]:
        """As `Client.infer_outputs`."""
        return self.call(lambda: self._client.infer_outputs(model, sequences, version, timeout_seconds=timeout_seconds))

    def generate(
        self,
        model: str = "",
        prompt: Prompt | None = None,
        *,
        session: SyncSession | Continued | None = None,
        timeout_seconds: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> SyncGeneration:
        """As `Client.generate`, to be used within `with`."""
        source = session.session if isinstance(session, SyncSession) else session
        generation = self._client.generate(model, prompt, session=source, timeout_seconds=timeout_seconds, **options)
        return SyncGeneration(self, generation)

    def complete(
        self,
        model: str = "",
        prompt: Prompt | None = None,
        *,
        session: SyncSession | Continued | None = None,
        timeout_seconds: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """As `Client.complete`."""
        with self.generate(model, prompt, session=session, timeout_seconds=timeout_seconds, **options) as generation:
            return generation.read()


class SyncSession:
    """As `Session`, with blocking calls; `session` is the asyncio one."""

    def __init__(self, client: SyncClient, session: Session) -> None:
        self._client = client
        self.session = session

    def step(self, inputs: Inputs) -> np.ndarray:
        """As `Session.step`."""
        return self._client.call(lambda: self.session.step(inputs))

    def step_outputs(self, inputs: Inputs) -> Outputs:
        """As `Session.step_outputs`."""
        return self._client.call(lambda: self.session.step_outputs(inputs))

    def reset(self) -> None:
        """As `Session.reset`."""
        self._client.call(self.session.reset)

    def close(self) -> None:
        """As `Session.close`."""
        self._client.call(self.session.close)


class SyncBatch:
    """As `SessionBatch`, with blocking calls; `batch` is the asyncio one."""

    def __init__(self, client: SyncClient, batch: SessionBatch) -> None:
        self._client = client
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch)

    def step(self, inputs: Inputs, rows: ArrayLike | None = None) -> np.ndarray:
        """As `SessionBatch.step`."""
        return self._client.call(lambda: self.batch.step(inputs, rows))

    def step_outputs(self, inputs: Inputs, rows: ArrayLike | None = None) -> Outputs:
        """As `SessionBatch.step_outputs`."""
        return self._client.call(lambda: self.batch.step_outputs(inputs, rows))

    def reset(self) -> None:
        """As `SessionBatch.reset`."""
        self._client.call(self.batch.reset)

    def close(self) -> None:
        """As `SessionBatch.close`."""
        self._client.call(self.batch.close)


class SyncGeneration:
    """As `Generation`, with blocking calls, to be used within `with`; `generation` is the asyncio one."""

    def __init__(self, client: SyncClient, generation: Generation) -> None:
        self._client = client
        self.generation = generation

    def __enter__(self) -> Self:
        self._client.call(self.generation.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.call(lambda: self.generation.__aexit__(kind, value, trace))

    def __iter__(self) -> Iterator[Piece]:
        while (piece := self._client.call(self._next)) is not None:
            yield piece

    async def _next(self) -> Piece | None:
        return await anext(self.generation, None)

    @property
    def started(self) -> Started:
        """As `Generation.started`."""
        return self.generation.started

    @property
    def finished(self) -> Finished | None:
        """As `Generation.finished`."""
        return self.generation.finished

    @property
    def session(self) -> KeptSession | Session:
        """As `Generation.session`."""
        return self.generation.session

    def read(self) -> Completion:
        """As `Generation.read`."""
        return self._client.call(self.generation.read)

    def cancel(self) -> None:
        """As `Generation.cancel`."""
        self._client.call(self._cancel)

    async def _cancel(self) -> None:
        self.generation.cancel()
