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

from eddy.training.data import Floats, SeriesData, TextData, Tokens


@dataclass(frozen=True, slots=True)
class Figure:
    """One named result. unit: "bit", "degC", "share"; empty for a plain number."""

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


def series_figures(
    predicted: Floats, data: SeriesData, horizons: Sequence[int], quantiles: Sequence[float], season: int, unit: str
) -> list[Figure]:
    """Errors on the test part, of the model and of two baselines.

    predicted: float32 [N, K, Q] for every step of the series. The model's forecast is its middle quantile. Baselines:
    the last value, and the value one season (or as many as reach the horizon) before the forecast's time.
    """
    targets = _floats(data.test.targets)
    middle = predicted[:, :, len(quantiles) // 2]
    last = np.repeat(data.values[:, data.target, None], len(horizons), axis=1)
    seasonal = seasonal_values(data.values[:, data.target], horizons, season)
    inside = (predicted[:, :, 0] <= targets) & (targets <= predicted[:, :, -1])
    counted = ~np.isnan(targets)
    figures = [
        Figure("mae", _mae(middle, targets), unit),
        Figure("mae_last_value", _mae(last, targets), unit),
        Figure("mae_seasonal_last_value", _mae(seasonal, targets), unit),
        Figure("pinball_loss", pinball(predicted, targets, quantiles), unit),
        Figure("interval_coverage", float(inside[counted].mean()), "share"),
        Figure("interval_coverage_nominal", quantiles[-1] - quantiles[0], "share"),
    ]
    for k, horizon in enumerate(horizons):
        figures += [
            Figure(f"mae_{horizon}", _mae(middle[:, k], targets[:, k]), unit),
            Figure(f"mae_{horizon}_last_value", _mae(last[:, k], targets[:, k]), unit),
            Figure(f"mae_{horizon}_seasonal_last_value", _mae(seasonal[:, k], targets[:, k]), unit),
        ]
    return figures


def seasonal_values(values: Floats, horizons: Sequence[int], season: int) -> Floats:
    """For each origin and horizon, the last known value a whole number of seasons before the target's time.

    values: float32 [N]. Returns float32 [N, K], NaN where the series does not reach back that far.
    """
    out = np.full((len(values), len(horizons)), np.nan, dtype=np.float32)
    for k, horizon in enumerate(horizons):
        back = -(-horizon // season) * season - horizon
        out[back:, k] = values[: len(values) - back]
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
