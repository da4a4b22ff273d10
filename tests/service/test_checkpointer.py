"""The checkpointer within one process: what its outcomes do, and to whom; what waits for what.

A server in this process on a SQLite file, whose clock stands still: nothing is written but what a test asks for. The
store's thread, or the engine's, is held where something must happen meanwhile.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from graphs import family
from loopback import (
    PATIENCE_SECONDS,
    Loopback,
    StreamClient,
    array,
    attach_request,
    configure,
    serve,
    until,
    write_model,
)
from records import batch

from eddy.service import checkpointer
from eddy.service.checkpointer import Checkpointer
from eddy.service.durability import Durability
from eddy.service.errors import EddyError, Reason
from eddy.service.model import ServedModel
from eddy.service.record import Record, decode
from eddy.service.sessions import MODEL_BITS, NO_STREAM, NOT_STORED
from eddy.service.tick import Job
from eddy.v1 import inference_pb2

HISTORY, LSTM = family("history"), family("lstm")
# Far less than sessions may be idle for: they must not be over when the clock is set on by it.
CHECKPOINT_SECONDS = 10.0


@dataclass
class Rig:
    """A server, a stream to it, and its clock."""

    server: Loopback
    stream: StreamClient
    now: float = 0.0

    @property
    def durability(self) -> Durability:
        """The server's."""
        assert self.server.host.durability is not None
        return self.server.host.durability

    @property
    def checkpointer(self) -> Checkpointer:
        """The server's."""
        return self.durability.checkpointer

    async def written(self, rows: np.ndarray) -> None:
        """The sessions in `rows` are written, or it fails."""
        await asyncio.wait_for(self.server.host.persistence.persist(rows), PATIENCE_SECONDS)

    async def record(self, session_id: bytes) -> Record | None:
        """What the store has of a session."""
        (data,) = await self.durability.store.call(lambda store: store.read([session_id]))
        return None if data is None else decode(data)

    async def stepped(self, opened: inference_pb2.SessionsOpened, position: int, digit: int) -> list[int]:
        """Steps every session of `opened` by one digit; their answers."""
        handles = np.frombuffer(opened.handles, "<u8").tolist()
        result = await self.stream.step(HISTORY, handles, [position] * len(handles), [[digit]] * len(handles))
        assert not result.errors
        return [int(value) for value in array(result.outputs[0])[:, 0]]

    def rows(self, opened: inference_pb2.SessionsOpened) -> np.ndarray:
        """Their table rows, int64 [n]."""
        return self.server.host.table.rows_of(np.frombuffer(opened.handles, "<u8"))

    def quarantine(self, model: ServedModel, rows: np.ndarray) -> None:
        """Ends sessions of `model`; what the store has of them stays."""
        model.quarantine_sessions(rows)
        self.server.host.dispatcher.notify(model)

    async def gathered(self) -> None:
        """The write that begins now has the sessions as they are, and waits for the store."""
        model = self.server.host.catalog.ready("history", "")
        await until(lambda: model.num_reads)
        await until(lambda: not model.num_reads)

    @contextmanager
    def store_held(self) -> Iterator[None]:
        """Whatever is asked of the store within the block waits for its end."""
        may_go = threading.Event()
        self.durability.store.call(lambda _: may_go.wait())
        try:
            yield
        finally:
            may_go.set()

    @contextmanager
    def engine_held(self, model: ServedModel) -> Iterator[None]:
        """Whatever the engine is asked for within the block waits for its end."""
        may_go = threading.Event()

        def wait() -> list[bytes]:
            may_go.wait()
            return []

        self.server.host.submit_job(model, Job(wait, lambda _: None, 1, 1))
        try:
            yield
        finally:
            may_go.set()


@asynccontextmanager
async def _rig(repository: Path, folder: Path) -> AsyncIterator[Rig]:
    state = {"store": f"sqlite:{folder}/store", "checkpoint_seconds": CHECKPOINT_SECONDS, "max_lag_seconds": 1e6}
    config = configure(repository, server={"inline_tick_seconds": 0.0, "drain_seconds": 5.0}, state=state)
    rigs: list[Rig] = []
    started = time.monotonic()
    is_over = False

    def clock() -> float:
        # A server that is ending has so much time and no more.
        return (rigs[0].now if rigs else 0.0) + (time.monotonic() - started if is_over else 0.0)

    async with serve(config, clock=clock) as server, server.stream() as stream:
        rigs.append(Rig(server, stream))
        try:
            yield rigs[0]
        finally:
            is_over = True


