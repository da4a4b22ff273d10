"""The host: sessions and models of one process behind one set of operations.

Owns the putting together of what every front door needs, its start and end, the submitting of chunks, and the requests
about models. Must not know the wire or connections, nor how sessions are opened, taken over and ended: each of those is
an object of its own.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

import numpy as np

from eddy.service.catalog import Catalog
from eddy.service.chunk import Chunk
from eddy.service.config import Config
from eddy.service.dispatcher import Dispatcher
from eddy.service.durability import Durability
from eddy.service.endings import Endings
from eddy.service.entry import Entry
from eddy.service.errors import ClientError, EddyError, Reason
from eddy.service.gate import Gate
from eddy.service.handover import Handover
from eddy.service.model import ServedModel
from eddy.service.opening import Opening
from eddy.service.persistence import Persistence
from eddy.service.prefixes import Prefixes
from eddy.service.sessions import SessionTable, route
from eddy.service.stats import CallStats
from eddy.service.streams import Streams
from eddy.service.takeover import Takeover
from eddy.service.tick import Job
from eddy.service.turns import Turns
from eddy.service.watcher import Watcher


class Host:
    """Everything behind the wire.

    Args:
        config: everything.
        clock: monotonic seconds; random_bytes: for session ids and seeds.
    """

    def __init__(
        self,
        config: Config,
        *,
        clock: Callable[[], float] = time.monotonic,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.config = config
        self.clock = clock
        self.random_bytes = random_bytes
        self.gate = Gate()
        self.table = SessionTable(config.session.max_sessions, clock, random_bytes)
        self.streams = Streams(self.table)
        self.catalog = Catalog(config, self.table, self.streams.tell_ended)
        self.watcher = Watcher(self.catalog, clock, config.repository.poll_seconds, self._tell_changed)
        # Changed only on the event loop, after `start`.
        self.prefixes = Prefixes(config.state.prefix_cache_bytes)
        self._release_listeners: list[Callable[[ServedModel], None]] = [self.prefixes.forget]
        self._dispatcher: Dispatcher | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._change_listeners: list[Callable[[], None]] = []
        # Durable sessions that were not in the state store at the end as they were then.
        self.num_unwritten = 0
        served, notify, state = self.catalog.served, self._notify, config.state
        self.turns = Turns(self.table, served, notify)
        ends = self.endings = Endings(self.table, served, self.turns, clock, config.repository.retire_seconds)
        self.durability = (
            Durability(state, self.table, self.catalog, notify, ends.fence, ends.quarantine, clock, random_bytes)
            if state.is_durable
            else None
        )
        self.catalog.backing = self.durability
        self.persistence = Persistence(self.table, self.durability, self.gate, self.turns, ends.close, ends.fence)
        self._handover = Handover(
            self.table,
            lambda: self.catalog.served,
            lambda: [entry.model for entry in self.catalog if entry.model],
            self.watcher.is_to_come,
            self._notify,
            self._announce,
            self.persistence.persist,
        )
        self.opening = Opening(config, self.table, self.catalog, self.gate, self.persistence, notify)
        self.takeover = Takeover(self.table, self.streams, self.turns, self.persistence, self.gate)
        # Refused requests and rows, by reason; counted where they are answered.
        self.refusals: dict[Reason, int] = {}
        # Calls, counted where they are served.
        self.calls = CallStats()

    def load(self) -> None:
        """Opens the state store and loads the models. May be called before there is an event loop.

        Raises:
            StoreError, RepositoryError: one of them cannot be opened.
        """
        if self.durability is not None:
            self.durability.open()
        self.catalog.load()

    # Models

    def repository_index(self) -> list[Entry]:
        """Every version of every model that is known, whatever its state, by name and version."""
        return list(self.catalog)

    async def load_model(self, name: str) -> list[Entry]:
        """Loads what lies in the model's folder and is not served; returns its entries, all of them ready.

        A version whose files are those that are served stays as it is. What was served before goes on where its
        files are not good.

        Raises:
            ClientError: UNKNOWN_MODEL, the repository has no such folder; ModelError: MODEL_NOT_READY, a version cannot
                be served (others may be); CapacityError: DRAINING.
        """
        self.gate.refuse_if_draining()
        return await self.watcher.load(name)

    async def unload_model(self, name: str) -> list[Entry]:
        """Opens no more sessions of any version of the model; returns its entries, none of them ready.

        Sessions that are open go on. It stays unloaded until it is loaded again or its files change.

        Raises:
            ClientError: UNKNOWN_MODEL; CapacityError: DRAINING.
        """
        self.gate.refuse_if_draining()
        return await self.watcher.unload(name)

    def refuse_load_control(self) -> None:
        """Raises ClientError LOAD_CONTROL_OFF where models may not be loaded and unloaded over the wire."""
        if not self.config.allows_load_control:
            raise ClientError(
                Reason.LOAD_CONTROL_OFF,
                "models are not loaded or unloaded over the wire here: set repository.load_control to on to allow it",
            )

    def on_models_changed(self, tell: Callable[[], None]) -> None:
        """`tell` is called on the event loop whenever an entry has changed."""
        self._change_listeners.append(tell)

    def on_model_released(self, forget: Callable[[ServedModel], None]) -> None:
        """`forget` is called with each model that is freed, before its index may be another's."""
        self._release_listeners.append(forget)

    def _tell_changed(self) -> None:
        self.adopt_sessions()
        self._announce()

    @property
    def has_handed_over(self) -> bool:
        """Some sessions have gone on with another model, since the start."""
        return self._handover.has_moved

    def adopt_sessions(self) -> int:
        """Has models that adopt others' sessions take them; returns from how many models."""
        return self._handover.consider()

    def _announce(self) -> None:
        self.release_models()
        for tell in self._change_listeners:
            tell()

    def release_models(self) -> int:
        """Frees retired models that nothing refers to any more; returns how many."""
        released = self.catalog.release(
            lambda model: self.dispatcher.is_unused(model) and self._handover.is_unused(model)
        )
        for model in released:
            self.dispatcher.forget(model)
            self._handover.forget(model)
            for forget in self._release_listeners:
                forget(model)
        return len(released)

    def start(self) -> None:
        """Begins to run ticks and to expire idle sessions, on the running event loop."""
        server = self.config.server
        self._dispatcher = Dispatcher(
            asyncio.get_running_loop(), self.clock, server.inline_tick_seconds, server.busy_poll_seconds
        )
        self._sweeper = asyncio.create_task(self._sweep())
        if self.durability is not None:
            self.durability.start()
        self.adopt_sessions()
        self.watcher.start()

    async def drain(self) -> bool:
        """Refuses new work and waits for what was accepted; False when `drain_seconds` were not enough."""
        self.gate.is_draining = True
        self.watcher.stop()
        deadline = self.clock() + self.config.server.drain_seconds
        while not self.is_idle:
            if self.clock() >= deadline:
                return False
            await asyncio.sleep(0.005)
        return True

    async def stop(self) -> None:
        """Writes what has changed to the state store, then ends the sweeper, the watcher and the engine thread."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self.durability is not None:
            deadline = self.clock() + self.config.server.drain_seconds
            self.num_unwritten = await self.durability.close(deadline)
        await self.watcher.close(self.config.server.drain_seconds)
        if self._dispatcher is not None:
            await asyncio.to_thread(self._dispatcher.close)

    @property
    def is_idle(self) -> bool:
        """Nothing that was accepted is unfinished."""
        return (
            all(model.scheduler.queue.is_idle for model in self.catalog.served)
            and (self._dispatcher is None or self._dispatcher.is_idle)
            and self.watcher.is_idle
        )

    @property
    def dispatcher(self) -> Dispatcher:
        """The dispatcher, once started."""
        assert self._dispatcher is not None, "the host has not been started"
        return self._dispatcher

    def _notify(self, model: ServedModel) -> None:
        self.dispatcher.notify(model)

    # Chunks

    def submit(self, model: ServedModel, chunk: Chunk) -> None:
        """Queues a chunk.

        Raises:
            CapacityError: QUEUE_FULL, DRAINING or STORE_UNAVAILABLE.
        """
        self.gate.refuse_if_draining()
        if self.durability is not None and self.durability.health.refuses:
            rows = self.table.rows_of(np.frombuffer(chunk.handles, "<u8"))
            if self.table.is_durable[rows].any():
                raise self.durability.health.refusal()
        self.submit_accepted(model, chunk)

    def submit_accepted(self, model: ServedModel, chunk: Chunk) -> None:
        """Queues a chunk of a request that was accepted before, so that it is carried out while the server drains.

        Raises:
            CapacityError: QUEUE_FULL.
        """
        model.scheduler.queue.submit(chunk)
        self.dispatcher.notify(model)

    def submit_job(self, model: ServedModel, job: Job) -> None:
        """Queues a job.

        Raises:
            CapacityError: QUEUE_FULL or DRAINING.
        """
        self.gate.refuse_if_draining()
        model.scheduler.queue.submit_job(job)
        self.dispatcher.notify(model)

    def route(self, stream: int, model: ServedModel) -> int:
        """The route of chunks of `model` on `stream`."""
        return route(stream, model.index)

    def count_refusal(self, error: EddyError) -> None:
        """Counts a request or a row that was answered with an error."""
        self.refusals[error.reason] = self.refusals.get(error.reason, 0) + 1

    # The sweep

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.config.session.sweep_seconds)
            self.endings.expire()
            self.adopt_sessions()
            self.endings.end_retired()
            if self.release_models():
                self._announce()
