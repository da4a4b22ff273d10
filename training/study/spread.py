"""Spread: the same number over several seeds: its median and its ends, and what may be concluded from two of them.

Owns: the rule by which one variant counts as better than another: every seed of it is better than every seed of the
other. With three seeds each, chance alone does that once in twenty times. Must not know what the numbers mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of `count` seeds; NaN where there is none."""

    median: float
    low: float
    high: float
    count: int

    @staticmethod
    def over(values: Sequence[float]) -> "Spread":
        """The spread of these values."""
        if not values:
            return Spread(math.nan, math.nan, math.nan, 0)
        return Spread(float(median(values)), min(values), max(values), len(values))

    def moved(self, factor: float, offset: float = 0.0) -> "Spread":
        """Every value times a positive factor, plus an offset."""
        low, middle, high = (factor * value + offset for value in (self.low, self.median, self.high))
        return Spread(middle, low, high, self.count)

    def show(self, form: str = ".3f") -> str:
        """`median (low to high)`, or a dash where nothing was measured. form: a format specification."""
        if not self.count:
            return "-"
        ends = f" ({self.low:{form}} to {self.high:{form}})" if self.count > 1 else ""
        return f"{self.median:{form}}{ends}"


class Verdict(StrEnum):
    """What the seeds say of an assertion."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "undecided"
    MISSING = "not measured"


def is_higher(one: Spread, other: Spread, *, factor: float = 1.0) -> Verdict:
    """Whether `one` is above `factor` times `other`, by all seeds against all seeds."""
    if not (one.count and other.count):
        return Verdict.MISSING
    if one.low > factor * other.high:
        return Verdict.HOLDS
    return Verdict.FAILS if one.high < factor * other.low else Verdict.OPEN


def is_lower(one: Spread, other: Spread) -> Verdict:
    """Whether `one` is below `other`, by all seeds against all seeds."""
    return is_higher(other, one)


def is_below(one: Spread, limit: float) -> Verdict:
    """Whether every seed is below a fixed number."""
    return is_lower(one, Spread(limit, limit, limit, 1)) if one.count else Verdict.MISSING


def is_above(one: Spread, limit: float) -> Verdict:
    """Whether every seed is above a fixed number."""
    return is_higher(one, Spread(limit, limit, limit, 1)) if one.count else Verdict.MISSING


def ratio(one: Sequence[float], other: Sequence[float]) -> Spread:
    """Seed by seed, for what was measured of the same weights: one divided by the other, neither of them 0."""
    return Spread.over([a / b for a, b in zip(one, other, strict=True)])


def all_hold(verdicts: Sequence[Verdict]) -> Verdict:
    """Of an assertion in several parts: the worst of their verdicts, what fails before what is open."""
    order = (Verdict.MISSING, Verdict.FAILS, Verdict.OPEN, Verdict.HOLDS)
    return min(verdicts, key=order.index)
