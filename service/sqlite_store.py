"""The state store in one file, by SQLite: nothing to install and no server, for one process at a time.

Owns the only import of sqlite3, the file's schema and its lock. Must not know what is in a record. A batch is one
transaction, on the disk when `write` returns; its rows are cut out of a few bound blobs inside SQLite, by one
statement, so that Python's lock is free meanwhile.

Dimension key: B records of a call.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from eddy.service.record_format import SESSION_ID_BYTES, Batch
from eddy.service.store import Outcome, StoreError

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x45444459  # "EDDY"
# A few records a page; SQLite's usual 4,096 bytes hold two of LSTM 128 and leave a quarter empty.
_PAGE_BYTES = 16384
# The log is copied into the file when it is so long: by a busy server every few seconds, not with every batch.
_LOG_PAGES = 8192
# Pages that a batch changes stay in memory until it is written.
_CACHE_KIB = 65536
# Of one statement's blobs: what SQLite takes is bounded, and so is the memory that copies of them need.
_PIECE_BYTES = 32 << 20
# Of one statement's rows.
_PIECE_ROWS = 4096
# Rows that one call of `purge` looks at, so that no checkpoint waits long for it.
_PURGE_ROWS = 50_000

_CREATE = f"""
CREATE TABLE sessions (
  id BLOB NOT NULL UNIQUE,
  epoch INTEGER NOT NULL,
  writer BLOB NOT NULL,
  expires REAL NOT NULL,
  record BLOB NOT NULL
);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""
# Rows to count by: a scan of it takes a third of what counting by recursion does.
_COUNT = f"""
CREATE TEMPORARY TABLE numbers (i INTEGER PRIMARY KEY);
WITH RECURSIVE number(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM number WHERE i + 1 < {_PIECE_ROWS})
INSERT INTO numbers SELECT i FROM number;
"""  # noqa: S608
# What is bound are numbers and blobs, never names; `_Columns` says how a row's numbers are read.
_ROWS = "WITH row(i) AS (SELECT i FROM numbers WHERE i < :count)"
_ID = f"substr(:ids, i * {SESSION_ID_BYTES} + 1, {SESSION_ID_BYTES})"
_READ = f"{_ROWS} SELECT i, s.record FROM row JOIN sessions s ON s.id = {_ID} WHERE s.expires > :now"  # noqa: S608


@lru_cache(maxsize=64)
def _refused(expected: str, epochs: str) -> str:
    return f"""{_ROWS}
SELECT i, s.id IS NULL OR s.expires <= :now FROM row LEFT JOIN sessions s ON s.id = {_ID}
WHERE CASE WHEN s.expires > :now THEN s.epoch ELSE 0 END != {expected}
  AND NOT coalesce(s.expires > :now AND s.epoch = {epochs} AND s.writer = :writer, 0)
"""  # noqa: S608


@lru_cache(maxsize=64)
def _write(epochs: str, expires: str, offsets: str, sizes: str, condition: str) -> str:
    return f"""{_ROWS}
INSERT INTO sessions (id, epoch, writer, expires, record)
SELECT {_ID}, {epochs}, :writer, {expires} / 1000.0, substr(:data, {offsets} + 1, {sizes})
FROM row WHERE true
ON CONFLICT (id) DO UPDATE
SET epoch = excluded.epoch, writer = excluded.writer, expires = excluded.expires, record = excluded.record
WHERE {condition}
"""  # noqa: S608


# Which of the rows that are there may be written over: the session goes on under its epoch; `_refused` has looked.
_GOES_ON = "sessions.epoch = excluded.epoch AND sessions.expires > :now"
_ANY = "true"


@lru_cache(maxsize=64)
def _delete(epochs: str) -> str:
    return f"""{_ROWS}
DELETE FROM sessions WHERE rowid IN (
  SELECT s.rowid FROM row JOIN sessions s ON s.id = {_ID}
  WHERE s.epoch = {epochs} AND s.expires > :now
)
"""  # noqa: S608


