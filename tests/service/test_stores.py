"""State stores against a dictionary: the same battery for SQLite and for a real Redis."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from records import NEVER, batch, checkpoint
from redis_server import RedisServer, needs_redis, redis_server

from eddy.service.ports import State
from eddy.service.record import decode, encode
from eddy.service.record_model import layout_of
from eddy.service.sqlite_store import SqliteStore
from eddy.service.store import Outcome, StateStore
from eddy.service.stores import open_store

PAST = 1000.0
IDS = [bytes([number]) * 16 for number in range(8)]
_NUMBERS = count()


@dataclass(frozen=True)
class Kept:
    """What the store ought to have of a session."""

    epoch: int
    writer: int
    record: bytes


class StoreMachine(RuleBasedStateMachine):
    """Writes, reads and deletes, and has the dictionary do the same."""

    def open(self) -> StateStore | None:
        """An empty store."""
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        """Both are empty."""
        store = self.open()
        assert store is not None
        self.store = store
        self.kept: dict[bytes, Kept] = {}

    @rule(
        rows=st.lists(
            st.tuples(st.sampled_from(IDS), st.integers(1, 4), st.sampled_from(["right", "none", "other"])),
            min_size=1,
            max_size=6,
            unique_by=lambda row: row[0],
        ),
        seed=st.integers(0, 20),
        writer=st.integers(1, 2),
        is_past=st.sampled_from([False, False, False, True]),
    )
    def write(self, rows: list[tuple[bytes, int, str]], seed: int, writer: int, *, is_past: bool) -> None:
        """Each record is written exactly where the epoch is the expected one, or was written so already."""
        ids = [each for each, _, _ in rows]
        epochs = [epoch for _, epoch, _ in rows]
        kept = [self.kept.get(each) for each in ids]
        present = [found.epoch if found else 0 for found in kept]
        expected = [
            {"right": mine, "none": 0, "other": mine + 1}[how] for mine, (_, _, how) in zip(present, rows, strict=True)
        ]
        records = batch(ids, epochs, expected, seed=seed, writer=writer, expires_at=PAST if is_past else NEVER)
        outcomes = self.store.write(records).tolist()
        for row, (found, wanted) in enumerate(zip(kept, expected, strict=True)):
            if not found:
                assert outcomes[row] == (Outcome.MISSING if wanted else Outcome.WRITTEN)
            else:
                is_mine = (found.epoch, found.writer) == (epochs[row], writer)
                assert outcomes[row] == (Outcome.WRITTEN if wanted == found.epoch or is_mine else Outcome.FENCED)
            if outcomes[row] == Outcome.WRITTEN:
                self.kept[ids[row]] = Kept(epochs[row], writer, records.record(row))
                if is_past:
                    del self.kept[ids[row]]

    @rule(ids=st.lists(st.sampled_from(IDS), max_size=6))
    def read(self, ids: list[bytes]) -> None:
        """What was written last, byte for byte, in the order asked for."""
        expected = [found.record if (found := self.kept.get(each)) else None for each in ids]
        assert self.store.read(ids) == expected

    @rule(
        ids=st.lists(st.sampled_from(IDS), max_size=4, unique=True),
        epoch=st.integers(0, 4),
        writer=st.integers(0, 2),
    )
    def delete(self, ids: list[bytes], epoch: int, writer: int) -> None:
        """What is of the epoch or of the writer goes, what is of others stays."""
        present = [(each, self.kept[each]) for each in ids if each in self.kept]
        doomed = [each for each, found in present if found.epoch == epoch or found.writer == writer]
        assert self.store.delete(ids, np.full(len(ids), epoch, np.uint32), writer) == len(doomed)
        for each in doomed:
            del self.kept[each]

    @rule()
    def purge(self) -> None:
        """What has expired goes, and nothing else."""
        self.store.purge(2 * PAST)
        self.store.read(IDS)  # Redis counts what has expired until somebody asks for it.
        assert self.store.count() == len(self.kept)

    def teardown(self) -> None:
        """Ends what `open` began."""
        if hasattr(self, "store"):
            assert self.store.read(IDS) == [found.record if (found := self.kept.get(each)) else None for each in IDS]
            self.store.close()


class SqliteMachine(StoreMachine):
    """In a file of its own, with a log that is full after a few sessions, or never."""

    def open(self) -> StateStore | None:
        """An empty store."""
        self.folder = Path(tempfile.mkdtemp())
        self.life = 0
        self.max_log_sessions = 1 << 17
        (self.folder / "0").mkdir()
        return self._open()

    def _open(self) -> SqliteStore:
        return SqliteStore(self.folder / str(self.life) / "state.db", time.time, max_log_sessions=self.max_log_sessions)

    @rule(max_log_sessions=st.sampled_from([1, 2, 5, 1 << 17]), is_killed=st.booleans())
    def restart(self, max_log_sessions: int, *, is_killed: bool) -> None:
        """Ended well, or killed at this moment: the next process has all."""
        here = self.folder / str(self.life)
        self.life += 1
        if is_killed:
            shutil.copytree(here, self.folder / str(self.life))
        self.store.close()
        if not is_killed:
            assert [path.name for path in here.iterdir()] == ["state.db"]
            here.rename(self.folder / str(self.life))
        self.max_log_sessions = max_log_sessions
        self.store = self._open()

    def teardown(self) -> None:
        """Ends what `open` began."""
        super().teardown()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


class RedisMachine(StoreMachine):
    """In one Redis for all."""

    server: RedisServer

    def open(self) -> StateStore | None:
        """An empty store."""
        import redis

        with redis.Redis(port=self.server.port) as client:
            client.flushall()
        return open_store(self.server.url())


@pytest.fixture(scope="module")
def redis_running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis for the module's tests, which tell their keys apart by their prefix."""
    with redis_server(tmp_path_factory.mktemp("redis"), "--appendonly", "yes") as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs_redis)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty store is."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'state.db'}"
    server: RedisServer = request.getfixturevalue("redis_running")
    return server.url(f"test-{next(_NUMBERS)}")


