"""A session as a caller sees it.

Owns positions on the client's side. Must not know messages.

Ordering rules: whoever asks first goes first; a step, or the end of a stream, is in flight until it is answered, also
when nobody waits for it any more; when a pipelined step fails, those asked for before its failure was known fail
likewise; a reset has the session to itself.

Dimension key: T steps, E outputs emitted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from eddy.clients.connection import END, Connection, Group, PendingStep
from eddy.clients.errors import (
    Disconnected,
    EddyError,
    OutOfOrder,
    ServerBusy,
    SessionEnded,
    from_detail,
    invalid,
)
from eddy.clients.tensors import Inputs, Outputs
from eddy.clients.turns import Turns
from eddy.v1 import inference_pb2


@dataclass(frozen=True, slots=True)
class SessionGrant:
    """What the server gave for one session: its id and token, its handle on this stream, and its limits."""

    session_id: bytes
    handle: int
    position: int
    model: str
    version: str
    max_in_flight: int
    resume_token: bytes


class Session:
    """One session. Made by `Client.session`, `Client.open` or `Client.attach`, not directly."""

    def __init__(self, connection: Connection, group: Group, grant: SessionGrant, forget: Any) -> None:
        self.id = grant.session_id
        self.resume_token = grant.resume_token
        self.model = grant.model
        self.version = grant.version
        self.max_in_flight = grant.max_in_flight
        # Changed only by this session and, in flight, by the connection.
        self.handle = grant.handle.to_bytes(8, "little")
        self.sent_position = grant.position
        self.num_rewinds = 0
        self._connection = connection
        self._group = group
        self._forget = forget
        self._turns = Turns(grant.max_in_flight)
        self._end: EddyError | None = None
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
    def is_open(self) -> bool:
        """Neither closed here nor ended by the server, as far as is known."""
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
        done: asyncio.Future[list[np.ndarray]] = asyncio.get_running_loop().create_future()
        try:
            if self._end is not None:  # While this waited.
                raise self._end
            self._connection.step(self._group, PendingStep(self, arrays, num_steps, done, num_rewinds))
        except EddyError:
            self.release()
            raise
        return await done

    def release(self) -> None:
        """A step is no longer under way (called by the connection for each step)."""
        self._turns.release()

    async def reset(self) -> None:
        """Back to position 0 and the model's initial state, after the steps before it."""
        self._check()
        await self._turns.take(self.max_in_flight)
        request = inference_pb2.StreamRequest(reset=inference_pb2.ResetSessions(handles=self.handle))
        response = await self._connection.request(request, self._reset_done)
        for error in response.reset.errors:
            raise from_detail(error.error)

    def _reset_done(self, response: inference_pb2.StreamResponse | None) -> None:
        if response is not None and not response.reset.errors:
            self._forget(self)
            self.handle = response.reset.handles
            self.sent_position = 0
            if self._end is None:
                self._forget(self, renewed=True)
        self._turns.release(self.max_in_flight)

    def _check(self) -> None:
        """Refuses what would be wrong to send: it would wait for ever where a generation's own block asks for it."""
        if self._end is not None:
            raise self._end
        if self._is_lent:
            raise OutOfOrder("a generation has the session until it has ended or its block is left", "GENERATING")

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
            if self._connection.failure is not None:
                raise self._connection.failure
        except EddyError:
            self._turns.release(self.max_in_flight)
            raise
        self._is_lent = True

    def take_back(self, position: int) -> None:
        """The generation has ended, and the session stands at `position`."""
        self._is_lent = False
        self.sent_position = position
        self._turns.release(self.max_in_flight)

    async def recover(self) -> None:
        """The generation has ended nobody knows where.

        The session is taken over anew: what of the generation is still under way is fenced, and the server says where
        the session stands. Where that fails, so does the next step, and says why.
        """
        self._is_lent = False
        if self._end is not None or self._connection.failure is not None:
            self._turns.release(self.max_in_flight)
            return
        request = inference_pb2.StreamRequest(
            attach=inference_pb2.AttachSession(session_id=self.id, resume_token=self.resume_token)
        )
        attaching = self._connection.post(request, self._recovered)
        attaching.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            # Shielded: it goes on when whoever waits is cancelled.
            with contextlib.suppress(ServerBusy, Disconnected):
                await asyncio.shield(attaching)
        except EddyError as error:
            self._forget(self)
            self._end = self._end or error

    def _recovered(self, response: inference_pb2.StreamResponse | None) -> None:
        if response is not None:
            self._forget(self)
            self.handle = response.attached.handle.to_bytes(8, "little")
            self.sent_position = response.attached.next_position
            if self._end is None:
                self._forget(self, renewed=True)
            else:  # Closed meanwhile by the handle of before, which is fenced.
                self._connection.discard(self.handle)
        self._turns.release(self.max_in_flight)

    async def close(self) -> None:
        """Ends the session; ending it twice is fine."""
        if self._end is not None:
            return
        self._end = SessionEnded("the session was closed", "SESSION_CLOSED")
        self._forget(self)
        request = inference_pb2.StreamRequest(close=inference_pb2.CloseSessions(handles=self.handle))
        if self._connection.failure is None:
            await self._connection.request(request)

    def end(self, error: EddyError) -> None:
        """The server ended it (called by the client)."""
        self._end = error

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
