"""A session's steps on their way: what was asked for, what is under way, and what must be sent again.

Owns positions on the client's side, and what is sent again when a stream was lost. Must not know messages but for those
that take it back, nor what callers may ask of a session: `session` does.

Ordering rules: whoever asks first goes first; a step, or the end of a stream, is in flight until it is answered, also
when nobody waits for it any more; when a pipelined step fails, those asked for before its failure was known fail
likewise. What a lost stream left unanswered is sent again, at the same positions, before anything new.

Dimension key: T steps.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eddy.clients.connection import Connection
from eddy.clients.errors import EddyError, Fenced, OutOfOrder, ServerBusy, SessionEnded
from eddy.clients.group import Group, PendingStep, behind_failure
from eddy.clients.link import Link
from eddy.clients.log import SessionLog
from eddy.clients.room import Room
from eddy.clients.turns import Turns
from eddy.v1 import contract_pb2, inference_pb2


@dataclass(frozen=True, slots=True)
class SessionGrant:
    """What the server gave for one session: its id and token, its handle on this stream, and its limits.

    Attributes:
        holder: the number by which the server knows who writes it; is_durable: the session survives the server's end,
            and so do its steps before `durable_position`.
    """

    session_id: bytes
    handle: int
    position: int
    model: str
    version: str
    max_in_flight: int
    resume_token: bytes
    holder: int
    is_durable: bool
    durable_position: int


class Lane:
    """What of a session sends its steps; `session.Session` is made of it."""

    def __init__(
        self, link: Link, room: Room, group: Group, grant: SessionGrant, track: Callable[[Any, int], None]
    ) -> None:
        self.id = grant.session_id
        self.resume_token = grant.resume_token
        self.model = grant.model
        self.version = grant.version
        self.max_in_flight = grant.max_in_flight
        # Changed only by this session, on one event loop.
        self.handle = grant.handle.to_bytes(8, "little")
        self.sent_position = grant.position
        self.num_rewinds = 0
        self.is_over = False
        self._holder = grant.holder
        self._link = link
        self._room = room
        room.join(self)
        self._group = group
        self._track = track
        self._turns = Turns(grant.max_in_flight)
        self._log = SessionLog(
            room.bytes,
            is_durable=grant.is_durable,
            durable_position=grant.durable_position,
            compares=group.signature.contract.numerics.bitwise,
        )
        # The stream that has the session; None while it is away. Steps that are still to be given to it, how many it
        # has, and those of all these that have no position yet.
        self._connection: Connection | None = None
        self._backlog: deque[PendingStep] = deque()
        self._num_given = 0
        self._unplaced: dict[PendingStep, None] = {}
        self._end: EddyError | None = None
        self._is_closing = False
        self._is_resetting = False
        self._is_unchecked = False
        # Somebody has the session to himself; and moves it, so that where it stands is not known here.
        self._is_lent = False
        self._is_handed_over = False
        # Steps that were answered and are run again, because the server has lost them; and who waits for that.
        self._num_again = 0
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def epoch(self) -> int:
        """The session's epoch as far as is known here: its handle's upper half."""
        return int.from_bytes(self.handle, "little") >> 32

    @property
    def position(self) -> int:
        """The position of the next step to send."""
        return self.sent_position

    @property
    def vocabulary(self) -> contract_pb2.Vocabulary:
        """The model's."""
        return self._group.signature.contract.vocabulary

    @property
    def is_open(self) -> bool:
        """Neither closed here nor ended by the server, nor cut off for good, as far as is known."""
        return self._end is None

    async def _send(self, arrays: Sequence[np.ndarray], num_steps: int) -> list[np.ndarray]:
        """One array an output, of T steps or of the end."""
        num_rewinds = self.num_rewinds
        await self._turns.take()
        if self.max_in_flight == 1:
            num_rewinds = self.num_rewinds  # Without pipelining whoever waited does not build on the step before.
        if self._log.is_durable and self._room.is_full:
            try:
                await self._room.wait(self)
            except BaseException:
                self._turns.release()
                raise
        if self._end is not None:  # While this waited.
            self._turns.release()
            raise self._end
        done: asyncio.Future[list[np.ndarray]] = asyncio.get_running_loop().create_future()
        # Copied: the step may be sent again, and the arrays are the caller's.
        step = PendingStep(self, [array.tobytes() for array in arrays], num_steps, done, num_rewinds)
        self._unplaced[step] = None
        self._backlog.append(step)
        self._give()
        return await done

    # Called by what sends (`group.Steppable`)

    def _give(self) -> None:
        """Gives the stream as many steps as may be under way."""
        while self._connection is not None and self._backlog and self._num_given < self.max_in_flight:
            self._num_given += 1
            self._connection.step(self._group, self._backlog.popleft())

    def place(self, step: PendingStep) -> None:
        """As `group.Steppable`."""
        if step.position is None:
            step.position = self.sent_position
            self.sent_position += step.num_positions
            del self._unplaced[step]
            self._log.add(step)

    def unsent(self, step: PendingStep) -> None:
        """As `group.Steppable`."""
        if step.position is None and step.done.done():
            del self._unplaced[step]
            self._release(step)
            self._taken()
        else:
            self.refuse(step, behind_failure(self))

    def answer(self, step: PendingStep, outputs: list[np.ndarray], durable_position: int | None) -> None:
        """As `group.Steppable`."""
        if self.is_over:
            return
        is_first, step.is_asked = not step.is_answered, False
        try:
            self._log.answered(step, outputs, durable_position)
        except EddyError as error:
            self.end(error)
        if is_first:
            if not step.done.done():  # Otherwise it was cancelled after it was sent.
                step.done.set_result(outputs)
            self._release(step)
        elif self._num_again:
            self._num_again -= 1
            self._tell_settled()
        self._taken()
        if durable_position is not None:
            self._room.tell()

    def refuse(self, step: PendingStep, error: EddyError) -> None:
        """The session goes on from where it was (later steps in flight fail likewise)."""
        if self.is_over:
            return
        if isinstance(error, Fenced) and self._end is None and self._link.is_fence_own(self):
            return  # It is sent again, as all that is not answered.
        if step.is_asked:  # Its reply is not kept any more, or it was one of several that were run at once.
            step.is_asked = False
            if isinstance(error, SessionEnded | Fenced):
                self.end(error)
            self._taken()
            return
        if step.is_answered:
            # It was done once, and the server has lost it: without it there is no session.
            if isinstance(error, ServerBusy):
                self._link.recover(self)
            else:
                self.end(error)
            return
        if step.position is None:
            self._unplaced.pop(step, None)
        elif step.num_rewinds == self.num_rewinds:
            self.sent_position = step.position if error.next_position is None else error.next_position
            self.num_rewinds += 1
        self._log.remove(step)
        self._fail(step, error)
        if isinstance(error, SessionEnded | Fenced):
            self.end(error)
        self._taken()

    def ask_durable(self) -> bool:
        """As `room.Keeper`: the last step again, whose reply the server keeps."""
        last = self._log.last()
        if last is None or not last.is_answered or self._num_given or self._backlog:
            return False
        if self._connection is None or self._is_lent or self._is_closing or self._is_resetting:
            return False
        last.num_rewinds, last.is_asked = self.num_rewinds, True
        self._backlog.append(last)
        self._give()
        return True

    def _taken(self) -> None:
        self._num_given = max(0, self._num_given - 1)
        self._give()

    def _fail(self, step: PendingStep, error: EddyError) -> None:
        if not step.done.done():
            step.done.set_exception(error)
        self._release(step)

    def _release(self, step: PendingStep) -> None:
        if step.holds_turn:
            self._turns.release()

    # Taken back after a stream was lost (`link.Resumable`)

    def attachments(self) -> list[tuple[int, inference_pb2.AttachSession]]:
        """As `link.Resumable`."""
        return [(0, self._attachment())]

    def _attachment(self) -> inference_pb2.AttachSession:
        return inference_pb2.AttachSession(
            session_id=self.id, resume_token=self.resume_token, holder=self._holder, resumes=True
        )

    def attached(self, number: int, answer: inference_pb2.SessionAttached) -> None:
        """As `link.Resumable`: what must be sent again comes before what waits."""
        self._renew(answer.handle)
        if answer.durable:
            self._log.told(answer.durable_position)
        self._is_unchecked = self._is_resetting
        self._num_again = 0
        # Where it stands does not matter any more, or is found out by whoever moves it.
        if not (self._is_closing or self._is_resetting or self._is_handed_over):
            self._send_again(answer.next_position)

    def _send_again(self, position: int) -> None:
        """The server stands at `position`: what it misses is to be sent before what waits."""
        try:
            again = self._log.resent(position, self.sent_position, self.num_rewinds)
        except EddyError as error:
            self.end(error)
            return
        for step in again:
            step.is_asked = False
        self._num_again = sum([step.is_answered for step in again])
        self._backlog = deque((*again, *self._unplaced))

    def _renew(self, handle: int) -> None:
        old, self.handle = int.from_bytes(self.handle, "little"), handle.to_bytes(8, "little")
        self._track(self, old)

    def refused(self, number: int, error: EddyError) -> None:
        """As `link.Resumable`."""
        self.end(error)

    def resume(self, connection: Connection) -> None:
        """As `link.Resumable`."""
        if self._end is not None and not self._is_closing:
            return
        self._connection = connection
        self._num_given = 0
        self._give()
        self._tell_settled()

    async def settled(self) -> None:
        """Returns once the server has the session where its callers have brought it: all that was lost was run again.

        Raises:
            EddyError: it has ended.
        """
        while not self._is_settled:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        self._check_end()

    @property
    def _is_settled(self) -> bool:
        return self._end is not None or (self._connection is not None and not self._num_again)

    def _tell_settled(self) -> None:
        if self._waiting and self._is_settled:
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)

    def lost(self) -> None:
        """As `link.Resumable`."""
        if self._connection is not None:
            self._connection.withdraw(self._group, self)
        self._connection = None
        self._num_given = 0
        if self._is_closing:
            for step in (*self._log.open_steps(), *self._unplaced):
                self._fail(step, SessionEnded("the session was closed", "SESSION_CLOSED"))
            self._log.clear()
            self._unplaced.clear()
        for step in [step for step in self._log.open_steps() if step.num_rewinds != self.num_rewinds]:
            self._log.remove(step)
            self._fail(step, behind_failure(self))
        self._backlog = deque()

    def give_up(self, error: EddyError) -> None:
        """As `link.Resumable`."""
        self.end(error)

    def ended(self, error: EddyError) -> None:
        """The server says that the session is over."""
        if not (isinstance(error, Fenced) and self._link.is_fence_own(self)):
            self.end(error)

    def end(self, error: EddyError) -> None:
        """The session is over: whoever waits is told, and so is whoever steps it from now on."""
        self._end = self._end or error
        self.is_over = True
        self._connection = None
        self._track(self, int.from_bytes(self.handle, "little"))
        self._link.remove(self)
        waiting = [*self._log.open_steps(), *self._unplaced]
        self._log.clear()
        self._unplaced.clear()
        self._backlog.clear()
        for step in waiting:
            self._fail(step, error)
        self._tell_settled()
        self._room.tell()

    def _check(self) -> None:
        """Refuses what would be wrong to send: it would wait for ever where a generation's own block asks for it."""
        self._check_end()
        if self._is_lent:
            raise OutOfOrder("a generation has the session until it has ended or its block is left", "GENERATING")

    def _check_end(self) -> None:
        if self._end is not None:
            raise self._end
