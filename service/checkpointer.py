"""The checkpointer: writes what has changed of durable sessions to the state store.

Owns which sessions are written when, and what follows from what the store says. Reads states as a job of the model's
queue, in batches: when that is done, states, positions and kept replies agree, and are gathered at once; encoding and
writing are the store's thread's. Must not know how records look or which store there is.

Ordering rules: one write at a time. Whatever is asked for while one is under way is written together with the next
one (group commit), and goes before sessions that are only due: a checkpoint is written in pieces. A new checkpoint does
not begin before the last one has ended. A session whose handle has changed since its states were read is told nothing
by what comes of the write, but which epoch the store has.

Dimension key: B sessions of a piece.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from eddy.service.arena import INITIAL_SLOT
from eddy.service.config import StateConfig
from eddy.service.errors import ClientError, EddyError, Reason, ServerBug
from eddy.service.health import StoreHealth
from eddy.service.instruction_set import instruction_set
from eddy.service.lifecycle import Event, Tier
from eddy.service.model import ServedModel
from eddy.service.record import Checkpoint, Record, encode
from eddy.service.record_model import Model, model_of
from eddy.service.roster import Roster
from eddy.service.runtime import runtime_version
from eddy.service.sessions import NOT_STORED, SESSION_ID_BYTES, SessionTable
from eddy.service.store import Outcome, StateStore, StoreError
from eddy.service.store_thread import StoreThread

_LOG = logging.getLogger(__name__)

# Sessions read and written at once: what waits behind a piece waits for some 10 ms.
_PIECE_ROWS = 2048
_PURGE_SECONDS = 60.0
# Sessions by which a store that has lost its contents is told from one that lacks a few.
_NUM_PROBED = 16
# Sessions that end in these ways are deleted from the store; others may go on from what it has.
_FORGETTING = (Event.CLOSE, Event.EXPIRE)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Sessions that somebody waits for: table rows int64 [n], their handles then, and who is told."""

    rows: np.ndarray
    handles: np.ndarray
    done: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Gathered:
    """What is written of B sessions of one model: rows int64 [B], handles uint64 [B], and all else."""

    model: ServedModel
    rows: np.ndarray
    handles: np.ndarray
    checkpoint: Checkpoint


