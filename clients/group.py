"""Sessions of one model share messages.

Owns which of the steps that wait share a message: by number of steps, each session at most once. Ends of streams share
messages with each other. Must not know streams, or what becomes of a step.

Ordering rule: a session's later step never overtakes an earlier one.

Dimension key: B rows, T steps, E outputs emitted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from eddy.clients.errors import EddyError, from_detail, invalid
from eddy.clients.tensors import MESSAGE_OVERHEAD_BYTES, Signature
from eddy.v1 import errors_pb2, inference_pb2

# The number of steps of a stream's end, which takes one position all the same.
END = 0


class Steppable(Protocol):
    """What sending knows of a session.

    Attributes:
        num_rewinds: how often `sent_position` was set back. A step that was asked for before the last time fails
            because an earlier one did, and says nothing about where the session is.
        is_over: nothing of it is sent or answered any more; whoever waited has been told.
    """

    handle: bytes
    sent_position: int
    num_rewinds: int
    is_over: bool

    def place(self, step: PendingStep) -> None:
        """The step is about to be sent: it has a position now, if it had none."""

    def unsent(self, step: PendingStep) -> None:
        """The step is not sent: it was cancelled, or an earlier one failed since it was asked for."""

    def answer(self, step: PendingStep, outputs: list[np.ndarray], durable_position: int | None) -> None:
        """The step is done; `durable_position` as the server said it, None where it did not."""

    def refuse(self, step: PendingStep, error: EddyError) -> None:
        """The step was not applied."""


@dataclass(slots=True, eq=False)
class PendingStep:
    """A step of one session, or the end of its stream, that waits to be sent or answered.

    Attributes:
        inputs: one [T, ...] raw an input; none for the end.
        num_steps: T; END for the end.
        done: resolves to one array an output: [T, ...], or [E, ...] of those that a model emitted that looks ahead.
        num_rewinds: the session's when this was asked for; if it has grown since, an earlier step has failed.
        position: where it was sent to; None until then.
        is_answered: it was, and is kept because what it did could still be lost.
        digest: of its outputs, to compare with when it is run again; None where that is not to be compared.
        is_asked: it is sent again only to be told what is durable.
        is_fed: a generation has fed it, token by token: the server may have kept the session anywhere within.
    """

    session: Steppable
    inputs: Sequence[bytes]
    num_steps: int
    done: asyncio.Future[list[np.ndarray]]
    num_rewinds: int
    position: int | None = None
    is_answered: bool = False
    digest: int | None = None
    holds_turn: bool = True
    is_asked: bool = False
    is_fed: bool = False

    def split(self, count: int) -> tuple[PendingStep, PendingStep]:
        """Its first `count` steps and the others, of one that was sent; neither's outputs are known."""
        assert self.position is not None
        places = [len(raw) // self.num_steps * count for raw in self.inputs]
        heads = [raw[:place] for raw, place in zip(self.inputs, places, strict=True)]
        tails = [raw[place:] for raw, place in zip(self.inputs, places, strict=True)]
        return (
            replace(self, inputs=heads, num_steps=count, digest=None),
            replace(self, inputs=tails, num_steps=self.num_steps - count, position=self.position + count, digest=None),
        )

    @property
    def num_positions(self) -> int:
        """How far it moves its session."""
        return self.num_steps or 1

    @property
    def num_bytes(self) -> int:
        """What keeping it takes."""
        return sum(map(len, self.inputs)) + _ENTRY_BYTES


# Beside its inputs, a step that is kept takes about so much.
_ENTRY_BYTES = 256


@dataclass(frozen=True, slots=True)
class Taken:
    """What becomes of steps that wait.

    Attributes:
        steps: those of the next message; unsent: those that are not sent; rest: those that go on waiting.
    """

    steps: list[PendingStep]
    unsent: list[PendingStep]
    rest: deque[PendingStep]


class Group:
    """Sessions whose steps share messages."""

    def __init__(self, signature: Signature, max_rows: int, max_message_bytes: int) -> None:
        self.signature = signature
        self.max_rows = max_rows
        self.max_message_bytes = max_message_bytes
        self.max_bytes = max(1, max_message_bytes - MESSAGE_OVERHEAD_BYTES)

    def check_size(self, num_steps: int) -> None:
        """Refuses steps that no message can hold: the server would end the stream, and with it everybody's.

        Raises:
            InvalidInput: MESSAGE_TOO_LARGE.
        """
        size = self.signature.row_bytes(num_steps)
        if size > self.max_message_bytes:
            received = f"{num_steps} steps, {size} bytes"
            raise invalid("MESSAGE_TOO_LARGE", "inputs", received, f"at most {self.max_message_bytes} bytes a session")

    def rows_of_message(self, num_steps: int) -> int:
        """Most rows of a message, at least one."""
        return max(1, min(self.max_rows, self.max_bytes // self.signature.row_bytes(num_steps)))

    def take(self, pending: deque[PendingStep]) -> Taken:
        """The oldest step and all others of the same T that fit beside it, or ends.

        Once a session is left out, it stays out. What was cancelled, or comes behind a failure, is not sent; nobody is
        told here.

        Args:
            pending: in the order they were asked for, at least one.
        """
        steps: list[PendingStep] = []
        unsent: list[PendingStep] = []
        rest: deque[PendingStep] = deque()
        left_out: set[int] = set()
        num_steps = pending[0].num_steps
        max_rows = self.rows_of_message(num_steps)
        for step in pending:
            session = step.session
            if session.is_over:
                continue
            is_cancelled = step.position is None and step.done.done()
            if is_cancelled or step.num_rewinds != session.num_rewinds:
                unsent.append(step)
                continue
            key = id(session)
            if step.num_steps != num_steps or len(steps) >= max_rows or key in left_out:
                left_out.add(key)
                rest.append(step)
                continue
            steps.append(step)
            left_out.add(key)  # Each session at most once in a message.
        return Taken(steps, unsent, rest)

    def write_steps(self, chunk: inference_pb2.StepChunk, steps: Sequence[PendingStep]) -> None:
        """Puts steps that `take` gave, each in its place, into a message."""
        chunk.handles = b"".join([step.session.handle for step in steps])
        chunk.positions = np.array([step.position for step in steps], "<u8").tobytes()
        raw = [b"".join(arrays) for arrays in zip(*[step.inputs for step in steps], strict=True)]
        self.write(chunk, len(steps), steps[0].num_steps, raw)

    def write(self, chunk: inference_pb2.StepChunk, num_rows: int, num_steps: int, raw: Sequence[bytes]) -> None:
        """Puts B rows of T steps, `raw` [B, T, ...] an input, or the end of B streams, into a message."""
        chunk.num_steps = num_steps
        if num_steps == END:
            chunk.flush = True
        else:
            self.signature.write(chunk, raw, num_rows, num_steps)


def behind_failure(session: Steppable) -> EddyError:
    """Why a step is refused that was asked for before an earlier one was known to have failed."""
    detail = errors_pb2.ErrorDetail(
        reason=errors_pb2.ERROR_REASON_POSITION_AHEAD,
        message="an earlier step of this session failed; this one was not sent",
        next_position=session.sent_position,
    )
    return from_detail(detail)
