"""What a session would have to send again.

Owns the steps of one session that were sent and are not answered, and those that were answered and could still be lost
with the server: a server that has a durable state store says up to where a session survives it. After a cut the server
stands at some position P; what it needs from there on is here, or the session cannot go on. Must not know connections.

Ordering rule: steps are kept in the order of their positions, each beginning where the one before ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from eddy.clients.errors import DivergedError, EddyError, Fenced, OutOfOrder, StepsLost
from eddy.clients.group import PendingStep


class ReplayBytes:
    """What all logs of a client keep of steps that were answered."""

    def __init__(self, most: int) -> None:
        self.most = most
        # Changed by the logs.
        self.used = 0


class SessionLog:
    """One session's steps.

    Args:
        is_durable: the server keeps the session beyond its own end, or is to as soon as its store works.
        compares: what is run again must give the same bits.
    """

    def __init__(self, budget: ReplayBytes, *, is_durable: bool, durable_position: int, compares: bool) -> None:
        self._budget = budget
        self._compares = compares
        # Changed only by the session.
        self.is_durable = is_durable
        self.durable_position = durable_position
        self._steps: deque[PendingStep] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[PendingStep]:
        return iter(self._steps)

    def add(self, step: PendingStep) -> None:
        """A new step is sent."""
        self._steps.append(step)
        if self.is_durable:
            self._budget.used += step.num_bytes

    def remove(self, step: PendingStep) -> None:
        """A step was refused."""
        if step in self._steps:
            self._steps.remove(step)
            if self.is_durable:
                self._budget.used -= step.num_bytes

    def answered(self, step: PendingStep, outputs: list[np.ndarray], durable_position: int | None) -> None:
        """A step is done, for the first time or again.

        Raises:
            DivergedError: it was run again and gave something else.
        """
        if durable_position is not None:
            self.told(durable_position)
        if step.is_answered:
            if step.digest is not None and step.digest != digest_of(outputs):
                assert step.position is not None
                raise diverged(step.position)
        else:
            step.is_answered = True
            if self.is_durable and self._compares:
                step.digest = digest_of(outputs)
        self.trim()

    def told(self, durable_position: int) -> None:
        """The server says up to where it keeps the session.

        One that has a store says so also where that failed when the session was opened, which is kept from then on.
        """
        if not self.is_durable:
            self.is_durable = True
            self._budget.used += sum(step.num_bytes for step in self._steps)
        self.durable_position = max(self.durable_position, durable_position)

    def trim(self) -> None:
        """Forgets what can no longer be lost."""
        steps = self._steps
        while steps and steps[0].is_answered and (not self.is_durable or end_of(steps[0]) <= self.durable_position):
            step = steps.popleft()
            if self.is_durable:
                self._budget.used -= step.num_bytes

    def clear(self) -> None:
        """The session begins anew, or is over."""
        if self.is_durable:
            self._budget.used -= sum(step.num_bytes for step in self._steps)
        self._steps.clear()

    def last(self) -> PendingStep | None:
        """The step that was sent last, if it is kept."""
        return self._steps[-1] if self._steps else None

    def open_steps(self) -> list[PendingStep]:
        """Steps that are not answered, in order."""
        return [step for step in self._steps if not step.is_answered]

    def resent(self, position: int, sent_position: int, num_rewinds: int) -> list[PendingStep]:
        """What must be sent again, in order, where the server stands at `position`.

        Args:
            sent_position: where the session stands when everything has been sent; num_rewinds: its own.

        Raises:
            Fenced: the server is further than this session ever came.
            StepsLost: steps are missing that this session does not have any more.
            OutOfOrder: the server stands within a step.
        """
        if position > sent_position:
            raise overtaken(position, sent_position)
        self._cut(position)
        again: list[PendingStep] = []
        cursor = position
        for step in self._steps:
            assert step.position is not None, "what was sent has a position"
            if step.is_answered:
                step.num_rewinds = num_rewinds
            elif step.num_rewinds != num_rewinds:  # It fails with an earlier one.
                again.append(step)
                continue
            if step.position >= position:
                if step.position != cursor:
                    raise lost(cursor, step.position)
                cursor = end_of(step)
                again.append(step)
            elif end_of(step) > position:
                raise within(step.position, step.num_positions, position)
            elif not step.is_answered:
                again.append(step)
        if cursor != sent_position:
            raise lost(cursor, sent_position)
        return again

    def _cut(self, position: int) -> None:
        """Of what a generation fed, the part behind `position` can be sent alone."""
        for place, step in enumerate(self._steps):
            assert step.position is not None
            if step.is_fed and step.is_answered and step.position < position < end_of(step):
                head, tail = step.split(position - step.position)
                self._steps[place] = head
                self._steps.insert(place + 1, tail)
                if self.is_durable:
                    self._budget.used += head.num_bytes + tail.num_bytes - step.num_bytes
                return


def end_of(step: PendingStep) -> int:
    """The position behind a step that was sent."""
    assert step.position is not None
    return step.position + step.num_positions


def digest_of(outputs: list[np.ndarray]) -> int:
    """64 bits that tell outputs apart, within this process."""
    return hash(tuple([output.tobytes() for output in outputs]))


def overtaken(position: int, sent_position: int) -> EddyError:
    """Somebody else has stepped the session."""
    return Fenced(
        f"the session stands at {position}, beyond {sent_position}, the last that was sent here: another client has it",
        "FENCED",
    )


def lost(first: int, end: int) -> EddyError:
    """Steps that neither the server nor this client has."""
    return StepsLost(first, end)


def within(begin: int, num_steps: int, position: int) -> EddyError:
    """The server stands where no step of this session ended."""
    return OutOfOrder(
        f"the session stands at {position}, within the step from {begin} to {begin + num_steps} that was sent here:"
        " another client has stepped it",
        "POSITION_BEHIND",
    )


def diverged(position: int) -> EddyError:
    """A step that was run again gave other outputs."""
    return DivergedError(
        f"the step at {position} was run again after the server had lost it, and its outputs are not those that were"
        " given before",
        "DIVERGED",
    )
