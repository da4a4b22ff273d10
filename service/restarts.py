"""Restarts: open sessions set back to position 0, with their model's initial states or with some that a client gives.

Owns the order of what happens to such a session. Must not know the wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

from eddy.service.errors import EddyError, Reason, invalid
from eddy.service.host import Host
from eddy.service.model import ServedModel
from eddy.service.start import Start


def reset(host: Host, rows: np.ndarray, done: Callable[[np.ndarray], None]) -> None:
    """Sets sessions back to the start once the chunks before this are through; `done` as in `Endings.close`.

    Raises:
        CapacityError: STORE_UNAVAILABLE; nothing was changed.
    """
    if host.table.is_durable[rows].any():
        host.persistence.refuse_without_store()
    if not host.persistence.is_durable:
        host.turns.by_model(rows, lambda model, mine: model.reset_sessions(mine), done)
        return

    def written_through(missed: np.ndarray) -> None:
        fresh = rows[~np.isin(rows, missed)]
        # Whom the new epoch does not reach has no session: fenced, and told so.
        host.persistence.persist(fresh).add_done_callback(
            lambda persisted: done(missed if persisted.exception() is None else rows)
        )

    host.turns.by_model(rows, lambda model, mine: model.reset_sessions(mine), written_through)


async def restart(host: Host, row: int, start: Start) -> bool:
    """Sets the session in `row` to `start`, behind the chunks sent before, in a new epoch; its replies are forgotten.

    Returns:
        Whether it was: False where it was ended, reset or taken over while this waited.

    Raises:
        EddyError: QUEUE_FULL or STORE_UNAVAILABLE, nothing was changed; MODEL_FAILED, the session has ended; what the
            store says, which has the session as it was.
    """
    if host.table.is_durable[row]:
        host.persistence.refuse_without_store()
    outcome: asyncio.Future[bool | EddyError] = asyncio.get_running_loop().create_future()

    def tell(result: bool | EddyError) -> None:
        if not outcome.done():  # Its caller has given up.
            outcome.set_result(result)

    def apply(model: ServedModel, rows: np.ndarray) -> None:
        def begun(result: list[bytes] | EddyError) -> None:
            if isinstance(result, EddyError):
                host.table.is_durable[rows] = False  # What the store has of it stays.
                model.close_sessions(rows)
                tell(result)
                return
            host.table.begin_at(rows, host.table.slot[rows])
            host.persistence.persist(rows).add_done_callback(written)

        def written(persisted: asyncio.Future[None]) -> None:
            error = persisted.exception()
            assert error is None or isinstance(error, EddyError), "the host tells typed errors"
            tell(error or True)

        try:
            model.scheduler.queue.refuse_job()
        except EddyError as error:
            tell(error)
            return
        model.reset_sessions(rows)
        model.begin_sessions(rows, start, begun)
        host.dispatcher.notify(model)

    host.turns.by_model(np.array([row]), apply, lambda missed: tell(False) if len(missed) else None)
    result = await outcome
    if isinstance(result, EddyError):
        raise result
    return result


def check_complete(model: ServedModel, start: Start) -> None:
    """Raises ClientError MISSING_FIELD unless `start` has every state of a model whose prime graph would write them."""
    missing = [state.name for state in model.contract.states if state.name not in start.states]
    if model.contract.is_primed and missing:
        expected = "every state of a model with a prime graph, which is not run again"
        raise invalid(Reason.MISSING_FIELD, f"initial_states[{missing[0]}]", "none", expected)
