"""A generation as a caller sees it: pieces of text as they come, then why it ended.

Owns one generation: its beginning, its going on after a cut, its end on every way out, and what of the session stays.
Must not know models.

Ordering rules: `started` is there once the block is entered, `finished` once the last piece was taken. Leaving the
block cancels what is still under way, and only then is the session its owner's again. Every token is told once.

Dimension key: T steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from eddy.clients import pieces
from eddy.clients.attempt import Attempt, cut_off, may_pass
from eddy.clients.continuation import Calls, Continuation, origin_of
from eddy.clients.errors import Disconnected, EddyError, Fenced, ServerBusy, SessionEnded
from eddy.clients.origin import Origin, prompt_of
from eddy.clients.pieces import Finished, Hypothesis, KeptSession, Piece, Started, Token
from eddy.clients.session import Session
from eddy.clients.tape import Tape
from eddy.v1 import generation_pb2

_T = TypeVar("_T")


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


class Generation:
    """One generation: `async with` begins and ends it, `async for` takes its pieces.

    Made by `Client.generate`, not directly.

    Args:
        calls: the client; request: all but the session and what it begins with; source: the session to go on with.
        draw_seed: 64 bits, for a session that is gone on with: after a cut the same text must come.
    """

    def __init__(
        self, calls: Calls, request: generation_pb2.GenerateRequest, source: Continued | None, draw_seed: int
    ) -> None:
        self._calls = calls
        self._request = request
        self._source = source
        if source is not None and calls.returns and not request.sampling.HasField("seed"):
            request.sampling.seed = draw_seed
        self._backoff = calls.backoff()
        # Changed only by the methods below, on one event loop.
        self._tape = Tape(request.stop, request.max_tokens, is_whole=request.num_beams > 1)
        self._origin: Origin | None = None
        self._rest: Continuation | None = None
        self._attempt: Attempt | None = None
        self._begun = False
        # Of a session that is kept and was taken over.
        self._epoch = 0
        self._work: asyncio.Task[Any] | None = None
        self._is_cancelled = False
        self._is_borrowed = False
        self._started: Started | None = None
        self._ending: Finished | None = None
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
        if not (self._keeps if self._finished is None else self._finished.session_kept):
            raise SessionEnded("the session ends with its generation: ask with keep_session=True", "SESSION_CLOSED")
        kept = self._kept()
        if self._finished is None:
            return kept
        origin = None if self._origin is None else self._origin.then(tuple(self._tape.ids))
        return replace(kept, position=self._finished.next_position, origin=origin)

    @property
    def _keeps(self) -> bool:
        return self._source is not None or self._request.keep_session

    def _kept(self) -> KeptSession:
        """The session of one that a generation keeps, which stands nobody knows where."""
        started, source = self.started, self._source
        # Only whoever begins a session is told its token.
        token = started.resume_token or (source.resume_token if isinstance(source, KeptSession) else b"")
        return KeptSession(
            started.session_id, self._epoch or started.epoch, None, started.model, started.version, token
        )

    async def __aenter__(self) -> Self:
        assert not self._begun, "a generation is begun once"
        await self._calls.prepare(self._request)
        await self._address()
        try:
            while self._started is None:
                try:
                    await self._begin_again()
                except EddyError as error:
                    await self._broken(error)
        except BaseException:
            await self._leave()
            raise
        return self

    async def _address(self) -> None:
        """Names the session to go on with; a `Session` is borrowed until the end."""
        source, existing = self._source, self._request.existing
        if isinstance(source, KeptSession) and source.position is None:
            # Something of the generation that was cut off may still be under way; taken over, the session stands.
            source = self._source = await self._calls.attach(source.id, source.resume_token)
        if isinstance(source, Session):
            await source.lend()
            self._is_borrowed = True
            existing.session_id, existing.position = source.id, source.position
        elif isinstance(source, KeptSession):
            assert source.position is not None
            existing.session_id, existing.epoch, existing.position = source.id, source.epoch, source.position
        elif source is not None:
            existing.session_id, existing.epoch = source, (await self._calls.find(source)).epoch
        try:
            await self._look_where_it_begins()
        except BaseException:
            await self._give_back(None)
            raise
        if isinstance(source, Session):
            existing.epoch = source.epoch  # As it is now: it may have been taken back meanwhile.
            source.hand_over()

    async def _look_where_it_begins(self) -> None:
        source, request = self._source, self._request
        if not self._calls.returns:
            return
        if source is None:
            self._origin = Origin(request.open, b"", 0)
        elif isinstance(source, Session) or (isinstance(source, KeptSession) and source.resume_token):
            self._origin = await origin_of(self._calls, source, request.existing.position)
        if self._origin is not None:
            self._origin = self._origin.then(prompt_of(request))

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        """The next piece.

        Raises:
            SessionEnded, Fenced, ServerBusy, ModelUnavailable, Disconnected, DivergedError: see `eddy.errors`.
        """
        if self._started is None:
            raise _not_begun()
        while self._finished is None:
            if self._ending is not None:
                await self._finish(self._ending)
                break
            try:
                piece = await self._next_piece()
            except EddyError as error:
                self._failure = error
                piece = self._tape.flush()
                if not piece.text:
                    raise
            if piece is None:
                break
            if piece.text or piece.tokens:
                return piece
        raise StopAsyncIteration

    async def _next_piece(self) -> Piece | None:
        """What came next, perhaps nothing; None when the caller cancelled the generation."""
        response = await self._read()
        if response is None:
            return None
        if response.HasField("tokens"):
            piece = self._tape.take(pieces.piece(response.tokens))
            if piece.tokens:
                self._backoff.worked()
            return piece
        if response.HasField("finished"):
            self._attempt = None
            self._ending = pieces.finished(response.finished)
            return self._tape.flush()
        return Piece("", ())

    async def _finish(self, told: Finished) -> None:
        num_tokens = told.num_tokens + self._tape.num_fed
        self._finished = replace(told, num_tokens=num_tokens, session_kept=self._keeps)
        own = None if self._rest is None else self._rest.own
        await self._give_back(told.next_position)
        if own is not None and isinstance(self._source, Session):
            own.check()

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
        if self._attempt is not None:
            self._attempt.cancel()
        if self._work is not None:
            self._work.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave()

    async def _leave(self) -> None:
        """Ends the call, if it has not ended, and gives a borrowed session back."""
        attempt, self._attempt = self._attempt, None
        if self._finished is None and self._failure is None:
            self._failure = cut_off()
        if attempt is not None:
            attempt.cancel()
        await self._give_back(None)

    # Its session

    async def _give_back(self, position: int | None) -> None:
        """Hands the session back: at `position`, or where it must be found out, with what was fed to it."""
        rest, self._rest = self._rest, None
        if rest is not None:
            await rest.leave()
        source, is_borrowed = self._source, self._is_borrowed
        self._is_borrowed = False
        own = source if is_borrowed and isinstance(source, Session) else None if rest is None else rest.own
        if own is None:
            return
        begin, fed = self._fed(own)
        if rest is None or rest.own is None:
            position = self._stands(own) if position is None else position
            epoch = self._request.existing.epoch if self._started is None else self._started.epoch
            moved = self._begun and own.epoch != epoch  # It was taken back since, or the server has brought it back.
            if position is not None and not moved:
                own.take_back(position, begin, fed)
                return
        await own.recover(begin, fed)
        if not is_borrowed:
            self._let_go(own)

    def _stands(self, source: Session) -> int | None:
        """Where a session stands that its generation did not move; None: that must be found out.

        Not after a refusal, which changes nothing; and not after another client took the session: finding out would
        take it back.
        """
        failure = self._failure
        is_refused = self._started is None and not isinstance(failure, Disconnected | ServerBusy | None)
        return source.position if not self._begun or is_refused or isinstance(failure, Fenced) else None

    def _fed(self, own: Session) -> tuple[int, list[int]]:
        """Tokens that are the session's by now, and the position of the first."""
        origin = self._origin
        if origin is None or self._started is None:
            return 0, []
        ids = self._tape.ids
        # Of a generation that is broken off the last one may have been told and not fed.
        if self._ending is None:
            if not ids:
                return 0, []
            ids = ids[:-1]
        return origin.position, [*origin.tokens(own.vocabulary), *ids]

    def _let_go(self, own: Session) -> None:
        """The session of one that is kept: it was taken over for the time of this call."""
        self._epoch = own.epoch
        failure = own.let_go()
        if self._finished is not None and failure is not None:
            raise failure

    # Calls

    async def _read(self) -> generation_pb2.GenerateResponse | None:
        """The next message; None when the caller cancelled the generation."""
        drained: generation_pb2.GenerateResponse | None = None
        while not self._is_cancelled:
            if self._failure is not None:
                raise self._failure
            try:
                if self._attempt is None:
                    await self._interruptible(self._cancellable(self._begin_again()))
                attempt = self._attempt
                if attempt is None:
                    return None
                response = await self._interruptible(attempt.read())
                if response is None or not self._goes_on_elsewhere(response):
                    return response
                drained = response
                raise ServerBusy("the server is shutting down", "DRAINING")
            except EddyError as error:
                try:
                    await self._interruptible(self._cancellable(self._broken(error)))
                except EddyError:
                    if drained is None:
                        raise
                    self._failure = None
                    return drained
        return None

    def _goes_on_elsewhere(self, response: generation_pb2.GenerateResponse) -> bool:
        is_draining = response.finished.reason == generation_pb2.GenerationFinished.REASON_DRAINING
        return is_draining and self._origin is not None

    async def _interruptible(self, work: Awaitable[_T]) -> _T | None:
        """What `work` gives; None when the caller cancelled the generation meanwhile."""
        try:
            return await work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._is_cancelled and not (task and task.cancelling()):
                return None
            raise

    def _cancellable(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Work that `cancel` stops."""
        self._work = asyncio.ensure_future(work)
        return self._work

    async def _broken(self, error: EddyError) -> None:
        """Returns when another call may be begun.

        Raises:
            EddyError: there is none; it is the generation's failure.
        """
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.cancel()
        is_again = self._rest is not None
        is_passing = may_pass(error, is_again=is_again) or (not is_again and self._is_perhaps_ours(error))
        if not (self._origin is not None and self._calls.returns and is_passing):
            self._failure = error
            raise error
        try:
            is_any = await self._calls.retry(self._backoff)
        except BaseException:
            self._failure = error
            raise
        if not is_any:
            self._failure = error
            raise error

    def _is_perhaps_ours(self, error: EddyError) -> bool:
        """The session may have been brought back since: in another epoch, or from before its last steps."""
        is_brought_back = isinstance(error, Fenced) or error.reason == "POSITION_AHEAD"
        if isinstance(self._source, KeptSession):
            return self._started is None and (is_brought_back or error.reason == "UNKNOWN_SESSION")
        return is_brought_back and isinstance(self._source, Session)

    async def _begin_again(self) -> None:
        """Begins the next call, the first one as it was asked for."""
        request, started = self._request, self._started
        if self._begun and (started is not None or self._source is not None):
            request = await self._rest_request()
        self._begun = True
        self._attempt = Attempt(await self._calls.begin(request))
        told = pieces.started(await self._attempt.read_started())
        self._calls.answered()
        if self._started is None:
            self._started = told if self._rest is None else self._rest.started(told)

    async def _rest_request(self) -> generation_pb2.GenerateRequest:
        if self._rest is None:
            self._rest = Continuation(self._calls, self._request, self._origin, self._tape)
        rest, source, started = self._rest, self._source, self._started
        if self._keeps:
            assert not isinstance(source, bytes), "without a token nothing is known of where it begins"
            await rest.retake(source or self._kept(), is_begun=started is not None)
        model, version = started or rest.own, started or rest.own
        assert model is not None
        assert version is not None
        return await rest.request(
            model.model,
            version.version,
            started.seed if started else None,
            started.num_prompt_tokens if started else None,
        )


def _not_begun() -> Disconnected:
    return Disconnected("the generation has not begun: use it within `async with`", "CLOSED")
