"""Endings: how open sessions end, but for the failure of their model.

Owns closing, expiry, the ends of sessions of retired models, of those that another server goes on with and of those
whose states are not finite. Must not know the wire, or who asks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from eddy.service.model import ServedModel
from eddy.service.roster import Roster
from eddy.service.sessions import SessionTable
from eddy.service.turns import Turns

_LOG = logging.getLogger(__name__)


class Endings:
    """Ends sessions.

    Args:
        table: sessions; served: models by their number; turns: behind which chunks.
        clock: monotonic seconds.
        retire_seconds: how long sessions of a retired model go on; 0: for ever.
    """

    def __init__(
        self, table: SessionTable, served: Roster, turns: Turns, clock: Callable[[], float], retire_seconds: float
    ) -> None:
        self._table = table
        self._served = served
        self._turns = turns
        self._clock = clock
        self._retire_seconds = retire_seconds
        # Changed by `expire` only.
        self.num_expired = 0

    def close(self, rows: np.ndarray, done: Callable[[np.ndarray], None]) -> None:
        """Ends sessions once the chunks before this are through; `rows` int64 [n], open, of any models.

        `done` is told the rows that were missed: ended, reset or taken over by then.
        """
        self._turns.by_model(rows, lambda model, mine: model.close_sessions(mine), done)

    def fence(self, rows: np.ndarray) -> None:
        """Ends sessions that another server goes on with, behind the chunks that they have sent."""

        def end(model: ServedModel, mine: np.ndarray) -> None:
            model.fence_sessions(mine)
            _LOG.warning(
                "model %s version %s: %d sessions were taken over on another server",
                model.file.name,
                model.file.version,
                len(mine),
            )

        self._turns.by_model(rows, end, lambda _: None)

    def quarantine(self, rows: np.ndarray) -> None:
        """Ends sessions whose states are not finite, behind the chunks that they have sent."""
        self._turns.by_model(rows, lambda model, mine: model.quarantine_sessions(mine), lambda _: None)

    def expire(self) -> int:
        """Ends sessions that have been idle for too long; returns how many."""
        rows = self._table.idle_rows()
        if not len(rows):
            return 0
        models = self._table.models_of(rows)
        for index in np.unique(models).tolist():
            self._served[index].expire_sessions(rows[models == index])
        self.num_expired += len(rows)
        _LOG.info("%d idle sessions ended", len(rows))
        return len(rows)

    def end_retired(self) -> int:
        """Ends sessions whose model was retired `retire_seconds` ago; returns how many."""
        limit = self._retire_seconds
        num_ended = 0
        for model in self._served:
            if not limit or model.retired_at is None or self._clock() < model.retired_at + limit:
                continue
            rows = self._table.open_rows(model.index)
            rows = rows[~self._table.is_busy[rows]]  # The others with the next look.
            if len(rows):
                model.retire_sessions(rows)
                num_ended += len(rows)
                _LOG.info(
                    "model %s version %s: %d sessions ended with their model",
                    model.file.name,
                    model.file.version,
                    len(rows),
                )
        return num_ended
