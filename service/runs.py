"""Runs: how many rows and steps a model's graph takes at once, where that is not any number.

Owns the arithmetic of cutting B rows and T steps into runs. Must not know graphs or who cuts.

Dimension key: B rows, T steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Runs:
    """What one run of a graph takes.

    Attributes:
        rows: exactly so many rows, the last group being padded; 0: any number.
        steps: so many steps at most; 0: any number.
    """

    rows: int
    steps: int

    def fits(self, num_rows: int, num_steps: int) -> bool:
        """B rows of T steps are one run."""
        return (not self.rows or num_rows <= self.rows) and (not self.steps or num_steps <= self.steps)

    def row_groups(self, num_rows: int) -> Iterator[slice]:
        """The rows of each run."""
        return _cuts(num_rows, self.rows)

    def step_pieces(self, num_steps: int) -> Iterator[slice]:
        """The steps of each run."""
        return _cuts(num_steps, self.steps)

    def num_groups(self, num_rows: int) -> int:
        """How many runs B rows of few steps are."""
        return -(-num_rows // self.rows) if self.rows else 1

    def num_pieces(self, num_steps: int) -> int:
        """How many runs T steps of few rows are."""
        return -(-num_steps // self.steps) if self.steps else 1

    def padded(self, num_rows: int) -> int:
        """The rows that B rows are with the padding."""
        return self.num_groups(num_rows) * (self.rows or num_rows)


def _cuts(total: int, most: int) -> Iterator[slice]:
    size = most or total
    for begin in range(0, total, size):
        yield slice(begin, min(begin + size, total))
