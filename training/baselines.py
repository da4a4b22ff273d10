"""Baselines: what is reached without any learning of states, so that a model's figures mean something.

Owns: counts of characters for texts; last value, seasonal last value and a straight line for series. Everything is
counted or fitted on the training part; only the weights that mix counts are fitted on the validation part. The test
part is never fitted to. Must not know models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eddy.training.data import Floats, Seconds, SeriesData, Tokens
from eddy.training.errors import DataError
from eddy.training.recipe import SeriesSource

# Changes before the present value that the linear baseline looks at; on the shipped series more gained nothing.
LINEAR_CHANGES = 3
# Characters of a counted group: three of context and the one that comes.
ORDER = 4
# Contexts that were seen about equally often share a weight: 1, 2-3, 4-7, ... times; the last class has no upper end.
CLASSES = 12
# Rounds of fitting; on the shipped text nothing moves by 0.001 bit after ten.
ROUNDS = 25
# A season must show in the series: values a season apart correlate at least this much, and more than those of pure
# noise do by chance, whose correlations spread by 1 / sqrt(N).
LEAST_CORRELATION = 0.1
CHANCE_DEVIATIONS = 4.0

Doubles = npt.NDArray[np.float64]


def unigram_bits(train: Tokens, test: Tokens, size: int) -> float:
    """Mean bits of a test token under the training part's frequencies, each count raised by one."""
    counts = np.bincount(train, minlength=size) + 1.0
    return float(-np.log2(counts / counts.sum())[test].mean())


def bigram_bits(train: Tokens, test: Tokens, size: int) -> float:
    """Mean bits of a test token given the one before it, pair counts of the training part, each raised by one."""
    counts = np.ones((size, size))
    np.add.at(counts, (train[:-1], train[1:]), 1.0)
    bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    return float(bits[test[:-1], test[1:]].mean())


def ngram_bits(train: Tokens, validation: Tokens, test: Tokens, size: int, order: int = ORDER) -> float:
    """Mean bits of a test token given the order - 1 before it, counts of all orders mixed (Jelinek and Mercer, 1980).

    share_n = w * (count of the n tokens / count of their first n - 1) + (1 - w) * share_{n-1}, down to 1 / size. Counts
    are the training part's; the weights w, one for each n and class of context count, are fitted on the validation
    part by expectation maximisation. Tokens int64 [N], all below `size`.
    """
    counts = _NgramCounts(train, validation, test, size, order)
    weights = _fit_weights(*counts.look_up(1), size)
    shares, classes = counts.look_up(2)
    return float(-np.log2(_mix(shares, classes, weights, size)[-1]).mean())


class _NgramCounts:
    """The training part's counts of all orders, looked up at every position of any of the three parts."""

    def __init__(self, train: Tokens, validation: Tokens, test: Tokens, size: int, order: int) -> None:
        parts = (train, validation, test)
        self._starts = np.cumsum([0, *map(len, parts)])
        tokens = np.concatenate(parts)
        # The first of a part has no token before it, the second only one, and so on: a part stands alone.
        self._before = np.concatenate([np.arange(len(part)) for part in parts])
        # Ids of the n tokens that end at each position: equal ids for equal groups, below the number of positions.
        groups = [np.zeros(len(tokens), np.int64), tokens]
        for _ in range(order - 1):
            earlier = np.concatenate([[0], groups[-1][:-1]])
            groups.append(np.unique(earlier * size + tokens, return_inverse=True)[1])
        self._groups = groups

    def look_up(self, part: int) -> tuple[Doubles, Tokens]:
        """For a part (0 to 2) but its first token: the shares that counts give and the context's class, each [n, N].

        Class 0 is a context that the training part lacks; its share is 0.
        """
        here = np.arange(self._starts[part] + 1, self._starts[part + 1])
        found = [self._count(n, here) for n in range(1, len(self._groups))]
        with_context = [np.maximum(context, 1) for _, context in found]
        shares = np.array([whole / context for (whole, _), context in zip(found, with_context, strict=True)])
        classes = np.array([np.minimum(np.frexp(context)[1], CLASSES - 1) for _, context in found])
        return shares, classes.astype(np.int64)

    def _count(self, n: int, here: Tokens) -> tuple[Tokens, Tokens]:
        """How often the n tokens that end at each position, and how often their first n - 1, were in training."""
        last = self._groups[n]
        context = np.concatenate([[0], self._groups[n - 1][:-1]])
        counted = np.flatnonzero(self._before[: self._starts[1]] >= n - 1)
        whole = np.bincount(last[counted], minlength=int(last.max()) + 1)[last[here]]
        first = np.bincount(context[counted], minlength=int(context.max()) + 1)[context[here]]
        known = self._before[here] >= n - 1
        return whole * known, first * known


def _fit_weights(shares: Doubles, classes: Tokens, size: int) -> Doubles:
    """The weights [n, CLASSES] that make these positions likeliest; 0 for contexts that were not seen."""
    weights = np.full((len(shares), CLASSES), 0.5)
    weights[:, 0] = 0.0
    for _ in range(ROUNDS):
        mixed = _mix(shares, classes, weights, size)
        # The chance that a position was decided at an order, and of what is left for the lower ones.
        left = np.ones(shares.shape[1])
        for n in range(len(shares) - 1, -1, -1):
            decided = weights[n][classes[n]] * shares[n] / mixed[n + 1]
            reached = np.bincount(classes[n], left, CLASSES)
            taken = np.bincount(classes[n], left * decided, CLASSES)
            # One more position, decided lower down: no weight gets to 1, so nothing is ever impossible.
            weights[n] = taken / (reached + 1)
            left = left * (1 - decided)
    return weights


def _mix(shares: Doubles, classes: Tokens, weights: Doubles, size: int) -> list[Doubles]:
    """The mixed share of every position by order, [N] each, the uniform share first."""
    mixed = [np.full(shares.shape[1], 1 / size)]
    for share, its_class, weight in zip(shares, classes, weights, strict=True):
        own = weight[its_class]
        mixed.append(own * share + (1 - own) * mixed[-1])
    return mixed


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
