"""An answer: the results of a chunk, put together from its slices.

Owns where each slice's results belong. Must not know queues, sessions or the wire.

Dimension key: B rows that run, T steps of the chunk, U of a slice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eddy.service.contract import Contract


class Answer:
    """The results of B rows of T steps.

    Attributes:
        results: one [B, ...] a result of the contract.
    """

    def __init__(self, contract: Contract, num_rows: int, num_steps: int) -> None:
        self._emits = contract.emits
        # Changed only by `add`.
        self.results = [np.zeros((num_rows, *port.row_shape(num_steps)), port.dtype) for port in contract.results]

    def add(self, parts: Sequence[np.ndarray], done_steps: int, rows: slice = slice(None)) -> None:
        """Takes the results of the next slice of some of the rows, one [B, ...] each.

        Args:
            done_steps: steps of the chunk before the slice.
        """
        if self._emits:
            self._add_emitted(parts, rows)
            return
        for whole, part in zip(self.results, parts, strict=True):
            whole[rows, done_steps : done_steps + part.shape[1]] = part

    def _add_emitted(self, parts: Sequence[np.ndarray], mine: slice) -> None:
        """What each row has emitted goes behind what it emitted before."""
        *outputs, totals = [whole[mine] for whole in self.results]
        *emitted, counts = parts
        for whole, part in zip(outputs, emitted, strict=True):
            rows, steps = np.nonzero(np.arange(part.shape[1]) < counts[:, None])
            whole[rows, totals[rows] + steps] = part[rows, steps]
        totals += counts
