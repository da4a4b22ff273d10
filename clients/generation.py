"""A generation as a caller sees it: pieces of text as they come, then why it ended.

Owns one `Generate` call: its beginning, its end on every way out, and what of the session stays. Must not know models.

Ordering rules: `started` is there once the block is entered, `finished` once the last piece was taken. Leaving the
block cancels what is still under way, and only then is the session its owner's again.

Dimension key: T steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np

from eddy.clients import pieces
from eddy.clients.errors import Disconnected, EddyError, Fenced, ServerBusy, SessionEnded, from_rpc
from eddy.clients.pieces import Finished, Hypothesis, KeptSession, Piece, Started, Token
from eddy.clients.session import Session
from eddy.v1 import generation_pb2, sessions_pb2


@dataclass(frozen=True, slots=True)
class Completion:
    """A generation as a whole; `str` of it is its text.

    Attributes:
        session: the session, if it is still open.
    """

    text: str
    tokens: tuple[Token, ...]
    started: Started
    finished: Finished
    session: KeptSession | Session | None

    def __str__(self) -> str:
        return self.text

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """The outputs that were asked for, [T, ...] each by its name: one of the tokens after the other."""
        return pieces.stacked(self.tokens)

    @property
    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """Of a beam search all beams, best first."""
        return self.finished.hypotheses


# What a generation may go on with: a session that is stepped, one that a generation left, or an id.
Continued = Session | KeptSession | bytes


@dataclass(frozen=True, slots=True)
class Calls:
    """What a generation needs of its client.

    Attributes:
        prepare: puts what a new session begins with into the message, where that needs the model's contract.
        begin: begins the call for a message's bytes; find: what the server knows of a session, by its id; attach:
            takes a session over.
    """

    prepare: Callable[[generation_pb2.GenerateRequest], Awaitable[None]]
    begin: Callable[[bytes], Any]
    find: Callable[[bytes], Awaitable[sessions_pb2.Session]]
    attach: Callable[[bytes, bytes], Awaitable[Session]]


class Generation:
    """One generation: `async with` begins and ends it, `async for` takes its pieces.

    Made by `Client.generate`, not directly.

    Args:
        calls: the client; request: all but the session and what it begins with; source: the session to go on with.
    """

    def __init__(self, calls: Calls, request: generation_pb2.GenerateRequest, source: Continued | None) -> None:
        self._calls = calls
        self._request = request
        self._source = source
        # Changed only by the methods below, on one event loop.
        self._call: Any = None
        self._is_over = False
        self._is_cancelled = False
        self._is_borrowed = False
        self._started: Started | None = None
        self._finished: Finished | None = None
        self._failure: EddyError | None = None

    @property
    def started(self) -> Started:
        """What the server said first."""
        if self._started is None:
            raise _not_begun()
        return self._started

    @property
    def finished(self) -> Finished | None:
        """Why it ended, and where; None while it has not, or when it was cancelled."""
        return self._finished

    @property
    def session(self) -> KeptSession | Session:
        """The session, for a next generation.

        Raises:
            SessionEnded: it was closed with its generation, which was not asked to keep it.
        """
        if isinstance(self._source, Session):
            return self._source
        is_kept = self._request.HasField("existing") or self._request.keep_session
        if not (is_kept if self._finished is None else self._finished.session_kept):
            raise SessionEnded("the session ends with its generation: ask with keep_session=True", "SESSION_CLOSED")
        position = None if self._finished is None else self._finished.next_position
        started = self.started
        # Only whoever begins a session is told its token.
        source = self._source
        token = started.resume_token or (b"" if source is None or isinstance(source, bytes) else source.resume_token)
        return KeptSession(started.session_id, started.epoch, position, started.model, started.version, token)

    async def __aenter__(self) -> Self:
        assert self._call is None, "a generation is begun once"
        await self._calls.prepare(self._request)
        await self._address()
        try:
            self._call = self._calls.begin(self._request.SerializeToString())
            self._started = await self._read_started()
        except BaseException:
            await self._leave()
            raise
        return self

    async def _read_started(self) -> Started:
        response = await self._read()
        if response is None or not response.HasField("started"):
            raise _cut_off()
        return pieces.started(response.started)

    async def _address(self) -> None:
        """Names the session to go on with; a `Session` is borrowed until the end."""
        source, existing = self._source, self._request.existing
        if isinstance(source, KeptSession) and source.position is None:
            # Something of the generation that was cut off may still be under way; taken over, the session stands.
            source = self._source = await self._calls.attach(source.id, source.resume_token)
        if isinstance(source, Session):
            await source.lend()
            self._is_borrowed = True
            existing.session_id, existing.epoch, existing.position = source.id, source.epoch, source.position
        elif isinstance(source, KeptSession):
            assert source.position is not None
            existing.session_id, existing.epoch, existing.position = source.id, source.epoch, source.position
        elif source is not None:
            existing.session_id, existing.epoch = source, (await self._calls.find(source)).epoch

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        """The next piece.

        Raises:
            SessionEnded, Fenced, ServerBusy, ModelUnavailable, Disconnected: see `eddy.errors`.
        """
        if self._started is None:
            raise _not_begun()
        while self._finished is None:
            response = await self._read()
            if response is None:
                raise StopAsyncIteration
            if response.HasField("tokens"):
                return pieces.piece(response.tokens)
            if response.HasField("finished"):
                self._finished = pieces.finished(response.finished)
                self._is_over = True
                await self._give_back(self._finished.next_position)
        raise StopAsyncIteration

    async def read(self) -> Completion:
        """All that is still to come, as one.

        Raises:
            EddyError: as the iteration; or it was cancelled.
        """
        taken = [piece async for piece in self]
        if self._finished is None:
            raise Disconnected("the generation was cancelled", "CANCELLED")
        is_open = self._finished.session_kept or isinstance(self._source, Session)
        return Completion(
            "".join([piece.text for piece in taken]),
            tuple(token for piece in taken for token in piece.tokens),
            self.started,
            self._finished,
            self.session if is_open else None,
        )

    def cancel(self) -> None:
        """Stops it at once; whoever iterates sees the end, and `finished` stays None."""
        self._is_cancelled = True
        if self._call is not None:
            self._call.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave()

    async def _leave(self) -> None:
        """Ends the call, if it has not ended, and gives a borrowed session back."""
        if self._call is not None and not self._is_over:
            self._is_over = True
            self._call.cancel()
        await self._give_back(None)

    async def _give_back(self, position: int | None) -> None:
        """Hands a borrowed session back at `position`; without, where it is must be found out.

        Not after a refusal, which changes nothing; and not after another client took the session: finding out would
        take it back.
        """
        if not self._is_borrowed:
            return
        self._is_borrowed = False
        source = self._source
        assert isinstance(source, Session)
        failure = self._failure
        is_refused = self._started is None and not isinstance(failure, Disconnected | ServerBusy | None)
        if position is None and (self._call is None or is_refused or isinstance(failure, Fenced)):
            position = source.position
        moved = self._started is not None and self._started.epoch != source.epoch
        if position is None or moved:
            await source.recover()
        else:
            source.take_back(position)

    async def _read(self) -> generation_pb2.GenerateResponse | None:
        """The next message; None when the caller cancelled the generation."""
        if self._is_cancelled:
            return None
        if self._is_over:
            raise self._failure or _cut_off()
        try:
            data = await self._call.read()
        except grpc.RpcError as error:
            self._is_over = True
            self._failure = from_rpc(error)
            raise self._failure from error
        except asyncio.CancelledError:
            self._is_over = True
            task = asyncio.current_task()
            if self._is_cancelled and not (task and task.cancelling()):
                return None
            raise
        if data is grpc.aio.EOF:
            self._is_over = True
            raise _cut_off()
        return generation_pb2.GenerateResponse.FromString(data)


def _not_begun() -> Disconnected:
    return Disconnected("the generation has not begun: use it within `async with`", "CLOSED")


def _cut_off() -> Disconnected:
    return Disconnected("the generation was cut off before its end", "CANCELLED")
