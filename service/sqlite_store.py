"""The state store in one file, by SQLite: nothing to install and no server, for one process at a time.

Owns the only import of sqlite3, the file's schema and its lock, and what of it lies in the log beside it. Must not know
what is in a record. A batch goes into the log (`record_log`) and is on the disk when `write` returns; a session that is
written every second is folded into the file once in many of them, with all that lies in a full log. Until then the log
is what holds: the index of it (`record_index`) is asked first.

Ordering rules: when all of the log is folded, a transaction that writes another salt begins it anew; nothing is
appended between. Whatever ends before it has the same log to fold again, which changes nothing.

Dimension key: B records of a call.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from eddy.service import sqlite_rows
from eddy.service.record_format import SESSION_ID_BYTES, Batch
from eddy.service.record_index import PLACE, RecordIndex
from eddy.service.record_log import ENTRY, SALT_BYTES, LogDamaged, RecordLog, sync_folder
from eddy.service.store import Outcome, StoreError

SCHEMA_VERSION = 3
# Version 1 had no log; a file of it is taken over. Version 2 was in no release: its log began at no pages.
_SCHEMA_WITHOUT_LOG = 1
_APPLICATION_ID = 0x45444459  # "EDDY"
# A few records a page; SQLite's usual 4,096 bytes hold two of LSTM 128 and leave a quarter empty.
_PAGE_BYTES = 16384
# SQLite's own log is copied into the file when it is so long.
_LOG_PAGES = 8192
# Pages that a transaction changes stay in memory until it is written.
_CACHE_KIB = 65536
# A log that has so much is folded into the file, in turns: with each batch twice what that brings, at least a piece.
MAX_LOG_BYTES = 256 << 20
MAX_LOG_SESSIONS = 1 << 17
_ID = f"V{SESSION_ID_BYTES}"
# Rows that one call of `purge` looks at, so that no checkpoint waits long for it.
_PURGE_ROWS = 50_000

# One row while there is a log, which then must be there; none after a close that left no log.
_CREATE_LOG = "CREATE TABLE log (salt BLOB NOT NULL)"


class SqliteStore:
    """A `StateStore` in the file at `path`, and in the log beside it, `PATH-log`.

    Args:
        clock: unix seconds.
        max_log_bytes, max_log_sessions: what the log has when it begins to be folded into the file.

    Raises:
        StoreError: it cannot be opened, another server has it open, or it is not a store of this version.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float],
        *,
        max_log_bytes: int = MAX_LOG_BYTES,
        max_log_sessions: int = MAX_LOG_SESSIONS,
    ) -> None:
        self._path = path
        # Beside the file itself, by whatever link it is named, as SQLite's own log is.
        real = path.resolve()
        self._log_path = real.with_name(f"{real.name}-log")
        self._clock = clock
        self._max_log_bytes = max_log_bytes
        self._max_log_sessions = max_log_sessions
        # Used by one thread at a time.
        self._index = RecordIndex()
        self._is_folding = False
        self._is_closed = False
        self._next_purged = 0
        with self._failing():
            # An absent folder is told better by SQLite than by the first write; no time is waited for a lock.
            self._database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            with self._failing():
                self._prepare()
                # The log, which comes behind, must not outlive it.
                sync_folder(real.parent)
                self._log = self._open_log()
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
        if has_tables and version not in (_SCHEMA_WITHOUT_LOG, SCHEMA_VERSION):
            raise self._error(f"it has schema version {version}, this server reads {SCHEMA_VERSION}")
        if not has_tables and self._log_path.exists() and self._log_path.stat().st_size:
            name = self._log_path.name
            raise self._error(f"it is missing, its log {name} is not: put it back, or remove {name} to do without both")
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
            database.execute(sqlite_rows.CREATE)
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        if not has_tables or version == _SCHEMA_WITHOUT_LOG:
            database.execute(_CREATE_LOG)
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("COMMIT")
        # What a process that was killed had written last may be in memory only. Nothing is built on it, least of all a
        # log under its salt, before it is on the disk.
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        database.execute("PRAGMA temp_store = MEMORY")
        database.executescript(sqlite_rows.COUNT)

    def _open_log(self) -> RecordLog:
        """The log, with what it has in the index."""
        found = self._database.execute("SELECT salt FROM log").fetchone()
        if found and not self._log_path.exists():
            name = self._log_path.name
            raise self._error(f"its log {name} is missing: put it back, or create it empty to do without what it had")
        salt = found[0] if found else os.urandom(SALT_BYTES)
        log = RecordLog(self._log_path, salt, self._path.stat().st_mode & 0o777)
        try:
            if not found:
                with self._transaction():
                    self._database.execute("INSERT INTO log VALUES (?)", (salt,))
            for entries, offsets in log.replay():
                numbers, known = self._look(entries["session_id"])
                self._index.put(numbers, _places(entries, offsets, known["is_in_base"]))
        except BaseException:
            log.close()
            raise
        return log

    def write(self, batch: Batch) -> np.ndarray:
        """See `StateStore`."""
        with self._failing():
            self._check_sizes(batch.sizes)
            self._make_room(len(batch))
            all_ids, now = np.ascontiguousarray(batch.session_ids).view(_ID)[:, 0], self._clock()
            numbers, known = self._look(all_ids)
            is_alive = known["expires_at"] > now
            is_expected = np.where(is_alive, known["epoch"], 0) == batch.expected_epochs
            is_repeated = is_alive & (known["epoch"] == batch.epochs) & (known["writer"] == np.uint64(batch.writer))
            outcomes = np.where(is_alive, Outcome.FENCED, Outcome.MISSING).astype(np.int8)
            outcomes[is_expected | is_repeated] = Outcome.WRITTEN
            rows = np.flatnonzero(outcomes == Outcome.WRITTEN)
            if len(rows):
                entries = np.zeros(len(rows), ENTRY)
                entries["session_id"], entries["writer"] = all_ids[rows], batch.writer
                entries["expires_at"], entries["epoch"] = batch.expires_at[rows], batch.epochs[rows]
                entries["size"] = batch.sizes[rows]
                self._append(entries, _records(batch, rows), numbers[rows], known["is_in_base"][rows])
        return outcomes

    def _check_sizes(self, sizes: np.ndarray) -> None:
        """What the file cannot take must not come into the log, which could never be folded."""
        largest = self._database.getlimit(sqlite3.SQLITE_LIMIT_LENGTH) - sqlite_rows.PIECE_BYTES
        if len(sizes) and sizes.max() > largest:
            raise self._error(f"a session of {sizes.max()} bytes is larger than SQLite takes, {largest}")

    def read(self, session_ids: Sequence[bytes]) -> list[bytes | None]:
        """See `StateStore`."""
        records: list[bytes | None] = [None] * len(session_ids)
        now = self._clock()
        with self._failing():
            numbers = self._index.find(_voids(session_ids))
            logged = np.flatnonzero(numbers >= 0)
            # In the order of the file, which the operating system reads ahead.
            logged = logged[np.argsort(self._index.places["offset"][numbers[logged]])]
            places = self._index.places[numbers[logged]]
            for row, place in zip(logged.tolist(), places, strict=True):
                if place["expires_at"] > now:
                    records[row] = self._log.read(int(place["offset"]), int(place["size"]))
            for rows in sqlite_rows.pieces(np.flatnonzero(numbers < 0)):
                bound = {"count": len(rows), "ids": b"".join(session_ids[row] for row in rows.tolist()), "now": now}
                for index, record in self._database.execute(sqlite_rows.READ, bound):
                    records[rows[index]] = record
        return records

    def delete(self, session_ids: Sequence[bytes], epochs: np.ndarray, writer: int = 0) -> int:
        """See `StateStore`."""
        with self._failing():
            self._make_room(len(session_ids))
            ids = _voids(session_ids)
            numbers, known = self._look(ids)
            is_mine = (known["epoch"] == epochs) | (known["writer"] == np.uint64(writer)) & (writer != 0)
            rows = np.flatnonzero((known["expires_at"] > self._clock()) & is_mine)
            if len(rows):
                entries = np.zeros(len(rows), ENTRY)
                entries["session_id"] = ids[rows]
                self._append(entries, np.zeros(0, np.uint8), numbers[rows], known["is_in_base"][rows])
        return len(rows)

    def _look(self, session_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of V16 [B]: their numbers in the index, int64 [B], and how they stand, `PLACE` [B].

        Of what the file has, only epoch, writer and end are known; what is nowhere has expired long ago.
        """
        numbers = self._index.find(session_ids)
        is_logged = numbers >= 0
        if is_logged.all():
            return numbers, self._index.places[numbers]
        known = np.zeros(len(session_ids), PLACE)
        known[is_logged] = self._index.places[numbers[is_logged]]
        for rows in sqlite_rows.pieces(np.flatnonzero(~is_logged)):
            bound = {"count": len(rows), "ids": session_ids[rows].tobytes()}
            found = self._database.execute(sqlite_rows.LOOK, bound).fetchall()
            if found:
                indices, epochs, writers, expires = zip(*found, strict=True)
                mine = rows[np.array(indices)]
                known["epoch"][mine], known["expires_at"][mine] = epochs, expires
                known["writer"][mine] = np.frombuffer(b"".join(writers), "<u8")
                known["is_in_base"][mine] = True
        return numbers, known

    def _append(self, entries: np.ndarray, data: np.ndarray, numbers: np.ndarray, is_in_base: np.ndarray) -> None:
        """Puts `ENTRY` [B], whose records are `data`, into the log and then into the index."""
        offsets = self._log.append(entries, data)
        self._index.put(numbers, _places(entries, offsets, is_in_base))

    # Folding

    def _make_room(self, num_rows: int) -> None:
        """Folds a part of a full log, twice as much as a batch of `num_rows` brings, and begins it anew at its end."""
        is_full = self._log.num_bytes >= self._max_log_bytes or len(self._index) >= self._max_log_sessions
        self._is_folding = self._is_folding or is_full
        if self._is_folding:
            self._fold(max(sqlite_rows.PIECE_ROWS, 2 * num_rows))

    def _fold(self, num_rows: int) -> None:
        """Has so many sessions stand in the file as they do in the log."""
        left = self._index.unfolded(num_rows)
        for piece in sqlite_rows.pieces(left, self._index.places["size"][left]):
            with self._transaction():
                self._fold_piece(self._index.places[piece])
            self._index.fold(piece)
        if not len(self._index.unfolded(1)):
            salt = os.urandom(SALT_BYTES)
            with self._transaction():
                self._database.execute("UPDATE log SET salt = ?", (salt,))
            self._log.restart(salt)
            self._index.clear()
            self._is_folding = False

    def _fold_piece(self, places: np.ndarray) -> None:
        gone = places[(places["size"] == 0) & places["is_in_base"]]
        if len(gone):
            self._database.execute(sqlite_rows.DELETE, {"count": len(gone), "ids": gone["session_id"].tobytes()})
        kept = places[places["size"] > 0]
        if len(kept):
            sizes = kept["size"]
            columns = sqlite_rows.Columns(
                {
                    "count": len(kept),
                    "ids": kept["session_id"].tobytes(),
                    "writers": kept["writer"].tobytes(),
                    "data": self._read_spans(kept["offset"], sizes),
                }
            )
            statement = sqlite_rows.put(
                columns.add("epochs", kept["epoch"]),
                columns.add("expires", np.clip(kept["expires_at"] * 1000, 0, sqlite_rows.MAX_NUMBER)),
                columns.add("offsets", np.cumsum(sizes) - sizes),
                columns.add("sizes", sizes),
            )
            self._database.execute(statement, columns.bound)

    def _read_spans(self, offsets: np.ndarray, sizes: np.ndarray) -> bytes:
        """Records from ascending places in the log, one behind the other."""
        ends = offsets + sizes
        cuts = np.flatnonzero(offsets[1:] != ends[:-1]) + 1
        firsts, lasts = np.concatenate([[0], cuts]), np.concatenate([cuts, [len(sizes)]]) - 1
        spans = zip(offsets[firsts].tolist(), (ends[lasts] - offsets[firsts]).tolist(), strict=True)
        return b"".join(self._log.read(offset, size) for offset, size in spans)

    # The file

    def purge(self, now: float) -> int:
        """See `StateStore`; looks at so many sessions of the file a call, in turn, and so finds all after a few calls.

        What the log has is written over or deleted by what the log has: it is left alone in the file.
        """
        with self._failing():
            places = self._index.places
            is_over = (places["size"] > 0) & (places["expires_at"] <= now)
            for name in ("size", "expires_at", "is_folded"):
                places[name][is_over] = 0
            with self._transaction():
                first = self._next_purged if self._next_purged <= self._last_row() else 0
                self._next_purged = first + _PURGE_ROWS
                span = (first, self._next_purged, now)
                found = self._database.execute(
                    "SELECT rowid, id FROM sessions WHERE rowid >= ? AND rowid < ? AND expires <= ?", span
                ).fetchall()
                numbers = self._index.find(_voids([session_id for _, session_id in found]))
                gone = [(row,) for (row, _), number in zip(found, numbers.tolist(), strict=True) if number < 0]
                self._database.executemany("DELETE FROM sessions WHERE rowid = ?", gone)
        return len(gone) + int(np.count_nonzero(is_over))

    def _last_row(self) -> int:
        return int(self._database.execute("SELECT coalesce(max(rowid), 0) FROM sessions").fetchone()[0])

    def generation(self) -> str:
        """See `StateStore`: the file is this process' own, and keeps what it was given."""
        return "one"

    def count(self) -> int:
        """See `StateStore`; with those that have expired and are not purged yet."""
        with self._failing():
            num_in_file = int(self._database.execute("SELECT count(*) FROM sessions").fetchone()[0])
        places = self._index.places
        return num_in_file + int(np.count_nonzero(places["size"])) - int(np.count_nonzero(places["is_in_base"]))

    def size_bytes(self) -> int:
        """See `StateStore`: of the file and both logs."""
        files = (self._path, self._path.with_name(f"{self._path.name}-wal"), self._log_path)
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """See `StateStore`; the log is folded and removed, or stays as it is where that fails. Again, it is nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            with self._failing():
                if self._log.num_bytes:
                    self._fold(len(self._index))
                with self._transaction():
                    self._database.execute("DELETE FROM log")
                self._log.remove()
        except BaseException:
            self._log.close()
            raise
        finally:
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
        """Turns SQLite's errors and the log's into `StoreError`."""
        try:
            yield
        except (sqlite3.Error, OverflowError) as error:
            raise self._error(_why(error)) from error
        except LogDamaged as error:
            raise self._error(f"its log {self._log_path.name} is {error}: restore both from a copy") from error
        except OSError as error:
            raise self._error(f"{_why_not(error)} ({self._log_path.name}: {error.strerror or error})") from error

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


def _why_not(error: OSError) -> str:
    """What went wrong with the log, for whoever runs the server."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full"
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return "its folder cannot be written"
    return "its disk does not do what it is asked"


def _voids(session_ids: Sequence[bytes]) -> np.ndarray:
    """Ids as V16 [B]."""
    return np.frombuffer(b"".join(session_ids), _ID)


def _records(batch: Batch, rows: np.ndarray) -> np.ndarray:
    """The records of `rows` of `batch`, ascending, one behind the other, uint8; where it is all, without a copy."""
    if len(rows) == len(batch):
        return batch.data
    spans = zip(batch.offsets[rows].tolist(), (batch.offsets + batch.sizes)[rows].tolist(), strict=True)
    return np.concatenate([batch.data[begin:end] for begin, end in spans])


def _places(entries: np.ndarray, offsets: np.ndarray, is_in_base: np.ndarray) -> np.ndarray:
    """`ENTRY` [B] that lie at `offsets` as `PLACE` [B]."""
    places = np.zeros(len(entries), PLACE)
    for name in ("session_id", "writer", "expires_at", "size", "epoch"):
        places[name] = entries[name]
    places["offset"], places["is_in_base"] = offsets, is_in_base
    return places