def _open(url: str) -> StateStore:
    store = open_store(url)
    assert store is not None
    return store


def test_sqlite_is_a_dictionary_with_epochs() -> None:
    """Any sequence of calls has the outcome that a dictionary would have."""
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        SqliteMachine, settings=settings(max_examples=60, stateful_step_count=25)
    )


@needs_redis
def test_redis_is_a_dictionary_with_epochs(redis_running: RedisServer) -> None:
    """Any sequence of calls has the outcome that a dictionary would have."""
    from hypothesis.stateful import run_state_machine_as_test

    RedisMachine.server = redis_running
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        RedisMachine, settings=settings(max_examples=60, stateful_step_count=25)
    )


def test_thousands_of_sessions_of_all_sizes_in_one_batch(url: str) -> None:
    """More than one piece, and records that do not follow each other, because a few among them are fenced."""
    ids = [number.to_bytes(16, "big") for number in range(2500)]
    store = _open(url)
    first = batch(ids, [1] * 2500, [0] * 2500)
    assert not store.write(first).any()
    fenced = np.arange(2500) % 7 == 3
    second = batch(ids, [2] * 2500, np.where(fenced, 9, 1).tolist(), seed=1)
    assert np.array_equal(store.write(second) == Outcome.FENCED, fenced)
    records = store.read(ids)
    assert records == [(first if fenced[row] else second).record(row) for row in range(2500)]
    assert store.delete(ids, np.full(2500, 2, np.uint32)) == int((~fenced).sum())
    assert [record is not None for record in store.read(ids)] == fenced.tolist()
    assert store.size_bytes() > 0
    store.close()


@pytest.mark.parametrize("change", ["none", "missing", "missing_last", "fenced", "writer"])
def test_sessions_that_go_on(url: str, change: str) -> None:
    """Thousands in more than one statement, all as the store has them but one: that one alone is not written."""
    ids = [number.to_bytes(16, "big") for number in range(5000)]
    store = _open(url)
    store.write(batch(ids, [3] * 5000, [0] * 5000))
    odd = {"missing_last": 4999}.get(change, 4321)
    if change.startswith("missing"):
        assert store.delete([ids[odd]], np.array([3], np.uint32)) == 1
    if change == "fenced":
        store.write(batch([ids[odd]], [4], [3]))
    before = store.read([ids[odd]])
    second = batch(ids, [3] * 5000, [3] * 5000, seed=1)
    if change == "writer":
        second = replace(second, writer=second.writer + 1)
    expected = np.full(5000, Outcome.WRITTEN, np.int8)
    if change.startswith("missing"):
        expected[odd] = Outcome.MISSING
    if change == "fenced":
        expected[odd] = Outcome.FENCED
    assert np.array_equal(store.write(second), expected)
    records = store.read(ids)
    for row in range(5000):
        wanted = second.record(row) if expected[row] == Outcome.WRITTEN else before[0]
        assert records[row] == wanted, row
    # What is missing can be written when it is known to be.
    if change.startswith("missing"):
        assert store.write(batch([ids[odd]], [3], [0])).tolist() == [Outcome.WRITTEN]
    assert store.delete(ids, np.full(5000, 3, np.uint32)) == 5000 - (change == "fenced")
    store.close()