# What comes of a write


def test_a_session_that_the_store_has_lost_is_written_anew(repository: Path, tmp_path: Path) -> None:
    """Whoever waits for it is told when it is there again, with what the others of the write have."""

    async def check() -> None:
        async with _rig(repository, tmp_path) as rig:
            opened = await rig.stream.open("history", 2)
            lost, epochs = opened.session_ids[0], np.frombuffer(opened.epochs, "<u4")[:1]
            await rig.stepped(opened, 0, 1)
            assert await rig.durability.store.call(lambda store: store.delete([lost], epochs)) == 1
            await rig.written(rig.rows(opened))
            for session_id in opened.session_ids:
                record = await rig.record(session_id)
                assert record is not None and record.next_position == 1
            assert rig.server.host.table.durable_position[rig.rows(opened)].tolist() == [1, 1]
            assert await rig.stepped(opened, 1, 2) == [12, 12]

    asyncio.run(check())


def test_a_session_that_somebody_else_has_ends_alone(repository: Path, tmp_path: Path) -> None:
    """Of two that are written, one is another writer's by now: it ends, fenced, and the other's record stays."""

    async def check() -> None:
        async with _rig(repository, tmp_path) as rig:
            opened = await rig.stream.open("history", 2)
            taken, kept = opened.session_ids
            await rig.stepped(opened, 0, 1)
            epoch = int(np.frombuffer(opened.epochs, "<u4")[0])
            other = batch([taken], [epoch + 1], [epoch])
            await rig.durability.store.call(lambda store: store.write(other))
            with pytest.raises(EddyError) as caught:
                await rig.written(rig.rows(opened))
            assert caught.value.reason is Reason.FENCED
            ended = await rig.stream.notice("ended")
            assert ended.handles == opened.handles[:8] and ended.error.reason == Reason.FENCED
            assert await rig.durability.store.call(lambda store: store.read([taken])) == [other.record(0)]
            record = await rig.record(kept)
            assert record is not None and record.next_position == 1
            assert rig.durability.health.stats.num_fenced == 1
            (handle,) = np.frombuffer(opened.handles[8:], "<u8").tolist()
            assert array((await rig.stream.step(HISTORY, [handle], [1], [[2]])).outputs[0]).tolist() == [[12]]
            await rig.written(rig.rows(opened)[1:])
            record = await rig.record(kept)
            assert record is not None and record.next_position == 2

    asyncio.run(check())


def test_a_session_that_changed_while_it_was_written_is_told_its_epoch_alone(repository: Path, tmp_path: Path) -> None:
    """Reset meanwhile: what was written is not its position, but is what its next write finds."""

    async def check() -> None:
        async with _rig(repository, tmp_path) as rig:
            opened = await rig.stream.open("history")
            (row,) = rows = rig.rows(opened)
            table = rig.server.host.table
            await rig.stepped(opened, 0, 1)
            table.attach(row, int(table.route[row]) >> MODEL_BITS)  # So that the write brings a new epoch.
            with rig.store_held():
                before = rig.server.host.persistence.persist(rows)
                await rig.gathered()
                after = await rig.stream.post(
                    reset=inference_pb2.ResetSessions(handles=table.handle[rows].astype("<u8").tobytes())
                )
                await until(lambda: table.next_position[row] == 0)
            with pytest.raises(EddyError):
                await before
            assert table.durable_position[row] == NOT_STORED, "the write was of another epoch"
            assert not (await after).reset.errors
            assert table.durable_position[row] == 0
            record = await rig.record(opened.session_ids[0])
            assert record is not None
            assert (record.next_position, record.epoch) == (0, int(table.handle[row]) >> 32)

    asyncio.run(check())


