"""The state store's health: whether it works, how far behind it is, and what has been done with it.

Owns when the store counts as failing, and what its operator is told, once a change. Must not know what is written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from eddy.service.config import StateConfig
from eddy.service.errors import CapacityError, Detail, Reason
from eddy.service.histogram import Histogram

_LOG = logging.getLogger(__name__)

# A write of a few sessions takes as long as the disk needs for one, 1 to 10 ms; ten thousand take some 0.2 s. Beyond
# 10 s the store counts as failing.
WRITE_BOUNDS = (1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class StoreStats:
    """What has been done with the store since the start. Changed on the event loop; any thread may read."""

    __slots__ = (
        "checkpoint_time",
        "num_failures",
        "num_fenced",
        "num_recalled",
        "num_written",
        "written_bytes",
    )

    def __init__(self) -> None:
        self.checkpoint_time = Histogram(WRITE_BOUNDS)
        self.num_written = 0
        self.written_bytes = 0
        self.num_fenced = 0
        self.num_recalled = 0
        self.num_failures = 0


class StoreHealth:
    """Whether the store works.

    Args:
        config: `state.*`; clock: monotonic seconds.

    Attributes:
        problem: why the store counts as failing, empty while it works.
    """

    def __init__(self, config: StateConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        # Changed on the event loop only. All that had changed before this time is in the store.
        self._caught_up_at = clock()
        self._is_behind = False
        self.problem = ""
        self.stats = StoreStats()

    @property
    def lag_seconds(self) -> float:
        """How long the oldest change has waited to become durable; 0 when none waits."""
        return max(0.0, self._clock() - self._caught_up_at) if self._is_behind else 0.0

    @property
    def refuses(self) -> bool:
        """Steps and openings are to be refused now."""
        return bool(self.problem) and self._config.on_failure == "refuse"

    def refusal(self) -> CapacityError:
        """The error for what is refused meanwhile."""
        return CapacityError(
            Reason.STORE_UNAVAILABLE,
            f"the state store fails ({self.problem}), and this server refuses what it cannot make durable; nothing of "
            "this request was applied, try again later",
            Detail("state.store", self.problem, "a store that works"),
        )

    def begin(self, *, has_changes: bool) -> None:
        """A checkpoint begins; whether anything has changed since the last one that was finished."""
        if not has_changes:
            self._caught_up_at = self._clock()
        self._is_behind = has_changes

    def caught_up(self, at: float) -> None:
        """All that had changed before `at`, monotonic seconds, is in the store."""
        self._caught_up_at = max(self._caught_up_at, at)
        self.look()

    def failed(self, problem: str) -> None:
        """A call of the store failed."""
        self.stats.num_failures += 1
        self._tell(problem)

    def worked(self) -> None:
        """A call of the store was carried out."""
        if self.lag_seconds <= self._config.max_lag_seconds:
            self._tell("")

    def look(self) -> None:
        """Whether a step has waited for too long by now."""
        lag, most = self.lag_seconds, self._config.max_lag_seconds
        if lag > most:
            self._tell(self.problem or f"nothing has been written for longer than state.max_lag_seconds, {most:g} s")

    def _tell(self, problem: str) -> None:
        if problem and not self.problem:
            _LOG.error("the state store fails, sessions are not durable now: %s", problem)
        elif self.problem and not problem:
            _LOG.warning("the state store works again")
        self.problem = problem
