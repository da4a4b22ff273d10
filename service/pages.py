"""Page moves: states that change places before a tick, and how they are copied.

Owns the copying: slots to cells, then cells to slots. Must not know sessions' rules or who decides. The moves of a tick
are carried out by whoever runs it, before it, in the order in which ticks were formed: so a copy finds what the ticks
before it left, and a cell or a slot may be given to another session as soon as the move is formed.

Dimension key: B rows of a move.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np

from eddy.service.cells import Cells
from eddy.service.errors import ModelError, Reason


class Arena(Protocol):
    """What holds the states of slots (`engine.Engine`)."""

    def read_states(self, slots: np.ndarray, home_slots: np.ndarray | None = None) -> list[np.ndarray]:
        """Copies of the states in slots, one [B, ...] a state."""

    def write_states(self, slots: np.ndarray, states: Sequence[np.ndarray]) -> None:
        """Overwrites the states in slots."""


class Stage(IntEnum):
    """How far page moves have come."""

    FORMED = 0
    # What leaves its slot is in its cell.
    OUT = 1
    DONE = 2


@dataclass(slots=True)
class PageMoves:
    """What moves before a tick.

    Attributes:
        out_rows: sessions that leave their slots, int64 [n]; out_slots: which they had; out_cells: where they go.
            A session that stands before its first step leaves nothing to copy and is not among them.
        out_read, out_home: slots of their states, of those that steps write and of the others.
        in_rows: sessions that get a slot and have states in a cell, int64 [m]; in_cells, in_slots: from and to.
        fresh_rows, fresh_slots: sessions that get a slot and have nothing to copy.
        stage: how far it has come; seconds: what the copying took. Set by who runs it.
        is_settled: the cells that were left are free again. Set by who decides.
    """

    out_rows: np.ndarray
    out_slots: np.ndarray
    out_read: np.ndarray
    out_home: np.ndarray
    out_cells: np.ndarray
    in_rows: np.ndarray
    in_cells: np.ndarray
    in_slots: np.ndarray
    fresh_rows: np.ndarray
    fresh_slots: np.ndarray
    arena: Arena
    cells: Cells
    stage: Stage = Stage.FORMED
    seconds: float = 0.0
    is_settled: bool = False

    @property
    def num_rows(self) -> int:
        """States that are copied."""
        return len(self.out_rows) + len(self.in_rows)

    def carry_out(self) -> None:
        """Copies, on the thread that runs the tick.

        Raises:
            ModelError: a copy failed, or what should be copied was lost by one before; `stage` says what was done.
        """
        begin = time.perf_counter()
        if len(self.out_cells):
            try:
                self.cells.write(self.out_cells, self.arena.read_states(self.out_read, self.out_home))
            except BaseException:
                # A tick behind this one may already be about to read them.
                self.cells.broken.update(self.out_cells.tolist())
                raise
        self.stage = Stage.OUT
        if len(self.in_cells):
            if self.cells.broken and not self.cells.broken.isdisjoint(self.in_cells.tolist()):
                raise ModelError(Reason.MODEL_FAILED, "a state was lost when it left its slot")
            self.arena.write_states(self.in_slots, self.cells.read(self.in_cells))
        self.stage = Stage.DONE
        self.seconds = time.perf_counter() - begin
