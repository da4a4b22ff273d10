"""Tables: columns of CSV files as arrays, every bad cell named by line and column.

Owns: finding and reading CSV files. Must not know recipes, splits or models.
"""

import csv
import gzip
import importlib.util
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eddy.training.errors import DataError


def read_columns(source: str, columns: Sequence[str]) -> npt.NDArray[np.float32]:
    """Named columns of a CSV file with a header, float32 [N, F], rows in file order. Raises DataError."""
    rows, picked = _read_rows(source, columns)
    return np.array(
        [[_number(row, i, rows[0][i], source, line) for i in picked] for line, row in enumerate(rows[1:], start=2)],
        dtype=np.float32,
    )


def read_header(source: str) -> list[str]:
    """The names of a CSV file's columns, in order. Raises DataError."""
    return _read_rows(source, ())[0][0]


def read_times(source: str, column: str) -> npt.NDArray[np.int64]:
    """A column of ISO 8601 times, int64 [N] seconds since 1970, UTC where none is said. Raises DataError."""
    rows, (index,) = _read_rows(source, (column,))
    seconds = np.array(
        [_time(row, index, column, source, line) for line, row in enumerate(rows[1:], start=2)], np.int64
    )
    back = np.flatnonzero(np.diff(seconds) < 0)
    if len(back):
        raise DataError(f"{source} line {back[0] + 3}, column {column!r}: earlier than the line before, expected order")
    return seconds


def _read_rows(source: str, columns: Sequence[str]) -> tuple[list[list[str]], list[int]]:
    """All lines of a CSV file, its header first, and the indices of the named columns. Raises DataError."""
    path = resolve(source)
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source}: not readable as CSV: {error}") from error
    if len(rows) < 2:
        raise DataError(f"{source}: {len(rows)} lines, expected a header and at least one row")
    for name in columns:
        if name not in rows[0]:
            raise DataError(f"{source}: no column {name!r}; the columns are {', '.join(map(repr, rows[0]))}")
    return rows, [rows[0].index(name) for name in columns]


def resolve(source: str) -> Path:
    """The path of a source; "package:file" is looked up in the package's `_data` folder without importing it."""
    package, colon, name = source.partition(":")
    if not colon:
        return Path(source)
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise DataError(f"{source}: no installed package {package!r}; expected PACKAGE:FILE or a path")
    return Path(found.submodule_search_locations[0]) / "_data" / name


def _number(row: list[str], index: int, column: str, source: str, line: int) -> float:
    """One finite number of a row, or DataError naming line and column."""
    try:
        value = float(row[index])
    except (ValueError, IndexError):
        came = row[index] if index < len(row) else "nothing"
        raise DataError(f"{source} line {line}, column {column!r}: got {came!r}, expected a number") from None
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise DataError(f"{source} line {line}, column {column!r}: got {value}, expected a finite number")
    return value


def _time(row: list[str], index: int, column: str, source: str, line: int) -> int:
    """One time of a row in seconds since 1970, or DataError naming line and column."""
    came = row[index] if index < len(row) else "nothing"
    try:
        time = datetime.fromisoformat(came)
    except ValueError:
        raise DataError(f"{source} line {line}, column {column!r}: got {came!r}, expected an ISO 8601 time") from None
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp())
