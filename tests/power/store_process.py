"""The process that loses power, or is killed: `store_process.py SPEC` does random operations to an SQLite store.

Owns the random numbers behind them. The trace of its system calls has a mark with each operation before it, and an
empty one when the store has said that it is done.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE)]

from operations import (  # noqa: E402  after the path
    NUM_SESSIONS,
    SESSION_IDS,
    Kind,
    Operation,
    Version,
    batch,
    epochs,
    living,
    read,
)

from eddy.service import record_log, sqlite_rows, sqlite_store  # noqa: E402
from eddy.service.sqlite_store import SqliteStore  # noqa: E402

TICK_SECONDS = 10
# Some expire before the end of a process, the others after all of them.
_LIFE_SECONDS = (25, 10_000, 10_000, 10_000)
_BODY_BYTES = (5, 100, 700, 6000)


class Fault(StrEnum):
    """How a store is broken, to see whether that is found."""

    NONE = "none"
    LOG_NOT_SYNCED = "log not synced"
    FOLDER_NOT_SYNCED = "folder not synced"
    DATABASE_NOT_SYNCED = "database not synced"


@dataclass(frozen=True, slots=True)
class Spec:
    """What the process is told.

    Attributes:
        store: path of the store's file.
        seed: of the operations.
        now: the time when it begins.
        num_operations: until it ends by itself.
        is_closed: the store is closed at the end.
        max_log_sessions, max_log_bytes, piece_rows: what the log has when it is folded, and by how many sessions.
        database_log_pages: what SQLite's own log has when it is copied into the database.
    """

    store: str
    seed: str
    now: int
    num_operations: int
    is_closed: bool
    max_log_sessions: int
    max_log_bytes: int
    piece_rows: int
    database_log_pages: int
    fault: str = Fault.NONE


class StoreProcess:
    """The store of `spec`, opened, and what is done to it."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._dice = random.Random(spec.seed)
        self._mark = ctypes.CDLL(None).power_mark
        self._mark.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
        # Changed with each operation.
        self._now = spec.now
        self._store = SqliteStore(
            Path(spec.store),
            lambda: float(self._now),
            max_log_bytes=spec.max_log_bytes,
            max_log_sessions=spec.max_log_sessions,
        )
        if spec.fault == Fault.DATABASE_NOT_SYNCED:
            self._store._database.execute("PRAGMA synchronous = OFF")  # noqa: SLF001  broken on purpose
        self._state = read(self._store)
        self._begin(Operation(Kind.OPEN, self._now, self._state))
        self._end()

    def go(self) -> None:
        """All operations."""
        for _ in range(self._spec.num_operations):
            self._now += TICK_SECONDS
            self._state = living(self._state, self._now)
            operation = self._draw()
            self._begin(operation)
            self._carry_out(operation)
            self._end()
            self._state = operation.after(self._state)
        if self._spec.is_closed:
            self._store.close()

    def _draw(self) -> Operation:
        dice, now = self._dice, self._now
        choice, picks = dice.random(), dice.sample(range(NUM_SESSIONS), dice.randint(1, NUM_SESSIONS))
        if choice < 0.75:
            return Operation(Kind.WRITE, now, {number: self._version() for number in picks})
        if choice < 0.92:
            return Operation(Kind.DELETE, now, {}, tuple(number for number in picks if number in self._state))
        return Operation(Kind.PURGE, now, {})

    def _version(self) -> Version:
        dice = self._dice
        return Version(dice.randint(1, 2**32 - 1), dice.choice(_BODY_BYTES), self._now + dice.choice(_LIFE_SECONDS))

    def _carry_out(self, operation: Operation) -> None:
        if operation.kind is Kind.WRITE:
            outcomes = self._store.write(batch(operation.versions, self._state))
            assert not outcomes.any(), f"not written: {outcomes}"
        elif operation.kind is Kind.DELETE:
            ids = [SESSION_IDS[number] for number in operation.gone]
            num_deleted = self._store.delete(ids, epochs(self._state[number] for number in operation.gone))
            assert num_deleted == len(ids), f"deleted {num_deleted} of {len(ids)}"
        else:
            self._store.purge(operation.now)

    def _begin(self, operation: Operation) -> None:
        text = operation.encode()
        self._mark(text, len(text))

    def _end(self) -> None:
        self._mark(b"", 0)


def _break(fault: str) -> None:
    """What is to be synchronised is not."""
    if fault == Fault.LOG_NOT_SYNCED:
        record_log._sync = lambda _: None  # noqa: SLF001  broken on purpose
    elif fault == Fault.FOLDER_NOT_SYNCED:
        record_log.sync_folder = lambda _: None


def _main(spec: Spec) -> int:
    _break(spec.fault)
    # Small, so that a short life has all of it.
    sqlite_rows.PIECE_ROWS = spec.piece_rows
    sqlite_store._LOG_PAGES = spec.database_log_pages  # noqa: SLF001  nobody else sets it
    StoreProcess(spec).go()
    return 0


if __name__ == "__main__":
    # Without the end of the interpreter, which would close the database.
    os._exit(_main(Spec(**json.loads(sys.argv[1]))))
