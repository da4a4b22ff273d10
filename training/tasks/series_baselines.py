"""Baselines of series: what is reached without any learning of states, so that a model's figures mean something.

Owns: last value, seasonal last value and a straight line, all fitted on the training part. Must not know models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eddy.training.data import Floats
from eddy.training.errors import DataError
from eddy.training.tasks.series_data import Seconds, SeriesData, SeriesSource

# Changes before the present value that the linear baseline looks at; on the shipped series more gained nothing.
LINEAR_CHANGES = 3
# A season must show in the series: values a season apart correlate at least this much, and more than those of pure
# noise do by chance, whose correlations spread by 1 / sqrt(N).
LEAST_CORRELATION = 0.1
CHANCE_DEVIATIONS = 4.0

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Baseline:
    """Forecasts without a model. points: float32 [N, K]. quantiles: float32 [N, K, Q], NaN where there are none."""

    name: str
    points: Floats
    quantiles: Floats


def series_baselines(data: SeriesData, source: SeriesSource) -> list[Baseline]:
    """Three forecasts of every step and horizon: last value, seasonal last value, and a line through the latest values.

    Each one's quantiles are its points plus the quantiles of its own errors on the training part, by horizon: the
    fairest band that it can have. Raises DataError where the training part is too short for one.
    """
    values, horizons = data.values[:, data.target], source.horizons
    targets = data.train.targets.astype(np.float32, copy=False)
    season = season_steps(data, source)
    found = {
        "linear": linear_values(values, horizons, targets),
        "last_value": np.repeat(values[:, None], len(horizons), axis=1),
        "seasonal_last_value": seasonal_values(values, data.seconds, horizons, season, source.step_seconds),
    }
    return [Baseline(name, points, spread(name, points, targets, source.quantiles)) for name, points in found.items()]


def season_steps(data: SeriesData, source: SeriesSource) -> int:
    """The recipe's season, or the one found in the training part."""
    if source.season_steps is not None:
        return source.season_steps
    return find_season(data.values[: data.starts[0], data.target])


def find_season(values: Floats) -> int:
    """Steps after which a series [N] repeats itself best, or 1 where it does not.

    It is the highest peak of the autocorrelation around the series' straight trend, behind the first lag at which it
    falls below zero and up to a third of the series, among those that show again after a second season.
    """
    rows = np.arange(len(values), dtype=np.float64)
    rest = values - np.polyval(np.polyfit(rows, values.astype(np.float64), 1), rows)
    power = np.abs(np.fft.rfft(rest, 2 * len(rest))) ** 2
    products = np.fft.irfft(power)[: len(rest)]
    # What is left of a straight line is rounding.
    if np.sqrt(np.mean(rest**2)) <= 1e-5 * np.abs(values).max():
        return 1
    correlation = products / products[0]
    below = np.flatnonzero(correlation < 0)
    middle = correlation[1 : max(2, len(rest) // 3)]
    least = max(LEAST_CORRELATION, CHANCE_DEVIATIONS / np.sqrt(len(values)))
    above = (middle > correlation[: len(middle)]) & (middle >= correlation[2 : 2 + len(middle)]) & (middle > least)
    first = below[0] if len(below) else len(correlation)
    peaks = [
        int(lag) for lag in 1 + np.flatnonzero(above) if lag > first and _around(correlation, 2 * int(lag)) > least
    ]
    return max(peaks, key=lambda lag: float(correlation[lag]), default=1)


def _around(correlation: Doubles, lag: int) -> float:
    """The highest correlation within a twentieth of a lag, since a season need not be a whole number of steps."""
    return float(correlation[lag - lag // 20 : lag + lag // 20 + 1].max())


def spread(name: str, points: Floats, targets: Floats, quantiles: Sequence[float]) -> Floats:
    """Points [N, K] plus the quantiles of their errors against the training targets [M, K]: float32 [N, K, Q].

    Raises DataError where a horizon has no error to look at.
    """
    errors = targets - points[: len(targets)]
    if np.isnan(errors).all(axis=0).any():
        raise DataError(f"{name}: no forecast of the training part has a target, expected a longer series")
    found: Floats = (points[:, :, None] + np.nanquantile(errors, quantiles, axis=0).T[None]).astype(np.float32)
    return found


def seasonal_values(
    values: Floats, seconds: Seconds, horizons: Sequence[int], season: int, step_seconds: int
) -> Floats:
    """For each origin and horizon, the value a whole number of seasons before the target's time.

    It is the fewest seasons that need no value after the origin; in a gap the last value before that time stands.
    values: float32 [N]; seconds: int64 [N]; season in steps. Returns float32 [N, K], NaN before the series' start.
    """
    out = np.full((len(values), len(horizons)), np.nan, dtype=np.float32)
    for k, horizon in enumerate(horizons):
        back = -(-horizon // season) * season - horizon
        rows = np.searchsorted(seconds, seconds - back * step_seconds, side="right") - 1
        out[rows >= 0, k] = values[rows[rows >= 0]]
    return out


def linear_values(values: Floats, horizons: Sequence[int], targets: Floats) -> Floats:
    """For each origin and horizon, the present value plus a linear function of it and of the latest changes.

    values: float32 [N]; targets: float32 [M, K] of the training part's M rows, to which the function is fitted by
    least squares. Returns float32 [N, K], NaN where there are fewer than LINEAR_CHANGES changes before the origin.
    """
    changes = np.diff(values.astype(np.float64))
    now = values[LINEAR_CHANGES:].astype(np.float64)
    latest = [changes[j : j + len(now)] for j in range(LINEAR_CHANGES)]
    given = np.stack([*latest, now, np.ones_like(now)], axis=1)
    out = np.full((len(values), len(horizons)), np.nan, dtype=np.float32)
    for k in range(len(horizons)):
        change = targets[LINEAR_CHANGES:, k] - now[: len(targets) - LINEAR_CHANGES]
        rows = np.flatnonzero(~np.isnan(change))
        weights = np.linalg.lstsq(given[rows], change[rows], rcond=None)[0]
        out[LINEAR_CHANGES:, k] = now + given @ weights
    return out
