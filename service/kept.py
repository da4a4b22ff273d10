"""Kept replies on their way to and from a record: columns that refer to blocks, and replies by themselves.

Owns the gathering of B sessions' replies out of the blocks that ticks left behind. Must not know rings, sessions or
records. The columns hold references to the blocks' bytes, which nobody changes, so that they are taken quickly where
the rings live and gathered later on another thread.

Dimension key: B sessions, E replies of all of them, K blocks, P parts of a block (the inputs, then the outputs).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddy.service.ports import Port

# Of the column `blocks`: the reply is forgotten.
FORGOTTEN = -1
# A block that so few replies are taken from is cut in Python, which then costs less than arrays do.
_FEW_ROWS = 4


@dataclass(frozen=True, slots=True)
class StoredReply:
    """One kept reply of a record.

    Attributes:
        position: of the chunk that it answers; num_steps: the chunk's T.
        data: the chunk's inputs, then its outputs, raw; empty when forgotten.
    """

    position: int
    num_steps: int
    data: bytes


@dataclass(frozen=True, slots=True)
class KeptColumns:
    """Kept replies of B sessions, by session and then by position.

    Attributes:
        counts: int64 [B], replies of each session.
        positions, num_steps: int64 [E], of the chunks answered.
        num_bytes: int64 [E], of inputs and outputs; 0 where forgotten.
        blocks: int64 [E], which of `parts`, `FORGOTTEN` where none; rows: int64 [E], which row of it.
        parts: K blocks of P raw parts, each [rows, T, ...]; ports: P.
    """

    counts: np.ndarray
    positions: np.ndarray
    num_steps: np.ndarray
    num_bytes: np.ndarray
    blocks: np.ndarray
    rows: np.ndarray
    parts: tuple[tuple[bytes, ...], ...]
    ports: tuple[Port, ...]

    @classmethod
    def none(cls, num_sessions: int) -> KeptColumns:
        """No replies of B sessions."""
        empty = np.zeros(0, np.int64)
        return cls(np.zeros(num_sessions, np.int64), empty, empty, empty, empty, empty, (), ())

    def gather(self) -> np.ndarray:
        """All replies' inputs and outputs, one behind the other, uint8 [sum of num_bytes]."""
        kept = np.flatnonzero(self.blocks != FORGOTTEN)
        ends = np.cumsum(self.num_bytes)
        starts = ends - self.num_bytes
        data = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
        order = kept[np.argsort(self.blocks[kept], kind="stable")]
        cuts = np.flatnonzero(np.diff(self.blocks[order])) + 1
        # Where all are of one size, replies are the rows of one array.
        sizes = self.num_bytes[kept]
        size = int(sizes[0]) if len(sizes) and (sizes == sizes[0]).all() else 0
        ranks = np.cumsum(self.blocks != FORGOTTEN) - 1
        view = data.data
        for replies in np.split(order, cuts) if len(order) else ():
            parts, steps = self.parts[self.blocks.item(replies[0])], self.num_steps.item(replies[0])
            if len(replies) <= _FEW_ROWS:
                for reply in replies.tolist():
                    self._cut(view[starts.item(reply) : ends.item(reply)], parts, steps, self.rows.item(reply))
                continue
            rows = _as_slice(self.rows[replies])
            if size:
                self._take(data.reshape(-1, size), _as_slice(ranks[replies]), parts, steps, rows)
                continue
            values = np.empty((len(replies), self.num_bytes.item(replies[0])), np.uint8)
            self._take(values, slice(None), parts, steps, rows)
            for reply, row in zip(replies.tolist(), values, strict=True):
                data[starts.item(reply) : ends.item(reply)] = row
        return data

    def _cut(self, out: memoryview, parts: tuple[bytes, ...], steps: int, row: int) -> None:
        """One reply into `out`."""
        sizes = [port.row_bytes(steps) for port in self.ports]
        pieces = [part[row * size : (row + 1) * size] for part, size in zip(parts, sizes, strict=True)]
        out[:] = b"".join(pieces)

    def _take(
        self,
        out: np.ndarray,
        places: np.ndarray | slice,
        parts: tuple[bytes, ...],
        steps: int,
        rows: np.ndarray | slice,
    ) -> None:
        """Replies that lie in `rows` of one block into the rows `places` of `out`, uint8 [..., bytes of one]."""
        at = 0
        for part, port in zip(parts, self.ports, strict=True):
            size = port.row_bytes(steps)
            if size:
                out[places, at : at + size] = np.frombuffer(part, np.uint8).reshape(-1, size)[rows]
            at += size


def _as_slice(numbers: np.ndarray) -> np.ndarray | slice:
    """Where `numbers` int64 [n], n at least 1, rise by one each, a slice of them: nothing is looked up for it."""
    first, num = numbers.item(0), len(numbers)
    if numbers.item(-1) - first == num - 1 and (np.diff(numbers) == 1).all():
        return slice(first, first + num)
    return numbers