def test_large_states_in_more_than_one_piece(url: str) -> None:
    """A mebibyte a session, forty of them: more than one statement takes; some of them fenced."""
    ids = [bytes([number]) * 16 for number in range(40)]
    small = checkpoint(40)
    values = np.random.default_rng(0).standard_normal((40, 1 << 18)).astype(np.float32)
    state = State("h", "n", np.dtype("<f4"), 1, (1 << 18,), values[0], 1 << 20)
    large = replace(
        small,
        model=replace(small.model, layout=layout_of([state])),
        session_ids=np.frombuffer(b"".join(ids), np.uint8).reshape(40, 16),
        epochs=np.ones(40, np.uint32),
        is_initial=np.zeros(40, np.bool_),
        states=(values,),
    )
    store = _open(url)
    fenced = [3, 17, 39]
    store.write(batch([ids[row] for row in fenced], [7] * 3, [0] * 3))
    outcomes = store.write(encode(large))
    assert np.flatnonzero(outcomes == Outcome.FENCED).tolist() == fenced
    for row, record in enumerate(store.read(ids)):
        assert record is not None
        if row not in fenced:
            assert np.array_equal(decode(record).states[0], values[row])
    assert store.delete(ids, np.where(np.isin(np.arange(40), fenced), 7, 1)) == 40
    store.close()


def test_an_empty_batch_is_no_call(url: str) -> None:
    """Nothing written, read or deleted is no error."""
    store = _open(url)
    assert store.write(batch([b"x" * 16], [1], [1])).tolist() == [Outcome.MISSING]
    assert store.read([]) == []
    assert store.delete([], np.zeros(0, np.uint32)) == 0
    store.close()


def test_what_was_stored_is_there_when_opened_again(url: str) -> None:
    """By another store of the same place."""
    records = batch(IDS, [1] * 8, [0] * 8)
    store = _open(url)
    store.write(records)
    store.close()
    store = _open(url)
    found = store.read(IDS)
    assert found == [records.record(row) for row in range(8)]
    assert [decode(record).session_id for record in found if record] == IDS
    store.close()


def test_a_write_whose_answer_was_lost_is_repeated(url: str) -> None:
    """The same writer may write under its new epoch again; another one may not."""
    store = _open(url)
    store.write(batch(IDS[:1], [1], [0]))
    for writer, outcome in ((5, Outcome.WRITTEN), (5, Outcome.WRITTEN), (6, Outcome.FENCED)):
        assert store.write(batch(IDS[:1], [2], [1], writer=writer)).tolist() == [outcome]
    store.close()


def test_memory_is_no_store() -> None:
    """Nothing is opened."""
    assert open_store("memory") is None


_WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from records import batch
from eddy.service.stores import open_store
store = open_store(sys.argv[1])
ids = [number.to_bytes(16, "big") for number in range(300)]
for turn in range(1, 1_000_000):
    outcomes = store.write(batch(ids, [turn] * 300, [turn - 1] * 300, seed=turn))
    assert not outcomes.any()
    print(turn, flush=True)
"""


@pytest.mark.parametrize("num_turns", [1, 2, 7])
def test_a_killed_writer_leaves_old_or_new(url: str, num_turns: int) -> None:
    """Each record is whole, and of the batch that was acknowledged last or of the next one."""
    command = [sys.executable, "-c", _WRITER, url, str(Path(__file__).parents[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:  # noqa: S603
        assert writer.stdout is not None
        turns = [int(writer.stdout.readline()) for _ in range(num_turns)]
        writer.kill()
        turns += [int(line) for line in writer.stdout]
    last = turns[-1]
    store = _open(url)
    ids = [number.to_bytes(16, "big") for number in range(300)]
    whole = [batch(ids, [turn] * 300, [0] * 300, seed=turn) for turn in (last, last + 1)]
    found = store.read(ids)
    kinds = {[each.record(row) for each in whole].index(record) for row, record in enumerate(found) if record}
    assert None not in found
    assert kinds
    if url.startswith("sqlite"):
        assert len(kinds) == 1, "a batch is one transaction"
    store.close()
