"""Cells: the states of one model's sessions that have no slot, in the host's memory.

Owns one array a state, grown in pieces, which cells are free, and the budget that all models share. Must not know
sessions, nor when states move.

Ordering rules: `allocate`, `free` and `reserve` on the event loop; `read` and `write` on whichever thread runs ticks,
or on the event loop for cells that no tick under way touches. Who frees cells sees to it that none does (`residence`).

Dimension key: B cells of a call.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eddy.service.ports import State

# Zero pages are not resident until they are written: a large piece costs nothing before.
_PIECE_BYTES = 64 << 20


class HostMemory:
    """The bytes that cells of all models may have together.

    Args:
        limit_bytes: the most that is promised.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        # Changed by the cells of every model.
        self.reserved_bytes = 0

    @property
    def free_bytes(self) -> int:
        """Bytes that nobody was promised."""
        return max(0, self.limit_bytes - self.reserved_bytes)


class Cells:
    """The cells of one model.

    Args:
        states: its states; memory: the budget; piece_bytes: how much an arena grows by.

    Attributes:
        cell_bytes: of one cell, at least 1; num_reserved: cells that there is memory for; num_used: cells in use.
        broken: cells whose states could not be written; changed by whoever runs ticks, emptied as cells are used anew.
    """

    def __init__(self, states: Sequence[State], memory: HostMemory, piece_bytes: int = _PIECE_BYTES) -> None:
        self._states = states
        self._memory = memory
        self.cell_bytes = max(1, sum(state.row_bytes for state in states))
        self._piece_cells = max(1, piece_bytes // self.cell_bytes)
        # Changed only by the methods below. One list of pieces [cells of a piece, ...] a state.
        self._pieces: list[list[np.ndarray]] = [[] for _ in states]
        self.num_reserved = 0
        self.num_used = 0
        # A stack of cells that were in use, the top at `_num_freed - 1`; cells from `_num_touched` on never were.
        self._freed = np.zeros(0, np.int32)
        self._num_freed = 0
        self._num_touched = 0
        self.broken: set[int] = set()

    @property
    def num_free(self) -> int:
        """Cells that may be taken within what is reserved."""
        return max(0, self.num_reserved - self.num_used)

    def num_short(self, count: int) -> int:
        """Cells that others must leave before `count` may be taken within what is reserved: more may be in use."""
        return max(0, count + self.num_used - self.num_reserved)

    @property
    def num_more(self) -> int:
        """Cells that could be reserved beyond those that are."""
        return self._memory.free_bytes // self.cell_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of states in cells."""
        return self.num_used * self.cell_bytes

    def reserve(self, count: int) -> int:
        """Sets what is reserved to `count` cells, or as near to it as the memory and the cells in use allow.

        Returns:
            How many are reserved now.
        """
        most = self.num_reserved + self.num_more
        count = max(min(count, most), min(self.num_used, self.num_reserved))
        self._memory.reserved_bytes += (count - self.num_reserved) * self.cell_bytes
        self.num_reserved = count
        return count

    def allocate(self, count: int) -> np.ndarray:
        """Takes `count` cells, int32 [count]. Whether there is memory for them is the caller's: see `num_free`."""
        again = min(count, self._num_freed)
        self._num_freed -= again
        cells = np.arange(self._num_touched - again, self._num_touched - again + count, dtype=np.int32)
        cells[:again] = self._freed[self._num_freed : self._num_freed + again]
        self._num_touched += count - again
        while self._states and len(self._pieces[0]) * self._piece_cells < self._num_touched:
            for state, pieces in zip(self._states, self._pieces, strict=True):
                pieces.append(np.zeros((self._piece_cells, *state.shape), state.dtype))
        self.num_used += count
        if self.broken:
            self.broken.difference_update(cells.tolist())
        return cells

    def free(self, cells: np.ndarray) -> None:
        """Gives back `cells` int [B], each allocated before."""
        count = len(cells)
        if self._num_freed + count > len(self._freed):
            grown = np.zeros(2 * (self._num_freed + count), np.int32)
            grown[: self._num_freed] = self._freed[: self._num_freed]
            self._freed = grown
        self._freed[self._num_freed : self._num_freed + count] = cells
        self._num_freed += count
        self.num_used -= count
        assert self.num_used >= 0, "more cells freed than were allocated"

    def read(self, cells: np.ndarray) -> list[np.ndarray]:
        """Copies of the states in `cells` int [B]: one array a state, [B, ...]."""
        parts = self._parts(cells)
        found = []
        for state, pieces in zip(self._states, self._pieces, strict=True):
            values = np.empty((len(cells), *state.shape), state.dtype)
            for piece, places, offsets in parts:
                values[places] = pieces[piece][offsets]
            found.append(values)
        return found

    def write(self, cells: np.ndarray, values: Sequence[np.ndarray]) -> None:
        """Overwrites the states in `cells` int [B] with `values`, one [B, ...] a state."""
        parts = self._parts(cells)
        for pieces, rows in zip(self._pieces, values, strict=True):
            for piece, places, offsets in parts:
                pieces[piece][offsets] = rows[places]

    def close(self) -> None:
        """Frees all of it; no session has a cell any more."""
        self.num_used = 0
        self.reserve(0)
        self._pieces = [[] for _ in self._states]
        self._num_freed = self._num_touched = 0

    def _parts(self, cells: np.ndarray) -> list[tuple[int, np.ndarray | slice, np.ndarray]]:
        """For each piece that `cells` lie in: its number, which of them those are, and where in it."""
        pieces, offsets = np.divmod(cells, self._piece_cells)
        if not len(cells):
            return []
        first = int(pieces.min())
        if first == int(pieces.max()):
            return [(first, slice(None), offsets)]
        chosen = ((piece, np.flatnonzero(pieces == piece)) for piece in np.unique(pieces).tolist())
        return [(piece, places, offsets[places]) for piece, places in chosen]