def test_whoever_has_the_row_of_a_session_that_was_closed_is_told_nothing(repository: Path, tmp_path: Path) -> None:
    """The closed one's write was fenced, or found nothing; the next session in its row goes on, and is durable."""

    async def check() -> None:
        async with _rig(repository, tmp_path) as rig:
            table = rig.server.host.table
            for is_taken in (True, False):
                opened = await rig.stream.open("history")
                (session_id,) = opened.session_ids
                epochs = np.frombuffer(opened.epochs, "<u4")
                await rig.stepped(opened, 0, 1)
                if is_taken:
                    other = batch([session_id], [int(epochs[0]) + 1], epochs.tolist())
                    await rig.durability.store.call(lambda store, other=other: store.write(other))
                else:
                    await rig.durability.store.call(lambda store, i=session_id, e=epochs: store.delete([i], e))
                with rig.store_held():
                    before = rig.server.host.persistence.persist(rig.rows(opened))
                    await rig.gathered()
                    await rig.stream.send(close=inference_pb2.CloseSessions(handles=opened.handles))
                    opening = asyncio.create_task(rig.stream.open("history"))
                    await until(lambda: table.num_sessions)
                with pytest.raises(EddyError):
                    await before
                again = await opening
                assert rig.rows(again).tolist() == rig.rows(opened).tolist()
                assert await rig.stepped(again, 0, 4) == [4]
                await rig.written(rig.rows(again))
                record = await rig.record(again.session_ids[0])
                assert record is not None and record.next_position == 1
                assert rig.durability.health.stats.num_fenced == 0
                assert not rig.stream.notices
                await rig.stream.send(close=inference_pb2.CloseSessions(handles=again.handles))

    asyncio.run(check())


# What waits for what


async def _asked_all_the_time(rig: Rig, rows: np.ndarray, is_over: asyncio.Event) -> int:
    """Has `rows` written again and again, the next time asked for before anything else can be; how often."""
    count = 0
    while not is_over.is_set():
        await rig.written(rows)
        count += 1
    return count


