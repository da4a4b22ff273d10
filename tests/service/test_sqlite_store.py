"""The state store in one file: what only a file can suffer."""

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from records import batch

from eddy.service import record_log, sqlite_store
from eddy.service.alignment import PAGE_BYTES
from eddy.service.sqlite_store import SqliteStore
from eddy.service.store import Outcome, StateStore, StoreError
from eddy.service.stores import open_store

IDS = [bytes([number]) * 16 for number in range(8)]


def _ids(count: int) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in range(count)]


def _copy(folder: Path, copy: Path) -> StateStore:
    """What a process that comes after a crash at this moment has of the store in `folder`."""
    copy.mkdir()
    for file in folder.glob("state.db*"):
        shutil.copy(file, copy)
    return _open(f"sqlite:{copy}/state.db")


def _open(url: str) -> StateStore:
    store = open_store(url)
    assert store is not None
    return store


def test_an_error_names_its_store(tmp_path: Path) -> None:
    """So that the log of a server with a wrong path tells which."""
    with pytest.raises(StoreError, match=r"missing/state\.db: it cannot be opened or created"):
        open_store(f"sqlite:{tmp_path}/missing/state.db")


def test_what_has_expired_is_gone(tmp_path: Path) -> None:
    """By the clock that the store is given: unread, unexpected and, a few calls later, no longer in the file."""
    clock = iter([10.0] * 3 + [30.0] * 100)
    store = open_store(f"sqlite:{tmp_path}/state.db", lambda: next(clock))
    assert store is not None
    store.write(batch(IDS[:2], [5, 5], [0, 0], expires_at=20.0))
    assert all(store.read(IDS[:2])), "the clock stands at 10"
    store.write(batch(IDS[2:4], [5, 5], [0, 0], expires_at=40.0))
    assert [record is not None for record in store.read(IDS[:4])] == [False, False, True, True]
    assert store.write(batch(IDS[:2], [6, 6], [5, 0], expires_at=40.0)).tolist() == [Outcome.MISSING, Outcome.WRITTEN]
    assert (store.purge(30.0), store.count()) == (1, 3)
    assert (store.purge(50.0), store.count()) == (3, 0)
    store.close()


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """No database, another's database, and a schema of another version: each in a line that says which."""
    text, other, future = tmp_path / "text", tmp_path / "other.db", tmp_path / "future.db"
    text.write_text("no database at all, but long enough to be looked at as one\n" * 100)
    for path, pragma in ((other, "application_id = 7"), (future, "user_version = 9")):
        if path is future:
            _open(f"sqlite:{path}").close()
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE t (x)")
            database.execute(f"PRAGMA {pragma}")
    for path, why in ((text, "not a database"), (other, "of something else"), (future, "schema version 9")):
        before = path.read_bytes()
        with pytest.raises(StoreError, match=why) as caught:
            open_store(f"sqlite:{path}")
        assert "\n" not in caught.value.message
        assert path.read_bytes() == before


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    """Found when the damaged place is read, and never taken for a session that is not there."""
    path = tmp_path / "state.db"
    store = _open(f"sqlite:{path}")
    ids = [number.to_bytes(16, "big") for number in range(2000)]
    store.write(batch(ids, [1] * 2000, [0] * 2000))
    store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 4)
        file.write(b"\xff" * (size // 2))
    store = _open(f"sqlite:{path}")
    with pytest.raises(StoreError, match="damaged"):
        store.read(ids)
    store.close()


@contextmanager
def _largest_file(num_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond so much: what a full disk is to it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("largest", [73 * PAGE_BYTES, 300_000])
def test_a_full_disk_is_an_error_and_changes_nothing(tmp_path: Path, largest: int) -> None:
    """What was there is there; what did not fit is not, not even in part; and with room it can be written."""
    store = _open(f"sqlite:{tmp_path}/state.db")
    old = batch(IDS, [1] * 8, [0] * 8)
    store.write(old)
    ids = _ids(2000)
    large = batch([*IDS, *ids], [1] * 2008, [1] * 8 + [0] * 2000, seed=1)
    why = r"the disk is full \(state\.db-log: File too large\)"
    with _largest_file(largest), pytest.raises(StoreError, match=why):
        store.write(large)
    assert store.read(IDS) == [old.record(row) for row in range(8)]
    assert store.count() == 8
    # As it is for who comes after a crash.
    with closing(_copy(tmp_path, tmp_path / "crashed")) as copy:
        assert copy.read(IDS) == [old.record(row) for row in range(8)]
        assert copy.count() == 8
    assert not store.write(large).any()
    store.close()


def test_a_log_that_cannot_be_folded_is_an_error(tmp_path: Path) -> None:
    """The disk is full when the log is to go into the file: it grows no more, and nothing that it has is lost."""
    store = SqliteStore(tmp_path / "state.db", time.time, max_log_sessions=1000)
    ids = _ids(2000)
    first = batch(ids, [1] * 2000, [0] * 2000)
    store.write(first)
    database = store._database  # noqa: SLF001  # no disk is full at a test's wish
    database.execute("PRAGMA max_page_count = 20")
    second = batch(ids, [2] * 2000, [1] * 2000, seed=1)
    before = (tmp_path / "state.db-log").stat().st_size
    for _ in range(3):
        with pytest.raises(StoreError, match="the disk is full"):
            store.write(second)
        with pytest.raises(StoreError, match="the disk is full"):
            store.delete(ids, second.epochs)
    assert (tmp_path / "state.db-log").stat().st_size == before
    assert store.read(ids) == [first.record(row) for row in range(2000)]
    with pytest.raises(StoreError, match="the disk is full"):
        store.close()
    store = SqliteStore(tmp_path / "state.db", time.time, max_log_sessions=1000)
    assert store.read(ids) == [first.record(row) for row in range(2000)]
    assert not store.write(second).any()
    store.close()


def test_a_log_is_folded_in_turns(tmp_path: Path) -> None:
    """While sessions go on: a call folds a part, everything is as it was written last, and the log begins anew."""
    num_sessions, piece = 20_000, 2000
    store = SqliteStore(tmp_path / "state.db", time.time, max_log_sessions=num_sessions)
    ids = _ids(num_sessions)
    newest: dict[bytes, bytes | None] = {}
    in_file = []
    lengths = []
    for turn in range(30):
        mine = ids[turn % 10 * piece :][:piece]
        epoch = 1 + turn // 10
        records = batch(mine, [epoch] * piece, [epoch - 1] * piece, seed=turn)
        assert not store.write(records).any()
        newest |= {each: records.record(row) for row, each in enumerate(mine)}
        # Some are deleted, of which some are opened again; in the last round they stay so.
        assert store.delete(mine[:5], records.epochs[:5]) == 5
        newest |= dict.fromkeys(mine[:5])
        opened = mine[: 5 if turn < 20 else 2]
        records = batch(opened, [epoch] * len(opened), [0] * len(opened), seed=turn + 100)
        assert not store.write(records).any()
        newest |= {each: records.record(row) for row, each in enumerate(opened)}
        in_file.append(store._database.execute("SELECT count(*) FROM sessions").fetchone()[0])  # noqa: SLF001
        lengths.append(store._log.num_bytes)  # noqa: SLF001
        assert store.read(mine) == [newest[each] for each in mine]
        assert store.count() == sum(record is not None for record in newest.values())
    assert in_file[8] == 0
    assert all(-30 <= later - before <= 3 * 4096 for before, later in pairwise(in_file))
    assert in_file[-1] >= num_sessions - 3 * 10
    assert any(later < before for before, later in pairwise(lengths)), "the log was never begun anew"
    with closing(_copy(tmp_path, tmp_path / "crashed")) as copy:
        assert copy.read(ids) == [newest[each] for each in ids]
    store.close()
    assert not (tmp_path / "state.db-log").exists()
    with closing(_open(f"sqlite:{tmp_path}/state.db")) as again:
        assert again.read(ids) == [newest[each] for each in ids]


@pytest.mark.parametrize("is_in_file", [False, True])
def test_what_comes_and_goes_within_a_log_is_none_of_the_file(tmp_path: Path, is_in_file: bool) -> None:
    """Short sessions cost what the log costs; one that is in the file is deleted there."""
    store = SqliteStore(tmp_path / "state.db", time.time)
    store.write(batch(IDS, [1] * 8, [0] * 8))
    if is_in_file:
        store.close()
        store = SqliteStore(tmp_path / "state.db", time.time)
    assert store.delete(IDS, np.ones(8, np.uint32)) == 8
    asked: list[str] = []
    store._database.set_trace_callback(asked.append)  # noqa: SLF001
    store.close()
    assert sum("DELETE FROM sessions" in each for each in asked) == is_in_file
    assert not any("INSERT INTO sessions" in each for each in asked)
    with closing(_open(f"sqlite:{tmp_path}/state.db")) as again:
        assert again.read(IDS) == [None] * 8
        assert again.count() == 0


def test_a_log_of_many_bytes_is_folded(tmp_path: Path) -> None:
    """A few sessions that are written again and again."""
    store = SqliteStore(tmp_path / "state.db", time.time, max_log_bytes=100_000)
    for epoch in range(1, 200):
        records = batch(IDS, [epoch] * 8, [epoch - 1] * 8, seed=epoch)
        assert not store.write(records).any()
        assert store.read(IDS) == [records.record(row) for row in range(8)]
    assert (tmp_path / "state.db-log").stat().st_size < 110_000
    store.close()


def test_nothing_is_written_while_nobody_knows_which_log_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transaction that begins the log anew came to the disk, and its answer was an error."""
    store = SqliteStore(tmp_path / "state.db", time.time, max_log_sessions=8)
    store.write(batch(IDS, [1] * 8, [0] * 8))
    begun = store._transaction  # noqa: SLF001
    num_failures = iter(range(3))

    @contextmanager
    def failing() -> Iterator[None]:
        with begun():
            yield
        salts = store._database.execute("SELECT salt FROM log").fetchall()  # noqa: SLF001
        if salts and salts[0][0] != store._log._salt and next(num_failures, None) is not None:  # noqa: SLF001
            raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(store, "_transaction", failing)
    second = batch(IDS, [2] * 8, [1] * 8, seed=1)
    for life in range(3):
        with pytest.raises(StoreError, match="disk I/O error"):
            store.write(second)
        with closing(_copy(tmp_path, tmp_path / str(life))) as copy:
            assert copy.read(IDS) == [batch(IDS, [1] * 8, [0] * 8).record(row) for row in range(8)]
    assert not store.write(second).any()
    with closing(_copy(tmp_path, tmp_path / "crashed")) as copy:
        assert copy.read(IDS) == [second.record(row) for row in range(8)]
    store.close()


def test_a_damaged_log_is_an_error(tmp_path: Path) -> None:
    """Nothing that was told to be durable is left out silently; both files stay as they are."""
    store = _open(f"sqlite:{tmp_path}/state.db")
    for epoch in range(1, 4):
        store.write(batch(IDS, [epoch] * 8, [epoch - 1] * 8))
    folder = tmp_path / "crashed"
    shutil.copytree(tmp_path, folder)
    store.close()
    log = folder / "state.db-log"
    raw = bytearray(log.read_bytes())
    raw[len(raw) // 2] ^= 1
    log.write_bytes(raw)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"its log state\.db-log is damaged at byte \d+, a later batch lies at"):
            _open(f"sqlite:{folder}/state.db")
    assert log.read_bytes() == raw


def test_a_log_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """Somebody copied the file alone, of a server that was killed: what the log had is not forgotten silently."""
    store = _open(f"sqlite:{tmp_path}/state.db")
    store.write(batch(IDS, [1] * 8, [0] * 8))
    folder = tmp_path / "crashed"
    folder.mkdir()
    for name in ("state.db", "state.db-wal"):
        shutil.copy(tmp_path / name, folder)
    store.close()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"its log state\.db-log is missing: put it back, or create it empty"):
            _open(f"sqlite:{folder}/state.db")
    (folder / "state.db-log").touch()
    with closing(_open(f"sqlite:{folder}/state.db")) as again:
        assert again.read(IDS) == [None] * 8
    # Of a server that has ended well there is none, and none is missed.
    with closing(_open(f"sqlite:{tmp_path}/state.db")) as again:
        assert None not in again.read(IDS)


def test_a_log_without_its_database_is_an_error(tmp_path: Path) -> None:
    """Each time, until somebody decides: what the log has is neither forgotten nor taken for another database's."""
    store = _open(f"sqlite:{tmp_path}/state.db")
    store.write(batch(IDS, [1] * 8, [0] * 8))
    shutil.copy(tmp_path / "state.db-log", tmp_path / "kept")
    store.close()
    (tmp_path / "kept").rename(tmp_path / "state.db-log")
    (tmp_path / "state.db").unlink()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"it is missing, its log state\.db-log is not: put it back, or remove"):
            _open(f"sqlite:{tmp_path}/state.db")
    (tmp_path / "state.db-log").unlink()
    with closing(_open(f"sqlite:{tmp_path}/state.db")) as again:
        assert again.read(IDS) == [None] * 8


def test_a_log_lies_beside_the_file_and_is_read_by_the_same_people(tmp_path: Path) -> None:
    """By whatever link the store is named: another name of it would find no log."""
    folder = tmp_path / "disk"
    folder.mkdir()
    path = folder / "state.db"
    _open(f"sqlite:{path}").close()
    path.chmod(0o640)
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with closing(_open(f"sqlite:{link}")) as store:
        store.write(batch(IDS, [1] * 8, [0] * 8))
        assert sorted(file.name for file in folder.iterdir()) == ["state.db", "state.db-log", "state.db-wal"]
        assert (folder / "state.db-log").stat().st_mode & 0o777 == 0o640
        with closing(_copy(folder, tmp_path / "crashed")) as copy:
            assert None not in copy.read(IDS)


def test_a_session_larger_than_the_file_takes_is_refused(tmp_path: Path) -> None:
    """Before it is in a log that could never be folded."""
    store = SqliteStore(tmp_path / "state.db", time.time)
    store.write(batch(IDS, [1] * 8, [0] * 8))
    store._database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, (32 << 20) + 100)  # noqa: SLF001  # a gigabyte otherwise
    with pytest.raises(StoreError, match=r"a session of \d+ bytes is larger than SQLite takes, 100"):
        store.write(batch(IDS, [2] * 8, [1] * 8))
    store._database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1 << 30)  # noqa: SLF001
    assert store.read(IDS) == [batch(IDS, [1] * 8, [0] * 8).record(row) for row in range(8)]
    store.close()
    store.close()  # Again, it is nothing.


