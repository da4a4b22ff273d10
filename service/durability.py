"""Durability: the state store of one server, and all that keeps sessions in it.

Owns the putting together of the store's thread, its health, the checkpointer and recall, and their life. Must not know
the wire, or who asks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TypeVar

import numpy as np

from eddy.service.adoption import choose
from eddy.service.catalog import Catalog
from eddy.service.checkpointer import Checkpointer
from eddy.service.config import StateConfig
from eddy.service.errors import ClientError, EddyError, Reason, ServerBug
from eddy.service.health import StoreHealth
from eddy.service.model import ServedModel
from eddy.service.recall import Recaller
from eddy.service.record import Record, decode
from eddy.service.sessions import SessionTable
from eddy.service.store import StateStore, StoreError
from eddy.service.store_thread import StoreThread
from eddy.service.stores import open_store

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


class Durability:
    """Sessions of a server beyond its process.

    Args:
        config: `state.*`, whose store is a durable one; table, catalog: sessions and models.
        notify: told of a model with a job; end: ends sessions that somebody else goes on with, by rows; quarantine:
            those whose states are not finite.
        clock: monotonic seconds; random_bytes: for the number of this process.
    """

    def __init__(
        self,
        config: StateConfig,
        table: SessionTable,
        catalog: Catalog,
        notify: Callable[[ServedModel], None],
        end: Callable[[np.ndarray], None],
        quarantine: Callable[[np.ndarray], None],
        clock: Callable[[], float],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._config = config
        self._clock = clock
        self._table = table
        self.health = StoreHealth(config, clock)
        self.store = StoreThread(partial(_open, config.store))
        writer = int.from_bytes(random_bytes(8), "little") or 1
        self.checkpointer = Checkpointer(
            table, catalog.served, notify, self.store, self.health, config, writer, clock, end, quarantine
        )
        self.recaller = Recaller(
            table,
            catalog,
            notify,
            self.store,
            self.checkpointer,
            self.health,
            lambda record: choose(record.model, catalog.served),
        )
        self._task: asyncio.Task[None] | None = None
        self._notify = notify
        # Sessions on their way back, or out of the host's memory.
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Opens the store, before there is an event loop.

        Raises:
            StoreError: it cannot be opened, and the server is not to start without it.
        """
        try:
            self.store.open()
        except StoreError as error:
            if self._config.on_failure == "refuse" or self._config.store.startswith("sqlite:"):
                raise
            self.health.failed(error.message)

    def start(self) -> None:
        """Begins to write, on the running event loop."""
        self._task = asyncio.create_task(self.checkpointer.run())

    def recall(self, model: ServedModel, rows: np.ndarray, done: Callable[[np.ndarray | EddyError], None]) -> None:
        """Has the states of open sessions, which are in the store only, placed (`model.Backing`)."""
        self._do(model, done, self._recall(model, rows))

    def on_pressure(self, model: ServedModel, rows: np.ndarray, done: Callable[[EddyError | None], None]) -> None:
        """Has sessions written whose cells are wanted (`model.Backing`)."""
        self._do(model, done, self._write(rows))

    def _do(self, model: ServedModel, done: Callable[[_T | EddyError], None], work: Coroutine[None, None, _T]) -> None:
        async def carry_out() -> None:
            outcome: _T | EddyError
            try:
                outcome = await work
            except EddyError as error:
                outcome = error
            except Exception:  # noqa: BLE001  the task's root: what waits for these sessions fails
                _LOG.exception("sessions could not be brought back from their store, or taken there")
                outcome = ServerBug(Reason.INTERNAL, "the server failed to bring this session back from its store")
            done(outcome)
            self._notify(model)

        task = asyncio.get_running_loop().create_task(carry_out())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _recall(self, model: ServedModel, rows: np.ndarray) -> np.ndarray:
        ids, epochs = self._table.ids_of(rows), self._table.stored_epoch[rows].tolist()
        records = await self.store.call(lambda store: [_decoded(data) for data in store.read(ids)])
        # Another call may have brought some of them back meanwhile, and they may have been stepped since.
        is_away = np.isin(rows, model.residence.stored_of(rows))
        positions = self._table.next_position[rows].tolist()
        wanted = zip(epochs, positions, strict=True)
        stands = [record and (record.epoch, record.next_position) for record in records]
        is_there = np.array([each == place for each, place in zip(stands, wanted, strict=True)], np.bool_)
        found = np.flatnonzero(is_away & is_there).tolist()
        at_start = [place for place in found if (record := records[place]) is not None and record.is_initial]
        others = [(place, record.states) for place in found if (record := records[place]) and not record.is_initial]
        if at_start:
            model.place_at_start(rows[at_start])
        if others:
            places, states = zip(*others, strict=True)
            model.place_states(rows[list(places)], [np.stack(values) for values in zip(*states, strict=True)])
        return np.asarray(rows[is_away & ~is_there])

    async def _write(self, rows: np.ndarray) -> None:
        try:
            await self.checkpointer.persist(rows)
        except ClientError:
            return  # Some of them were taken over elsewhere, and have ended; the others are written.
        if self.health.problem:
            raise self.health.refusal()

    def are_stored(self, handles: np.ndarray) -> bool:
        """All sessions of `handles` uint64 [B] are in the store, under their present epochs."""
        return bool((self._table.stored_epoch[self._table.rows_of(handles)] == handles >> np.uint64(32)).all())

    async def close(self, deadline: float) -> int:
        """Writes all that has changed, until `deadline`, and lets the store go; how many sessions were not written."""
        num_left = 0
        if self._task is not None:
            self.checkpointer.stop()
            await self._task
            num_left = await self.checkpointer.flush(deadline)
        await asyncio.to_thread(self.store.close)
        if num_left:
            _LOG.error("%d sessions could not be written to the state store before the end", num_left)
        return num_left


def _decoded(data: bytes | None) -> Record | None:
    """A record; None where it is not there, or cannot be read any more."""
    try:
        return None if data is None else decode(data, "handles")
    except ClientError as error:
        _LOG.error("%s", error.message)
        return None


def _open(url: str) -> StateStore:
    store = open_store(url)
    assert store is not None, "memory is no durable store"
    return store