def test_a_checkpoint_ends_though_somebody_asks_all_the_time(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins when it is due, and each write takes a piece of it: no more writes than pieces until it is through."""
    monkeypatch.setattr(checkpointer, "_PIECE_ROWS", 4)

    async def check() -> None:
        async with _rig(repository, tmp_path) as rig:
            table, stats = rig.server.host.table, rig.durability.health.stats
            opened, other = await rig.stream.open("history", 40), await rig.stream.open("history")
            await rig.stepped(opened, 0, 1)
            is_over = asyncio.Event()
            asking = asyncio.gather(*[_asked_all_the_time(rig, rig.rows(other), is_over) for _ in range(4)])
            num_before = stats.num_written
            await until(lambda: stats.num_written > num_before + 3)
            assert (table.durable_position[rig.rows(opened)] == 0).all()
            num_before, rig.now = stats.num_written, CHECKPOINT_SECONDS
            await until(lambda: bool((table.durable_position[rig.rows(opened)] == 1).all()))
            # Ten pieces, each with the session that is asked for, and what was under way when it became due.
            assert stats.num_written <= num_before + 40 + 12
            await until(lambda: sum(stats.checkpoint_time.counts))
            is_over.set()
            assert min(await asking) > 3

    asyncio.run(check())


def test_who_asks_waits_for_no_more_than_a_piece(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for while the first of ten pieces is written, a session is written with the second."""
    monkeypatch.setattr(checkpointer, "_PIECE_ROWS", 4)

    async def check() -> None:
        async with _rig(repository, tmp_path) as rig:
            table = rig.server.host.table
            opened, other = await rig.stream.open("history", 40), await rig.stream.open("history")
            await rig.stepped(opened, 0, 1)
            with rig.store_held():
                rig.now = CHECKPOINT_SECONDS
                waking = rig.server.host.persistence.persist(rig.rows(other))
                await rig.gathered()
                asked = rig.server.host.persistence.persist(rig.rows(other))
            await waking
            await asked
            assert np.count_nonzero(table.durable_position[rig.rows(opened)]) == 8

    asyncio.run(check())


# Sessions that come back, and sessions that go


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_session_that_came_back_is_not_fenced_by_a_late_write(tmp_path: Path, *, is_elsewhere: bool) -> None:
    """What this server wrote of the session's life before, later than the session was read, is nobody else's.

    `is_elsewhere`: another session has its row by then.
    """
    for name in ("history", "lstm"):
        write_model(tmp_path / "models", name)

    async def check() -> None:
        async with _rig(tmp_path / "models", tmp_path) as rig:
            host, table = rig.server.host, rig.server.host.table
            opened, slow = await rig.stream.open("history"), await rig.stream.open("lstm")
            inputs = LSTM.example(np.random.default_rng(1), 1)
            await rig.stream.step(LSTM, np.frombuffer(slow.handles, "<u8").tolist(), [0], *[x[None] for x in inputs])
            (row,) = rows = rig.rows(opened)
            model, held = host.catalog.ready("history", ""), host.catalog.ready("lstm", "")
            with rig.engine_held(held):
                # A new epoch is gathered at once; it is written once the states of the other model's are read.
                for _ in range(2):
                    table.attach(int(row), int(table.route[row]) >> MODEL_BITS)
                late = host.persistence.persist(np.concatenate((rows, rig.rows(slow))))
                await until(lambda: held.num_reads)
                rig.quarantine(model, rows)
                if is_elsewhere:
                    host.opening.open("history", "", 1, 1, 60.0, NO_STREAM)
                coming = asyncio.create_task(host.persistence.recall(opened.session_ids[0]))
                await until(lambda: table.find(opened.session_ids[0]))
                assert (table.find(opened.session_ids[0]) != row) == is_elsewhere
            with pytest.raises(EddyError):
                await late
            again = await asyncio.wait_for(coming, PATIENCE_SECONDS)
            # From another row it begins in an epoch that the late write has reached: it is read once more.
            assert rig.durability.health.stats.num_fenced == is_elsewhere
            record = await rig.record(opened.session_ids[0])
            assert record is not None and record.epoch == int(table.handle[again]) >> 32
            attached = (await rig.stream.send(attach=attach_request(opened))).attached
            answer = await rig.stream.step(HISTORY, [attached.handle], [0], [[7]])
            assert array(answer.outputs[0]).tolist() == [[7]]

    asyncio.run(check())


def test_a_session_that_is_coming_back_is_not_written_before_it_is_whole(repository: Path, tmp_path: Path) -> None:
    """Asked for while its states are not there yet, it is nobody's to write: its epoch in the store is not known."""

    async def check() -> None:
        async with _rig(repository, tmp_path) as rig:
            host, table = rig.server.host, rig.server.host.table
            opened, other = await rig.stream.open("history"), await rig.stream.open("history")
            (session_id,), model = opened.session_ids, host.catalog.ready("history", "")
            await rig.stepped(opened, 0, 1)
            await rig.written(rig.rows(opened))
            rig.quarantine(model, rig.rows(opened))
            with rig.engine_held(model):
                coming = asyncio.create_task(host.persistence.recall(session_id))
                await until(lambda: table.find(session_id))
                await rig.written(np.array([table.find(session_id), *rig.rows(other)]))
                assert not coming.done()
            await asyncio.wait_for(coming, PATIENCE_SECONDS)
            assert rig.durability.health.stats.num_fenced == 0
            attached = (await rig.stream.send(attach=attach_request(opened))).attached
            answer = await rig.stream.step(HISTORY, [attached.handle], [1], [[2]])
            assert array(answer.outputs[0]).tolist() == [[12]]

    asyncio.run(check())


def test_what_is_closed_goes_though_its_last_write_was_not_answered(repository: Path, tmp_path: Path) -> None:
    """The store has a later epoch of the closed session than this process knows of: deleted where this one wrote it."""

    async def check() -> None:
        async with _rig(repository, tmp_path) as rig:
            opened, other = await rig.stream.open("history", 2), await rig.stream.open("history")
            mine, theirs = opened.session_ids
            record = await rig.record(mine)
            assert record is not None
            for session_id, writer in ((mine, record.writer), (theirs, record.writer + 1)):
                later = batch([session_id], [record.epoch + 1], [record.epoch], writer=writer)
                await rig.durability.store.call(lambda store, later=later: store.write(later))
            await rig.stream.send(close=inference_pb2.CloseSessions(handles=opened.handles))
            await rig.written(rig.rows(other))
            there = await rig.durability.store.call(lambda store: store.read([mine, theirs]))
            assert [each is not None for each in there] == [False, True]

    asyncio.run(check())


def test_a_short_timeout_does_not_end_what_is_stepped(repository: Path, tmp_path: Path) -> None:
    """A record is there until the next checkpoint has written it again, though its session may not be idle so long."""

    async def scenario() -> None:
        state = {"store": f"sqlite:{tmp_path}/store", "checkpoint_seconds": 4.0}
        async with serve(configure(repository, state=state)) as running, running.stream() as stream:
            opened = await stream.open("history", idle_timeout_seconds=1.0)
            assert running.host.durability is not None
            records = await running.host.durability.store.call(lambda store: store.read(list(opened.session_ids)))
            (record,) = [decode(data) for data in records if data is not None]
            assert record.idle_timeout_seconds == 1.0
            assert 7.5 <= record.expires_at - record.written_at <= 8.5

    asyncio.run(scenario())
