"""Baselines: counts, lines and seasons against values worked out by hand, and nothing learnt from the test part."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from eddy.training.errors import DataError
from eddy.training.recipe import Recipe
from eddy.training.tasks.series_baselines import (
    find_season,
    linear_values,
    season_steps,
    seasonal_values,
    series_baselines,
    spread,
)
from eddy.training.tasks.series_data import SeriesSource, load_series
from eddy.training.tasks.text_baselines import bigram_bits, ngram_bits, unigram_bits


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


def direct_4gram(train: list[int], weights: list[float], context: list[int], token: int, size: int) -> float:
    """The mixed share of a token after a context, written as its formula reads; one weight for each order."""
    share = 1 / size
    for n, weight in enumerate(weights, start=1):
        before = tuple(context[len(context) - n + 1 :]) if n > 1 else ()
        places = [i for i in range(n - 1, len(train)) if tuple(train[i - n + 1 : i]) == before]
        if not places:
            continue
        own = sum(train[i] == token for i in places) / len(places)
        share = weight * own + (1 - weight) * share
    return share


def test_ngrams_are_the_interpolated_counts() -> None:
    """The fitted mixture is at least as good as the formula with any of a grid of fixed weights, and never impossible.

    On the validation part itself, where the weights come from: a mixture with more weights contains these.
    """
    rng = np.random.default_rng(3)
    text = rng.choice(5, 400, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    text[1:] = np.where(rng.random(399) < 0.5, text[:-1], text[1:])
    train, validation = text[:300], text[300:]
    got = ngram_bits(train, validation, validation, 5)
    for weight in (0.2, 0.5, 0.8):
        shares = [
            direct_4gram(train.tolist(), [weight] * min(i + 1, 4), validation[:i].tolist(), int(validation[i]), 5)
            for i in range(1, len(validation))
        ]
        # The formula above takes all earlier tokens of the part as context, as the mixture does.
        assert got < -np.log2(shares).mean() + 0.01


def test_ngrams_see_what_pairs_cannot() -> None:
    """A cycle of six in which each token has two followers: three of context decide it, one does not."""
    text = np.tile([0, 0, 1, 1, 0, 2], 60)
    args = text[:240], text[240:300], text[300:]
    assert ngram_bits(*args, 3) < 0.1
    assert ngram_bits(*args, 3, order=2) > 0.6


def test_ngrams_hold_for_symbols_that_training_lacks() -> None:
    """A token that was in neither training nor validation costs many bits, but a finite number."""
    train, validation = np.array([1, 2] * 50), np.array([1, 2] * 10)
    got = ngram_bits(train, validation, np.array([1, 0, 1, 3]), 4)
    assert 3 < got < 20


def test_ngram_weights_never_see_the_test_part() -> None:
    """Each test token costs the same whatever the others are, so nothing was fitted to them."""
    rng = np.random.default_rng(1)
    train, validation = rng.integers(0, 4, 500), rng.integers(0, 4, 100)
    one, other = rng.integers(0, 4, 50), rng.integers(0, 4, 50)
    other[0] = one[-1]
    joined = ngram_bits(train, validation, np.concatenate([one, other]), 4, order=2)
    apart = [ngram_bits(train, validation, part, 4, order=2) for part in (one, np.array([one[-1], other[0]]), other)]
    assert joined * 99 == pytest.approx(apart[0] * 49 + apart[1] * 1 + apart[2] * 49)


def test_a_season_is_found_where_there_is_one() -> None:
    """A noisy wave of 24 steps on a slope has season 24; a slope, noise and a constant have none."""
    rng, steps = np.random.default_rng(0), np.arange(480)
    wave = (np.sin(steps * math.tau / 24) + steps / 100 + rng.normal(0, 0.3, 480)).astype(np.float32)
    assert find_season(wave) == 24
    for flat in (steps / 7, rng.normal(0, 1, 480), np.full(480, 3.0)):
        assert find_season(flat.astype(np.float32)) == 1


def test_a_recipe_without_season_gets_the_one_of_its_training_part(series_recipe: Recipe) -> None:
    """24 for the wave, as its recipe would say; a given one wins."""
    source = series_recipe.data
    assert isinstance(source, SeriesSource)
    data = load_series(source)
    assert season_steps(data, replace(source, season_steps=None)) == 24
    assert season_steps(data, replace(source, season_steps=7)) == 7


def test_spread_adds_the_quantiles_of_training_errors() -> None:
    """Errors 0 to 10: the quantiles 0.1 and 0.9 are 1 and 9, added to every point, also beyond the training part."""
    points = np.full((13, 1), 5.0, np.float32)
    targets = (5.0 + np.arange(11, dtype=np.float32))[:, None]
    assert spread("flat", points, targets, (0.1, 0.9)).tolist() == [[[6.0, 14.0]]] * 13
    with pytest.raises(DataError, match="flat: no forecast of the training part has a target"):
        spread("flat", points, np.full((11, 1), np.nan, np.float32), (0.5,))


def test_baseline_quantiles_rise(series_recipe: Recipe) -> None:
    """Each baseline has points and quantiles for every horizon, and the quantiles are in order."""
    source = series_recipe.data
    assert isinstance(source, SeriesSource)
    data = load_series(source)
    baselines = series_baselines(data, source)
    assert [b.name for b in baselines] == ["linear", "last_value", "seasonal_last_value"]
    for baseline in baselines:
        assert baseline.quantiles.shape == (*baseline.points.shape, 3)
        rest = baseline.quantiles[50:]
        assert all((rest[:, :, low] <= rest[:, :, high]).all() for low, high in pairwise(range(3)))
