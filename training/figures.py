"""Figures: how good a model is, next to honest baselines, as named numbers.

Owns: the measures, computed with numpy from predictions and targets, and the names of the figures: a baseline's figure
is called as the model's, with the baseline's name behind. Must not know torch: predictions come in as arrays.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eddy.training.baselines import bigram_bits, ngram_bits, season_steps, series_baselines, unigram_bits
from eddy.training.chart import Level
from eddy.training.curve import Measure
from eddy.training.data import Floats, Part, SeriesData, TextData, Tokens
from eddy.training.recipe import SeriesSource
from eddy.training.storage import write_whole

# Baselines by the end of their figures' names, best first as a rule, and what a person calls them.
TEXT_BASELINES = {"4gram": "4-grams", "bigram": "pairs", "unigram": "single characters"}
SERIES_BASELINES = {"linear": "linear", "last_value": "last value", "seasonal_last_value": "seasonal last value"}


@dataclass(frozen=True, slots=True)
class Figure:
    """One named result. unit: "bit", "mg/dL", "share"; empty for a plain number."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model's figure with those of the baselines, by the baselines' names."""

    figure: Figure
    baselines: dict[str, float]


def compare_figures(figures: Sequence[Figure]) -> list[Comparison]:
    """All figures that baselines have too, each with theirs."""
    values = {figure.name: figure.value for figure in figures}
    names = (*TEXT_BASELINES, *SERIES_BASELINES)
    found = [
        Comparison(
            figure, {name: values[f"{figure.name}_{name}"] for name in names if f"{figure.name}_{name}" in values}
        )
        for figure in figures
    ]
    return [comparison for comparison in found if comparison.baselines]


def write_figures(path: Path, figures: Sequence[Figure]) -> None:
    """Write figures as JSON: {"figures": [{"name", "value", "unit"}, ...]}. Raises StorageError."""
    write_whole(path, (json.dumps({"figures": [asdict(f) for f in figures]}, indent=2) + "\n").encode())


def text_figures(nats: float, data: TextData) -> list[Figure]:
    """Bits per character on the test part, the model's (from its mean loss in nats) and three counting baselines."""
    bits = text_baselines(data, data.test)
    return [
        Figure("bits_per_character", nats / math.log(2), "bit"),
        *(Figure(f"bits_per_character_{name}", value, "bit") for name, value in bits.items()),
    ]


def text_baselines(data: TextData, part: Part) -> dict[str, float]:
    """Bits per character of a part by baseline."""
    size = len(data.vocabulary.symbols)
    train, validation, judged = (_tokens(p.inputs) for p in (data.train, data.validation, part))
    return {
        "unigram": unigram_bits(train, judged, size),
        "bigram": bigram_bits(train, judged, size),
        "4gram": ngram_bits(train, validation, judged, size),
    }


def series_figures(predicted: Floats, data: SeriesData, source: SeriesSource) -> list[Figure]:
    """Errors on the test part, of the model and of the baselines (see `series_baselines`).

    predicted: float32 [N, K, Q] for every step of the series. The model's forecast is its middle quantile.
    """
    targets, horizons, quantiles, unit = _floats(data.test.targets), source.horizons, source.quantiles, source.unit
    middle = predicted[:, :, len(quantiles) // 2]
    baselines = series_baselines(data, source)
    inside = (predicted[:, :, 0] <= targets) & (targets <= predicted[:, :, -1])
    counted = ~np.isnan(targets)
    figures = [
        Figure("mae", mean_absolute(middle, targets), unit),
        *(Figure(f"mae_{b.name}", mean_absolute(b.points, targets), unit) for b in baselines),
        Figure("pinball_loss", pinball(predicted, targets, quantiles), unit),
        *(Figure(f"pinball_loss_{b.name}", pinball(b.quantiles, targets, quantiles), unit) for b in baselines),
        Figure("season_steps", season_steps(data, source), "steps"),
        Figure("interval_coverage", float(inside[counted].mean()), "share"),
        Figure("interval_coverage_nominal", quantiles[-1] - quantiles[0], "share"),
    ]
    for k, horizon in enumerate(horizons):
        one = slice(k, k + 1)
        figures += [
            Figure(f"mae_{horizon}", mean_absolute(middle[:, k], targets[:, k]), unit),
            *(Figure(f"mae_{horizon}_{b.name}", mean_absolute(b.points[:, k], targets[:, k]), unit) for b in baselines),
            Figure(f"pinball_loss_{horizon}", pinball(predicted[:, one], targets[:, one], quantiles), unit),
            *(
                Figure(
                    f"pinball_loss_{horizon}_{b.name}", pinball(b.quantiles[:, one], targets[:, one], quantiles), unit
                )
                for b in baselines
            ),
            Figure(f"interval_coverage_{horizon}", float(inside[counted[:, k], k].mean()), "share"),
        ]
    return figures


def curve_measure(data: TextData | SeriesData, source: object) -> tuple[Measure, tuple[Level, ...]]:
    """What the training loss is for a person, and what the baselines reach of it on the validation part."""
    if isinstance(data, TextData):
        bits = text_baselines(data, data.validation)
        levels = tuple(Level(label, bits[name]) for name, label in TEXT_BASELINES.items())
        return Measure("bits per character", 1 / math.log(2)), levels
    assert isinstance(source, SeriesSource)
    targets = _floats(data.validation.targets)
    losses = {
        b.name: pinball(b.quantiles[: len(targets)], targets, source.quantiles) for b in series_baselines(data, source)
    }
    levels = tuple(Level(label, losses[name]) for name, label in SERIES_BASELINES.items())
    return Measure(f"pinball loss, {source.unit}", data.scale[data.target]), levels


def pinball(predicted: Floats, targets: Floats, quantiles: Sequence[float]) -> float:
    """Mean pinball loss (Koenker and Bassett, 1978) over the targets that are not NaN; [N, K, Q] and [N, K]."""
    error = targets[:, :, None] - predicted
    levels = np.asarray(quantiles)
    return float(np.nanmean(np.maximum(levels * error, (levels - 1) * error)))


def mean_absolute(predicted: Floats, targets: Floats) -> float:
    """Mean absolute error over the targets that are not NaN."""
    return float(np.nanmean(np.abs(predicted - targets)))


def _tokens(values: npt.NDArray[np.generic]) -> Tokens:
    return values.astype(np.int64, copy=False)


def _floats(values: npt.NDArray[np.generic]) -> Floats:
    return values.astype(np.float32, copy=False)