def test_what_a_killed_process_left_is_on_the_disk_when_a_store_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last batch may be in memory only: whoever builds on it writes it again, and waits for the disk."""
    store = _open(f"sqlite:{tmp_path}/state.db")
    for epoch in (1, 2):
        store.write(batch(IDS, [epoch] * 8, [epoch - 1] * 8))
    done: list[str] = []
    write, sync = os.pwritev, record_log._sync  # noqa: SLF001
    monkeypatch.setattr(os, "pwritev", lambda *args: (done.append(f"write at {args[2]}"), write(*args))[1])
    monkeypatch.setattr(record_log, "_sync", lambda file: (done.append("sync"), sync(file))[1])
    with closing(_copy(tmp_path, tmp_path / "crashed")) as copy:
        size = (tmp_path / "crashed" / "state.db-log").stat().st_size
        assert done == [f"write at {size // 2}", "sync"]
        # What SQLite had in its own log is in the file.
        assert (tmp_path / "crashed" / "state.db-wal").stat().st_size == 0
        assert copy.read(IDS) == [batch(IDS, [2] * 8, [1] * 8).record(row) for row in range(8)]
    monkeypatch.undo()
    store.close()


def test_reasons_are_told_of_errors_that_there_are() -> None:
    """Each name is one of SQLite's."""
    assert all(hasattr(sqlite3, name) for name in sqlite_store._REASONS)  # noqa: SLF001


