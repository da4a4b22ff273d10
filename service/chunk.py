"""A chunk: some sessions of one model, each stepped by the same number of time steps, on its way through the server.

Owns what is known of one chunk between its arrival and its one result. Must not know the wire or how ticks are formed.

Dimension key: B rows of the chunk, T steps.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np

from eddy.service.answer import Answer
from eddy.service.contract import Contract
from eddy.service.errors import EddyError, Reason, ServerBug

_LOG = logging.getLogger(__name__)

NO_DEADLINE = float("inf")
NO_ERRORS: Mapping[int, EddyError] = MappingProxyType({})
_NO_REPLAYS: Mapping[int, tuple[bytes, ...]] = MappingProxyType({})


def deadline_after(arrival: float, timeout_milliseconds: int) -> float:
    """When a chunk that came at `arrival`, monotonic seconds, must have begun; a timeout of 0 is none."""
    return arrival + timeout_milliseconds * 1e-3 if timeout_milliseconds else NO_DEADLINE


class ChunkResult:
    """What became of a chunk. A plain class: one is made for every message, and a dataclass costs twice as much.

    Attributes:
        outputs: raw bytes a result of the contract, [B, T, ...]; rows in `errors` are zero.
        errors: row -> why it was refused or failed.
        replayed: rows answered from their kept reply.
        failure: set when the whole chunk was refused; then nothing else is.
    """

    __slots__ = ("errors", "failure", "outputs", "replayed")

    def __init__(
        self,
        outputs: Sequence[bytes] = (),
        errors: Mapping[int, EddyError] = NO_ERRORS,
        replayed: Sequence[int] = (),
        failure: EddyError | None = None,
    ) -> None:
        self.outputs = outputs
        self.errors = errors
        self.replayed = replayed
        self.failure = failure


class Source(Protocol):
    """Where chunks come from and their results go."""

    # Its client is gone: chunks that have not begun are dropped.
    is_gone: bool

    def deliver(self, chunk: Chunk, result: ChunkResult) -> None:
        """Takes the one result of `chunk`."""


class Chunk:
    """B sessions of one model, T steps each.

    Args:
        handles: uint64 [B] raw little-endian bytes; positions: the same.
        inputs: raw bytes a feed of the contract, [B, T, ...].
        route: the owner column's value that every row must have (`sessions.route`), or `sessions.ANY_ROUTE`; where
            the rows have several owners, the whole column, int64 [B] raw.
        source: given the result exactly once, unless its client is gone before the chunk begins.
        tag: the source's own; contract: the model's.
        num_requests: how many of clients' requests it carries out.
        arrival: monotonic seconds; deadline: begin before this time or fail.
    """

    __slots__ = (
        "answer",
        "arrival",
        "contract",
        "deadline",
        "done_steps",
        "errors",
        "handles",
        "index",
        "inputs",
        "is_answered",
        "num_bytes",
        "num_requests",
        "num_rows",
        "num_steps",
        "positions",
        "replays",
        "route",
        "rows",
        "source",
        "tag",
        "waited_seconds",
        "work_slots",
    )

    def __init__(
        self,
        handles: bytes,
        positions: bytes,
        num_steps: int,
        inputs: tuple[bytes, ...],
        route: int | bytes,
        source: Source,
        tag: int,
        contract: Contract,
        arrival: float,
        deadline: float = NO_DEADLINE,
        num_requests: int = 1,
    ) -> None:
        self.handles = handles
        self.positions = positions
        self.num_rows = len(handles) // 8
        # With its answer: a few bytes of tokens ask for many of scores.
        answer_bytes = contract.answer_bytes(self.num_rows, num_steps)
        self.num_bytes = sum(map(len, inputs)) + 2 * len(handles) + answer_bytes
        self.num_steps = num_steps
        self.inputs = inputs
        self.route = route
        self.source = source
        self.tag = tag
        self.contract = contract
        self.arrival = arrival
        self.deadline = deadline
        self.num_requests = num_requests
        self.is_answered = False
        # Of all its requests until the first slice; changed by whoever counts (`stats`).
        self.waited_seconds = 0.0
        # Changed only by the scheduler. Steps already run, when the chunk is time-sliced.
        self.done_steps = 0
        # For chunks that are not on the fast path: table rows int64 [B]; of these the ones that run, as indices
        # int64 [n]; their working slots int64 [n] between slices; their results so far;
        # refused rows; kept replies to send instead.
        self.rows: np.ndarray | None = None
        self.index: np.ndarray | None = None
        self.work_slots: np.ndarray | None = None
        self.answer: Answer | None = None
        self.errors: Mapping[int, EddyError] = NO_ERRORS
        self.replays: Mapping[int, tuple[bytes, ...]] = _NO_REPLAYS

    def reply(self, result: ChunkResult) -> None:
        """Delivers the chunk's one result; a source that fails to take it is told of a failure instead.

        The other chunks of a tick, whose sessions have moved by now, are none of its business.
        """
        self.is_answered = True
        try:
            self.source.deliver(self, result)
        except Exception:  # noqa: BLE001  the answer's root: it fails alone, with its traceback in the log
            _LOG.exception("the answer to a chunk could not be delivered")
            failure = ServerBug(Reason.INTERNAL, "the chunk was applied, and the server failed to answer it")
            self.source.deliver(self, ChunkResult(failure=failure))

    def fail(self, error: EddyError) -> None:
        """Answers the whole chunk with `error`, unless it is answered already."""
        if not self.is_answered:
            self.reply(ChunkResult(failure=error))

    @property
    def is_begun(self) -> bool:
        """A slice of it is running or has run: it is now finished whatever happens to its client."""
        return self.index is not None