class SqliteStore:
    """A `StateStore` in the file at `path`.

    Args:
        clock: unix seconds.

    Raises:
        StoreError: it cannot be opened, another server has it open, or it is not a store of this version.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        # Used by one thread at a time.
        self._next_purged = 0
        with self._failing():
            # An absent folder is told better by SQLite than by the first write; no time is waited for a lock.
            self._database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            with self._failing():
                self._prepare()
        except BaseException:
            self._database.close()
            raise

    def _prepare(self) -> None:
        database = self._database
        database.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        # One process has the file: others find it locked, until this one ends, in whatever way.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("BEGIN EXCLUSIVE")
        has_tables = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        database.execute("COMMIT")
        if has_tables and application != _APPLICATION_ID:
            raise self._error("it is a database of something else: name another file")
        if has_tables and version != SCHEMA_VERSION:
            raise self._error(f"it has schema version {version}, this server reads {SCHEMA_VERSION}")
        (mode,) = database.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise self._error(f"its folder allows no write-ahead log (journal mode {mode})")
        # A commit is on the disk when it returns, so that what is told to be durable survives a loss of power.
        database.execute("PRAGMA synchronous = FULL")
        database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        database.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        database.execute(f"PRAGMA journal_size_limit = {2 * _LOG_PAGES * _PAGE_BYTES}")
        database.execute("BEGIN EXCLUSIVE")
        if not has_tables:
            for statement in filter(str.strip, _CREATE.split(";")):
                database.execute(statement)
        database.execute("COMMIT")
        database.execute("PRAGMA temp_store = MEMORY")
        database.executescript(_COUNT)

    def write(self, batch: Batch) -> np.ndarray:
        """See `StateStore`."""
        outcomes = np.full(len(batch), Outcome.WRITTEN, np.int8)
        pieces = _pieces(batch)
        with self._failing():
            # Nearly every batch: sessions that the store has and that go on under their epochs.
            if (batch.epochs == batch.expected_epochs).all() and batch.epochs.all():
                with suppress(_UnknownError):
                    self._write_known(batch, pieces)
                    return outcomes
            with self._transaction():
                for rows in pieces:
                    outcomes[rows] = self._write_checked(batch, rows)
        return outcomes

    def _write_known(self, batch: Batch, pieces: list[np.ndarray]) -> None:
        """Writes the batch.

        Raises:
            _UnknownError: the store lacks a session of it, or has it under another epoch; nothing was written.
        """
        with self._transaction():
            # A row that was not there gets a number above all others.
            last = self._last_row()
            for rows in pieces:
                self._put(batch, rows, batch.offsets.item(rows[0]), _GOES_ON)
                if self._num_changes() != len(rows):
                    raise _UnknownError
            if self._last_row() != last:
                raise _UnknownError

    def _write_checked(self, batch: Batch, rows: np.ndarray) -> np.ndarray:
        """Writes those of `rows` of `batch`, consecutive, that may be; their outcomes."""
        outcomes = np.full(len(rows), Outcome.WRITTEN, np.int8)
        start = batch.offsets.item(rows[0])
        columns = _Columns(self._about(batch, rows))
        statement = _refused(
            columns.add("expected", batch.expected_epochs[rows]), columns.add("epochs", batch.epochs[rows])
        )
        for index, is_missing in self._database.execute(statement, columns.bound).fetchall():
            outcomes[index] = Outcome.MISSING if is_missing else Outcome.FENCED
        rows = rows[outcomes == Outcome.WRITTEN]
        if len(rows):
            self._put(batch, rows, start, _ANY)
        return outcomes

    def _put(self, batch: Batch, rows: np.ndarray, start: int, condition: str) -> None:
        """Inserts `rows` of `batch`, whose records lie behind `start`, or writes over those there, on a condition."""
        end = batch.offsets.item(rows[-1]) + batch.sizes.item(rows[-1])
        columns = _Columns(self._about(batch, rows) | {"data": batch.data.data[start:end]})
        statement = _write(
            columns.add("epochs", batch.epochs[rows]),
            columns.add("expires", np.clip(batch.expires_at[rows] * 1000, 0, _MAX_NUMBER)),
            columns.add("offsets", batch.offsets[rows] - start),
            columns.add("sizes", batch.sizes[rows]),
            condition,
        )
        self._database.execute(statement, columns.bound)

    def _about(self, batch: Batch, rows: np.ndarray) -> dict[str, object]:
        return {
            "count": len(rows),
            "ids": batch.session_ids[rows].tobytes(),
            "writer": batch.writer.to_bytes(8, "little"),
            "now": self._clock(),
        }

    def read(self, session_ids: Sequence[bytes]) -> list[bytes | None]:
        """See `StateStore`."""
        records: list[bytes | None] = [None] * len(session_ids)
        for first in range(0, len(session_ids), _PIECE_ROWS):
            mine = session_ids[first : first + _PIECE_ROWS]
            bound = {"count": len(mine), "ids": b"".join(mine), "now": self._clock()}
            with self._failing():
                for index, record in self._database.execute(_READ, bound):
                    records[first + index] = record
        return records

    def delete(self, session_ids: Sequence[bytes], epochs: np.ndarray) -> int:
        """See `StateStore`."""
        num_deleted = 0
        with self._failing(), self._transaction():
            for first in range(0, len(session_ids), _PIECE_ROWS):
                mine = session_ids[first : first + _PIECE_ROWS]
                columns = _Columns({"count": len(mine), "ids": b"".join(mine), "now": self._clock()})
                statement = _delete(columns.add("epochs", epochs[first : first + _PIECE_ROWS]))
                self._database.execute(statement, columns.bound)
                num_deleted += self._num_changes()
        return num_deleted

    def purge(self, now: float) -> int:
        """See `StateStore`; looks at so many sessions a call, in turn, and so finds all after a few calls."""
        with self._failing(), self._transaction():
            first = self._next_purged if self._next_purged <= self._last_row() else 0
            self._next_purged = first + _PURGE_ROWS
            self._database.execute(
                "DELETE FROM sessions WHERE rowid >= ? AND rowid < ? AND expires <= ?", (first, self._next_purged, now)
            )
            return self._num_changes()

    def _last_row(self) -> int:
        return int(self._database.execute("SELECT coalesce(max(rowid), 0) FROM sessions").fetchone()[0])

    def _num_changes(self) -> int:
        """Rows that the last statement changed; Python's own count knows no statement that begins with WITH."""
        return int(self._database.execute("SELECT changes()").fetchone()[0])

    def generation(self) -> str:
        """See `StateStore`: the file is this process' own, and keeps what it was given."""
        return "one"

    def count(self) -> int:
        """See `StateStore`; with those that have expired and are not purged yet."""
        with self._failing():
            return int(self._database.execute("SELECT count(*) FROM sessions").fetchone()[0])

    def size_bytes(self) -> int:
        """See `StateStore`: of the file and its log."""
        files = (self._path, self._path.with_name(f"{self._path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """See `StateStore`."""
        with self._failing():
            self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            # SQLite has rolled back by itself after some failures.
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Turns SQLite's errors into `StoreError`."""
        try:
            yield
        except (sqlite3.Error, OverflowError) as error:
            raise self._error(_why(error)) from error

    def _error(self, why: str) -> StoreError:
        return StoreError(f"state store sqlite:{self._path}: {why}")


_REASONS = {
    "SQLITE_FULL": "the disk is full",
    "SQLITE_BUSY": "another server has it open: one process at a time",
    "SQLITE_LOCKED": "another server has it open: one process at a time",
    "SQLITE_NOTADB": "it is not a database, or damaged",
    "SQLITE_CORRUPT": "it is damaged: restore it from a copy, or name another file",
    "SQLITE_READONLY": "it, or its folder, cannot be written",
    "SQLITE_CANTOPEN": "it cannot be opened or created: its folder is missing, or cannot be written",
    "SQLITE_IOERR": "its disk does not do what it is asked",
    "SQLITE_TOOBIG": "a session is larger than SQLite takes",
}


def _why(error: Exception) -> str:
    """What went wrong, for whoever runs the server."""
    name = getattr(error, "sqlite_errorname", "")
    known = next((text for code, text in _REASONS.items() if name == code or name.startswith(f"{code}_")), "")
    return f"{known} ({error})" if known else str(error)


class _UnknownError(Exception):
    """The store lacks a session of a batch, or has it under another epoch."""


class _Columns:
    """Numbers of each row, as expressions in a statement and what is bound for them.

    SQL reads no integers out of a blob: a column is bound as digits, one number as long as the next. One that rises by
    as much from row to row is two numbers: nearly all are alike, and that costs next to nothing.

    Attributes:
        bound: what the statement is given, with what `bound` had.
    """

    def __init__(self, bound: dict[str, object]) -> None:
        self.bound = bound

    def add(self, name: str, values: np.ndarray) -> str:
        """The expression for row `i` of `values`, numbers from 0 to 10^15, [B], B at least 1."""
        numbers = values.astype(np.int64)
        first = numbers.item(0)
        step = numbers.item(1) - first if len(numbers) > 1 else 0
        if (numbers[1:] - numbers[:-1] == step).all():
            self.bound |= {name: first, f"{name}_step": step}
            return f"(:{name} + i * :{name}_step)"
        self.bound[name] = _digits(numbers)
        return f"CAST(substr(:{name}, i * {_NUM_DIGITS} + 1, {_NUM_DIGITS}) AS INTEGER)"


_NUM_DIGITS = 15
_MAX_NUMBER = 10**_NUM_DIGITS - 1
# Of the numbers below 1,000, uint8 [1000, 3].
_THREE_DIGITS = np.frombuffer(b"".join(b"%03d" % number for number in range(1000)), np.uint8).reshape(-1, 3)


def _digits(numbers: np.ndarray) -> bytes:
    """Numbers int64 [B] as decimals, one behind the other."""
    thousands = [numbers // 1000**power % 1000 for power in range(_NUM_DIGITS // 3 - 1, -1, -1)]
    digits: bytes = _THREE_DIGITS[np.stack(thousands, axis=1)].tobytes()
    return digits


def _pieces(batch: Batch) -> list[np.ndarray]:
    """Rows whose records follow each other and are not many more than one statement is to take, in bytes or number."""
    if not len(batch):
        return []
    rows = np.arange(len(batch))
    turns = np.stack([batch.offsets // _PIECE_BYTES, rows // _PIECE_ROWS], axis=1)
    return np.split(rows, np.flatnonzero((np.diff(turns, axis=0) != 0).any(axis=1)) + 1)
