"""Data: texts and series, read, checked, split in time order and turned into inputs and targets.

Owns: reading texts, the vocabulary, the 80/10/10 split and the scaling. Must not know torch or models.

Order matters: split first, then fit the vocabulary and the scaling on the training part only, so that nothing of the
validation and test parts leaks into the model.
"""

import importlib.metadata
import math
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eddy.training.errors import DataError
from eddy.training.recipe import SeriesSource, TextSource
from eddy.training.table import read_columns, read_times

UNKNOWN = "\ufffd"
# Marks a target that does not count, in the two dtypes that targets have.
NO_TOKEN = -100
NO_VALUE = math.nan

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]
Seconds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """One of the three parts of a data set.

    inputs: int64 [N] tokens or float32 [N, F] values. targets: int64 [N] next tokens (NO_TOKEN where none) or
    float32 [N, K] future values of the target feature (NaN where none).
    """

    inputs: npt.NDArray[np.generic]
    targets: npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The symbols of a token model; a token id is an index into them. Symbol 0 stands for anything unknown."""

    symbols: tuple[str, ...]

    @staticmethod
    def fit(text: str, min_count: int) -> "Vocabulary":
        """The unknown symbol, then every character that occurs at least `min_count` times, in code point order."""
        counts = Counter(text)
        kept = sorted(c for c, n in counts.items() if n >= min_count and c != UNKNOWN)
        if not kept:
            raise DataError(f"text: no character occurs {min_count} times in its {len(text)} characters")
        return Vocabulary((UNKNOWN, *kept))

    def encode(self, text: str) -> Tokens:
        """Characters to ids, int64 [N]; what the vocabulary lacks becomes id 0."""
        ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        return np.fromiter((ids.get(c, 0) for c in text), dtype=np.int64, count=len(text))

    def decode(self, tokens: Sequence[int]) -> str:
        """Ids to characters."""
        return "".join(self.symbols[t] for t in tokens)


@dataclass(frozen=True, slots=True)
class TextData:
    """A text as tokens. Each part stands alone: its inputs are its own characters."""

    vocabulary: Vocabulary
    train: Part
    validation: Part
    test: Part


@dataclass(frozen=True, slots=True)
class SeriesData:
    """A series with targets K horizons ahead, all in the series' own units.

    The inputs of a part run from the very start of the series to the part's end, so that a model reaches it with the
    state it would have in service; targets are set only where origin and target both lie inside the part and the target
    is as many steps of time ahead as of rows.
    values: float32 [N, F], everything. seconds: int64 [N], the time of each row, rising. mean, scale: per feature, of
    the training part. starts: first step of the validation and of the test part.
    """

    values: Floats
    seconds: Seconds
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    target: int
    starts: tuple[int, int]
    train: Part
    validation: Part
    test: Part


def load_text(source: TextSource) -> TextData:
    """Read, split and encode a text. Raises DataError."""
    text = read_text(source.source)
    first, second = split_points(len(text))
    if first < 2 or len(text) - second < 2:
        raise DataError(f"{source.source}: {len(text)} characters are too few to split, expected at least 20")
    vocabulary = Vocabulary.fit(text[:first], source.min_count)
    train, validation, test = (
        _next_token_part(vocabulary.encode(piece)) for piece in (text[:first], text[first:second], text[second:])
    )
    return TextData(vocabulary, train, validation, test)


def load_series(source: SeriesSource) -> SeriesData:
    """Read and split a series and fit its scaling. Raises DataError."""
    values = read_columns(source.source, source.columns) * np.float32(source.factor) + np.float32(source.offset)
    seconds = np.arange(len(values)) * source.step_seconds
    if source.time:
        seconds = read_times(source.source, source.time)
        kept = spaced_rows(seconds, source.step_seconds)
        values, seconds = values[kept], seconds[kept]
    first, second = split_points(len(values))
    longest = max(source.horizons)
    if len(values) - second <= longest:
        raise DataError(
            f"{source.source}: {len(values)} rows are too few, the test part has {len(values) - second} "
            f"and the longest horizon is {longest}; expected more than {10 * longest + 10} rows"
        )
    mean = values[:first].mean(axis=0, dtype=np.float64)
    scale = values[:first].std(axis=0, dtype=np.float64)
    if not (scale > 0).all():
        constant = source.columns[int(np.argmin(scale))]
        raise DataError(f"{source.source}: column {constant!r} is constant in the training part, expected variation")
    target = source.columns.index(source.target)
    train, validation, test = (
        Part(
            values[:stop],
            future_values(values[:stop, target], seconds[:stop], source.horizons, source.step_seconds, start),
        )
        for start, stop in ((0, first), (first, second), (second, len(values)))
    )
    as_tuple = tuple(float(m) for m in mean), tuple(float(s) for s in scale)
    return SeriesData(values, seconds, *as_tuple, target, (first, second), train, validation, test)


def split_points(length: int) -> tuple[int, int]:
    """Where validation and test begin in a sequence of that length: 80 %, 10 %, 10 %, in time order."""
    return length * 8 // 10, length * 9 // 10


def spaced_rows(seconds: Seconds, step_seconds: int) -> Tokens:
    """Indices of the rows to keep, int64: the first, then each that is at least half a step after the last one kept.

    A row is judged by what came before it only, so a client can do the same while it streams.
    """
    kept = [0]
    for row in range(1, len(seconds)):
        if 2 * (seconds[row] - seconds[kept[-1]]) >= step_seconds:
            kept.append(row)
    return np.array(kept, np.int64)


def future_values(
    values: Floats, seconds: Seconds, horizons: Sequence[int], step_seconds: int, start: int = 0
) -> Floats:
    """Targets of every origin: float32 [N] and int64 [N] -> [N, K].

    NaN before `start`, where the horizon passes the end, and where the row that many rows ahead is more than half a
    step away from the time that many steps ahead, as it is across a gap.
    """
    targets = np.full((len(values), len(horizons)), NO_VALUE, dtype=np.float32)
    for k, horizon in enumerate(horizons):
        late = seconds[start + horizon :] - seconds[start : len(values) - horizon] - horizon * step_seconds
        ahead = values[start + horizon :]
        targets[start : len(values) - horizon, k] = np.where(2 * np.abs(late) <= step_seconds, ahead, NO_VALUE)
    return targets


def read_text(source: str) -> str:
    """The text behind a source name or path, line ends as line feeds. Raises DataError."""
    if source == "pydoc_data.topics":
        from pydoc_data.topics import topics

        return "\n".join(topics[name] for name in sorted(topics))
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: not readable as UTF-8 text: {error}") from error
    if not text:
        raise DataError(f"{source}: the file is empty, expected text")
    return text


def describe_origin(source: str) -> str:
    """A source with the version of what brought it, since other versions hold other data."""
    if source == "pydoc_data.topics":
        return f"{source} of Python {platform.python_version()}"
    package, colon, name = source.partition(":")
    return f"{name} of {package} {importlib.metadata.version(package)}" if colon else source


def _next_token_part(tokens: Tokens) -> Part:
    """Each token's target is the one after it; the last has none."""
    return Part(tokens, np.append(tokens[1:], NO_TOKEN))
