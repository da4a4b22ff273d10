"""Figures: measures and baselines against values worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from eddy.training.data import load_series
from eddy.training.figures import (
    Figure,
    bigram_bits,
    linear_values,
    pinball,
    seasonal_values,
    series_figures,
    unigram_bits,
    write_figures,
)
from eddy.training.recipe import Recipe, SeriesSource


def test_unigram_bits_by_hand() -> None:
    """Counts 3 and 1, each raised by one: shares 4/6 and 2/6."""
    train, test = np.array([0, 0, 0, 1]), np.array([0, 1])
    assert unigram_bits(train, test, 2) == pytest.approx((-math.log2(4 / 6) - math.log2(2 / 6)) / 2)


def test_bigram_bits_by_hand() -> None:
    """After 0 came 1 twice: share of 0->1 is 3/4, of 1->0 is 2/3."""
    train, test = np.array([0, 1, 0, 1]), np.array([0, 1, 0])
    assert bigram_bits(train, test, 2) == pytest.approx((-math.log2(3 / 4) - math.log2(2 / 3)) / 2)


def test_seasonal_values_never_look_ahead() -> None:
    """Horizon 1 of season 3 is the value two steps back; horizon 4 needs two seasons and is two back as well."""
    got = seasonal_values(np.arange(6, dtype=np.float32), np.arange(6) * 60, (1, 3, 4), 3, 60)
    assert got[4].tolist() == [2, 4, 2]
    assert np.isnan(got[1, 0])


def test_seasonal_values_go_by_the_clock() -> None:
    """After a gap of 4 steps the value 2 steps back in time is the last one before the gap, not the one 2 rows back."""
    seconds = np.array([0, 60, 120, 360, 420, 480])
    got = seasonal_values(np.arange(6, dtype=np.float32), seconds, (1,), 3, 60)
    assert got[2:, 0].tolist() == [0, 2, 2, 3]


def test_linear_values_find_a_line_they_were_fitted_to() -> None:
    """A geometric series is continued exactly, also beyond the part that the fit has seen; the start has none."""
    values = (1.1 ** np.arange(30)).astype(np.float32)
    targets = np.full((20, 1), np.nan, np.float32)
    targets[:18, 0] = values[2:20]
    got = linear_values(values, (2,), targets)
    assert np.isnan(got[:3]).all()
    # float32 values around 10.
    assert got[3:28, 0] == pytest.approx(values[5:], abs=1e-3)


def test_pinball_by_hand() -> None:
    """A miss by 2 above costs level x 2, below (1 - level) x 2; NaN targets do not count."""
    predicted = np.array([[[1.0, 5.0]], [[9.0, 9.0]]], np.float32)
    targets = np.array([[3.0], [np.nan]], np.float32)
    assert pinball(predicted, targets, (0.1, 0.9)) == pytest.approx((0.1 * 2 + 0.1 * 2) / 2)


def test_a_perfect_forecast_has_no_error(series_recipe: Recipe) -> None:
    """Predictions equal to the targets give error 0, and the baselines keep theirs."""
    source = series_recipe.data
    assert isinstance(source, SeriesSource)
    data = load_series(source)
    predicted = np.repeat(data.test.targets[:, :, None], 3, axis=2).astype(np.float32)
    figures = {f.name: f.value for f in series_figures(predicted, data, source)}
    assert figures["mae"] == figures["mae_1"] == figures["pinball_loss"] == 0
    assert figures["interval_coverage"] == figures["interval_coverage_6"] == 1
    assert figures["mae_last_value"] > 1
    # The wave repeats every 24 steps but for a drift of 24 / 200.
    assert figures["mae_seasonal_last_value"] == pytest.approx(0.12, abs=0.01)


def test_figures_are_written_as_json(tmp_path: Path) -> None:
    """Name, value and unit of each."""
    path = tmp_path / "figures.json"
    write_figures(path, [Figure("mae", 0.5, "m")])
    assert json.loads(path.read_text()) == {"figures": [{"name": "mae", "value": 0.5, "unit": "m"}]}
