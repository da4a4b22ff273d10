"""The client: one connection to a server, any number of sessions.

Owns the stream shared by all sessions, and their opening; calls that need no stream are `unary`'s.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Unpack

from eddy.clients.backoff import Backoff
from eddy.clients.batch import SessionBatch
from eddy.clients.connection import Connection
from eddy.clients.continuation import Calls
from eddy.clients.errors import EddyError, InvalidInput, invalid
from eddy.clients.generation import Completion, Continued, Generation
from eddy.clients.group import Group
from eddy.clients.lane import SessionGrant
from eddy.clients.link import Link
from eddy.clients.moves import MoveCalls
from eddy.clients.pieces import KeptSession
from eddy.clients.room import Room
from eddy.clients.sampling import GenerateOptions, Prompt, generate_request
from eddy.clients.session import Session
from eddy.clients.start import Prime, Primes, Start, States, start_of_many, start_of_one
from eddy.clients.tensors import MESSAGE_OVERHEAD_BYTES, Signature
from eddy.clients.unary import ClientOptions
from eddy.v1 import contract_pb2, generation_pb2, inference_pb2, sessions_pb2


class Client(MoveCalls):
    """An asyncio client.

    Example:
        async with Client("127.0.0.1:8500") as client:
            async with client.session("text-lstm") as session:
                logits = await session.step(42)

    Args:
        target: host:port of the server, or of several that share a state store, with commas between.
        tls: for a server with TLS; plaintext without.
        channel: an open `grpc.aio` channel to use instead (interceptors); it is not closed with the client.
        reconnect_seconds: how long the client tries to come back when it is cut off; 0: never.
        max_replay_bytes: what it keeps, at most, of steps that a server with a durable state store could still lose.
        patience: all that can be said of these two, instead of them.
    """

    def __init__(self, target: str = "127.0.0.1:8500", **options: Unpack[ClientOptions]) -> None:
        super().__init__(target, **options)
        # Changed only by the methods below, on one event loop.
        self._link_now: Link | None = None
        self._holder = 0
        self._room = Room(self._patience)
        # Those that are open here, by the handle that the stream has for each, and by id.
        self._sessions: dict[int, Session] = {}
        self._open_sessions: dict[bytes, Session] = {}

    async def close(self) -> None:
        """Ends the stream and the channel; sessions that were not closed stay open until they are idle for too long."""
        if self._link_now is not None:
            await self._link_now.close()
            self._link_now = None
        await super().close()

    # Sessions

    @asynccontextmanager
    async def session(
        self,
        model: str,
        version: str = "",
        *,
        max_in_flight: int = 1,
        idle_timeout_seconds: float = 0.0,
        prime: Prime | None = None,
        initial_states: States | None = None,
    ) -> AsyncIterator[Session]:
        """A session for the length of a `with` block; closed at its end. Arguments as for `open`."""
        session = await self.open(
            model,
            version,
            max_in_flight=max_in_flight,
            idle_timeout_seconds=idle_timeout_seconds,
            prime=prime,
            initial_states=initial_states,
        )
        async with session:
            yield session

    @asynccontextmanager
    async def batch(
        self,
        model: str,
        count: int,
        version: str = "",
        *,
        max_in_flight: int = 1,
        prime: Primes | None = None,
        initial_states: States | None = None,
    ) -> AsyncIterator[SessionBatch]:
        """`count` sessions for the length of a `with` block; closed at its end. Arguments as for `open_batch`."""
        batch = await self.open_batch(
            model, count, version, max_in_flight=max_in_flight, prime=prime, initial_states=initial_states
        )
        async with batch:
            yield batch

    async def open(
        self,
        model: str,
        version: str = "",
        *,
        max_in_flight: int = 1,
        idle_timeout_seconds: float = 0.0,
        prime: Prime | None = None,
        initial_states: States | None = None,
    ) -> Session:
        """Opens a session.

        Args:
            version: the latest that is ready by default.
            max_in_flight: steps that may be under way at once (pipelining); further ones wait.
            idle_timeout_seconds: how long the server keeps it without a step, the server's default for 0.
            prime: what a model with a prime graph reads first: text, an array [S, ...], or arrays by name.
            initial_states: states to begin with instead of the model's, by name, each of the state's shape.

        Raises:
            InvalidInput: `prime` or `initial_states` do not fit the model's contract.
            NotFound, ServerBusy, ModelUnavailable, Disconnected: see `eddy.errors`.
        """
        begin = None
        if prime is not None or initial_states is not None:
            begin = partial(start_of_one, prime=prime, states=initial_states)
        opened, stream, group, holder = await self._open(model, version, 1, max_in_flight, idle_timeout_seconds, begin)
        grant = SessionGrant(
            opened.session_ids[0],
            int.from_bytes(opened.handles, "little"),
            0,
            opened.model,
            opened.version,
            opened.max_in_flight,
            opened.resume_tokens,
            holder,
            opened.durable,
            0,
        )
        return self._add(stream, group, grant)

    async def open_batch(
        self,
        model: str,
        count: int,
        version: str = "",
        *,
        max_in_flight: int = 1,
        prime: Primes | None = None,
        initial_states: States | None = None,
    ) -> SessionBatch:
        """Opens `count` sessions of one model, to be stepped together.

        Args:
            max_in_flight: steps of each that may be under way at once; further ones wait.
            prime: as for `open`, a list of one each, of any lengths; or by name of the prime input a list of arrays.
            initial_states: as for `open`, [count, ...] each.
        """
        begin = None
        if prime is not None or initial_states is not None:
            begin = partial(start_of_many, primes=prime, states=initial_states, count=count)
        opened, stream, group, holder = await self._open(model, version, count, max_in_flight, 0.0, begin)
        batch = SessionBatch(self._link(), self._room, group, opened, holder)
        batch.begin(stream)
        return batch

    async def attach(self, session_id: bytes, resume_token: bytes = b"") -> Session:
        """Takes over a session by its id, at the position it has reached; whoever had it before is fenced.

        Args:
            resume_token: what came with the id: `session.resume_token`.

        Raises:
            SessionEnded: no such session is open; NotAllowed: the token is not the session's.
        """
        return await self._attach(session_id, resume_token, self._patience.holder())

    async def _take(self, session_id: bytes, resume_token: bytes, epoch: int) -> Session:
        """As `attach`, where the session was in `epoch` when this client had it last.

        Another epoch is the server's, which has brought it back, or another client's, who keeps it then.
        """
        is_same = (await self.find_session(session_id)).epoch == epoch
        self._holder = self._holder or self._patience.holder()
        return await self._attach(session_id, resume_token, self._holder, resumes=not is_same)

    async def _attach(self, session_id: bytes, resume_token: bytes, holder: int, *, resumes: bool = False) -> Session:
        attach = inference_pb2.AttachSession(
            session_id=session_id, resume_token=resume_token, holder=holder, resumes=resumes
        )
        response, stream = await self._link().request(lambda: inference_pb2.StreamRequest(attach=attach))
        attached = response.attached
        group = await self._catalog.group(attached.model, attached.version, attached.package_digest, attached.limits)
        grant = SessionGrant(
            session_id,
            attached.handle,
            attached.next_position,
            attached.model,
            attached.version,
            attached.max_in_flight,
            resume_token,
            holder,
            attached.durable,
            attached.durable_position,
        )
        return self._add(stream, group, grant)

    # Moving

    async def fork(self, session: Session) -> Session:
        """A new session that stands where `session` stands, after the steps before; from then on each goes its own way.

        Raises:
            SessionEnded, ServerBusy, OutOfOrder: a generation has the session.
        """
        async with self._undisturbed(session):
            while (moved := await self.fork_session(session.id)).position != session.position:
                with suppress(EddyError):  # It ends once it is idle for too long.
                    await self.close_session(moved.session_id)
                await session.settle_anew()
        return await self.attach(moved.session_id, moved.resume_token)

    async def snapshot(self, session: Session) -> bytes:
        """All that `session` is, as bytes, after the steps before; it goes on. `restore` makes a session of them.

        They hold the session's state and its last inputs and outputs, but neither its id nor its token.
        """
        async with self._undisturbed(session):
            return (await self._snapshot_of(session)).snapshot

    @staticmethod
    @asynccontextmanager
    async def _undisturbed(session: Session) -> AsyncIterator[None]:
        """Nothing of the session is under way within."""
        await session.lend()
        try:
            yield
        finally:
            session.take_back(session.position)

    async def _snapshot_of(self, source: Session | KeptSession) -> sessions_pb2.SnapshotSessionResponse:
        """A snapshot of a session that nothing moves, where its callers have brought it if it is open here."""
        taken = await self._snapshot(source.id)
        while isinstance(source, Session) and taken.session.next_position != source.position:
            await source.settle_anew()
            taken = await self._snapshot(source.id)
        return taken

    async def restore(
        self,
        snapshot: bytes,
        model: str = "",
        version: str = "",
        *,
        max_in_flight: int = 0,
        idle_timeout_seconds: float = 0.0,
    ) -> Session:
        """A new session that stands where the one stood of which `snapshot` was taken, here or on another server.

        Args:
            model, version: by default the snapshot's model, and whichever of its versions can take it.
            max_in_flight, idle_timeout_seconds: the snapshot's by default, as far as the server allows them.

        Raises:
            InvalidInput: the snapshot is damaged, or of another model, format or shape; NotFound; ServerBusy.
        """
        moved = await self.restore_session(
            snapshot, model, version, max_in_flight=max_in_flight, idle_timeout_seconds=idle_timeout_seconds
        )
        return await self.attach(moved.session_id, moved.resume_token)

    async def reset(self, session: Session, initial_states: States) -> None:
        """Sets `session` back to position 0 with states of its own, after the steps before.

        Args:
            initial_states: by name, each of the state's shape. To go back to the model's: `Session.reset`.

        Raises:
            InvalidInput: they do not fit; the session goes on where it stood.
        """
        await session.lend()
        session.hand_over()
        is_refused = False
        try:
            await self.reset_session(session.id, initial_states)
        except InvalidInput:
            is_refused = True
            raise
        finally:
            if not is_refused:  # It was reset, or may have been.
                session.began_anew()
            await session.recover()

    # Texts

    def generate(
        self,
        model: str = "",
        prompt: Prompt | None = None,
        *,
        session: Continued | None = None,
        timeout_seconds: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        r"""Text, or tokens, from a next-token model or a translator, as it is drawn. To be used within `async with`.

        Example:
            async with client.generate("text-lstm", "The class ", max_tokens=200, stop="\n\n") as generation:
                async for piece in generation:
                    print(piece.text, end="")

        Args:
            model: for a new session; empty with `session`.
            prompt: text, or token ids. A new session needs one token at least, but of a model with a start symbol.
            session: what to go on with: the `session` of a generation that kept its own; a `Session`, which is at its
                new position afterwards and refuses steps meanwhile; or a session's id.
            timeout_seconds: how long the whole generation may take, no limit by default.
            options: see `GenerateOptions`.

        Raises:
            InvalidInput: refused before anything is sent; other errors, those of `prime` and `initial_states` too, come
                when the block is entered or iterated.
        """
        if bool(model) == (session is not None):
            received = f"model {model!r} and a session" if model else "neither model nor session"
            raise invalid("MISSING_FIELD", "model, session", received, "one of them")
        request = generate_request(model, prompt, options)

        deadline: float | None = None
        channel: Any = None

        async def begin(request: generation_pb2.GenerateRequest) -> Any:
            nonlocal deadline, channel
            channel = await self._channel_of(request.existing.session_id)
            method, data = channel.unary_stream("/eddy.v1.GenerationService/Generate"), request.SerializeToString()
            if timeout_seconds is None:
                return method(data, timeout=None)
            now = self._patience.clock()
            deadline = now + timeout_seconds if deadline is None else deadline
            return method(data, timeout=max(0.0, deadline - now))

        prime, states = options.get("prime"), options.get("initial_states")
        if states is not None and prime is None:
            prime = options.get("source")

        async def prepare(request: generation_pb2.GenerateRequest) -> None:
            # A source alone is encoded by the server.
            if prime is not None or states is not None:
                await self._write_start(request.open, partial(start_of_one, prime=prime, states=states))

        async def retry(backoff: Backoff) -> bool:
            return await self._wait_to_retry(backoff, channel)

        return Generation(self._generation_calls(prepare, begin, retry), request, session, secrets.randbits(64))

    def _generation_calls(
        self,
        prepare: Callable[[generation_pb2.GenerateRequest], Awaitable[None]],
        begin: Callable[[generation_pb2.GenerateRequest], Awaitable[Any]],
        retry: Callable[[Backoff], Awaitable[bool]],
    ) -> Calls:
        async def contract(model: str, version: str) -> contract_pb2.ModelContract:
            return (await self._catalog.served(model, version)).contract

        return Calls(
            returns=self._patience.is_any,
            backoff=lambda: Backoff(self._patience),
            retry=retry,
            prepare=prepare,
            begin=begin,
            answered=self._has_answered,
            contract=contract,
            find=self.find_session,
            attach=self.attach,
            take=self._take,
            snapshot=self._snapshot_of,
            restore=self.restore_session,
            close=self.close_session,
        )

    async def complete(
        self,
        model: str = "",
        prompt: Prompt | None = None,
        *,
        session: Continued | None = None,
        timeout_seconds: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """As `generate`, all of it at once: `str` of the result is the text."""
        async with self.generate(
            model, prompt, session=session, timeout_seconds=timeout_seconds, **options
        ) as generation:
            return await generation.read()

    # Inner

    async def _channel_of(self, session_id: bytes) -> Any:
        session = self._open_sessions.get(session_id)
        if session is None:
            return await super()._channel_of(session_id)
        with suppress(EddyError):  # Of one that has ended the server says why.
            await session.settled()
        return self._link().channel

    async def _open(
        self,
        model: str,
        version: str,
        count: int,
        max_in_flight: int,
        idle_timeout_seconds: float,
        begin: Callable[[Signature], Start] | None,
    ) -> tuple[inference_pb2.SessionsOpened, Connection, Group, int]:
        """What was opened, on which stream, where its steps wait, and by which number the server knows who writes."""
        holder = self._patience.holder()
        request = inference_pb2.StreamRequest(
            open=inference_pb2.OpenSessions(
                model=model,
                version=version,
                count=count,
                max_in_flight=max_in_flight,
                idle_timeout_seconds=idle_timeout_seconds,
                holder=holder,
            )
        )
        if begin is not None:
            await self._write_start(request.open, begin)
        response, stream = await self._link().request(lambda: request)
        opened = response.opened
        try:
            group = await self._catalog.group(opened.model, opened.version, opened.package_digest, opened.limits)
        except BaseException:  # Also a cancelled task: nobody has these sessions.
            stream.discard(opened.handles)
            raise
        return opened, stream, group, holder

    async def _write_start(
        self, request: inference_pb2.OpenSessions | generation_pb2.NewSession, begin: Callable[[Signature], Start]
    ) -> None:
        """What the sessions begin with, by the contract of the version that is opened then."""
        served = await self._catalog.latest(request.model, request.version)
        request.version, request.package_digest = served.status.version, served.status.package_digest
        begin(Signature(served.contract)).write(request)
        size, most = request.ByteSize() + MESSAGE_OVERHEAD_BYTES, served.limits.max_message_bytes
        if size > most:  # The server would end the stream, and with it everybody's.
            raise invalid("MESSAGE_TOO_LARGE", "prime, initial_states", f"{size} bytes", f"at most {most} a call")

    def _add(self, stream: Connection, group: Group, grant: SessionGrant) -> Session:
        session = Session(self._link(), self._room, group, grant, self._track)
        self._sessions[grant.handle] = session
        self._open_sessions[session.id] = session
        self._link().add(session, stream)
        return session

    def _track(self, session: Session, handle: int) -> None:
        """A session does not have `handle` any more, and another one while it is open."""
        if self._sessions.get(handle) is session:  # Another server may have given the same handle since.
            del self._sessions[handle]
        if session.is_open:
            self._sessions[int.from_bytes(session.handle, "little")] = session
        elif self._open_sessions.get(session.id) is session:
            del self._open_sessions[session.id]

    def _ended(self, handle: int, error: EddyError) -> None:
        session = self._sessions.pop(handle, None)
        if session is not None:
            session.ended(error)

    def _link(self) -> Link:
        """The way to the server; made when it is first used."""
        if self._link_now is None:
            self._link_now = Link(self._addresses, self._patience, self._contact, self._ended)
        return self._link_now
