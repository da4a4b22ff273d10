"""Figures: how good a model is, next to honest baselines, as named numbers.

Owns: the measures and the baselines, computed with numpy from predictions and targets. Must not know torch: the
predictions come in as arrays.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eddy.training.data import Floats, Seconds, SeriesData, TextData, Tokens
from eddy.training.recipe import SeriesSource

# Changes before the present value that the linear baseline looks at; on the shipped series more gained nothing.
LINEAR_CHANGES = 3


@dataclass(frozen=True, slots=True)
class Figure:
    """One named result. unit: "bit", "mg/dL", "share"; empty for a plain number."""

    name: str
    value: float
    unit: str


def write_figures(path: Path, figures: Sequence[Figure]) -> None:
    """Write figures as JSON: {"figures": [{"name", "value", "unit"}, ...]}."""
    path.write_text(json.dumps({"figures": [asdict(f) for f in figures]}, indent=2) + "\n", encoding="utf-8")


def text_figures(nats: float, data: TextData) -> list[Figure]:
    """Bits per character on the test part, the model's (from its mean loss in nats) and two counting baselines."""
    size = len(data.vocabulary.symbols)
    train, test = _tokens(data.train.inputs), _tokens(data.test.inputs)
    return [
        Figure("bits_per_character", nats / math.log(2), "bit"),
        Figure("bits_per_character_unigram", unigram_bits(train, test, size), "bit"),
        Figure("bits_per_character_bigram", bigram_bits(train, test, size), "bit"),
    ]


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


def series_figures(predicted: Floats, data: SeriesData, source: SeriesSource) -> list[Figure]:
    """Errors on the test part, of the model and of three baselines.

    predicted: float32 [N, K, Q] for every step of the series. The model's forecast is its middle quantile. Baselines:
    the last value; the value one season (or as many as reach the horizon) before the forecast's time; and a straight
    line through the latest values, by least squares.
    """
    targets, horizons, quantiles, unit = _floats(data.test.targets), source.horizons, source.quantiles, source.unit
    values = data.values[:, data.target]
    middle = predicted[:, :, len(quantiles) // 2]
    baselines = {
        "last_value": np.repeat(values[:, None], len(horizons), axis=1),
        "seasonal_last_value": seasonal_values(
            values, data.seconds, horizons, source.season_steps, source.step_seconds
        ),
        "linear": linear_values(values, horizons, _floats(data.train.targets)),
    }
    inside = (predicted[:, :, 0] <= targets) & (targets <= predicted[:, :, -1])
    counted = ~np.isnan(targets)
    figures = [
        Figure("mae", _mae(middle, targets), unit),
        *(Figure(f"mae_{name}", _mae(baseline, targets), unit) for name, baseline in baselines.items()),
        Figure("pinball_loss", pinball(predicted, targets, quantiles), unit),
        Figure("interval_coverage", float(inside[counted].mean()), "share"),
        Figure("interval_coverage_nominal", quantiles[-1] - quantiles[0], "share"),
    ]
    for k, horizon in enumerate(horizons):
        figures.append(Figure(f"mae_{horizon}", _mae(middle[:, k], targets[:, k]), unit))
        figures += [
            Figure(f"mae_{horizon}_{name}", _mae(baseline[:, k], targets[:, k]), unit)
            for name, baseline in baselines.items()
        ]
        share = float(inside[counted[:, k], k].mean())
        figures.append(Figure(f"interval_coverage_{horizon}", share, "share"))
    return figures


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


def pinball(predicted: Floats, targets: Floats, quantiles: Sequence[float]) -> float:
    """Mean pinball loss (Koenker and Bassett, 1978) over the targets that are not NaN; [N, K, Q] and [N, K]."""
    error = targets[:, :, None] - predicted
    levels = np.asarray(quantiles)
    return float(np.nanmean(np.maximum(levels * error, (levels - 1) * error)))


def _mae(predicted: Floats, targets: Floats) -> float:
    """Mean absolute error over the targets that are not NaN."""
    return float(np.nanmean(np.abs(predicted - targets)))


def _tokens(values: npt.NDArray[np.generic]) -> Tokens:
    return values.astype(np.int64, copy=False)


def _floats(values: npt.NDArray[np.generic]) -> Floats:
    return values.astype(np.float32, copy=False)
