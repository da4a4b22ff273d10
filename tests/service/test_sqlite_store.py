"""The state store in one file: what only a file can suffer."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from records import batch

from eddy.service.sqlite_store import SqliteStore
from eddy.service.store import Outcome, StateStore, StoreError
from eddy.service.stores import open_store

IDS = [bytes([number]) * 16 for number in range(8)]


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


def test_a_full_disk_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    """What was there is there; what did not fit is not, not even in part; and with room it can be written."""
    store = open_store(f"sqlite:{tmp_path}/state.db")
    assert isinstance(store, SqliteStore)
    old = batch(IDS, [1] * 8, [0] * 8)
    store.write(old)
    database = store._database  # noqa: SLF001  # no disk is full at a test's wish
    database.execute("PRAGMA max_page_count = 20")
    ids = [number.to_bytes(16, "big") for number in range(2000)]
    large = batch([*IDS, *ids], [1] * 2008, [1] * 8 + [0] * 2000, seed=1)
    with pytest.raises(StoreError, match="the disk is full"):
        store.write(large)
    assert store.read(IDS) == [old.record(row) for row in range(8)]
    assert store.count() == 8
    database.execute("PRAGMA max_page_count = 100000")
    assert not store.write(large).any()
    store.close()


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