def test_a_log_of_another_store_is_none_of_this_one(tmp_path: Path) -> None:
    """Somebody put it beside a database that has ended well, and needs none."""
    store = _open(f"sqlite:{tmp_path}/state.db")
    store.write(batch(IDS, [1] * 8, [0] * 8))
    folder = tmp_path / "begun"
    folder.mkdir()
    _open(f"sqlite:{folder}/state.db").close()
    shutil.copy(tmp_path / "state.db-log", folder)
    store.close()
    store = _open(f"sqlite:{folder}/state.db")
    assert store.read(IDS) == [None] * 8
    assert not store.write(batch(IDS, [1] * 8, [0] * 8, seed=1)).any()
    store.close()


def test_a_file_without_a_log_is_taken_over(tmp_path: Path) -> None:
    """Schema version 1: its sessions are there, and go on."""
    path = tmp_path / "state.db"
    records = batch(IDS, [5] * 8, [0] * 8)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(
            "CREATE TABLE sessions (id BLOB NOT NULL UNIQUE, epoch INTEGER NOT NULL, writer BLOB NOT NULL, "
            "expires REAL NOT NULL, record BLOB NOT NULL)"
        )
        rows = [(each, 5, bytes(8), 4e9, records.record(row)) for row, each in enumerate(IDS)]
        database.executemany("INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", rows)
        database.execute("PRAGMA application_id = 1162101849")
        database.execute("PRAGMA user_version = 1")
    for _ in range(2):
        with closing(_open(f"sqlite:{path}")) as store:
            assert store.read(IDS) == [records.record(row) for row in range(8)]
    with closing(_open(f"sqlite:{path}")) as store:
        assert store.write(batch(IDS, [6] * 8, [5] * 7 + [4])).tolist() == [Outcome.WRITTEN] * 7 + [Outcome.FENCED]


_WRITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from records import batch
from eddy.service.sqlite_store import SqliteStore
store = SqliteStore(Path(sys.argv[1]), time.time, max_log_sessions=300)
ids = [number.to_bytes(16, "big") for number in range(400)]
for turn in range(int(sys.argv[3]), 1_000_000):
    outcomes = store.write(batch(ids, [turn] * 400, [turn - 1] * 400, seed=turn))
    assert not outcomes.any()
    print(turn, flush=True)
"""


def test_killed_while_the_log_is_folded(tmp_path: Path) -> None:
    """Every write folds what the last one left: killed ten times, file and log have the last batch or the next."""
    path = tmp_path / "state.db"
    ids, turn = _ids(400), 0
    for life in range(10):
        command = [sys.executable, "-c", _WRITER, str(path), str(Path(__file__).parents[1]), str(turn + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:  # noqa: S603
            assert writer.stdout is not None
            turns = [int(writer.stdout.readline()) for _ in range(2 + life)]
            time.sleep(0.0007 * life)
            writer.kill()
            turns += [int(line) for line in writer.stdout]
        with closing(SqliteStore(path, time.time)) as store:
            found = store.read(ids)
        turn = turns[-1]
        if found[0] == batch(ids, [turn + 1] * 400, [0] * 400, seed=turn + 1).record(0):
            turn += 1
        whole = batch(ids, [turn] * 400, [0] * 400, seed=turn)
        assert found == [whole.record(row) for row in range(400)], life


@pytest.mark.parametrize("place", ["", "/proc"], ids=["a folder", "a folder that nobody may write"])
def test_a_place_that_cannot_be_written_is_an_error(place: str, tmp_path: Path) -> None:
    """At the start, in one line."""
    path = Path(place) / "state.db" if place else tmp_path
    with pytest.raises(StoreError, match="cannot be opened or created"):
        open_store(f"sqlite:{path}")


_HOLDER = """
import sys, time
from eddy.service.stores import open_store
store = open_store(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_server_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    """The lock is the operating system's: a process that was killed leaves none behind."""
    url = f"sqlite:{tmp_path}/state.db"
    command = [sys.executable, "-c", _HOLDER, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:  # noqa: S603
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match="another server has it open"):
            open_store(url)
        holder.kill()
        holder.wait()
        _open(url).close()
