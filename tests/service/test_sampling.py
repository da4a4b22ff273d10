"""Drawing tokens: filters, random numbers, log-probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eddy.service.errors import ClientError, Reason
from eddy.service.sampling import Sampling, draw, log_probabilities, uniform

SCORES = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40).map(lambda each: np.array(each, np.float32))
SEEDS = st.integers(0, (1 << 64) - 1)
POSITIONS = st.integers(0, (1 << 63) - 1)


def _allowed(logits: np.ndarray, sampling: Sampling) -> set[int]:
    """Tokens that the filters leave, by their definition: slow and plain."""
    scores = logits.astype(np.float64) / sampling.temperature
    shares = np.exp(scores - scores.max())
    order = sorted(range(len(shares)), key=lambda token: (-shares[token], token))
    if sampling.top_k:
        order = order[: sampling.top_k]
    total = sum(shares[token] for token in order)
    left, reached = set(), 0.0
    for token in order:
        left.add(token)
        reached += shares[token] / total
        if reached >= sampling.top_p - 1e-9:
            break
    return left if sampling.top_p < 1 else set(order)


@given(logits=SCORES, seed=SEEDS, position=POSITIONS, top_k=st.integers(0, 50), top_p=st.floats(0.01, 1.0))
def test_filters_leave_what_they_should(logits: np.ndarray, seed: int, position: int, top_k: int, top_p: float) -> None:
    """A drawn token is one of those that top-k and top-p leave."""
    sampling = Sampling(seed, 0.7, top_k, top_p)
    token = draw(logits, sampling, position)
    assert token in _allowed(logits, sampling) or np.isclose(top_p, 1.0)


@given(logits=SCORES, seed=SEEDS, position=POSITIONS)
def test_temperature_zero_takes_the_most_likely(logits: np.ndarray, seed: int, position: int) -> None:
    """Of several equal ones the first."""
    assert draw(logits, Sampling(seed, 0.0), position) == int(logits.argmax())


@given(logits=SCORES, seed=SEEDS, position=POSITIONS, data=st.data())
def test_a_banned_token_is_never_drawn(logits: np.ndarray, seed: int, position: int, data: st.DataObject) -> None:
    """Not even as the most likely; with nothing else left there is no token."""
    banned = data.draw(st.integers(0, len(logits) - 1))
    for temperature in (0.0, 1.0, 1e-6):
        token = draw(logits, Sampling(seed, temperature), position, (banned,))
        assert token != banned
        assert (token is None) == (len(logits) == 1)


def test_frequencies_are_the_probabilities() -> None:
    """Over many positions every token comes as often as softmax says; chi-squared below its 0.9999 quantile."""
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.0625, 0.0625], np.float32))
    count = 20_000
    drawn = np.bincount([draw(logits, Sampling(7), position) or 0 for position in range(count)], minlength=5)
    expected = count * np.exp(log_probabilities(logits))
    assert float(((drawn - expected) ** 2 / expected).sum()) < 23.5


def test_random_numbers_are_spread() -> None:
    """Neighbouring seeds and positions give unrelated numbers: mean, variance and neighbours' correlation."""
    grid = np.array([[uniform(seed, position) for position in range(200)] for seed in range(200)])
    assert abs(grid.mean() - 0.5) < 0.01
    assert abs(grid.var() - 1 / 12) < 0.003
    for axis in (0, 1):
        here, there = np.delete(grid, -1, axis).ravel(), np.delete(grid, 0, axis).ravel()
        assert abs(np.corrcoef(here, there)[0, 1]) < 0.02
    assert grid.min() >= 0.0
    assert grid.max() < 1.0


def test_random_numbers_do_not_change() -> None:
    """Texts that were generated once can be generated again by later versions: the values are fixed."""
    drawn = [uniform(seed, position) for seed, position in ((0, 0), (1, 0), (0, 1), (2**64 - 1, 2**63))]
    assert [round(each, 12) for each in drawn] == [0.708897907182, 0.644367050939, 0.147372472152, 0.676729561886]


@pytest.mark.parametrize("scores", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])
def test_scores_that_are_no_numbers_give_no_token(scores: list[float]) -> None:
    """The caller is told, and nothing is made up."""
    assert draw(np.array(scores, np.float32), Sampling(1), 0) is None


@given(logits=SCORES)
def test_log_probabilities_sum_to_one(logits: np.ndarray) -> None:
    """They are those of the model's own distribution; tolerance: float64 sums of 40 terms."""
    assert np.exp(log_probabilities(logits)).sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_p": 0.0},
     {"top_p": 1.5}, {"top_p": float("nan")}],
)  # fmt: skip
def test_impossible_parameters_are_refused(wrong: dict[str, float]) -> None:
    """By name, with what came."""
    with pytest.raises(ClientError, match=f"sampling.{next(iter(wrong))}: got") as caught:
        Sampling(1, **wrong)
    assert caught.value.reason is Reason.OUT_OF_RANGE


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        # At temperature 1 the shares are 8:4:2:1:1, of 16.
        (Sampling(3, temperature=0.5), (64, 16, 4, 1, 1)),
        (Sampling(3, temperature=2.0), (2 * 2**0.5, 2, 2**0.5, 1, 1)),
        (Sampling(3, top_k=2), (8, 4, 0, 0, 0)),
        (Sampling(3, top_k=4), (8, 4, 2, 1, 0)),
        (Sampling(3, top_p=0.74), (8, 4, 0, 0, 0)),
        (Sampling(3, top_p=0.76), (8, 4, 2, 0, 0)),
        # Temperature before top-p: 64/86 is above 0.7, 8/16 is not.
        (Sampling(3, temperature=0.5, top_p=0.7), (64, 0, 0, 0, 0)),
        # Top-k before top-p: of the two likeliest, 8/12 is above 0.6; of all, 8/16 is not.
        (Sampling(3, top_k=2, top_p=0.6), (8, 0, 0, 0, 0)),
    ],
)
def test_frequencies_after_the_filters(sampling: Sampling, expected: tuple[float, ...]) -> None:
    """By hand: who is left after temperature, top-k and top-p, in this order, comes in the shares that are left.

    Chi-squared below its 0.9999 quantile of 4 degrees of freedom.
    """
    # Not in the order of likelihood.
    places = np.array([2, 0, 4, 1, 3])
    logits = np.empty(5, np.float32)
    logits[places] = np.log(np.array([8, 4, 2, 1, 1]))
    count = 20_000
    drawn = np.bincount([draw(logits, sampling, position) or 0 for position in range(count)], minlength=5)[places]
    due = count * np.array(expected) / sum(expected)
    left = due > 0
    assert not drawn[~left].any()
    assert float(((drawn - due)[left] ** 2 / due[left]).sum()) < 23.5