class Checkpointer:
    """Keeps the store behind the sessions of `table`, never more than one checkpoint.

    Args:
        table: sessions; served: their models; notify: told of a model with a job.
        store: the store's thread; health: told what comes of it; config: `state.*`.
        writer: random, of this process; clock: monotonic seconds; wall_clock: unix seconds.
        end: ends the sessions in rows int64 [n], which somebody else goes on with; quarantine: those whose states are
            not finite.
    """

    def __init__(
        self,
        table: SessionTable,
        served: Roster,
        notify: Callable[[ServedModel], None],
        store: StoreThread,
        health: StoreHealth,
        config: StateConfig,
        writer: int,
        clock: Callable[[], float],
        end: Callable[[np.ndarray], None],
        quarantine: Callable[[np.ndarray], None],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._table = table
        self._served = served
        self._notify = notify
        self._store = store
        self._health = health
        self._config = config
        self._writer = writer
        self._clock = clock
        self._wall_clock = wall_clock
        self._end = end
        self._quarantine = quarantine
        self._models: WeakKeyDictionary[ServedModel, Model] = WeakKeyDictionary()
        # Changed on the event loop only.
        self._asked: list[_Asked] = []
        self._due: deque[np.ndarray] = deque()
        # Sessions to delete, and those that the write under way deletes: the epoch that the store has them under as far
        # as is known; what this process wrote last and had no answer to goes, too.
        self._deletions: dict[bytes, int] = {}
        self._deleting: dict[bytes, int] = {}
        # The store's, when it was last written to.
        self._generation = ""
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._next_at = clock() + config.checkpoint_seconds
        self._began_at = clock()
        self._next_purge_at = clock() + _PURGE_SECONDS
        table.on_ended = self._forget

    # Asking

    def persist(self, rows: np.ndarray) -> asyncio.Future[None]:
        """Writes the sessions in `rows` int64 [n] through; done when they are in the store.

        Where the store fails: done at once, or fails with `StoreError`, as `state.on_failure` says. Fails with
        ClientError FENCED where somebody else goes on with one of them.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        rows = rows[self._table.is_durable[rows]]
        if not len(rows):
            done.set_result(None)
        elif self._health.problem:
            self._give_up(done, self._health.refusal())
        else:
            self._asked.append(_Asked(rows, self._table.handle[rows], done))
            self._wake.set()
            if self._config.on_failure == "serve":
                limit = self._config.max_lag_seconds
                asyncio.get_running_loop().call_later(limit, _resolve, done)
        return done

    def _give_up(self, done: asyncio.Future[None], error: EddyError) -> None:
        if done.done():
            return
        if self._config.on_failure == "serve" and isinstance(error, EddyError):
            done.set_result(None)
        else:
            done.set_exception(error)

    def _forget(self, rows: np.ndarray, event: Event) -> None:
        """The sessions in `rows` are ending."""
        rows = rows[self._table.is_durable[rows]]
        if event in _FORGETTING and len(rows):
            epochs = self._table.stored_epoch[rows].tolist()
            self._deletions.update(zip(self._table.ids_of(rows), epochs, strict=True))

    def is_forgotten(self, record: Record) -> bool:
        """The session in `record` has ended, and only the store does not know yet.

        Not where what has ended was an old copy, from which another server has taken the session.
        """
        epoch = self._deletions.get(record.session_id, self._deleting.get(record.session_id))
        return epoch is not None and (record.epoch <= epoch or record.writer == self._writer)

    # Rounds

    async def run(self) -> None:
        """Writes until `flush`."""
        while not self._is_stopping:
            await self._sleep()
            if self._is_stopping:
                break
            self._wake.clear()
            if self._clock() >= self._next_at and not self._due:
                self._begin_checkpoint()
            await self._round()

    async def _sleep(self) -> None:
        """Until there is something to do."""
        if self._asked or self._due:
            return
        try:
            async with asyncio.timeout(max(0.0, self._next_at - self._clock())):
                await self._wake.wait()
        except TimeoutError:
            return

    def dirty_rows(self) -> np.ndarray:
        """Durable sessions that the store does not have as they are, int64 [n]."""
        table = self._table
        is_dirty = table.next_position != table.durable_position
        is_dirty |= (table.handle >> np.uint64(32)) != table.stored_epoch
        rows = np.flatnonzero(is_dirty & table.is_durable)
        return np.asarray(rows[~self._is_beginning(rows)])

    def _is_beginning(self, rows: np.ndarray) -> np.ndarray:
        """Of which of the sessions in `rows` int64 [n] that is being written what they begin with, bool [n]."""
        return np.asarray(self._table.has_own_start[rows] & (self._table.read_slot[rows] == INITIAL_SLOT))

    def _begin_checkpoint(self) -> None:
        self._began_at = self._clock()
        self._next_at = self._began_at + self._config.checkpoint_seconds
        rows = self.dirty_rows()
        self._health.begin(has_changes=len(rows) > 0)
        self._health.look()
        self._due.extend(np.array_split(rows, -(-len(rows) // _PIECE_ROWS)) if len(rows) else ())

    async def _round(self) -> None:
        """One write: all that is asked for, and the next piece of what is due."""
        asked, self._asked = self._asked, []
        has_due = bool(self._due)
        due = self._due.popleft() if has_due else np.empty(0, np.int64)
        try:
            wanted = [each.rows[self._table.handle[each.rows] == each.handles] for each in asked]
            was_failing = bool(self._health.problem)
            rows = np.unique(np.concatenate((*wanted, due[self._table.is_durable[due] & ~self._is_beginning(due)])))
            if await self._write(rows, asked) or was_failing:
                await self._look_for_loss(rows)
        except StoreError as error:
            self._due.clear()
            self._health.failed(error.message)
            self._settle(asked, error)
        except EddyError as error:  # A model's: its sessions are read with the next checkpoint.
            self._due.clear()
            self._settle(asked, error)
        except Exception:  # noqa: BLE001  the round's root: what waits for it fails, the server goes on
            _LOG.exception("a checkpoint failed")
            self._settle(asked, ServerBug(Reason.INTERNAL, "the server failed to write this session to its store"))
        else:
            self._health.worked()
            if has_due and not self._due:
                self._health.stats.checkpoint_time.observe(self._clock() - self._began_at)
            if not self._due and has_due:
                self._health.caught_up(self._began_at)

    def _settle(self, asked: Iterable[_Asked], error: EddyError) -> None:
        for each in asked:
            self._give_up(each.done, error)

    async def _write(self, rows: np.ndarray, asked: list[_Asked]) -> int:
        """Writes the sessions in `rows`; how many of them the store was expected to have, and had not."""
        # Taken before the sessions are read: of one that ends from now on, what comes of the write tells the epoch.
        self._deleting, self._deletions = self._deletions, {}
        try:
            return await self._write_and_delete(rows, asked, self._deleting)
        except BaseException:
            self._deletions = self._deleting | self._deletions
            raise
        finally:
            self._deleting = {}

    async def _write_and_delete(self, rows: np.ndarray, asked: list[_Asked], deletions: dict[bytes, int]) -> int:
        models = self._table.models_of(rows)
        reading = [self._gather(self._served[index], rows[models == index]) for index in np.unique(models).tolist()]
        gathered = [each for each in await asyncio.gather(*reading) if each is not None]
        now, is_purge = self._wall_clock(), self._clock() >= self._next_purge_at
        if is_purge:
            self._next_purge_at = self._clock() + _PURGE_SECONDS
        checkpoints = [each.checkpoint for each in gathered]

        def carry_out(store: StateStore) -> tuple[list[np.ndarray], int, str]:
            batches = [encode(checkpoint) for checkpoint in checkpoints]
            outcomes = [store.write(batch) for batch in batches]
            if deletions:
                epochs = np.fromiter(deletions.values(), np.uint32, len(deletions))
                store.delete(list(deletions), epochs, self._writer)
            if is_purge:
                store.purge(now)
            if not batches and not deletions:
                store.read([bytes(SESSION_ID_BYTES)])  # Whether it is there.
            return outcomes, sum(len(batch.data) for batch in batches), store.generation()

        # Where nothing has changed, it is asked all the same once a checkpoint whether it was restarted.
        if asked and not (checkpoints or deletions or is_purge or self._health.problem):
            self._told(asked, np.empty(0, np.int64))
            return 0
        outcomes, num_bytes, generation = await self._store.call(carry_out)
        self._health.stats.written_bytes += num_bytes
        lost = [self._apply(each, outcome) for each, outcome in zip(gathered, outcomes, strict=True)]
        missing = np.concatenate((np.empty(0, np.int64), *lost))
        self._told(asked, missing)
        if self._generation not in ("", generation):
            self._doubt("was restarted, perhaps with less than it had")
        self._generation = generation
        return len(missing)

    async def _look_for_loss(self, written: np.ndarray) -> None:
        """Has every session written anew where the store lacks those that it ought to have.

        Args:
            written: rows of those just written, which say nothing.
        """
        table = self._table
        rows = np.setdiff1d(np.flatnonzero(table.is_durable & (table.durable_position != NOT_STORED)), written)
        some = rows[np.linspace(0, len(rows) - 1, min(len(rows), _NUM_PROBED)).astype(np.int64)]
        ids = table.ids_of(some)
        records = await self._store.call(lambda store: store.read(ids))
        # A few may have been closed on another server.
        num_lost = sum(record is None for record in records)
        if num_lost and 2 * num_lost >= len(some):
            self._doubt("has lost what it had")

    def _doubt(self, why: str) -> None:
        """The store may not have what it had: every session is written anew, but those whose states are only there."""
        table = self._table
        rows = np.flatnonzero(table.is_durable & (table.durable_position != NOT_STORED))
        rows = rows[table.tiers_of(rows) != Tier.STORE]
        _LOG.warning("the state store %s: %d sessions are written anew", why, len(rows))
        table.set_durable(rows, NOT_STORED)

    # Reading

    def _gather(self, model: ServedModel, rows: np.ndarray) -> asyncio.Future[_Gathered | None]:
        """What is to be written of the sessions in `rows`, once their states are read; None when none is left."""
        found: asyncio.Future[_Gathered | None] = asyncio.get_running_loop().create_future()
        handles = self._table.handle[rows]

        def read(states: list[np.ndarray] | EddyError) -> None:
            if found.done():
                return
            if isinstance(states, EddyError):
                found.set_exception(states)
                return
            is_same = self._table.handle[rows] == handles
            bad = is_same & ~model.finite_rows(states, len(rows))
            if bad.any():  # What the store has of them is the last that was good.
                self._quarantine(rows[bad])
                is_same &= ~bad
            if is_same.all():
                found.set_result(self._gathered(model, rows, handles, states))
            elif is_same.any():
                kept = [values[is_same] for values in states]
                found.set_result(self._gathered(model, rows[is_same], handles[is_same], kept))
            else:
                found.set_result(None)

        if (self._table.read_slot[rows] == INITIAL_SLOT).all():
            shapes = [(len(rows), *state.shape) for state in model.contract.states]
            read([np.zeros(shape, state.dtype) for shape, state in zip(shapes, model.contract.states, strict=True)])
            return found
        try:
            model.read_states(rows, read, is_refusable=False)
            self._notify(model)
        except EddyError as error:
            found.set_exception(error)
        return found

    def _gathered(
        self, model: ServedModel, rows: np.ndarray, handles: np.ndarray, states: list[np.ndarray]
    ) -> _Gathered:
        table, now = self._table, self._wall_clock()
        checkpoint = Checkpoint(
            model=self.model_of(model),
            session_ids=table.raw_ids(rows),
            resume_tokens=table.raw_tokens(rows),
            writer=self._writer,
            epochs=(handles >> np.uint64(32)).astype(np.uint32),
            expected_epochs=table.stored_epoch[rows],
            next_positions=table.next_position[rows],
            max_in_flight=table.ring_size[rows].astype(np.uint32),
            idle_timeout_seconds=table.idle_timeouts_of(rows).astype(np.float64),
            # A session that is stepped is there until the next checkpoint, however short its timeout.
            expires_at=now + np.maximum(table.seconds_left(rows), 2 * self._config.checkpoint_seconds),
            written_at=now,
            holders=table.holder[rows],
            has_own_start=table.has_own_start[rows],
            is_initial=table.read_slot[rows] == INITIAL_SLOT,
            states=tuple(states),
            replies=model.replies.export_rings(table.ring_start[rows], table.ring_size[rows]),
        )
        return _Gathered(model, rows, handles, checkpoint)

    def model_of(self, model: ServedModel) -> Model:
        """The model as records name it."""
        if model not in self._models:
            file = model.file
            self._models[model] = model_of(
                file.name, file.version, file.digest, model.contract, runtime_version(), instruction_set()
            )
        return self._models[model]

    # What came of it

    def _apply(self, gathered: _Gathered, outcomes: np.ndarray) -> np.ndarray:
        """Takes what the store says; returns the rows that it has lost, int64 [n], which are to be written anew."""
        table, rows, checkpoint = self._table, gathered.rows, gathered.checkpoint
        is_same = table.handle[rows] == gathered.handles
        is_written = outcomes == Outcome.WRITTEN
        self._health.stats.num_written += int(np.count_nonzero(is_written))
        done = is_written & is_same
        table.stored_epoch[rows[done]] = checkpoint.epochs[done]
        done &= table.models_of(rows) == gathered.model.index  # Those that were handed over since are written again.
        table.set_durable(rows[done], checkpoint.next_positions[done])
        for place in np.flatnonzero(is_written & ~is_same).tolist():
            row, session_id = rows.item(place), checkpoint.session_ids[place].tobytes()
            if session_id in self._deletions:  # Ended.
                self._deletions[session_id] = checkpoint.epochs.item(place)
            elif table.find(session_id) == row:  # In a later epoch.
                table.stored_epoch[row] = checkpoint.epochs[place]
        is_missing = (outcomes == Outcome.MISSING) & is_same
        table.stored_epoch[rows[is_missing]] = 0
        table.set_durable(rows[is_missing], NOT_STORED)
        is_fenced = (outcomes == Outcome.FENCED) & is_same
        if is_fenced.any():
            self._health.stats.num_fenced += int(np.count_nonzero(is_fenced))
            table.is_durable[rows[is_fenced]] = False
            self._end(rows[is_fenced])
        return np.asarray(rows[is_missing])

    def _told(self, asked: Iterable[_Asked], missing: np.ndarray) -> None:
        """Tells those who waited; sessions that the store has lost are asked for again."""
        for each in asked:
            if each.done.done():
                continue
            if len(missing) and np.isin(each.rows, missing).any():
                self._asked.append(each)
                continue
            is_same = self._table.handle[each.rows] == each.handles
            if (is_same & self._table.is_durable[each.rows]).all():
                each.done.set_result(None)
            else:
                each.done.set_exception(_fenced())

    # The end

    async def flush(self, deadline: float) -> int:
        """Writes all that has changed, until `deadline`, monotonic seconds; how many sessions could not be written."""
        self._due.clear()
        while len(self.dirty_rows()) or self._asked or self._deletions:
            self._begin_checkpoint()
            while self._due or self._asked or self._deletions:
                await self._round()
                if self._health.problem:
                    break
            if self._clock() >= deadline:
                break
            if self._health.problem:
                await asyncio.sleep(0.1)
        return len(self.dirty_rows())

    def stop(self) -> None:
        """`run` returns after the write that is under way."""
        self._is_stopping = True
        self._wake.set()


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _fenced() -> ClientError:
    return ClientError(Reason.FENCED, "the session was taken over, reset or ended meanwhile, here or on another server")
