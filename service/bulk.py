"""Bulk admission: chunks all of whose rows are fine, checked together.

Owns the fast path: handles, owners, positions and values of all rows of all chunks of a tick with a few vector
operations, and the single path, which is the same for one session that steps alone, in plain integers: an array
operation costs ten of them, and whoever is alone waits for every one. Whatever is not fine as a whole is left to
`admission`, which goes row by row. Must not know queues or slices.

Dimension key: B rows of a tick, T steps.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from eddy.service.arena import INITIAL_SLOT
from eddy.service.chunk import Chunk
from eddy.service.contract import Contract
from eddy.service.residence import Residence
from eddy.service.sessions import ANY_ROUTE, NOWHERE, ROW_MASK, SessionTable
from eddy.service.tick import SingleTick, Tick
from eddy.service.values import is_acceptable


class BulkAdmission:
    """The checks of one model's chunks.

    Args:
        contract: the model's; table: sessions; residence: who has slots.
    """

    def __init__(self, contract: Contract, table: SessionTable, residence: Residence) -> None:
        self._contract = contract
        self._table = table
        self._residence = residence
        # Grown only by `_order`.
        self._counting = np.arange(1024)

    def admit(self, chunks: list[Chunk], num_steps: int) -> Tick | SingleTick | None:
        """A tick of whole chunks whose every row is fine, or None.

        Columns are compared as bytes: on a few rows that costs a fifth of comparing arrays and asking for `all`.
        """
        for chunk in chunks:
            if chunk.num_steps != num_steps or chunk.done_steps:
                return None
        if len(chunks) == 1:
            (chunk,) = chunks
            if chunk.num_rows == 1:
                return self._single_tick(chunk)
            handles, positions = chunk.handles, chunk.positions
            routes = self._route_bytes(chunk)
            bounds = [0, chunk.num_rows]
        else:
            handles = b"".join([chunk.handles for chunk in chunks])
            positions = b"".join([chunk.positions for chunk in chunks])
            routes = b"".join([self._route_bytes(chunk) for chunk in chunks])
            bounds = list(accumulate([chunk.num_rows for chunk in chunks], initial=0))
        table = self._table
        rows = self._owned_rows(handles, bounds[-1])
        if rows is None or table.route[rows].tobytes() != routes or table.next_position[rows].tobytes() != positions:
            return None
        inputs = self._join_inputs(chunks)
        for port, raw in zip(self._contract.feeds, inputs, strict=True):
            if not is_acceptable(port, raw):
                return None
        moves = None
        if self._residence.is_parked and table.slot[rows].min() == NOWHERE:
            moves = self._residence.bring(np.arange(table.num_rows)[rows] if isinstance(rows, slice) else rows)
        return Tick(
            chunks,
            bounds,
            inputs,
            rows,
            table.read_slot[rows],
            table.slot[rows],
            table.home_slot[rows] if self._contract.has_immutable else INITIAL_SLOT,
            bounds[-1],
            num_steps,
            np.frombuffer(positions, "<i8"),
            moves,
        )

    def _owned_rows(self, handles: bytes, count: int) -> np.ndarray | slice | None:
        """The `count` table rows of `handles`; None when one is not good, or there twice.

        Sessions that were opened together lie together: a slice of a column costs a tenth of picking its rows.
        """
        table = self._table
        first = int.from_bytes(handles[:4], "little")
        run = slice(first, first + count)
        if table.handle[run].tobytes() == handles:
            return run
        rows = np.frombuffer(handles, "<u4")[::2].astype(np.int64)  # A handle's low half.
        try:
            if table.handle[rows].tobytes() != handles:
                return None
        except IndexError:  # A handle from nowhere.
            return None
        order = self._order(count)
        table.mark[rows] = order
        return rows if table.mark[rows].tobytes() == order.tobytes() else None

    def _route_bytes(self, chunk: Chunk) -> bytes:
        """The owner column that the chunk's rows must have, int64 [B] raw."""
        if isinstance(chunk.route, bytes):
            return chunk.route
        if chunk.route == ANY_ROUTE:
            return bytes(self._table.route[self._table.rows_of(np.frombuffer(chunk.handles, "<u8"))].tobytes())
        return chunk.route.to_bytes(8, "little") * chunk.num_rows

    def _single_tick(self, chunk: Chunk) -> SingleTick | None:
        """A tick of one whole chunk of one row that is fine, or None."""
        table = self._table
        handle = int.from_bytes(chunk.handles, "little")
        position = int.from_bytes(chunk.positions, "little")
        row = handle & ROW_MASK
        if (
            row >= len(table.handle)
            or table.handle.item(row) != handle
            or (table.route.item(row) != chunk.route and chunk.route != ANY_ROUTE)
            or table.next_position.item(row) != position
        ):
            return None
        for port, raw in zip(self._contract.feeds, chunk.inputs, strict=True):
            if not is_acceptable(port, raw):
                return None
        moves = None
        if self._residence.is_parked and table.slot.item(row) == NOWHERE:
            moves = self._residence.bring(np.array([row]))
        home = table.home_slot.item(row) if self._contract.has_immutable else INITIAL_SLOT
        read, slot = table.read_slot.item(row), table.slot.item(row)
        assert NOWHERE not in (read, slot), "a session without states is to be stepped"
        return SingleTick(chunk, row, position, read, slot, home, moves)

    def _order(self, count: int) -> np.ndarray:
        """0 .. count - 1."""
        if count > len(self._counting):
            self._counting = np.arange(2 * count)
        return self._counting[:count]

    @staticmethod
    def _join_inputs(chunks: list[Chunk]) -> tuple[bytes, ...]:
        if len(chunks) == 1:
            return chunks[0].inputs
        return tuple([b"".join(parts) for parts in zip(*[chunk.inputs for chunk in chunks], strict=True)])
