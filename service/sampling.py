"""Sampling: which token comes next, given the model's scores.

Owns the filters, the random numbers and the log-probabilities. Must not know sessions or models. No state: the random
number of a draw depends on (seed, position) alone, so that a draw can be repeated anywhere.

Dimension key: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from eddy.service.errors import Reason, invalid

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_UNIT = 1.0 / (1 << 53)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw. Filters apply in the order temperature, top-k, top-p.

    Attributes:
        seed: 64 bits.
        temperature: scores are divided by it; 0: the most likely token.
        top_k: only so many of the most likely tokens, 0 for all.
        top_p: only the most likely tokens that together reach this probability, in (0, 1].

    Raises:
        ClientError: OUT_OF_RANGE.
    """

    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < inf:
            raise invalid(Reason.OUT_OF_RANGE, "sampling.temperature", self.temperature, "0 or a positive number")
        if not 0 < self.top_p <= 1:
            raise invalid(Reason.OUT_OF_RANGE, "sampling.top_p", self.top_p, "a probability above 0 and at most 1")


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, from two 64-bit integers.

    Two rounds of SplitMix64's finaliser: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    return (_mix(_mix(seed) ^ _mix(position + _GOLDEN)) >> 11) * _UNIT


def _mix(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def draw(logits: np.ndarray, sampling: Sampling, position: int, banned: Sequence[int] = ()) -> int | None:
    """The token after `position`; None when the scores are not numbers.

    Args:
        logits: float [V], unnormalised log-probabilities; position: steps that the session has taken.
        banned: tokens that are never drawn.

    Equal scores are ordered by token id, so the result is the same on every machine that gives the same scores.
    """
    scores = logits.astype(np.float64)
    for token in banned:
        scores[token] = -inf
    highest = float(scores.max())
    if not isfinite(highest):
        return None
    if sampling.temperature == 0.0:
        return int(scores.argmax())
    with np.errstate(over="ignore"):  # By a temperature next to 0: -inf, and no weight, is what is meant.
        weights = np.exp((scores - highest) / sampling.temperature)
    order = None
    if sampling.top_k or sampling.top_p < 1.0:
        order = np.argsort(-weights, kind="stable")
        if sampling.top_k:
            order = order[: sampling.top_k]
        weights = weights[order]
        if sampling.top_p < 1.0:
            reached = np.cumsum(weights)
            count = int(np.searchsorted(reached, sampling.top_p * reached[-1])) + 1
            order, weights = order[:count], weights[:count]
    reached = np.cumsum(weights)
    place = int(np.searchsorted(reached, uniform(sampling.seed, position) * reached[-1], side="right"))
    place = min(place, int(np.flatnonzero(weights)[-1]))  # Rounding can only point behind the last possible token.
    return place if order is None else int(order[place])


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of the model's own probabilities, float64 [V], before any filter."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    return np.asarray(scores - np.log(np.exp(scores).sum()))
