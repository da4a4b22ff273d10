"""Persistence: what of a server's sessions survives it, whether there is a state store or not.

Owns what is answered and done where there is none, and refusals where there is one that does not work. Must not know
the wire, or how sessions are written (`durability`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

from eddy.service.chunk import ChunkResult
from eddy.service.durability import Durability
from eddy.service.errors import EddyError
from eddy.service.gate import Gate
from eddy.service.model import ServedModel
from eddy.service.recall import Stored
from eddy.service.record import Record
from eddy.service.sessions import NOT_STORED, ROW_MASK, SessionTable, check_id, of_another_epoch
from eddy.service.turns import Turns


class Persistence:
    """Sessions as far as a state store has them.

    Args:
        table: sessions; durability: the store, None where there is none; gate: nobody comes back while it is shut.
        turns: behind which chunks a copy ends; close, fence: end sessions, by rows int64 [n]; see `Endings`.
    """

    def __init__(
        self,
        table: SessionTable,
        durability: Durability | None,
        gate: Gate,
        turns: Turns,
        close: Callable[[np.ndarray, Callable[[np.ndarray], None]], None],
        fence: Callable[[np.ndarray], None],
    ) -> None:
        self._table = table
        self._durability = durability
        self._gate = gate
        self._turns = turns
        self._close = close
        self._fence = fence

    @property
    def is_durable(self) -> bool:
        """There is a state store."""
        return self._durability is not None

    def is_present(self, session_id: bytes) -> bool:
        """The session need not be brought back: it is open here and not on its way, or there is no store."""
        return self._durability is None or self._durability.recaller.is_present(session_id)

    def refuse_without_store(self) -> None:
        """Raises CapacityError STORE_UNAVAILABLE where sessions must be in a state store that does not work."""
        if self._durability is not None and self._durability.health.refuses:
            raise self._durability.health.refusal()

    def persist(self, rows: np.ndarray) -> asyncio.Future[None]:
        """Writes the sessions in `rows` int64 [n] through to the state store, if they are kept there.

        See `Checkpointer.persist`.
        """
        if self._durability is not None:
            return self._durability.checkpointer.persist(rows)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def make_durable(
        self, rows: np.ndarray, handles: np.ndarray, begun: asyncio.Future[None] | None = None
    ) -> None:
        """Returns once sessions that were opened are in the state store; where they must be and cannot, they end.

        Args:
            handles: theirs, uint64 [n]; begun: done once their states are written.

        Raises:
            EddyError: they have ended.
        """
        if begun is not None:
            await begun
        try:
            await self.persist(rows)
        except EddyError:
            mine = rows[self._table.handle[rows] == handles]
            self._table.is_durable[mine] = False
            self._close(mine, lambda _: None)
            raise

    def are_stored(self, handles: np.ndarray) -> bool:
        """All sessions of `handles` uint64 [B] are in a durable state store, under their present epochs."""
        return self._durability is not None and self._durability.are_stored(handles)

    def durable_position(self, handle: int) -> int:
        """Steps of a session before it survive the server's end; -1: nothing is stored."""
        row = handle & ROW_MASK
        return self._table.durable_position.item(row) if self._table.handle.item(row) == handle else NOT_STORED

    def durable_news(self, handles: bytes, result: ChunkResult) -> bytes:
        """What a chunk's answer tells its stream: durable positions of its sessions, int64 [B] raw, or nothing.

        Nothing where all of them are as the stream was told last, so that only a few answers after a checkpoint tell
        any. An answer with a repeat does in any case: whoever repeats may have missed one.
        """
        table = self._table
        if result.failure is not None:
            return b""
        first = int.from_bytes(handles[:4], "little")
        run = slice(first, first + len(handles) // 8)
        if not (result.errors or result.replayed) and table.handle[run].tobytes() == handles:
            # Sessions that were opened together: the answers to most messages end here.
            news = table.has_news[run]
            if b"\1" not in news.tobytes():
                return b""
            news[:] = False
            return bytes(table.durable_position[run].tobytes())
        mine = np.frombuffer(handles, "<u8")
        rows = table.rows_of(mine)
        is_good = table.handle[rows] == mine
        is_told = is_good.copy()
        is_told[list(result.errors)] = False  # Clients do not look at what is refused.
        if not (result.replayed or table.has_news[rows[is_told]].any()):
            return b""
        table.has_news[rows[is_told]] = False
        return bytes(np.where(is_good, table.durable_position[rows], NOT_STORED).tobytes())

    async def recall(self, session_id: bytes, is_wanted: Callable[[Record], bool] = lambda _: True) -> int:
        """The row of a session that is open, or that the state store has; see `Recaller.find`.

        Raises:
            EddyError: UNKNOWN_SESSION, and what prevents its return.
        """
        if self._durability is None or self._durability.recaller.is_present(session_id):
            return self._table.row_of_id(session_id)
        self._gate.refuse_if_draining()
        return await self._durability.recaller.find(session_id, is_wanted)

    async def recall_latest(self, session_id: bytes) -> int:
        """As `recall`, for whoever changes a session by its id alone.

        What is open here ends where the store has the session in a later epoch: it is a copy, and the session is
        brought back from where another server has left it.

        Raises:
            EddyError: as `recall`.
        """
        found = await self.look(session_id)
        if isinstance(found, int):
            return found
        await self._end_copy(session_id)
        return await self.recall(session_id)

    async def _end_copy(self, session_id: bytes) -> None:
        """Ends what is open here of a session that another server has taken, behind its chunks."""
        row = self._table.find(session_id)
        if row:
            model = self._turns.model_of(row)  # Behind its end it has none.
            self._fence(np.array([row]))
            await self._turns.settle_in(model, row)

    async def recall_in_epoch(self, session_id: bytes, epoch: int, prefix: str = "") -> int:
        """As `recall`, for a writer that shows the session's epoch: one of another epoch takes it from nobody.

        Raises:
            EddyError: see `SessionTable.row_in_epoch`, whose fields' names begin with `prefix`.
        """
        check_id(session_id, f"{prefix}session_id")
        if self._durability is not None and self.is_present(session_id):
            if epoch <= self._table.epoch_of(self._table.row_of_id(session_id)):
                return self._table.row_in_epoch(session_id, epoch, prefix)
            # What is here may be a copy, and who asks may come from where the session has gone.
            found = await self.look(session_id, needs_store=True)
            if not isinstance(found, int):
                if found.record.epoch != epoch:
                    raise of_another_epoch(epoch, found.record.epoch, prefix)
                await self._end_copy(session_id)
        if not self.is_present(session_id):
            present = epoch

            def is_wanted(record: Record) -> bool:
                nonlocal present
                present = record.epoch
                return present == epoch

            try:
                await self.recall(session_id, is_wanted)
            except EddyError:
                if present != epoch and not self._table.find(session_id):
                    raise of_another_epoch(epoch, present, prefix) from None
                raise
        return self._table.row_in_epoch(session_id, epoch, prefix)

    async def look(self, session_id: bytes, *, needs_store: bool = False) -> int | Stored:
        """The row of a session that is open, or what the state store has of one that is elsewhere: `Recaller.look`.

        Raises:
            EddyError: UNKNOWN_SESSION, and what prevents the reading.
        """
        if self._durability is None:
            return self._table.row_of_id(session_id)
        return await self._durability.recaller.look(session_id, needs_store=needs_store)

    def model_for(self, stored: Stored) -> ServedModel:
        """The model that a session of the store goes on with; see `Recaller.model_for`.

        Raises:
            EddyError: SNAPSHOT_MISMATCH, MODEL_NOT_READY.
        """
        assert self._durability is not None, "what is stored is in a store"
        return self._durability.recaller.model_for(stored.record)
