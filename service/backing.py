"""Backing: which sessions a state store can relieve the host's memory of.

Owns the choice of whose cell is given up. Must not know stores or records, nor who asks. A session in the **store
tier** keeps its row of the table, and its states are in the store only.

Ordering rules: all on the event loop. A session gives up its cell only while the store has it as it is: its position
and its epoch are stored.

Dimension key: B rows of a call.
"""

from __future__ import annotations

import numpy as np

from eddy.service.sessions import MODEL_MASK, NOWHERE, SessionTable

# Sessions that give up their cells at once, where there are so many: looking for them takes longer than that.
_FEWEST = 256
_SHARE = 8
# Sessions that the store is asked to take at once.
_MOST_PRESSED = 4096


def _in_cells(table: SessionTable, model: int) -> np.ndarray:
    """Durable, idle sessions of a model that are in cells, int64 [n]."""
    is_there = (table.cell != NOWHERE) & table.is_durable & ~table.is_busy
    return np.flatnonzero(is_there & ((table.route & MODEL_MASK) == model))


def _is_stored(table: SessionTable, rows: np.ndarray) -> np.ndarray:
    epochs = table.handle[rows] >> np.uint64(32)
    return np.asarray(
        (table.durable_position[rows] == table.next_position[rows]) & (table.stored_epoch[rows] == epochs)
    )


def _coldest(table: SessionTable, rows: np.ndarray, count: int) -> np.ndarray:
    if count >= len(rows):
        return rows
    return np.asarray(rows[np.argpartition(table.last_used[rows], count)[:count]])


def whose_cells(table: SessionTable, model: int, count: int, staying: np.ndarray) -> np.ndarray:
    """Sessions that may give up their cells, the least recently used: `count` of them and more, or all there are.

    None of those in `staying` int64 [B], nor any whose states somebody is about to read.
    """
    rows = np.setdiff1d(_in_cells(table, model), staying)
    rows = rows[_is_stored(table, rows) & (table.num_readers[rows] == 0)]
    return _coldest(table, rows, max(count, _FEWEST, len(rows) // _SHARE))


def whom_to_write(table: SessionTable, model: int) -> np.ndarray:
    """Sessions in cells that the store does not have as they are, the least recently used first to be asked for."""
    rows = _in_cells(table, model)
    return _coldest(table, rows[~_is_stored(table, rows)], _MOST_PRESSED)
