"""A session as a caller sees it.

Owns positions on the client's side, and what is sent again when a stream was lost. Must not know messages but for those
that take it back.

Ordering rules: whoever asks first goes first; a step, or the end of a stream, is in flight until it is answered, also
when nobody waits for it any more; when a pipelined step fails, those asked for before its failure was known fail
likewise; a reset has the session to itself. What a lost stream left unanswered is sent again, at the same positions,
before anything new.

Dimension key: T steps, E outputs emitted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType

import numpy as np

from eddy.clients.connection import Connection
from eddy.clients.errors import (
    Disconnected,
    EddyError,
    Fenced,
    OutOfOrder,
    ServerBusy,
    SessionEnded,
    from_detail,
    invalid,
)
from eddy.clients.group import END, Group, PendingStep, behind_failure
from eddy.clients.link import Link
from eddy.clients.log import SessionLog
from eddy.clients.room import Room
from eddy.clients.tensors import Inputs, Outputs
from eddy.clients.turns import Turns
from eddy.v1 import contract_pb2, inference_pb2

# Tokens that a generation fed are fed again so many at a time: each is answered with its scores.
_FED_STEPS = 256


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


class Session:
    """One session. Made by `Client.session`, `Client.open` or `Client.attach`, not directly."""

    def __init__(
        self, link: Link, room: Room, group: Group, grant: SessionGrant, track: Callable[[Session, int], None]
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
        self._holder = grant.holder
        self._link = link
        self._room = room
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
        self._is_lent = False

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

    async def step(self, inputs: Inputs) -> np.ndarray:
        """Steps the session and returns the output of a model that has one.

        Args:
            inputs: for a model with one input its values: one step, [F], or T steps, [T, F]; scalars where the
                contract's shape is empty. Otherwise a mapping by input name.

        Returns:
            [...] for one step, [T, ...] for T. Of a model that looks ahead what it has emitted by now, [E, ...], where
            E may be 0, also for one step.

        Raises:
            InvalidInput: refused here or by the server; nothing was applied and the session goes on.
            SessionEnded, Fenced, OutOfOrder, ServerBusy, ModelUnavailable, Disconnected: see `eddy.errors`.
        """
        self._group.signature.check_single_output()
        return (await self._step(inputs))[0]

    async def step_outputs(self, inputs: Inputs) -> Outputs:
        """As `step`, for models with any number of outputs: each by its name."""
        return self._group.signature.by_name(await self._step(inputs))

    async def _step(self, inputs: Inputs) -> Sequence[np.ndarray]:
        self._check()
        arrays, is_single = self._group.signature.arrays(inputs, 0)
        num_steps = 1 if is_single else len(arrays[0])
        if not num_steps:
            raise invalid("ZERO_STEPS", "inputs", "T = 0 steps", "at least 1")
        self._group.check_size(num_steps)
        outputs = await self._send(arrays, num_steps)
        is_row = is_single and not self._group.signature.is_ahead
        return [output[0] for output in outputs] if is_row else outputs

    async def flush(self) -> np.ndarray:
        """Ends the stream: a model that looks ahead emits what it holds back, and what follows is a new stream.

        It takes one position, as a step does, and takes effect exactly once, in the order asked for. Closing the
        session does not do it.

        Returns:
            What was held back, [E, ...], where E may be 0.

        Raises:
            InvalidInput: the model holds nothing back.
            SessionEnded, Fenced, OutOfOrder, ServerBusy, ModelUnavailable, Disconnected: see `eddy.errors`.
        """
        self._group.signature.check_single_output("flush")
        return (await self._flush())[0]

    async def flush_outputs(self) -> Outputs:
        """As `flush`, for models with any number of outputs: each by its name."""
        return self._group.signature.by_name(await self._flush())

    async def _flush(self) -> Sequence[np.ndarray]:
        self._check()
        self._group.signature.check_flush()
        return await self._send([], END)

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

    def drop(self, step: PendingStep) -> None:
        """As `group.Steppable`."""
        del self._unplaced[step]
        self._release(step)
        self._taken()

    def answer(self, step: PendingStep, outputs: list[np.ndarray], durable_position: int | None) -> None:
        """As `group.Steppable`."""
        is_first = not step.is_answered
        try:
            self._log.answered(step, outputs, durable_position)
        except EddyError as error:
            self.end(error)
        if is_first:
            if not step.done.done():  # Otherwise it was cancelled after it was sent.
                step.done.set_result(outputs)
            self._release(step)
        self._taken()
        if durable_position is not None:
            self._room.tell()

    def refuse(self, step: PendingStep, error: EddyError) -> None:
        """The session goes on from where it was (later steps in flight fail likewise)."""
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

    def ask_durable(self) -> None:
        """As `room.Keeper`: the last step again, whose reply the server keeps."""
        last = self._log.last()
        if last is not None and last.is_answered and not self._num_given and not self._backlog:
            last.num_rewinds = self.num_rewinds
            self._backlog.append(last)
            self._give()

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
            self._log.durable_position = max(self._log.durable_position, answer.durable_position)
        self._is_unchecked = self._is_resetting
        if self._is_closing or self._is_resetting:  # Where it stands does not matter any more.
            return
        if self._is_lent:  # The generation that has it finds out.
            self.sent_position = answer.next_position
            return
        try:
            again = self._log.resent(answer.next_position, self.sent_position, self.num_rewinds)
        except EddyError as error:
            self.end(error)
            return
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

    def lost(self) -> None:
        """As `link.Resumable`."""
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

    def end(self, error: EddyError) -> None:
        """The session is over: whoever waits is told, and so is whoever steps it from now on."""
        self._end = self._end or error
        self._connection = None
        self._track(self, int.from_bytes(self.handle, "little"))
        self._link.remove(self)
        waiting = [*self._log.open_steps(), *self._unplaced]
        self._log.clear()
        self._unplaced.clear()
        self._backlog.clear()
        for step in waiting:
            self._fail(step, error)
        self._room.tell()

    # Control

    async def reset(self) -> None:
        """Back to position 0 and the model's initial state, after the steps before it."""
        self._check()
        await self._turns.take(self.max_in_flight)
        # Carried out whether or not its caller waits for it.
        await asyncio.shield(self._link.begin(self._reset()))

    async def _reset(self) -> None:
        self._is_resetting = True
        try:
            self._check_end()

            def build() -> inference_pb2.StreamRequest:
                self._check_end()
                return inference_pb2.StreamRequest(reset=inference_pb2.ResetSessions(handles=self.handle))

            response, _ = await self._link.request(build, self, self._reset_done)
            for error in response.reset.errors:
                raise from_detail(error.error)
        except (SessionEnded, Fenced) as error:
            self.end(error)
            raise
        finally:
            self._is_resetting = False
            if self._is_unchecked and self._end is None:  # Taken back meanwhile, and then it was not reset.
                self._link.recover(self)
            self._turns.release(self.max_in_flight)

    def _reset_done(self, response: inference_pb2.StreamResponse) -> None:
        if not response.reset.errors:
            self._is_unchecked = False
            self._log.clear()
            self._log.durable_position = 0
            self.sent_position = 0
            self._renew(int.from_bytes(response.reset.handles, "little"))

    def _check(self) -> None:
        """Refuses what would be wrong to send: it would wait for ever where a generation's own block asks for it."""
        self._check_end()
        if self._is_lent:
            raise OutOfOrder("a generation has the session until it has ended or its block is left", "GENERATING")

    def _check_end(self) -> None:
        if self._end is not None:
            raise self._end

    def check(self) -> None:
        """Raises what ended the session, if it has ended."""
        self._check_end()

    def let_go(self) -> EddyError | None:
        """Leaves the session open at the server, to whoever takes it; returns what has ended it, if it has ended."""
        found = self._end
        self.end(SessionEnded("the session was let go", "SESSION_CLOSED"))
        return found

    async def lend(self) -> None:
        """Hands the session to a generation (called by it), after the steps before; until then steps are refused.

        Raises:
            OutOfOrder: another generation has it.
            SessionEnded, Disconnected: it is no longer of use.
        """
        self._check()
        await self._turns.take(self.max_in_flight)
        try:
            self._check()
        except EddyError:
            self._turns.release(self.max_in_flight)
            raise
        self._is_lent = True

    def take_back(self, position: int, begin: int = 0, fed: Sequence[int] = ()) -> None:
        """The generation has ended, and the session stands at `position`; `fed`, `begin`: as for `recover`."""
        self._log_fed(begin, fed[: max(0, position - begin)], position)
        self._is_lent = False
        self.sent_position = position
        self._turns.release(self.max_in_flight)

    def began_anew(self) -> None:
        """It was reset without the stream (called by the client, which has it): nothing of before is sent again."""
        self._log.clear()
        self._log.durable_position = 0

    async def retake(self) -> None:
        """Takes the session over anew while it is lent: what of the generation is still under way is fenced.

        Raises:
            EddyError: it is gone, or somebody else's, or there was no server for it.
        """
        await asyncio.shield(self._link.begin(self._attach_anew(self._retaken)))

    def _retaken(self, response: inference_pb2.StreamResponse) -> None:
        self._renew(response.attached.handle)

    async def recover(self, begin: int = 0, fed: Sequence[int] = ()) -> None:
        """The generation has ended nobody knows where.

        The session is taken over anew: what of the generation is still under way is fenced, and the server says where
        the session stands. Where that fails, so does the next step, and says why.

        Args:
            fed: tokens that are the session's, from position `begin` on; it is fed those that it misses.
        """
        await asyncio.shield(self._link.begin(self._recover(begin, fed)))

    async def _recover(self, begin: int, fed: Sequence[int]) -> None:
        missing: list[PendingStep] = []
        try:
            if self._end is None:

                def recovered(response: inference_pb2.StreamResponse) -> None:
                    self._renew(response.attached.handle)
                    missing.extend(self._level(response.attached.next_position, begin, fed))

                await self._attach_anew(recovered)
                await asyncio.gather(*[step.done for step in missing])
        except ServerBusy:
            pass
        except EddyError as error:
            self.end(error)
        finally:
            self._is_lent = False
            self._turns.release(self.max_in_flight)

    async def _attach_anew(self, on_response: Callable[[inference_pb2.StreamResponse], None]) -> None:
        def build() -> inference_pb2.StreamRequest:
            self._check_end()
            return inference_pb2.StreamRequest(attach=self._attachment())

        _, connection = await self._link.request(build, self, on_response)
        if self._is_closing:  # By the handle of before, which is fenced.
            connection.discard(self.handle)

    def _level(self, position: int, begin: int, fed: Sequence[int]) -> list[PendingStep]:
        """The server stands at `position`: the steps that feed it what it misses, each under way."""
        missing = self._log_fed(begin, fed, position)
        self._is_lent = False
        self.sent_position = max(position, begin + len(fed)) if fed else position
        try:
            self._backlog = deque(self._log.resent(position, self.sent_position, self.num_rewinds))
        except EddyError as error:
            self.end(error)
        self._give()
        return missing

    def _log_fed(self, begin: int, fed: Sequence[int], position: int) -> list[PendingStep]:
        """Keeps what was fed, as far as it could be lost; returns what is behind `position`, still to be fed."""
        missing = []
        places = [*range(0, len(fed), _FED_STEPS), len(fed)]
        if begin < position < begin + len(fed):
            places = sorted({*places, position - begin})
        for first, end in pairwise(places):
            arrays, _ = self._group.signature.arrays(np.array(fed[first:end], np.int64), 0)
            done: asyncio.Future[list[np.ndarray]] = asyncio.get_running_loop().create_future()
            step = PendingStep(self, [array.tobytes() for array in arrays], end - first, done, self.num_rewinds)
            step.position, step.holds_turn = begin + first, False
            step.is_answered = begin + end <= position
            if not step.is_answered:
                missing.append(step)
            elif not self._log.is_durable:
                continue
            self._log.add(step)
        return missing

    async def close(self) -> None:
        """Ends the session; ending it twice is fine. While there is no stream, it ends once there is."""
        if self._end is not None:
            return
        self._is_closing = True
        self._end = SessionEnded("the session was closed", "SESSION_CLOSED")
        closing = self._link.begin(self._close())
        if not self._link.is_away(self):
            await asyncio.shield(closing)

    async def _close(self) -> None:
        def build() -> inference_pb2.StreamRequest:
            return inference_pb2.StreamRequest(close=inference_pb2.CloseSessions(handles=self.handle))

        try:
            await self._link.request(build, self)
        except Disconnected:
            pass  # It ends once it is idle for too long.
        finally:
            self.end(SessionEnded("the session was closed", "SESSION_CLOSED"))

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
