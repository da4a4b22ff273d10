"""Figures: measures against values worked out by hand, baselines beside them."""

import json
from pathlib import Path

import numpy as np
import pytest

from eddy.training.figures import Figure, compare_figures, write_figures
from eddy.training.recipe import Recipe
from eddy.training.tasks.registry import BASELINES
from eddy.training.tasks.series import pinball, series_figures
from eddy.training.tasks.series_data import SeriesSource, load_series


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


def test_baselines_are_found_by_their_names() -> None:
    """A figure is compared with those that are called as it is, with a baseline's name behind."""
    figures = [Figure(name, value, "m") for name, value in (("mae", 1.0), ("mae_1", 2.0), ("mae_1_linear", 3.0))]
    [found] = compare_figures(
        [*figures, Figure("mae_last_value", 4.0, "m"), Figure("season_steps", 5, "")][1:3], BASELINES
    )
    assert (found.figure.name, found.baselines) == ("mae_1", {"linear": 3.0})


def test_figures_are_written_as_json(tmp_path: Path) -> None:
    """Name, value and unit of each."""
    path = tmp_path / "figures.json"
    write_figures(path, [Figure("mae", 0.5, "m")])
    assert json.loads(path.read_text()) == {"figures": [{"name": "mae", "value": 0.5, "unit": "m"}]}
