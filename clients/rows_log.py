"""What many sessions of one model would have to send again.

Owns the chunks that were sent and are not answered, and those that were answered and could still be lost with the
server, as `log` does for one session. Must not know connections.

Dimension key: B sessions, N rows of a chunk, T steps.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eddy.clients.errors import EddyError
from eddy.clients.log import ReplayBytes, lost, overtaken, within

_ENTRY_BYTES = 512
# Beside its inputs, a row that is kept takes its number, position and rewinds.
_ROW_BYTES = 24


@dataclass(slots=True, eq=False)
class RowChunk:
    """One message: some sessions step T times each, or end their streams.

    Attributes:
        rows: int64 [N]; inputs: [N, T, ...] raw an input; num_steps: T, or 0 for the end.
        done: resolves to what became of it.
        positions: where it was sent to, int64 [N]; rewinds: how often each row had been set back then, int64 [N].
        is_answered: it was, and is kept because what it did could still be lost.
        is_applied: which rows it moved, bool [N]; None: all.
        digest: of the outputs of all rows, to compare with when all are run again.
        is_asked: it is sent again only to be told what is durable.
    """

    rows: np.ndarray
    inputs: Sequence[bytes]
    num_steps: int
    done: asyncio.Future[Any]
    positions: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    rewinds: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    is_answered: bool = False
    is_applied: np.ndarray | None = None
    digest: int | None = None
    is_asked: bool = False

    @property
    def num_positions(self) -> int:
        """How far it moves its sessions."""
        return self.num_steps or 1

    @property
    def num_bytes(self) -> int:
        """What keeping it takes."""
        return sum(map(len, self.inputs)) + _ROW_BYTES * len(self.rows) + _ENTRY_BYTES

    def picked(self, picks: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, Sequence[bytes]]:
        """Rows, positions and inputs, of all rows or of those in `picks` int64 [n]."""
        if picks is None:
            return self.rows, self.positions, self.inputs
        count = len(self.rows)
        cut = [np.frombuffer(raw, np.uint8).reshape(count, -1)[picks].tobytes() for raw in self.inputs]
        return self.rows[picks], self.positions[picks], cut


class RowLog:
    """The chunks of B sessions; `is_durable` and `compares` as in `log.SessionLog`."""

    def __init__(self, budget: ReplayBytes, count: int, *, is_durable: bool, compares: bool) -> None:
        self._budget = budget
        self.is_durable = is_durable
        self._compares = compares
        # Changed only by the sessions' owner.
        self._chunks: deque[RowChunk] = deque()
        self._durable = np.zeros(count, np.int64)

    @property
    def compares(self) -> bool:
        """What is run again is compared with what it gave first."""
        return self._compares and self.is_durable

    def add(self, chunk: RowChunk) -> None:
        """A new chunk is sent."""
        self._chunks.append(chunk)
        if self.is_durable:
            self._budget.used += chunk.num_bytes

    def remove(self, chunk: RowChunk) -> None:
        """A chunk was refused."""
        if chunk in self._chunks:
            self._chunks.remove(chunk)
            if self.is_durable:
                self._budget.used -= chunk.num_bytes

    def answered(self, chunk: RowChunk, errors: Mapping[int, EddyError]) -> None:
        """A chunk is done, but for the rows in `errors`."""
        chunk.is_answered = True
        if errors:
            chunk.is_applied = np.ones(len(chunk.rows), np.bool_)
            chunk.is_applied[list(errors)] = False
        self.trim()

    def durable(self, rows: np.ndarray, positions: np.ndarray) -> None:
        """The server says up to where `rows` survive it: see `log.SessionLog.told`."""
        if not self.is_durable:
            self.is_durable = True
            self._budget.used += sum(chunk.num_bytes for chunk in self._chunks)
        self._durable[rows] = np.maximum(self._durable[rows], positions)

    def ended(self, rows: list[int]) -> None:
        """These are over: nothing of them is sent again."""
        self._durable[rows] = np.iinfo(np.int64).max

    def begin(self, rows: np.ndarray) -> None:
        """These begin anew, and nothing is under way."""
        self._durable[rows] = 0
        for chunk in self._chunks:
            is_over = np.isin(chunk.rows, rows)
            chunk.is_applied = ~is_over if chunk.is_applied is None else chunk.is_applied & ~is_over
        self.trim()

    def trim(self) -> None:
        """Forgets what can no longer be lost."""
        chunks = self._chunks
        while chunks and chunks[0].is_answered and not (self.is_durable and self._needed(chunks[0]).any()):
            chunk = chunks.popleft()
            if self.is_durable:
                self._budget.used -= chunk.num_bytes

    def _needed(self, chunk: RowChunk) -> np.ndarray:
        """Which of its rows could still lose what it did, bool [N]."""
        is_needed = chunk.positions + chunk.num_positions > self._durable[chunk.rows]
        return np.asarray(is_needed if chunk.is_applied is None else is_needed & chunk.is_applied)

    def clear(self) -> None:
        """The sessions are over."""
        if self.is_durable:
            self._budget.used -= sum(chunk.num_bytes for chunk in self._chunks)
        self._chunks.clear()

    def last_of_rows(self) -> list[tuple[RowChunk, np.ndarray]]:
        """Of each row that could still lose something the chunk that moved it last, with those rows' places in it."""
        found: list[tuple[RowChunk, np.ndarray]] = []
        is_found = np.zeros(len(self._durable), np.bool_)
        for chunk in reversed(self._chunks):
            picks = np.flatnonzero(self._needed(chunk) & ~is_found[chunk.rows])
            if len(picks):
                found.append((chunk, picks))
                is_found[chunk.rows[picks]] = True
        return found

    def open_chunks(self) -> list[RowChunk]:
        """Chunks that are not answered, in order."""
        return [chunk for chunk in self._chunks if not chunk.is_answered]

    def resent(
        self, stands: np.ndarray, sent: np.ndarray, num_rewinds: np.ndarray, ended: Mapping[int, EddyError]
    ) -> tuple[list[tuple[RowChunk, np.ndarray | None]], dict[int, EddyError]]:
        """What must be sent again, in order, and which rows cannot go on, and why.

        Args:
            stands: where the server stands, int64 [B]; sent: where the sessions stand when everything has been sent,
                int64 [B]; num_rewinds: int64 [B]; ended: rows that are not asked about.

        Returns:
            Chunks with the rows to send, int64 [n], None for all of a chunk.
        """
        cursor = stands.copy()
        errors: dict[int, EddyError] = {
            row: overtaken(int(stands[row]), int(sent[row])) for row in _where(stands > sent)
        }
        wanted: list[tuple[RowChunk, np.ndarray]] = []
        for chunk in self._chunks:
            rows, positions = chunk.rows, chunk.positions
            if chunk.is_answered:
                counts = np.ones(len(rows), np.bool_) if chunk.is_applied is None else chunk.is_applied
                chunk.rewinds = num_rewinds[rows]
            else:
                counts = chunk.rewinds == num_rewinds[rows]
            is_behind = counts & (positions >= stands[rows])
            is_cut = counts & ~is_behind & (positions + chunk.num_positions > stands[rows])
            for place in _where(is_cut):
                errors.setdefault(
                    int(rows[place]), within(int(positions[place]), chunk.num_positions, int(stands[rows[place]]))
                )
            for place in _where(is_behind & (positions != cursor[rows])):
                errors.setdefault(int(rows[place]), lost(int(cursor[rows[place]]), int(positions[place])))
            cursor[rows[is_behind]] = positions[is_behind] + chunk.num_positions
            wanted.append((chunk, is_behind if chunk.is_answered else np.ones(len(rows), np.bool_)))
        for row in _where(cursor != sent):
            errors.setdefault(row, lost(int(cursor[row]), int(sent[row])))
        errors = {row: error for row, error in errors.items() if row not in ended}
        gone = [*errors, *ended]
        again: list[tuple[RowChunk, np.ndarray | None]] = []
        for chunk, is_wanted in wanted:
            if gone:
                is_wanted = is_wanted & ~np.isin(chunk.rows, gone)
            picks = None if is_wanted.all() else np.flatnonzero(is_wanted)
            if picks is None or len(picks) or not chunk.is_answered:
                again.append((chunk, picks))
        return again, errors


def _where(flags: np.ndarray) -> list[int]:
    places: list[int] = np.flatnonzero(flags).tolist()
    return places
