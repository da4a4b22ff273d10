"""The host: sessions and models of one process behind one set of operations.

Owns what every front door needs: opening, finding, closing and resetting sessions, submitting chunks, expiry, and
draining. Must not know the wire or connections; a connection is a number and two callbacks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial

import numpy as np

from eddy.service.catalog import Catalog
from eddy.service.chunk import Chunk
from eddy.service.config import Config
from eddy.service.dispatcher import Dispatcher
from eddy.service.durability import Durability
from eddy.service.entry import Entry
from eddy.service.errors import CapacityError, ClientError, EddyError, Reason, ServerBug, invalid
from eddy.service.handover import Handover
from eddy.service.model import ServedModel
from eddy.service.prefixes import Prefixes
from eddy.service.sessions import NO_STREAM, NOT_STORED, SessionTable, route
from eddy.service.start import Start
from eddy.service.stats import CallStats
from eddy.service.tick import Job
from eddy.service.watcher import Watcher

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """Sessions that were opened.

    Attributes:
        rows: table rows, int64 [n]; handles: uint64 [n]; session_ids, resume_tokens: 16 bytes each.
        ready: done once the states that they begin with are written, and the sessions are in the state store, if they
            are kept there; an `EddyError` when that failed, and then the sessions are closed. None where there is
            nothing to write.
    """

    model: ServedModel
    rows: np.ndarray
    handles: np.ndarray
    session_ids: list[bytes]
    resume_tokens: list[bytes]
    max_in_flight: int
    idle_timeout_seconds: float
    ready: asyncio.Future[None] | None

    async def begun(self) -> None:
        """Returns once the sessions can be stepped.

        Raises:
            EddyError: the states that they begin with could not be written; they are closed.
        """
        if self.ready is not None:
            await self.ready


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
        self.table = SessionTable(config.session.max_sessions, clock, random_bytes)
        self.catalog = Catalog(config, self.table, self._tell_ended)
        self.watcher = Watcher(self.catalog, clock, config.repository.poll_seconds, self._tell_changed)
        self._handover = Handover(
            self.table,
            lambda: self.catalog.served,
            lambda: [entry.model for entry in self.catalog if entry.model],
            self._notify,
            self._announce,
        )
        # Changed only on the event loop, after `start`.
        self.prefixes = Prefixes(config.state.prefix_cache_bytes)
        self._release_listeners: list[Callable[[ServedModel], None]] = [self.prefixes.forget]
        self._dispatcher: Dispatcher | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._ended_listeners: dict[int, Callable[[np.ndarray, EddyError], None]] = {}
        self._change_listeners: list[Callable[[], None]] = []
        self._next_stream = NO_STREAM + 1
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_owners = 0
        self.is_draining = False
        self.num_expired = 0
        # Durable sessions that were not in the state store at the end as they were then.
        self.num_unwritten = 0
        state = config.state
        self.durability = (
            Durability(
                state, self.table, self.catalog, self._notify, self._end_fenced, self._quarantine, clock, random_bytes
            )
            if state.is_durable
            else None
        )
        self.catalog.backing = self.durability
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
        self.refuse_if_draining()
        return await self.watcher.load(name)

    async def unload_model(self, name: str) -> list[Entry]:
        """Opens no more sessions of any version of the model; returns its entries, none of them ready.

        Sessions that are open go on. It stays unloaded until it is loaded again or its files change.

        Raises:
            ClientError: UNKNOWN_MODEL; CapacityError: DRAINING.
        """
        self.refuse_if_draining()
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
        self.is_draining = True
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

    # Streams

    @property
    def num_streams(self) -> int:
        """Streams that are open."""
        return len(self._ended_listeners) - self._num_owners

    def has_stream(self, stream: int) -> bool:
        """Whether sessions may be given to `stream`: it has not ended, or is nobody."""
        return stream == NO_STREAM or stream in self._ended_listeners

    def add_owner(self, on_ended: Callable[[np.ndarray, EddyError], None]) -> int:
        """The same for an owner of sessions that is no stream and never goes: a front door that keeps them itself."""
        self._num_owners += 1
        return self.add_stream(on_ended)

    def add_stream(self, on_ended: Callable[[np.ndarray, EddyError], None]) -> int:
        """A number for a new stream; `on_ended` is told the handles of its sessions that the server ends."""
        stream = self._next_stream
        self._next_stream += 1
        self._ended_listeners[stream] = on_ended
        return stream

    def remove_stream(self, stream: int) -> None:
        """The stream has ended: its sessions stay open, owned by nobody, until they are idle for too long."""
        del self._ended_listeners[stream]
        rows = self.table.rows_of_stream(stream)
        if len(rows):
            self.table.detach(rows)

    def _tell_ended(self, stream: int, handles: np.ndarray, error: EddyError) -> None:
        listener = self._ended_listeners.get(stream)
        if listener is not None:
            listener(handles, error)

    # Sessions

    def open(
        self,
        name: str,
        version: str,
        count: int,
        max_in_flight: int,
        idle_timeout_seconds: float,
        stream: int,
        start: Start | None = None,
        *,
        is_durable: bool = False,
    ) -> Opened:
        """Opens `count` sessions; 0 for `max_in_flight` or `idle_timeout_seconds` means the default.

        Args:
            start: what they begin with, None for the contract's initial values.
            is_durable: they are kept in the state store, if there is one.

        Raises:
            EddyError: unknown model, bad arguments, no room, draining; nothing was opened.
        """
        self.refuse_if_draining()
        model = self.catalog.ready(name, version)
        model.refuse_unless_streamable()
        if count < 1:
            raise invalid(Reason.OUT_OF_RANGE, "count", count, "at least 1")
        self.check_limits(max_in_flight, idle_timeout_seconds)
        if model.contract.is_primed and start is None:
            raise invalid(Reason.MISSING_FIELD, "prime", "none", "what the model's prime graph reads")
        in_flight, idle = max_in_flight or 1, idle_timeout_seconds or self.usual_idle_timeout(model)
        durability = self.durability if is_durable else None
        if is_durable:
            self.refuse_without_store()
        rows = model.open_sessions(count, stream, in_flight, idle)
        handles = self.table.handle[rows]
        ids, tokens = self.table.ids_of(rows), self.table.tokens_of(rows)
        ready: asyncio.Future[None] | None = None
        if start is not None:
            ready = asyncio.get_running_loop().create_future()
            self._begin(model, rows, start, ready)
        if durability is not None:
            self.table.is_durable[rows] = True
            ready = asyncio.ensure_future(self.make_durable(rows, handles, ready))
        return Opened(model, rows, handles, ids, tokens, in_flight, idle, ready)

    def check_limits(self, max_in_flight: int, idle_timeout_seconds: float) -> None:
        """Raises ClientError OUT_OF_RANGE for what no session may have here."""
        most, longest = self.config.model.max_in_flight, self.config.session.max_idle_timeout_seconds
        if max_in_flight > most:
            raise invalid(Reason.OUT_OF_RANGE, "max_in_flight", max_in_flight, f"at most {most}")
        if not 0 <= idle_timeout_seconds <= longest:
            raise invalid(Reason.OUT_OF_RANGE, "idle_timeout_seconds", idle_timeout_seconds, f"0 to {longest:g}")

    def usual_idle_timeout(self, model: ServedModel) -> float:
        """Seconds, of sessions whose client asks for none."""
        limits = self.config.session
        return model.idle_timeout_seconds(limits.idle_timeout_seconds, limits.max_idle_timeout_seconds)

    def refuse_without_store(self) -> None:
        """Raises CapacityError STORE_UNAVAILABLE where sessions must be in a state store that does not work."""
        if self.durability is not None and self.durability.health.refuses:
            raise self.durability.health.refusal()

    def _begin(self, model: ServedModel, rows: np.ndarray, start: Start, ready: asyncio.Future[None]) -> None:
        """Has `start` written as the states of the sessions in `rows`; they are busy until then."""

        def begun(outcome: list[bytes] | EddyError) -> None:
            if isinstance(outcome, EddyError):
                model.close_sessions(rows)
                if not ready.done():
                    ready.set_exception(outcome)
                return
            self.table.begin_at(rows, self.table.slot[rows])
            if not ready.done():
                ready.set_result(None)

        try:
            model.begin_sessions(rows, start, begun)
        except EddyError:
            model.close_sessions(rows)
            raise
        self.dispatcher.notify(model)

    async def make_durable(
        self, rows: np.ndarray, handles: np.ndarray, begun: asyncio.Future[None] | None = None
    ) -> None:
        """Returns once sessions that were opened are in the state store; where they must be and cannot, they end.

        Args:
            handles: theirs, uint64 [n]; begun: done once their states are written.

        Raises:
            EddyError: they have ended.
        """
        if begun is not None:
            await begun
        try:
            await self.persist(rows)
        except EddyError:
            mine = rows[self.table.handle[rows] == handles]
            self.table.is_durable[mine] = False
            self.close(mine, lambda _: None)
            raise

    def persist(self, rows: np.ndarray) -> asyncio.Future[None]:
        """Writes the sessions in `rows` int64 [n] through to the state store, if they are kept there.

        See `Checkpointer.persist`.
        """
        if self.durability is not None:
            return self.durability.checkpointer.persist(rows)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def are_stored(self, handles: np.ndarray) -> bool:
        """All sessions of `handles` uint64 [B] are in a durable state store, under their present epochs."""
        return self.durability is not None and self.durability.are_stored(handles)

    def durable_positions(self, handles: bytes) -> np.ndarray:
        """Of the sessions of a chunk: steps before them survive the server's end; int64 [B], -1: nothing is stored."""
        table, mine = self.table, np.frombuffer(handles, "<u8")
        rows = table.rows_of(mine)
        return np.where(table.handle[rows] == mine, table.durable_position[rows], NOT_STORED)

    async def recall(self, session_id: bytes, is_wanted: Callable[[], bool] = lambda: True) -> int:
        """The row of a session that is open, or that the state store has; see `Recaller.find`.

        Raises:
            EddyError: UNKNOWN_SESSION, and what prevents its return.
        """
        if self.durability is None or self.durability.recaller.is_present(session_id):
            return self.table.row_of_id(session_id)
        self.refuse_if_draining()
        return await self.durability.recaller.find(session_id, is_wanted)

    def _end_fenced(self, rows: np.ndarray) -> None:
        """Ends sessions that another server goes on with, behind the chunks that they have sent."""

        def end(model: ServedModel, mine: np.ndarray) -> None:
            model.fence_sessions(mine)
            _LOG.warning(
                "model %s version %s: %d sessions were taken over on another server",
                model.file.name,
                model.file.version,
                len(mine),
            )

        self.by_model(rows, end, lambda _: None)

    def _quarantine(self, rows: np.ndarray) -> None:
        """Ends sessions whose states are not finite, behind the chunks that they have sent."""
        self.by_model(rows, lambda model, mine: model.quarantine_sessions(mine), lambda _: None)

    def _notify(self, model: ServedModel) -> None:
        self.dispatcher.notify(model)

    def attach(
        self,
        session_id: bytes,
        resume_token: bytes,
        stream: int,
        done: Callable[[int | EddyError], None],
        holder: int = 0,
        *,
        resumes: bool = False,
    ) -> None:
        """`stream` takes over a session once the chunks before it are through; `done` is told its row.

        A session that the state store has is brought back first; where sessions are kept there, `done` is told once
        the store has the new epoch. `done` is told an error if the session or the stream has ended by then, or if
        `holder` comes back to what is another's (see `SessionTable.attach`).

        Raises:
            EddyError: unknown session, another's token, draining.
        """
        self.refuse_if_draining()
        if self.durability is None or self.durability.recaller.is_present(session_id):
            self._attach(session_id, resume_token, stream, done, holder, resumes=resumes)
            return

        self._in_background(self._bring_back(session_id, resume_token, stream, done, holder, resumes=resumes))

    def _attach(
        self,
        session_id: bytes,
        resume_token: bytes,
        stream: int,
        done: Callable[[int | EddyError], None],
        holder: int,
        *,
        resumes: bool,
        is_copy_known: bool = False,
    ) -> None:
        """`attach` for a session that is open here.

        What is open here may be a copy from which the session has gone to another server since: the store tells, the
        copy ends, and the session is brought back. `is_copy_known`: it was brought back just now.
        """
        row = self.table.row_of_id(session_id)
        self.table.check_token(row, resume_token)

        def take_over() -> None:
            try:
                found = self.table.row_of_id(session_id)
                if stream not in self._ended_listeners:
                    return
                if self.table.is_durable[found]:  # Before its owner is fenced.
                    self.refuse_without_store()
                self.table.attach(found, stream, holder, resumes=resumes)
            except EddyError as error:
                is_gone = self.durability is not None and not self.table.find(session_id)
                if is_gone and not is_copy_known:
                    again()  # The copy has ended meanwhile; the store knows whether the session has.
                else:
                    done(error)
                return
            handle = self.table.handle.item(found)
            if self.durability is None:
                done(found)
            else:
                self.persist(np.array([found])).add_done_callback(partial(written, found, handle))

        def written(found: int, handle: int, persisted: asyncio.Future[None]) -> None:
            error = persisted.exception()
            if error is None:
                done(found if self.table.handle.item(found) == handle else self.table.explain(handle))
                return
            assert isinstance(error, EddyError), "whoever writes tells typed errors"
            is_ours = self.table.handle.item(found) == handle or self.table.find(session_id) != found
            if error.reason is Reason.FENCED and is_ours and not is_copy_known:
                # Behind the end of the copy.
                model.scheduler.queue.submit_control(np.array([found]), again)
                self.dispatcher.notify(model)
            else:
                done(error)

        def again() -> None:
            self._in_background(self._bring_back(session_id, resume_token, stream, done, holder, resumes=resumes))

        model = self.catalog.served[self.table.model_of(row)]
        self._control(np.array([row]), take_over)

    async def _bring_back(
        self,
        session_id: bytes,
        resume_token: bytes,
        stream: int,
        done: Callable[[int | EddyError], None],
        holder: int,
        *,
        resumes: bool,
    ) -> None:
        """`attach` for a session that the store has."""
        try:
            await self.recall(session_id, lambda: self.has_stream(stream))
            self._attach(session_id, resume_token, stream, done, holder, resumes=resumes, is_copy_known=True)
        except EddyError as error:
            if self.has_stream(stream):
                done(error)
        except Exception:  # noqa: BLE001  the task's root: one request fails, with its traceback in the log
            _LOG.exception("a session could not be brought back")
            done(ServerBug(Reason.INTERNAL, "the server failed to bring this session back"))

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        """Has `work`, which handles its own errors, done beside the caller."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self, row: int) -> None:
        """Returns once the chunks of the session in `row` that came before are through."""
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._control(np.array([row]), lambda: None if settled.done() else settled.set_result(None))
        await settled

    def close(self, rows: np.ndarray, done: Callable[[np.ndarray], None]) -> None:
        """Ends sessions once the chunks before this are through; `rows` int64 [n], open, of any models.

        `done` is told the rows that were missed: ended, reset or taken over by then.
        """
        self.by_model(rows, lambda model, mine: model.close_sessions(mine), done)

    def reset(self, rows: np.ndarray, done: Callable[[np.ndarray], None]) -> None:
        """Sets sessions back to the start once the chunks before this are through; `done` as in `close`.

        Raises:
            CapacityError: STORE_UNAVAILABLE; nothing was changed.
        """
        if self.table.is_durable[rows].any():
            self.refuse_without_store()
        if self.durability is None:
            self.by_model(rows, lambda model, mine: model.reset_sessions(mine), done)
            return

        def reset(missed: np.ndarray) -> None:
            fresh = rows[~np.isin(rows, missed)]
            # Whom the new epoch does not reach has no session: fenced, and told so.
            self.persist(fresh).add_done_callback(
                lambda persisted: done(missed if persisted.exception() is None else rows)
            )

        self.by_model(rows, lambda model, mine: model.reset_sessions(mine), reset)

    def by_model(
        self, rows: np.ndarray, apply: Callable[[ServedModel, np.ndarray], None], done: Callable[[np.ndarray], None]
    ) -> None:
        """Applies something to sessions, those of a model together, behind the chunks before this; as in `close`."""
        models = self.table.models_of(rows)
        present = np.unique(models).tolist()
        left = [len(present)]
        expected = self.table.handle[rows]
        missed = [np.empty(0, np.int64)]
        if not present:
            done(missed[0])

        def run(mine: np.ndarray, handles: np.ndarray) -> None:
            # A session may have ended, or have been taken over, while this waited behind its chunks.
            is_good = self.table.handle[mine] == handles
            good = mine[is_good]
            # Or may go on with another model.
            present = self.table.models_of(good)
            for index in np.unique(present).tolist():
                apply(self.catalog.served[index], good[present == index])
            missed.append(mine[~is_good])
            left[0] -= 1
            if not left[0]:
                done(np.concatenate(missed))

        for index in present:
            model = self.catalog.served[index]
            mine, handles = rows[models == index], expected[models == index]
            model.scheduler.queue.submit_control(mine, partial(run, mine, handles))
            self.dispatcher.notify(model)

    def _control(self, rows: np.ndarray, run: Callable[[], None]) -> None:
        model = self.catalog.served[self.table.model_of(int(rows[0]))]
        model.scheduler.queue.submit_control(rows, run)
        self.dispatcher.notify(model)

    # Chunks

    def submit(self, model: ServedModel, chunk: Chunk) -> None:
        """Queues a chunk.

        Raises:
            CapacityError: QUEUE_FULL, DRAINING or STORE_UNAVAILABLE.
        """
        self.refuse_if_draining()
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
        self.refuse_if_draining()
        model.scheduler.queue.submit_job(job)
        self.dispatcher.notify(model)

    def route(self, stream: int, model: ServedModel) -> int:
        """The route of chunks of `model` on `stream`."""
        return route(stream, model.index)

    def count_refusal(self, error: EddyError) -> None:
        """Counts a request or a row that was answered with an error."""
        self.refusals[error.reason] = self.refusals.get(error.reason, 0) + 1

    def refuse_if_draining(self) -> None:
        """Raises CapacityError while the server drains."""
        if self.is_draining:
            raise CapacityError(
                Reason.DRAINING, "the server is shutting down; nothing of this request was applied, send it elsewhere"
            )

    # Expiry

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.config.session.sweep_seconds)
            self.expire()
            self.adopt_sessions()
            self.end_retired()
            if self.release_models():
                self._announce()

    def end_retired(self) -> int:
        """Ends sessions whose model was retired `retire_seconds` ago; returns how many."""
        limit = self.config.repository.retire_seconds
        num_ended = 0
        for model in self.catalog.served:
            if not limit or model.retired_at is None or self.clock() < model.retired_at + limit:
                continue
            rows = self.table.open_rows(model.index)
            rows = rows[~self.table.is_busy[rows]]  # The others with the next look.
            if len(rows):
                model.retire_sessions(rows)
                num_ended += len(rows)
                _LOG.info(
                    "model %s version %s: %d sessions ended with their model",
                    model.file.name,
                    model.file.version,
                    len(rows),
                )
        return num_ended

    def expire(self) -> int:
        """Ends sessions that have been idle for too long; returns how many."""
        rows = self.table.idle_rows()
        if not len(rows):
            return 0
        models = self.table.models_of(rows)
        for index in np.unique(models).tolist():
            self.catalog.served[index].expire_sessions(rows[models == index])
        self.num_expired += len(rows)
        _LOG.info("%d idle sessions ended", len(rows))
        return len(rows)
