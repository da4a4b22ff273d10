"""Kept replies: the last outputs of every session, so that a chunk that is sent again is answered without running.

Owns the rings of reply entries and the blocks of bytes that they refer to: a chunk's outputs, and its inputs, so that
a repeat is told from a changed chunk exactly. Must not know sessions' positions
rules, queues or the wire.

A tick's inputs and outputs are kept as they are, as one **block** of rows; an entry says which row of which block.
Nothing is copied per session. The cost is that one entry keeps a whole block alive, so blocks that are mostly dead are
rewritten (**compacted**) when the bytes held exceed the budget, and the oldest replies are forgotten when the live
ones alone exceed it. A chunk whose reply was forgotten is refused, never run twice.

Dimension key: B rows, T steps, E entries, K blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from eddy.service.errors import Reason, invalid
from eddy.service.kept import FORGOTTEN, KeptColumns, StoredReply
from eddy.service.ports import Port

_NO_BLOCK = 0
_FIRST_ENTRIES = 1024
_FIRST_BLOCKS = 64
# Free rings are merged where that gives one in so many entries.
_WORTH_MERGING = 8


@dataclass(frozen=True, slots=True)
class KeptReply:
    """One kept reply.

    Attributes:
        num_steps: T of the chunk that it answers.
        inputs, outputs: raw bytes a port, [T, ...]; empty when forgotten.
    """

    num_steps: int
    inputs: tuple[bytes, ...] = ()
    outputs: tuple[bytes, ...] = ()

    @property
    def is_forgotten(self) -> bool:
        """The chunk was applied, and what it gave is no longer kept."""
        return not self.outputs


class ReplyStore:
    """Kept replies of one model's sessions.

    Args:
        inputs, outputs: what each holds. Inputs have the same number of bytes at every step.
        max_bytes: budget for what is held.
    """

    def __init__(self, inputs: tuple[Port, ...], outputs: tuple[Port, ...], max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_forgotten = 0
        self.num_compactions = 0
        # A block's parts are the inputs, then the outputs.
        self._num_inputs = len(inputs)
        self._ports = inputs + outputs
        # A row of T steps has `_fixed_bytes + T * _step_bytes` bytes.
        self._fixed_bytes = sum(port.row_bytes(0) for port in self._ports)
        self._step_bytes = sum(port.row_bytes(1) - port.row_bytes(0) for port in self._ports)
        # Entries. Changed only by the methods below, on the server's event loop.
        self._position = np.full(_FIRST_ENTRIES, -1, np.int64)
        self._block = np.zeros(_FIRST_ENTRIES, np.int32)
        self._row = np.zeros(_FIRST_ENTRIES, np.int32)
        # Where free rings of each size begin; entries that no ring was cut from since the last merging: the run that
        # is cut now, begin and end, and those after it, the longest last.
        self._free_rings: dict[int, list[int]] = {}
        self._run = (0, _FIRST_ENTRIES)
        self._runs: list[tuple[int, int]] = []
        self._counting = np.arange(_FIRST_ENTRIES, dtype=np.int32)
        # Blocks; block 0 is none.
        # Lists: they are read and written one at a time, which costs a third of doing so in arrays.
        self._live = [0] * _FIRST_BLOCKS
        self._sequence = [0] * _FIRST_BLOCKS
        self._blocks: list[tuple[bytes, ...]] = [()] * _FIRST_BLOCKS
        self._steps = [0] * _FIRST_BLOCKS
        self._free_blocks = list(range(_FIRST_BLOCKS - 1, 0, -1))
        self._next_sequence = 0
        self.held_bytes = 0

    # Rings: `size` consecutive entries for a session that may have so many chunks in flight.

    def open_rings(self, count: int, size: int) -> np.ndarray:
        """Entries where `count` new rings of `size` begin, int32 [count]."""
        reused = self._free_rings.get(size, [])
        starts = [reused.pop() for _ in range(min(count, len(reused)))]
        parts, missing = [np.array(starts, np.int32)], count - len(starts)
        while missing:
            begin, end = self._run
            taken = min(missing, (end - begin) // size)
            parts.append(np.arange(begin, begin + taken * size, size, dtype=np.int32))
            self._run = (begin + taken * size, end)
            missing -= taken
            if missing:
                self._next_run(size)
        return np.concatenate(parts)

    def close_rings(self, starts: np.ndarray, sizes: np.ndarray) -> None:
        """Forgets the replies of rings and frees the rings themselves; `starts`, `sizes` int32 [B]."""
        self.clear_rings(starts, sizes)
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            self._free_rings.setdefault(size, []).append(start)

    def clear_rings(self, starts: np.ndarray, sizes: np.ndarray) -> None:
        """Forgets the replies of rings, which stay open."""
        if not len(starts):
            return
        entries = self._entries_of(starts, sizes)
        self._release(self._block[entries])
        self._block[entries] = _NO_BLOCK
        self._position[entries] = -1

    def copy_rings(self, starts: np.ndarray, copies: np.ndarray, size: int) -> None:
        """The rings at `copies`, which hold nothing yet, hold what those at `starts` do: int32 [B], of `size` each.

        Nothing is copied but which row of which block it is.
        """
        offsets = np.arange(size)
        source, target = (begins[:, None] + offsets for begins in (starts, copies))
        for column in (self._position, self._block, self._row):
            column[target] = column[source]
        tally = np.bincount(self._block[source].ravel())
        for block in np.flatnonzero(tally).tolist():
            if block != _NO_BLOCK:
                self._live[block] += int(tally[block])

    def take_over(self, other: ReplyStore, starts: np.ndarray, mine: np.ndarray, size: int) -> None:
        """The rings at `mine`, which hold nothing yet, hold what those of another store at `starts` do.

        Its ports are the same. int32 [B], of `size` each; blocks are shared until the other store lets them go.
        """
        offsets = np.arange(size)
        source, target = (begins[:, None] + offsets for begins in (starts, mine))
        self._position[target], self._row[target] = other._position[source], other._row[source]
        theirs, place, counts = np.unique(other._block[source], return_inverse=True, return_counts=True)
        blocks = [
            self._add_block(other._blocks[block], other._steps[block], count) if block != _NO_BLOCK else _NO_BLOCK
            for block, count in zip(theirs.tolist(), counts.tolist(), strict=True)
        ]
        self._block[target] = np.array(blocks, np.int32)[place.reshape(source.shape)]
        if self.held_bytes > self.max_bytes:
            self._shrink()

    def _next_run(self, size: int) -> None:
        """A run to cut rings of `size` from: one that is left, one merged from free rings, or new entries.

        Without merging, sessions that come and go with ever other sizes would leave rings of every size behind. It is
        done only where it gives an eighth of all entries, so that a ring costs no more than a few steps of it.
        """
        self._add_free(*self._run)
        if not (self._runs and self._length(self._runs[-1]) >= size):
            self._runs = self._merge_free(size)
        if self._runs:
            self._run = self._runs.pop()
            return
        old = len(self._position)
        self._grow_entries()
        self._run = (old, 2 * old)

    def _merge_free(self, size: int) -> list[tuple[int, int]]:
        """Runs of at least `size` neighbouring free entries, the longest last; none where they are not worth it."""
        for run in self._runs:
            self._add_free(*run)
        enough = len(self._position) // _WORTH_MERGING
        if sum(length * len(starts) for length, starts in self._free_rings.items()) < enough:
            return []
        lengths = np.concatenate([np.full(len(starts), length) for length, starts in self._free_rings.items()])
        starts = np.concatenate([np.array(starts, np.int64) for starts in self._free_rings.values()])
        order = np.argsort(starts)
        starts, ends = starts[order], starts[order] + lengths[order]
        is_first = np.append(True, starts[1:] != ends[:-1])
        begins, ends = starts[is_first], ends[np.append(is_first[1:], True)]
        self._free_rings = {}
        is_long = ends - begins >= size
        is_worth = (ends - begins)[is_long].sum() >= enough
        runs = []
        for begin, end, long in zip(begins.tolist(), ends.tolist(), is_long.tolist(), strict=True):
            if is_worth and long:
                runs.append((begin, end))
            else:
                self._add_free(begin, end)
        return sorted(runs, key=self._length)

    def _add_free(self, begin: int, end: int) -> None:
        if begin < end:
            self._free_rings.setdefault(end - begin, []).append(begin)

    @staticmethod
    def _length(run: tuple[int, int]) -> int:
        return run[1] - run[0]

    # Keeping

    def keep(self, entries: np.ndarray, positions: np.ndarray, parts: tuple[bytes, ...], num_steps: int) -> None:
        """Replaces what `entries` int32 [B] hold: entry b by row b of a new block.

        Args:
            positions: int64 [B], of the chunks answered.
            parts: the inputs, then the outputs, [B, T, ...] raw each; num_steps: T.
        """
        self._release(self._block[entries])
        self._position[entries] = positions
        self._block[entries] = self._add_block(parts, num_steps, len(entries))
        self._row[entries] = self._rows_up_to(len(entries))
        if self.held_bytes > self.max_bytes:
            self._shrink()

    def keep_one(self, entry: int, position: int, parts: tuple[bytes, ...], num_steps: int) -> None:
        """`keep` for one entry."""
        self._release_one(self._block.item(entry), 1)
        self._position[entry] = position
        self._block[entry] = self._add_block(parts, num_steps, 1)
        self._row[entry] = 0
        if self.held_bytes > self.max_bytes:
            self._shrink()

    def find(self, start: int, size: int, position: int) -> KeptReply | None:
        """The reply to the chunk at `position` in a ring, if the ring still remembers that chunk."""
        for entry in range(start, start + size):
            if self._position[entry] == position:
                block, row = int(self._block[entry]), int(self._row[entry])
                if block == _NO_BLOCK:  # Forgotten: the row column holds T.
                    return KeptReply(row)
                steps = self._steps[block]
                parts = self._row_bytes(block, row, steps)
                return KeptReply(steps, parts[: self._num_inputs], parts[self._num_inputs :])
        return None

    def last(self, start: int, size: int, next_position: int) -> KeptReply | None:
        """The reply in a ring to the chunk that ended at `next_position`, None when it is forgotten."""
        for entry in range(start, start + size):
            block = int(self._block[entry])
            if block != _NO_BLOCK and self._position[entry] + self._steps[block] == next_position:
                return self.find(entry, 1, int(self._position[entry]))
        return None

    # Records

    def export_rings(self, starts: np.ndarray, sizes: np.ndarray) -> KeptColumns:
        """What rings hold; `starts`, `sizes` int [B]. It stays as it is, whatever is kept or forgotten afterwards."""
        entries, sessions = self._entries_of(starts, sizes), np.repeat(np.arange(len(starts)), sizes)
        is_used = self._position[entries] >= 0
        entries, sessions = entries[is_used], sessions[is_used]
        order = np.lexsort((self._position[entries], sessions))
        entries, sessions = entries[order], sessions[order]
        blocks, places = np.unique(self._block[entries], return_inverse=True)
        steps = np.array([self._steps[block] for block in blocks.tolist()], np.int64)[places]
        is_kept = self._block[entries] != _NO_BLOCK
        return KeptColumns(
            counts=np.bincount(sessions, minlength=len(starts)),
            positions=self._position[entries],
            # Of what is forgotten the row column holds T.
            num_steps=np.where(is_kept, steps, self._row[entries]),
            num_bytes=np.where(is_kept, steps * self._step_bytes + self._fixed_bytes, 0),
            blocks=np.where(is_kept, places, FORGOTTEN),
            rows=self._row[entries].astype(np.int64),
            parts=tuple(self._blocks[block] for block in blocks.tolist()),
            ports=self._ports,
        )

    def import_ring(self, start: int, size: int, replies: tuple[StoredReply, ...]) -> int:
        """Puts a record's replies into an empty ring, so that those chunks are answered as before.

        Args:
            replies: by position; of more than `size` the last ones.

        Returns:
            Which of the ring's entries is the next to be replaced: the session's `ring_next`.

        Raises:
            ClientError: SNAPSHOT_CORRUPT: one has not the bytes of what this model takes and gives; nothing was put.
        """
        replies = replies[-size:]
        for reply in replies:
            num_bytes = reply.num_steps * self._step_bytes + self._fixed_bytes
            if reply.data and len(reply.data) != num_bytes:
                where = f"snapshot: the kept reply to position {reply.position}"
                raise invalid(Reason.SNAPSHOT_CORRUPT, where, f"{len(reply.data)} bytes", f"{num_bytes} bytes")
        for entry, reply in enumerate(replies, start):
            if reply.data:
                self.keep_one(entry, reply.position, self._parts_of(reply), reply.num_steps)
            else:
                self._position[entry], self._row[entry] = reply.position, reply.num_steps
        return len(replies) % size

    def _parts_of(self, reply: StoredReply) -> tuple[bytes, ...]:
        ends = list(accumulate(port.row_bytes(reply.num_steps) for port in self._ports))
        return tuple(reply.data[start:end] for start, end in pairwise([0, *ends]))

    @staticmethod
    def _entries_of(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        offsets = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.asarray(np.repeat(starts, sizes) + offsets)

    def _rows_up_to(self, count: int) -> np.ndarray:
        if count > len(self._counting):
            self._counting = np.arange(2 * count, dtype=np.int32)
        return self._counting[:count]

    def _row_bytes(self, block: int, row: int, steps: int) -> tuple[bytes, ...]:
        sizes = [port.row_bytes(steps) for port in self._ports]
        return tuple(data[row * size : (row + 1) * size] for data, size in zip(self._blocks[block], sizes, strict=True))

    # Blocks

    def _add_block(self, parts: tuple[bytes, ...], num_steps: int, live: int) -> int:
        if not self._free_blocks:
            self._grow_blocks()
        block = self._free_blocks.pop()
        self._blocks[block] = parts
        self._steps[block] = num_steps
        self._live[block] = live
        self._sequence[block] = self._next_sequence
        self._next_sequence += 1
        self.held_bytes += sum(map(len, parts))
        return block

    def _release(self, blocks: np.ndarray) -> None:
        """One entry fewer for each of `blocks` int32 [B]; blocks without entries are freed."""
        tally = np.bincount(blocks)
        touched = np.flatnonzero(tally)
        for block, count in zip(touched.tolist(), tally[touched].tolist(), strict=True):
            self._release_one(block, count)

    def _release_one(self, block: int, count: int) -> None:
        if block == _NO_BLOCK:
            return
        self._live[block] -= count
        if not self._live[block]:
            self._free_block(block)

    def _free_block(self, block: int) -> None:
        self.held_bytes -= sum(map(len, self._blocks[block]))
        self._blocks[block] = ()
        self._live[block] = 0
        self._free_blocks.append(block)

    def _shrink(self) -> None:
        """Brings the bytes held under the budget: compacts, then forgets the oldest replies down to three quarters."""
        self.num_compactions += 1
        entries = np.flatnonzero(self._block)
        order = np.argsort(np.array(self._sequence)[self._block[entries]], kind="stable")
        entries = entries[order]
        steps = np.array(self._steps)[self._block[entries]]
        sizes = steps * self._step_bytes + self._fixed_bytes
        # Newest first, keep what fits in three quarters of the budget.
        fits = np.cumsum(sizes[::-1])[::-1] <= self.max_bytes * 3 // 4
        for entry in entries[~fits].tolist():
            self._row[entry] = self._steps[self._block[entry]]
        self._release_all(entries[~fits])
        self.num_forgotten += int((~fits).sum())
        kept = entries[fits]
        for block in np.unique(self._block[kept]).tolist():
            mine = kept[self._block[kept] == block]
            self._compact(block, mine)

    def _release_all(self, entries: np.ndarray) -> None:
        if len(entries):
            self._release(self._block[entries])
            self._block[entries] = _NO_BLOCK

    def _compact(self, block: int, entries: np.ndarray) -> None:
        steps = self._steps[block]
        num_rows = len(self._blocks[block][0]) // self._ports[0].row_bytes(steps)
        # Sessions that were forked share rows.
        present, place = np.unique(self._row[entries], return_inverse=True)
        if len(present) == num_rows:
            return
        rows = [self._row_bytes(block, row, steps) for row in present.tolist()]
        parts = tuple(b"".join(pieces) for pieces in zip(*rows, strict=True))
        self.held_bytes += sum(map(len, parts)) - sum(map(len, self._blocks[block]))
        self._blocks[block] = parts
        self._row[entries] = place

    # Growth

    def _grow_entries(self) -> None:
        old = len(self._position)
        for name, fill in (("_position", -1), ("_block", 0), ("_row", 0)):
            column = getattr(self, name)
            setattr(self, name, np.concatenate([column, np.full(old, fill, column.dtype)]))

    def _grow_blocks(self) -> None:
        old = len(self._blocks)
        self._live.extend([0] * old)
        self._sequence.extend([0] * old)
        self._blocks.extend([()] * old)
        self._steps.extend([0] * old)
        self._free_blocks.extend(range(2 * old - 1, old - 1, -1))
