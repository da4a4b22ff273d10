"""Where the command line's values come from: a file or standard input, read as far as it has come.

Owns reading and the checks of what is read: the columns of a CSV file, numbers line by line, characters. Must not know
servers. Every error names the file and the line.

Dimension key: F features.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import IO

from eddy.v1 import contract_pb2

STANDARD_INPUT = "-"


class SourceError(Exception):
    """What was given to read cannot be read as what the model takes."""


@contextmanager
def opened(path: str) -> Iterator[IO[str]]:
    """A file, or standard input for `-`, as text.

    Raises:
        SourceError: it cannot be opened.
    """
    if path == STANDARD_INPUT:
        # Strict: what is no UTF-8 is said, not replaced.
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(encoding="utf-8", errors="strict")
        yield sys.stdin
        return
    try:
        file = open(path, encoding="utf-8", newline="")  # noqa: SIM115, PTH123  # closed below; `path` is as typed
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
    with file:
        yield file


def read_numbers(
    file: IO[str], name: str, spec: contract_pb2.TensorSpec, columns: Sequence[str] | None
) -> Iterator[float | list[float]]:
    """A model's values [F], row by row; a plain number where its input is a scalar, and whole where it takes integers.

    Args:
        name: the file's, for errors; spec: the model's input; columns: names, or numbers from 1 on; by default those
            that the model can mean.

    Raises:
        SourceError: columns or values do not fit.
    """
    count = prod(spec.shape)
    if len(spec.shape) > 1:
        raise SourceError(f"the model takes {list(spec.shape)} values a step: send them from code (docs/client.md)")
    number = int if _is_whole(spec) else float
    rows = csv.reader(_decoded(file, name))
    chosen: list[int] | None = None
    for row in rows:
        if not row or (len(row) == 1 and not row[0].strip()):
            continue
        where = f"{name}, line {rows.line_num}"
        if chosen is None:
            header = None if all(_is_number(cell) for cell in row) else [cell.strip() for cell in row]
            chosen = _choose(header, len(row), count, spec.meaning, columns, where)
            if header is not None:
                continue
        if len(row) <= max(chosen):
            raise SourceError(f"{where}: {len(row)} columns, expected at least {max(chosen) + 1}")
        try:
            values = [number(row[column]) for column in chosen]
        except ValueError:
            wrong = next(row[column] for column in chosen if not _is(number, row[column]))
            raise SourceError(f"{where}: {wrong.strip()!r} is not a number that the model takes") from None
        yield values if spec.shape else values[0]


def _choose(
    header: list[str] | None, num_columns: int, count: int, meaning: str, wanted: Sequence[str] | None, where: str
) -> list[int]:
    """Indices of the columns to read, as many as the model takes."""
    names = header or [str(number + 1) for number in range(num_columns)]
    if wanted is None:
        if len(names) == count:
            return list(range(count))
        # Training writes the columns' names before the colon.
        meant = [name.strip() for name in meaning.partition(":")[0].split(",")]
        if len(meant) == count and set(meant) <= set(names):
            return [names.index(name) for name in meant]
        raise SourceError(
            f"{where}: there are the columns {', '.join(names)}, and the model takes {count} ({meaning}): "
            f"choose with --column {','.join(names[:count])}"
        )
    if len(wanted) != count:
        raise SourceError(f"--column: got {len(wanted)} ({', '.join(wanted)}), the model takes {count} ({meaning})")
    chosen = []
    for name in wanted:
        if name in names:
            chosen.append(names.index(name))
        elif name.isdecimal() and 1 <= int(name) <= num_columns:
            chosen.append(int(name) - 1)
        else:
            raise SourceError(f"{where}: there is no column {name!r}, there are {', '.join(names)}")
    return chosen


def _is_number(cell: str) -> bool:
    return _is(float, cell)


def _is(number: type[int] | type[float], cell: str) -> bool:
    try:
        number(cell)
    except ValueError:
        return False
    return True


def _is_whole(spec: contract_pb2.TensorSpec) -> bool:
    return spec.dtype in (
        contract_pb2.DATA_TYPE_INT32,
        contract_pb2.DATA_TYPE_INT64,
        contract_pb2.DATA_TYPE_UINT8,
    )


def _decoded(lines: Iterable[str], name: str) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise SourceError(f"{name}: not UTF-8 ({error.reason})") from error


def read_characters(file: IO[str], name: str) -> Iterator[str]:
    """Characters, each as soon as it has come."""
    try:
        while character := file.read(1):
            yield character
    except UnicodeDecodeError as error:
        raise SourceError(f"{name}: not UTF-8 ({error.reason})") from error


class Alphabet:
    """Characters of a model as token ids; `unknown` is the one that stands for any other, None where there is none.

    Raises:
        SourceError: the model's symbols are no characters.
    """

    def __init__(self, vocabulary: contract_pb2.Vocabulary) -> None:
        if vocabulary.unit != "character":
            raise SourceError(f"the model's symbols are of unit {vocabulary.unit!r}: only characters can be read here")
        self.symbols = list(vocabulary.symbols)
        self._ids = {symbol: number for number, symbol in enumerate(self.symbols)}
        self.unknown = vocabulary.unknown_id if vocabulary.HasField("unknown_id") else None

    def knows(self, character: str) -> bool:
        """The character has a token of its own."""
        return character in self._ids

    def encode(self, character: str) -> int:
        """A character's token id; the unknown token's where the model has one.

        Raises:
            SourceError: it has none.
        """
        found = self._ids.get(character, self.unknown)
        if found is None:
            raise SourceError(f"the model does not know the character {character!r}, and has no token for others")
        return found
