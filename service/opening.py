"""Opening: new sessions, and what they begin with.

Owns the checks of what a client asks for, their limits, and when an opening is done. Must not know the wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eddy.service.catalog import Catalog
from eddy.service.config import Config
from eddy.service.errors import EddyError, Reason, invalid
from eddy.service.gate import Gate
from eddy.service.model import ServedModel
from eddy.service.persistence import Persistence
from eddy.service.sessions import SessionTable
from eddy.service.start import Start


@dataclass(frozen=True, slots=True)
class Opened:
    """Sessions that were opened.

    Attributes:
        rows: table rows, int64 [n]; handles: uint64 [n]; session_ids, resume_tokens: 16 bytes each.
        ready: done once the states that they begin with are written, and the sessions are in the state store, if they
            are kept there; an `EddyError` when that failed, and then the sessions are closed. None where there is
            nothing to write.
    """

    model: ServedModel
    rows: np.ndarray
    handles: np.ndarray
    session_ids: list[bytes]
    resume_tokens: list[bytes]
    max_in_flight: int
    idle_timeout_seconds: float
    ready: asyncio.Future[None] | None

    async def begun(self) -> None:
        """Returns once the sessions can be stepped.

        Raises:
            EddyError: the states that they begin with could not be written; they are closed.
        """
        if self.ready is not None:
            await self.ready


class Opening:
    """Opens sessions.

    Args:
        config: limits; table, catalog: sessions and models; gate: nothing is opened while it is shut.
        persistence: keeps those that are to be kept; notify: told of a model with work.
    """

    def __init__(
        self,
        config: Config,
        table: SessionTable,
        catalog: Catalog,
        gate: Gate,
        persistence: Persistence,
        notify: Callable[[ServedModel], None],
    ) -> None:
        self._config = config
        self._table = table
        self._catalog = catalog
        self._gate = gate
        self._persistence = persistence
        self._notify = notify

    def open(
        self,
        name: str,
        version: str,
        count: int,
        max_in_flight: int,
        idle_timeout_seconds: float,
        stream: int,
        start: Start | None = None,
        *,
        is_durable: bool = False,
    ) -> Opened:
        """Opens `count` sessions; 0 for `max_in_flight` or `idle_timeout_seconds` means the default.

        Args:
            start: what they begin with, None for the contract's initial values.
            is_durable: they are kept in the state store, if there is one.

        Raises:
            EddyError: unknown model, bad arguments, no room, draining; nothing was opened.
        """
        self._gate.refuse_if_draining()
        model = self._catalog.ready(name, version)
        model.refuse_unless_streamable()
        if count < 1:
            raise invalid(Reason.OUT_OF_RANGE, "count", count, "at least 1")
        self.check_limits(max_in_flight, idle_timeout_seconds)
        if model.contract.is_primed and start is None:
            raise invalid(Reason.MISSING_FIELD, "prime", "none", "what the model's prime graph reads")
        in_flight, idle = max_in_flight or 1, idle_timeout_seconds or self.usual_idle_timeout(model)
        if is_durable:
            self._persistence.refuse_without_store()
        rows = model.open_sessions(count, stream, in_flight, idle)
        handles = self._table.handle[rows]
        ids, tokens = self._table.ids_of(rows), self._table.tokens_of(rows)
        ready: asyncio.Future[None] | None = None
        if start is not None:
            ready = asyncio.get_running_loop().create_future()
            self._begin(model, rows, start, ready)
        if is_durable and self._persistence.is_durable:
            self._table.is_durable[rows] = True
            ready = asyncio.ensure_future(self._persistence.make_durable(rows, handles, ready))
        return Opened(model, rows, handles, ids, tokens, in_flight, idle, ready)

    def check_limits(self, max_in_flight: int, idle_timeout_seconds: float) -> None:
        """Raises ClientError OUT_OF_RANGE for what no session may have here."""
        most, longest = self._config.model.max_in_flight, self._config.session.max_idle_timeout_seconds
        if max_in_flight > most:
            raise invalid(Reason.OUT_OF_RANGE, "max_in_flight", max_in_flight, f"at most {most}")
        if not 0 <= idle_timeout_seconds <= longest:
            raise invalid(Reason.OUT_OF_RANGE, "idle_timeout_seconds", idle_timeout_seconds, f"0 to {longest:g}")

    def usual_idle_timeout(self, model: ServedModel) -> float:
        """Seconds, of sessions whose client asks for none."""
        limits = self._config.session
        return model.idle_timeout_seconds(limits.idle_timeout_seconds, limits.max_idle_timeout_seconds)

    def _begin(self, model: ServedModel, rows: np.ndarray, start: Start, ready: asyncio.Future[None]) -> None:
        """Has `start` written as the states of the sessions in `rows`; they are busy until then."""

        def begun(outcome: list[bytes] | EddyError) -> None:
            if isinstance(outcome, EddyError):
                model.close_sessions(rows)
                if not ready.done():
                    ready.set_exception(outcome)
                return
            self._table.begin_at(rows, self._table.slot[rows])
            if not ready.done():
                ready.set_result(None)

        try:
            model.begin_sessions(rows, start, begun)
        except EddyError:
            model.close_sessions(rows)
            raise
        self._notify(model)
