"""The synchronous face: the same client for code without an event loop.

Every call runs on a thread of its own, with the asyncio client's event loop, and waits. Must add nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import numpy as np

from eddy.clients.blocking import SyncBatch, SyncGeneration, SyncSession
from eddy.clients.client import Client
from eddy.clients.generation import Completion, Continued
from eddy.clients.loop import LoopThread
from eddy.clients.moves import Moved
from eddy.clients.sampling import GenerateOptions, Prompt
from eddy.clients.start import Prime, Primes, States
from eddy.clients.tensors import Sequences
from eddy.clients.unary import CommonOptions
from eddy.v1 import contract_pb2, models_pb2, sessions_pb2

_T = TypeVar("_T")


class SyncClient:
    """A client for plain, blocking code. Safe to use from several threads.

    Example:
        with SyncClient("127.0.0.1:8500") as client, client.session("forecast-gru") as session:
            quantiles = session.step([20.5])

    Args:
        target, options: as `Client`'s, but for `channel`, which belongs to another event loop.
    """

    def __init__(self, target: str = "127.0.0.1:8500", **options: Unpack[CommonOptions]) -> None:
        self._client = Client(target, **options)
        self._loop = LoopThread()

    def __enter__(self) -> Self:
        self._loop.start()
        try:
            self.call(self._client.__aenter__)
        except BaseException:  # Certificate files that cannot be read: no thread stays behind.
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.stop(self._client.close)

    def call(self, begin: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Runs what `begin` gives on the client's event loop and returns its result; see `LoopThread.call`."""
        return self._loop.call(begin)

    def close(self) -> None:
        """As `Client.close`; leaving the block does it, too."""
        self.call(self._client.close)

    def models(self) -> list[models_pb2.ModelStatus]:
        """As `Client.models`."""
        return self.call(self._client.models)

    def load_model(self, model: str) -> list[models_pb2.ModelStatus]:
        """As `Client.load_model`."""
        return self.call(lambda: self._client.load_model(model))

    def unload_model(self, model: str) -> list[models_pb2.ModelStatus]:
        """As `Client.unload_model`."""
        return self.call(lambda: self._client.unload_model(model))

    def contract(self, model: str, version: str = "") -> contract_pb2.ModelContract:
        """As `Client.contract`."""
        return self.call(lambda: self._client.contract(model, version))

    @contextmanager
    def session(
        self,
        model: str,
        version: str = "",
        *,
        max_in_flight: int = 1,
        idle_timeout_seconds: float = 0.0,
        prime: Prime | None = None,
        initial_states: States | None = None,
    ) -> Iterator[SyncSession]:
        """As `Client.session`."""
        with self.open(
            model,
            version,
            max_in_flight=max_in_flight,
            idle_timeout_seconds=idle_timeout_seconds,
            prime=prime,
            initial_states=initial_states,
        ) as session:
            yield session

    @contextmanager
    def batch(
        self,
        model: str,
        count: int,
        version: str = "",
        *,
        max_in_flight: int = 1,
        prime: Primes | None = None,
        initial_states: States | None = None,
    ) -> Iterator[SyncBatch]:
        """As `Client.batch`."""
        with self.open_batch(
            model, count, version, max_in_flight=max_in_flight, prime=prime, initial_states=initial_states
        ) as batch:
            yield batch

    def open(
        self,
        model: str,
        version: str = "",
        *,
        max_in_flight: int = 1,
        idle_timeout_seconds: float = 0.0,
        prime: Prime | None = None,
        initial_states: States | None = None,
    ) -> SyncSession:
        """As `Client.open`."""
        begin = partial(
            self._client.open,
            model,
            version,
            max_in_flight=max_in_flight,
            idle_timeout_seconds=idle_timeout_seconds,
            prime=prime,
            initial_states=initial_states,
        )
        return SyncSession(self._loop, self.call(begin))

    def open_batch(
        self,
        model: str,
        count: int,
        version: str = "",
        *,
        max_in_flight: int = 1,
        prime: Primes | None = None,
        initial_states: States | None = None,
    ) -> SyncBatch:
        """As `Client.open_batch`."""
        begin = partial(
            self._client.open_batch,
            model,
            count,
            version,
            max_in_flight=max_in_flight,
            prime=prime,
            initial_states=initial_states,
        )
        return SyncBatch(self._loop, self.call(begin))

    def attach(self, session_id: bytes, resume_token: bytes = b"") -> SyncSession:
        """As `Client.attach`."""
        return SyncSession(self._loop, self.call(lambda: self._client.attach(session_id, resume_token)))

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

    def fork(self, session: SyncSession) -> SyncSession:
        """As `Client.fork`."""
        return SyncSession(self._loop, self.call(lambda: self._client.fork(session.session)))

    def fork_session(self, session_id: bytes) -> Moved:
        """As `Client.fork_session`."""
        return self.call(lambda: self._client.fork_session(session_id))

    def snapshot(self, session: SyncSession) -> bytes:
        """As `Client.snapshot`."""
        return self.call(lambda: self._client.snapshot(session.session))

    def snapshot_session(self, session_id: bytes) -> bytes:
        """As `Client.snapshot_session`."""
        return self.call(lambda: self._client.snapshot_session(session_id))

    def restore(
        self,
        snapshot: bytes,
        model: str = "",
        version: str = "",
        *,
        max_in_flight: int = 0,
        idle_timeout_seconds: float = 0.0,
    ) -> SyncSession:
        """As `Client.restore`."""
        begin = partial(
            self._client.restore,
            snapshot,
            model,
            version,
            max_in_flight=max_in_flight,
            idle_timeout_seconds=idle_timeout_seconds,
        )
        return SyncSession(self._loop, self.call(begin))

    def restore_session(
        self,
        snapshot: bytes,
        model: str = "",
        version: str = "",
        *,
        max_in_flight: int = 0,
        idle_timeout_seconds: float = 0.0,
    ) -> Moved:
        """As `Client.restore_session`."""
        return self.call(
            partial(
                self._client.restore_session,
                snapshot,
                model,
                version,
                max_in_flight=max_in_flight,
                idle_timeout_seconds=idle_timeout_seconds,
            )
        )

    def reset(self, session: SyncSession, initial_states: States) -> None:
        """As `Client.reset`."""
        self.call(lambda: self._client.reset(session.session, initial_states))

    def reset_session(self, session_id: bytes, initial_states: States | None = None) -> sessions_pb2.Session:
        """As `Client.reset_session`."""
        return self.call(lambda: self._client.reset_session(session_id, initial_states))

    def infer(
        self,
        model: str,
        sequences: Sequences,
        version: str = "",
        *,
        timeout_seconds: float | None = None,
        prime: Primes | None = None,
        initial_states: States | None = None,
    ) -> list[np.ndarray]:
        """As `Client.infer`."""
        return self.call(
            partial(
                self._client.infer,
                model,
                sequences,
                version,
                timeout_seconds=timeout_seconds,
                prime=prime,
                initial_states=initial_states,
            )
        )

    def infer_outputs(
        self,
        model: str,
        sequences: Sequences,
        version: str = "",
        *,
        timeout_seconds: float | None = None,
        prime: Primes | None = None,
        initial_states: States | None = None,
    ) -> dict[str, list[np.ndarray]]:
        """As `Client.infer_outputs`."""
        return self.call(
            partial(
                self._client.infer_outputs,
                model,
                sequences,
                version,
                timeout_seconds=timeout_seconds,
                prime=prime,
                initial_states=initial_states,
            )
        )

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
        return SyncGeneration(self._loop, generation)

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
