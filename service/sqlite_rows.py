"""Rows of a statement: many sessions read, written or deleted by one statement, their columns bound as a few blobs.

Owns the SQL of the table of sessions and how a column of numbers gets into it. Must not know databases, files or when
what is done. Rows are cut out of the blobs inside SQLite, so that Python's lock is free meanwhile.

Dimension key: B rows of a statement.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from eddy.service.record_format import SESSION_ID_BYTES

# Of one statement's blobs: what SQLite takes is bounded, and so is the memory that copies of them need.
PIECE_BYTES = 32 << 20
# Of one statement's rows.
PIECE_ROWS = 4096

CREATE = """
CREATE TABLE sessions (
  id BLOB NOT NULL UNIQUE,
  epoch INTEGER NOT NULL,
  writer BLOB NOT NULL,
  expires REAL NOT NULL,
  record BLOB NOT NULL
)"""
# Rows to count by: a scan of it takes a third of what counting by recursion does.
COUNT = f"""
CREATE TEMPORARY TABLE numbers (i INTEGER PRIMARY KEY);
WITH RECURSIVE number(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM number WHERE i + 1 < {PIECE_ROWS})
INSERT INTO numbers SELECT i FROM number;
"""  # noqa: S608
# What is bound are numbers and blobs, never names; `Columns` says how a row's numbers are read.
_ROWS = "WITH row(i) AS (SELECT i FROM numbers WHERE i < :count)"
_ID = f"substr(:ids, i * {SESSION_ID_BYTES} + 1, {SESSION_ID_BYTES})"
READ = f"{_ROWS} SELECT i, s.record FROM row JOIN sessions s ON s.id = {_ID} WHERE s.expires > :now"  # noqa: S608
LOOK = f"{_ROWS} SELECT i, s.epoch, s.writer, s.expires FROM row JOIN sessions s ON s.id = {_ID}"  # noqa: S608
DELETE = f"""{_ROWS}
DELETE FROM sessions WHERE rowid IN (SELECT s.rowid FROM row JOIN sessions s ON s.id = {_ID})
"""  # noqa: S608


@lru_cache(maxsize=64)
def put(epochs: str, expires: str, offsets: str, sizes: str) -> str:
    """Writes sessions, over those that are there; each argument is an expression of `Columns`."""
    return f"""{_ROWS}
INSERT INTO sessions (id, epoch, writer, expires, record)
SELECT {_ID}, {epochs}, substr(:writers, i * 8 + 1, 8), {expires} / 1000.0, substr(:data, {offsets} + 1, {sizes})
FROM row WHERE true
ON CONFLICT (id) DO UPDATE
SET epoch = excluded.epoch, writer = excluded.writer, expires = excluded.expires, record = excluded.record
"""  # noqa: S608


class Columns:
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
MAX_NUMBER = 10**_NUM_DIGITS - 1
# Of the numbers below 1,000, uint8 [1000, 3].
_THREE_DIGITS = np.frombuffer(b"".join(b"%03d" % number for number in range(1000)), np.uint8).reshape(-1, 3)


def _digits(numbers: np.ndarray) -> bytes:
    """Numbers int64 [B] as decimals, one behind the other."""
    thousands = [numbers // 1000**power % 1000 for power in range(_NUM_DIGITS // 3 - 1, -1, -1)]
    digits: bytes = _THREE_DIGITS[np.stack(thousands, axis=1)].tobytes()
    return digits


def pieces(numbers: np.ndarray, sizes: np.ndarray | None = None) -> list[np.ndarray]:
    """`numbers` [B] in pieces of not more rows, and not many more bytes, than one statement is to take."""
    turns = np.arange(len(numbers)) // PIECE_ROWS
    if sizes is not None:
        turns += np.cumsum(sizes) // PIECE_BYTES
    return np.split(numbers, np.flatnonzero(np.diff(turns)) + 1) if len(numbers) else []
