"""Recall: sessions that the state store has and this process has not, brought back when somebody asks for them.

Owns the reading of a record, the choice of the model that its session goes on with, and the taking of the session from
whoever had it: its new epoch is in the store before anybody is answered. Who only looks takes nothing. Must not know
who asks, or how records look.

Ordering rules: requests for one session share one recall, and none sees the session before it has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from eddy.service.catalog import Catalog
from eddy.service.checkpointer import Checkpointer
from eddy.service.errors import ClientError, Detail, EddyError, ModelError, Reason
from eddy.service.finite import not_finite
from eddy.service.health import StoreHealth
from eddy.service.model import ServedModel
from eddy.service.record import Record, decode
from eddy.service.record_model import check_fits
from eddy.service.sessions import NO_STREAM, Identity, SessionTable
from eddy.service.start import Start
from eddy.service.store import StateStore
from eddy.service.store_thread import StoreThread

_LOG = logging.getLogger(__name__)

# Each is lost to another server that took the session at the same moment.
_MAX_TRIES = 5


@dataclass(frozen=True, slots=True)
class Stored:
    """A session as the state store has it: its record raw, and read."""

    data: bytes
    record: Record


class Recaller:
    """Brings sessions back from the store.

    Args:
        table, catalog: sessions and models; notify: told of a model with a job.
        store: the store's thread; checkpointer: writes the new epochs; health: counts.
        adopt: the model that takes over sessions of a record whose own model is not there, None where none does.
    """

    def __init__(
        self,
        table: SessionTable,
        catalog: Catalog,
        notify: Callable[[ServedModel], None],
        store: StoreThread,
        checkpointer: Checkpointer,
        health: StoreHealth,
        adopt: Callable[[Record], ServedModel | None] = lambda _: None,
    ) -> None:
        self._table = table
        self._catalog = catalog
        self._notify = notify
        self._store = store
        self._checkpointer = checkpointer
        self._health = health
        self._adopt = adopt
        # Changed on the event loop only.
        self._pending: dict[bytes, asyncio.Task[Record | None]] = {}
        # Who asks for a session that is on its way: whether they want what the store has.
        self._askers: dict[bytes, list[Callable[[Record], bool]]] = {}

    def is_present(self, session_id: bytes) -> bool:
        """The session is open here, and not on its way."""
        return session_id not in self._pending and bool(self._table.find(session_id))

    async def find(self, session_id: bytes, is_wanted: Callable[[Record], bool] = lambda _: True) -> int:
        """The row of a session that is open here, or was brought back.

        Args:
            is_wanted: whether whoever asks is still there, and may take what the store has: a session that nobody asks
                for any more is not taken from the server to which its client may have gone meanwhile.

        Raises:
            EddyError: UNKNOWN_SESSION, also when it has expired; STORE_UNAVAILABLE; SNAPSHOT_MISMATCH, its model is not
                served any more; SNAPSHOT_CORRUPT and SNAPSHOT_VERSION; no room; FENCED, others take it all the time.
        """
        is_over = False
        while not is_over:
            pending = self._pending.get(session_id)
            if pending is None or pending.done():
                if self._table.find(session_id):
                    break
                pending = self._pending[session_id] = asyncio.ensure_future(self._recall(session_id))
                pending.add_done_callback(partial(self._forget, session_id))
            self._askers.setdefault(session_id, []).append(is_wanted)
            left = await asyncio.shield(pending)
            # Whoever asked before may have gone just now, and the recall with them.
            is_over = left is None or not is_wanted(left)
        return self._table.row_of_id(session_id)

    async def look(self, session_id: bytes, *, needs_store: bool = False) -> int | Stored:
        """Where a session stands, without taking it from whoever has it: its row here, or what the store has.

        What is open here may be a copy, from which the session has gone to another server since: then the store has it
        under a later epoch, and that is the session.

        Args:
            needs_store: what is here is not enough where the store cannot be asked.

        Raises:
            EddyError: UNKNOWN_SESSION, also when it has expired; STORE_UNAVAILABLE, where it is not here;
                SNAPSHOT_CORRUPT and SNAPSHOT_VERSION.
        """
        while True:
            while (pending := self._pending.get(session_id)) is not None and not pending.done():
                await asyncio.wait([pending])
            stored = None
            # What is here is not held up by a store that fails.
            try:
                if needs_store or not (self._health.problem and self._table.find(session_id)):
                    stored = await self._store.call(lambda store: _read(store, session_id))
            except EddyError:
                if needs_store or not self.is_present(session_id):
                    raise
            if session_id in self._pending:
                continue
            if stored is None or self._checkpointer.is_forgotten(stored.record):
                return self._table.row_of_id(session_id)
            row = self._table.find(session_id)
            return row if row and self._table.epoch_of(row) >= stored.record.epoch else stored

    def _forget(self, session_id: bytes, task: asyncio.Task[Record | None]) -> None:
        if self._pending.get(session_id) is task:
            del self._pending[session_id]
            self._askers.pop(session_id, None)

    async def _recall(self, session_id: bytes) -> Record | None:
        """Brings the session back, where it is in the store; a record: it was left there, as nobody wants it."""
        for _ in range(_MAX_TRIES):
            stored = await self._store.call(lambda store: _read(store, session_id))
            if stored is None or self._checkpointer.is_forgotten(stored.record):
                return None  # Whoever asks finds that it is not there.
            record = stored.record
            if not any(is_wanted(record) for is_wanted in self._askers.get(session_id, ())):
                return record
            model = self.model_for(record)
            epochs = np.array([record.epoch], np.uint32)
            raw_id, token = (np.frombuffer(each, np.uint8)[None] for each in (session_id, record.resume_token))
            row = await open_record(
                self._table,
                self._notify,
                model,
                record,
                record.max_in_flight,
                record.idle_timeout_seconds,
                has_same_ports=self._checkpointer.model_of(model).ports == record.model.ports,
                identity=Identity(raw_id, token, epochs, np.array([record.holder], np.uint64)),
            )
            rows = np.array([row])
            handle = self._table.handle.item(row)
            self._table.resume(rows, np.array([record.next_position]), epochs)
            try:
                await self._checkpointer.persist(rows)
                if self._table.stored_epoch.item(row) == handle >> 32:
                    self._health.stats.num_recalled += 1
                    return None
                raise self._health.refusal()
            except EddyError as error:
                if self._table.handle.item(row) == handle:  # The store's record is none of ours.
                    self._table.is_durable[rows] = False
                    self._catalog.served[self._table.model_of(row)].close_sessions(rows)
                if error.reason is not Reason.FENCED:
                    raise
        raise ClientError(
            Reason.FENCED,
            f"session_id: the session was taken over elsewhere {_MAX_TRIES} times while it was being brought back",
            Detail("session_id", "a session that others take", "one writer"),
        )

    def model_for(self, record: Record) -> ServedModel:
        """The model that the session in `record` goes on with: the one it is of, though it may be retired; or another.

        Raises:
            EddyError: SNAPSHOT_MISMATCH, or MODEL_NOT_READY where no version of the model is loaded.
        """
        asked = record.model
        same_name = [model for model in self._catalog.served if model.file.name == asked.name]
        same = [model for model in same_name if model.file.digest == asked.digest]
        for model in sorted(same, key=lambda each: (each.retired_at is not None, each.file.version != asked.version)):
            check_fits(asked, self._checkpointer.model_of(model), field="session_id")
            return model
        adopting = self._adopt(record)
        if adopting is not None:
            check_fits(asked, self._checkpointer.model_of(adopting), is_adopted=True, field="session_id")
            return adopting
        if same_name:
            check_fits(asked, self._checkpointer.model_of(same_name[-1]), field="session_id")
        raise ModelError(
            Reason.MODEL_NOT_READY,
            f"session_id: the session is of the model {asked.name!r} version {asked.version}, which is not served here",
            Detail("session_id", f"a session of {asked.name!r} version {asked.version}", "one of a model served here"),
        )


def _read(store: StateStore, session_id: bytes) -> Stored | None:
    (data,) = store.read([session_id])
    return None if data is None else Stored(data, decode(data, "session_id"))


async def open_record(
    table: SessionTable,
    notify: Callable[[ServedModel], None],
    model: ServedModel,
    record: Record,
    max_in_flight: int,
    idle_timeout_seconds: float,
    *,
    has_same_ports: bool,
    identity: Identity | None = None,
) -> int:
    """Opens a session of `model`, which `record` fits, that stands where that one stood; returns its row.

    Args:
        has_same_ports: kept replies of the record are the model's, too.
        identity: of a session that goes on; without, it is another one. Nobody owns it.

    Raises:
        EddyError: no room, states that are not finite, or they could not be written; nothing is open then.
    """
    if not record.is_initial and not model.finite_rows([values[None] for values in record.states], 1).all():
        raise not_finite("the states that were stored")
    rows = model.open_sessions(1, NO_STREAM, max_in_flight, idle_timeout_seconds, identity)
    row = int(rows[0])
    # It is kept in the store once it is whole: a checkpoint of before would take it for one that the store has not.
    table.next_position[rows] = record.next_position
    if has_same_ports:
        start, size = table.ring_start.item(row), table.ring_size.item(row)
        try:
            table.ring_next[row] = model.replies.import_ring(start, size, record.replies)
        except EddyError:
            model.close_sessions(rows)
            raise
    if record.is_initial:
        table.has_own_start[rows] = record.has_own_start
        table.is_durable[rows] = True
        return row
    names = [state.name for state in model.contract.states]
    begin_with = Start(states={name: values[None] for name, values in zip(names, record.states, strict=True)})
    begun: asyncio.Future[list[bytes] | EddyError] = asyncio.get_running_loop().create_future()
    handle = table.handle.item(row)
    table.is_bound[rows] = True  # Until it is known where its states are.
    try:
        model.begin_sessions(rows, begin_with, begun.set_result)
        notify(model)
        outcome = await begun
        if isinstance(outcome, EddyError):
            raise outcome
    except EddyError:
        if table.handle.item(row) == handle:
            model.close_sessions(rows)
        raise
    table.begin_at(rows, table.slot[rows])
    table.is_bound[rows] = False
    table.has_own_start[rows] = record.has_own_start
    table.is_durable[rows] = True
    return row
