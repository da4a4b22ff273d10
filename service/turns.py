"""Turns: what is done to sessions behind the chunks that they have sent.

Owns the order: an operation waits in the queues of its sessions' models for what came before, and finds who is still
there by then. Must not know what the operations are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import numpy as np

from eddy.service.model import ServedModel
from eddy.service.roster import Roster
from eddy.service.sessions import SessionTable


class Turns:
    """Operations on sessions that keep their place among chunks.

    Args:
        table: sessions; served: models by their number; notify: told of a model with work.
    """

    def __init__(self, table: SessionTable, served: Roster, notify: Callable[[ServedModel], None]) -> None:
        self._table = table
        self._served = served
        self._notify = notify

    async def settle(self, row: int) -> None:
        """Returns once the chunks of the session in `row` that came before are through."""
        await self.settle_in(self.model_of(row), row)

    async def settle_in(self, model: ServedModel, row: int) -> None:
        """As `settle`, for what waits for `model`, whatever becomes of the session meanwhile."""
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.wait_in(model, row, lambda: None if settled.done() else settled.set_result(None))
        await settled

    def by_model(
        self, rows: np.ndarray, apply: Callable[[ServedModel, np.ndarray], None], done: Callable[[np.ndarray], None]
    ) -> None:
        """Applies something to sessions, those of a model together, behind the chunks before this.

        Args:
            rows: int64 [n], open; done: told the rows that were missed: ended, reset or taken over by then.
        """
        models = self._table.models_of(rows)
        present = np.unique(models).tolist()
        left = [len(present)]
        expected = self._table.handle[rows]
        missed = [np.empty(0, np.int64)]
        if not present:
            done(missed[0])

        def run(mine: np.ndarray, handles: np.ndarray) -> None:
            # A session may have ended, or have been taken over, while this waited behind its chunks.
            is_good = self._table.handle[mine] == handles
            good = mine[is_good]
            # Or may go on with another model.
            present = self._table.models_of(good)
            for index in np.unique(present).tolist():
                apply(self._served[index], good[present == index])
            missed.append(mine[~is_good])
            left[0] -= 1
            if not left[0]:
                done(np.concatenate(missed))

        for index in present:
            model = self._served[index]
            mine, handles = rows[models == index], expected[models == index]
            model.scheduler.queue.submit_control(mine, partial(run, mine, handles))
            self._notify(model)

    def model_of(self, row: int) -> ServedModel:
        """The model of the open session in `row`."""
        return self._served[self._table.model_of(row)]

    def wait_in(self, model: ServedModel, row: int, run: Callable[[], None]) -> None:
        """Has `run` called behind the chunks of the session in `row` that wait for `model`."""
        model.scheduler.queue.submit_control(np.array([row]), run)
        self._notify(model)
