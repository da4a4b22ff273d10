"""Series: columns of a file as a forecaster's data, read, checked, split in time order and scaled.

Owns: the [data] table of a series, what happens to gaps, and the targets. Must not know torch or models.

Order matters: split first, then fit the scaling on the training part only, so that nothing of the validation and test
parts leaks into the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from eddy.training.data import NO_VALUE, Floats, Part, Tokens, split_points
from eddy.training.errors import DataError
from eddy.training.fields import require
from eddy.training.table import read_columns, read_times

# Steps before the validation part that a forecaster reads first, so that it enters with the state it would have.
WARM_UP_STEPS = 1000

Seconds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SeriesSource:
    """Columns of a CSV file (plain or .gz), one row per step, in time order.

    source: a path, or "package:file.csv" for a file in an installed data package's `_data` folder.
    """

    kind: ClassVar[str] = "series"

    source: str
    licence: str
    columns: tuple[str, ...]
    target: str
    unit: str
    meaning: str
    step_seconds: int
    horizons: tuple[int, ...]
    # Steps after which the series tends to repeat itself (a day); the seasonal baseline looks that far back. Left out,
    # it is found in the training part, and the card says so.
    season_steps: int | None = None
    # Median for the forecast itself, the outer two for an 80 % interval.
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    # Column of ISO 8601 times, for a record with gaps: a reading less than half a step after the one before is dropped,
    # and a forecast counts only where a reading lies within half a step of the time that it is for. Without one, the
    # rows are taken to be evenly spaced.
    time: str = ""
    # What the card must say of the data beyond that.
    note: str = ""
    # value = number in the file * factor + offset, for a file whose unit is not the one wanted.
    factor: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        require(len(self.columns) >= 1, "data.columns", self.columns, "at least one column name")
        require(self.target in self.columns, "data.target", self.target, f"one of {', '.join(self.columns)}")
        require(self.step_seconds >= 1, "data.step_seconds", self.step_seconds, "at least 1")
        require(self.factor != 0, "data.factor", self.factor, "anything but 0")
        require(
            self.season_steps is None or self.season_steps >= 1, "data.season_steps", self.season_steps, "at least 1"
        )
        require(len(self.horizons) >= 1, "data.horizons", self.horizons, "at least one horizon")
        require(min(self.horizons, default=1) >= 1, "data.horizons", self.horizons, "steps ahead, 1 or more")


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

    @property
    def checked(self) -> Part:
        """The validation part without what lies more than WARM_UP_STEPS before its first target."""
        first = int(np.argmax((~np.isnan(self.validation.targets)).any(axis=1)))
        start = max(0, first - WARM_UP_STEPS)
        return Part(self.validation.inputs[start:], self.validation.targets[start:])

    @property
    def evaluation_streams(self) -> int:
        """One, as a session would read it."""
        return 1


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
