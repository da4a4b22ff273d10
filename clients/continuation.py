"""How a generation goes on after a cut.

Owns the calls after the first one, and what becomes of the session that the generation goes on with. Must not know
pieces, or what is told twice.

A token depends on the seed, its position and what was fed before, and on nothing else. So the rest is drawn in another
session, which is begun as the generation's was, fed what came, and closed at the end: whatever the generation's own
session has gone through meanwhile (further than what came here, or back to what was durable) does not matter. That one
is taken over at the cut, which fences what is left of the call before, and in the end is fed what it misses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from eddy.clients.backoff import Backoff
from eddy.clients.errors import Disconnected, EddyError, Fenced, InvalidInput
from eddy.clients.moves import Moved
from eddy.clients.origin import Origin
from eddy.clients.pieces import KeptSession, Started
from eddy.clients.session import Session
from eddy.clients.tape import Tape
from eddy.v1 import contract_pb2, generation_pb2, sessions_pb2


@dataclass(frozen=True, slots=True)
class Calls:
    """What a generation needs of its client.

    Attributes:
        returns: whether the client comes back when it is cut off.
        backoff: makes the attempts since something worked; retry: waits before the next one, False when there is none.
        prepare: puts what a new session begins with into the message, where that needs the model's contract.
        begin: begins the call for a message; answered: told that the server has answered.
        contract: a model's contract, by name and version.
        find: what the server knows of a session, by its id; attach: takes a session over; take: the same for one that
            was in the given epoch, unless somebody else has taken it since.
        snapshot: of a session that nothing moves; restore, close: of sessions by their ids.
    """

    returns: bool
    backoff: Callable[[], Backoff]
    retry: Callable[[Backoff], Awaitable[bool]]
    prepare: Callable[[generation_pb2.GenerateRequest], Awaitable[None]]
    begin: Callable[[generation_pb2.GenerateRequest], Awaitable[Any]]
    answered: Callable[[], None]
    contract: Callable[[str, str], Awaitable[contract_pb2.ModelContract]]
    find: Callable[[bytes], Awaitable[sessions_pb2.Session]]
    attach: Callable[[bytes, bytes], Awaitable[Session]]
    take: Callable[[bytes, bytes, int], Awaitable[Session]]
    snapshot: Callable[[Session | KeptSession], Awaitable[sessions_pb2.SnapshotSessionResponse]]
    restore: Callable[[bytes, str, str], Awaitable[Moved]]
    close: Callable[[bytes], Awaitable[None]]


class Continuation:
    """One generation's.

    Args:
        request: the first call's; origin: how its session stood before the prompt, None where that is not known.
    """

    def __init__(
        self, calls: Calls, request: generation_pb2.GenerateRequest, origin: Origin | None, tape: Tape
    ) -> None:
        self._calls = calls
        self._request = request
        self._origin = origin
        self._tape = tape
        # Changed only by the methods below. The session that the rest is drawn in, where it was made of a snapshot; and
        # the generation's own, once it was taken over.
        self._side: bytes = b""
        self.own: Session | None = None
        self._num_before = 0

    async def retake(self, source: Session | KeptSession, *, is_begun: bool) -> None:
        """Takes the generation's own session over, which fences what is left of the call before.

        Args:
            is_begun: the server had begun the generation; otherwise the session may have been reset before.

        Raises:
            SessionEnded, Fenced: it is gone, or somebody else's.
        """
        if isinstance(source, Session):
            self.own = source
        elif self.own is None:
            self.own = await self._calls.take(source.id, source.resume_token, source.epoch)
            await self.own.lend()
            self.own.hand_over()
            if not is_begun and self.own.position == 0 != source.position:
                raise Fenced(f"the session was at position {source.position} and is at 0: it was reset", "FENCED")
            return
        assert self.own is not None
        await self.own.retake()

    async def request(
        self, model: str, version: str, seed: int | None, num_prompt_tokens: int | None
    ) -> generation_pb2.GenerateRequest:
        """The next call's message.

        Args:
            seed, num_prompt_tokens: as the server told them; None where it had not.

        Raises:
            Disconnected: the generation cannot go on.
        """
        origin = self._origin
        if origin is None:
            raise Disconnected("the generation was cut off, and where it began is not known here", "CANCELLED")
        contract = await self._calls.contract(model, version)
        before = origin.parts[:-1]
        fed = origin.tokens(contract.vocabulary)
        self._num_before = len(Origin(origin.opening, b"", 0, before).tokens(contract.vocabulary)) if before else 0
        if num_prompt_tokens is not None and len(fed) - self._num_before != num_prompt_tokens:
            raise Disconnected(
                f"the generation was cut off, and its prompt is {len(fed) - self._num_before} tokens here but was"
                f" {num_prompt_tokens} at the server",
                "CANCELLED",
            )
        rest = self._tape.rewind(contract.vocabulary)
        again = generation_pb2.GenerateRequest()
        again.CopyFrom(self._request)
        again.keep_session = False
        again.max_tokens = rest.max_tokens
        again.tokens.ids[:] = [*fed, *rest.fed]
        again.tokens.SetInParent()
        if seed is not None and self._request.num_beams <= 1:
            again.sampling.seed = seed
        if origin.opening is not None:
            again.open.CopyFrom(origin.opening)
            again.open.version = version
            return again
        await self.leave()
        moved = await self._calls.restore(origin.snapshot, model, version)
        self._side = moved.session_id
        found = await self._calls.find(moved.session_id)
        again.existing.session_id, again.existing.epoch = moved.session_id, found.epoch
        again.existing.position = origin.position
        return again

    def started(self, told: Started) -> Started:
        """What a later call said first, as the first one would have."""
        own = self.own
        if own is None:
            return told
        position = told.position + self._num_before
        num_tokens = told.num_prompt_tokens - self._num_before - self._tape.num_fed
        return Started(own.id, own.epoch, told.model, told.version, told.seed, num_tokens, position)

    async def leave(self) -> None:
        """Closes the session that the rest was drawn in."""
        if self._side:
            side, self._side = self._side, b""
            try:
                await self._calls.close(side)
            except EddyError:
                return  # It ends once it is idle for too long.


async def origin_of(calls: Calls, source: Session | KeptSession, position: int) -> Origin | None:
    """Where a generation begins that goes on with `source`, which stands at `position`.

    None where that cannot be had: it is too large, or the server has the session elsewhere.
    """
    if isinstance(source, KeptSession) and source.origin is not None:
        return source.origin
    try:
        taken = await calls.snapshot(source)
    except InvalidInput:
        return None
    return Origin(None, taken.snapshot, position) if taken.session.next_position == position else None
