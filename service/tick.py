"""Ticks: what the engine is asked to do at once.

Owns the plain values of one run, and how long a slice of a chunk may be. Must not know the queue, sessions' rules or
who runs ticks.

Dimension key: B rows of a tick, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eddy.service.chunk import NO_DEADLINE, Chunk
from eddy.service.errors import EddyError
from eddy.service.pages import PageMoves


@dataclass(slots=True)
class Tick:
    """One run of the engine.

    Attributes:
        chunks: whose rows these are, in order; bounds: where each chunk's rows begin, and their number at the end.
        inputs: raw bytes a feed, [B, T, ...].
        rows: table rows, int64 [B], or a slice where they lie in a row.
        read_slots, write_slots, home_slots: int64 [B]; num_rows: B; num_steps: T.
        moves: what changes places before it runs, if anything.
        positions: int64 [B] on the fast path, where every chunk is whole and all of its rows run; otherwise None.
        started: when it began to run, monotonic seconds; run_seconds: inside ONNX Runtime. Set by who runs it.
    """

    chunks: list[Chunk]
    bounds: list[int]
    inputs: tuple[bytes, ...]
    rows: np.ndarray | slice
    read_slots: np.ndarray
    write_slots: np.ndarray
    home_slots: np.ndarray | int
    num_rows: int
    num_steps: int
    positions: np.ndarray | None = None
    moves: PageMoves | None = None
    started: float = 0.0
    run_seconds: float = 0.0


class SingleTick:
    """A `Tick` of one whole chunk of one row: `row`, `position` and slots are integers. Plain, as `ChunkResult` is."""

    __slots__ = (
        "chunk",
        "home_slots",
        "inputs",
        "moves",
        "num_rows",
        "num_steps",
        "position",
        "read_slots",
        "row",
        "run_seconds",
        "started",
        "write_slots",
    )

    def __init__(
        self,
        chunk: Chunk,
        row: int,
        position: int,
        read_slot: int,
        write_slot: int,
        home_slot: int,
        moves: PageMoves | None = None,
    ) -> None:
        self.chunk = chunk
        self.inputs = chunk.inputs
        self.row = row
        self.position = position
        self.read_slots = read_slot
        self.write_slots = write_slot
        self.home_slots = home_slot
        self.moves = moves
        self.num_rows = 1
        self.num_steps = chunk.num_steps
        self.started = 0.0
        self.run_seconds = 0.0


class Job:
    """Work of the engine beside the chunks of sessions: what a session begins with, or a whole graph.

    Args:
        run: does it, on whichever thread; returns raw bytes a result.
        done: told what came of it, once.
        num_rows, num_steps: B and T, for its cost.
        deadline: monotonic seconds; it begins before this time or fails.
        prepare: called when its turn has come, on the event loop, before it is run or told of a failure of that.
        is_run: it runs a graph of the model, and counts as a tick; otherwise it copies states.

    Attributes:
        is_gone: nobody waits for it any more; it is dropped unless it has begun.
    """

    __slots__ = (
        "deadline",
        "done",
        "is_gone",
        "is_run",
        "num_rows",
        "num_steps",
        "prepare",
        "run",
        "run_seconds",
        "started",
    )

    def __init__(
        self,
        run: Callable[[], list[bytes]],
        done: Callable[[list[bytes] | EddyError], None],
        num_rows: int,
        num_steps: int,
        deadline: float = NO_DEADLINE,
        prepare: Callable[[], None] | None = None,
        *,
        is_run: bool = False,
    ) -> None:
        self.is_run = is_run
        self.prepare = prepare
        self.run = run
        self.done = done
        self.num_rows = num_rows
        self.num_steps = num_steps
        self.deadline = deadline
        self.is_gone = False
        self.started = 0.0
        self.run_seconds = 0.0


AnyTick = Tick | SingleTick | Job


@dataclass(frozen=True, slots=True)
class Control:
    """An operation on sessions that keeps its place among their chunks."""

    rows: np.ndarray
    run: Callable[[], None]


def slice_steps(remaining_steps: int, most_steps: int) -> int:
    """Steps to run next of a chunk: the largest power of two within its remaining steps and what fits into a tick.

    Powers of two let chunks of different lengths share ticks.
    """
    limit = max(1, min(remaining_steps, most_steps))
    return 1 << (limit.bit_length() - 1)
