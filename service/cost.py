"""Costs: what a tick takes, and how much of it fits into a time.

Owns the arithmetic. Must not know how costs are measured, nor what waits.

Dimension key: B rows of a tick, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from eddy.service.runs import Runs


@dataclass(frozen=True, slots=True)
class TickCost:
    """What a tick takes: each run of the graph `fixed_seconds`, each row's each step `row_step_seconds`.

    Attributes:
        runs: what one run takes; None: any tick is one run.
    """

    fixed_seconds: float
    row_step_seconds: float
    runs: Runs | None = None

    def seconds(self, num_rows: int, num_steps: int) -> float:
        """Expected seconds of a tick of B rows of T steps."""
        runs = self.runs
        if runs is None:
            return self.fixed_seconds + num_rows * num_steps * self.row_step_seconds
        num_runs = runs.num_groups(num_rows) * runs.num_pieces(num_steps)
        return num_runs * self.fixed_seconds + runs.padded(num_rows) * num_steps * self.row_step_seconds

    def budget(self, max_seconds: float) -> Budget:
        """What fits into a tick of so many seconds.

        Where any tick is one run, its fixed part is of no account: it is paid once, however long the tick.
        """
        row_steps = max(1, int(max_seconds / self.row_step_seconds))
        if self.runs is None:
            return Budget(row_steps)
        return Budget(row_steps, self.runs, ceil(self.fixed_seconds / self.row_step_seconds))


@dataclass(frozen=True, slots=True)
class Budget:
    """How much fits into one tick.

    Attributes:
        row_steps: rows x steps.
        runs: what one run of the graph takes; None: any tick is one run.
        run_row_steps: what each run costs by itself, in row-steps, where `runs` is given.
    """

    row_steps: int
    runs: Runs | None = None
    run_row_steps: int = 0

    def most_rows(self, num_steps: int) -> int:
        """Rows of T = `num_steps` that fit; none when they are sliced, the rows of one run at least."""
        runs = self.runs
        if runs is None:
            return self.row_steps // num_steps
        by_itself = runs.num_pieces(num_steps) * self.run_row_steps
        if runs.rows:
            return max(1, self.row_steps // (by_itself + runs.rows * num_steps)) * runs.rows
        return max(0, self.row_steps - by_itself) // num_steps

    def most_steps(self, num_rows: int) -> int:
        """Steps of B = `num_rows` that fit; none when one step alone has more."""
        runs = self.runs
        if runs is None:
            return self.row_steps // num_rows
        by_itself, rows = runs.num_groups(num_rows) * self.run_row_steps, runs.padded(num_rows)
        if runs.steps:
            return self.row_steps // (by_itself + rows * runs.steps) * runs.steps
        return max(0, self.row_steps - by_itself) // rows
