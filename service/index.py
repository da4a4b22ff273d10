"""The index from session ids to table rows.

Owns a hash table of row numbers: open addressing with linear probing over one int32 array, 8 to 16 bytes a session
where a dictionary of bytes and integers takes 150. Ids are random, so their first 8 bytes are the hash. Must not know
what a row is; the ids themselves stay in the session table's column, which every call is given.

Dimension key: B rows of a call, N rows of the table, C cells.
"""

from __future__ import annotations

import numpy as np

_EMPTY = 0  # Row 0 is never a session.
_REMOVED = -1
_FIRST_CELLS = 2048


class IdIndex:
    """Finds the row of an id."""

    def __init__(self) -> None:
        self.num_rows = 0
        # Changed only by `add` and `remove`. At most half of the cells are in use, removed ones included.
        self._cells = np.zeros(_FIRST_CELLS, np.int32)
        self._num_used = 0

    def add(self, rows: np.ndarray, ids: np.ndarray) -> None:
        """Adds `rows` int64 [B], whose ids in the column `ids` uint8 [N, 16] are new."""
        if 2 * (self._num_used + len(rows)) > len(self._cells):
            self._rebuild(len(rows), ids)
        self.num_rows += len(rows)
        self._num_used += len(rows)
        self._place(rows, ids)

    def remove(self, rows: np.ndarray, ids: np.ndarray) -> None:
        """Removes `rows` int64 [B], each added before."""
        self.num_rows -= len(rows)
        cells = self._first_cells(rows, ids)
        while len(rows):
            found = self._cells[cells] == rows
            self._cells[cells[found]] = _REMOVED
            rows, cells = rows[~found], self._next(cells[~found])

    def find(self, session_id: bytes, ids: np.ndarray) -> int:
        """The row of a 16-byte id, 0 when it is not there."""
        mask = len(self._cells) - 1
        cell = int.from_bytes(session_id[:8], "little") & mask
        while (row := self._cells.item(cell)) != _EMPTY:
            if row != _REMOVED and ids[row].tobytes() == session_id:
                return row
            cell = (cell + 1) & mask
        return 0

    def _place(self, rows: np.ndarray, ids: np.ndarray) -> None:
        cells = self._first_cells(rows, ids)
        while len(rows):
            free = self._cells[cells] == _EMPTY
            # Of several rows for one cell the last wins; the others try the next.
            self._cells[cells[free]] = rows[free]
            placed = self._cells[cells] == rows
            rows, cells = rows[~placed], self._next(cells[~placed])

    def _rebuild(self, num_more: int, ids: np.ndarray) -> None:
        """Drops removed cells and makes room, so that a quarter of the cells is in use at least."""
        rows = self._cells[self._cells > 0].astype(np.int64)
        size = _FIRST_CELLS
        while size < 2 * (len(rows) + num_more) + 1:
            size *= 2
        # Removals would fill a tight table again at once.
        if 4 * (len(rows) + num_more) > 3 * size // 2:
            size *= 2
        self._cells = np.zeros(size, np.int32)
        self._num_used = len(rows)
        self._place(rows, ids)

    def _first_cells(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        hashes = ids[rows].view("<u8")[:, 0]
        return np.asarray(hashes & np.uint64(len(self._cells) - 1), np.int64)

    def _next(self, cells: np.ndarray) -> np.ndarray:
        return np.asarray((cells + 1) & (len(self._cells) - 1))
