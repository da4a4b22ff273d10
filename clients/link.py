"""The way to the server: one stream at a time, and another when it ends.

Owns when a new stream is begun and over which channel, and that every session is taken back on it before anything of
the session is sent: callers see only a pause. Must not know what sessions send.

A server that was asked for a session and did not answer may take it still, from the server that has it by then. So
where a session is fenced after such an attempt it is asked for once more, as long after it as a server is waited for:
the server knows its holder, and refuses it to all others.

Ordering rules: a session that is open here is **away** from the moment its stream ends until the server has said on the
next one where it stands. Nothing is begun after `close`. Whoever's patience is over is told so, and only then.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from eddy.clients.addresses import Addresses
from eddy.clients.backoff import Backoff, Contact, Patience
from eddy.clients.connection import Connection
from eddy.clients.errors import Disconnected, EddyError, ModelUnavailable, ServerBusy
from eddy.v1 import inference_pb2

# A stream that lasted so long worked, whatever was asked on it.
_LASTING_SECONDS = 5.0


class Resumable(Protocol):
    """Sessions that are taken back together."""

    def attachments(self) -> list[tuple[int, inference_pb2.AttachSession]]:
        """How each of its sessions is taken back, by a number of its own."""

    def attached(self, number: int, answer: inference_pb2.SessionAttached) -> None:
        """A session was taken back."""

    def refused(self, number: int, error: EddyError) -> None:
        """A session is gone, or somebody else's."""

    def resume(self, connection: Connection) -> None:
        """Every session was told one or the other: what waits may be sent."""

    def lost(self) -> None:
        """The stream has ended, and with it every handle."""

    def give_up(self, error: EddyError) -> None:
        """There will be no other stream."""


class Link:
    """The present stream.

    Args:
        addresses: the servers; the next one is tried where one does not answer.
        on_ended: told the handle of a session, and why, when the server ends it by itself.
    """

    def __init__(
        self,
        addresses: Addresses,
        patience: Patience,
        contact: Contact,
        on_ended: Callable[[int, EddyError], None],
    ) -> None:
        self.patience = patience
        self._addresses = addresses
        self._on_ended = on_ended
        self._backoff = Backoff(patience)
        # Changed only by the methods below, on one event loop.
        self._channel: Any = None
        self._connection: Connection | None = None
        self._begun_seconds = 0.0
        self._contact = contact
        self._is_closed = False
        self._error: EddyError = Disconnected("the client has not connected", "UNAVAILABLE")
        self._num_given_up = 0
        # Sessions that are open here, and those of them that no stream has at the moment.
        self._members: dict[int, Resumable] = {}
        self._away: dict[int, Resumable] = {}
        # Those that some server was asked for and did not answer, and when that was.
        self._unanswered_seconds: dict[int, float] = {}
        self._changed = asyncio.Event()
        self._restoring: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._connections: list[Connection] = []

    @property
    def channel(self) -> Any:
        """To the server that has the present stream, or has to be asked for one."""
        return self._addresses.channel if self._connection is None else self._channel

    async def close(self) -> None:
        """Ends the stream; whoever waits is told that the client was closed."""
        self._is_closed = True
        error = Disconnected("the client was closed", "CLOSED")
        for connection in self._connections:
            await connection.close()
        self._give_up(dict(self._members), error)
        tasks = [*self._tasks] if self._restoring is None else [*self._tasks, self._restoring]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Sessions

    def add(self, member: Resumable, connection: Connection) -> None:
        """Sessions that were opened or attached on a stream, which may have ended meanwhile."""
        self._members[id(member)] = member
        if self._connection is connection:
            member.resume(connection)
        elif self._is_closed or not self.patience.is_any:
            self._give_up({id(member): member}, self._error)
        else:
            self._away[id(member)] = member
            self._restore()

    def remove(self, member: Resumable) -> None:
        """They are closed, or ended."""
        self._members.pop(id(member), None)
        self._unanswered_seconds.pop(id(member), None)
        if self._away.pop(id(member), None) is not None:
            self._tell_change()

    def recover(self, member: Resumable) -> None:
        """Takes sessions anew on the present stream, after a pause: what was sent again was refused for now."""
        if id(member) in self._members and id(member) not in self._away:
            member.lost()
            self._away[id(member)] = member
            self._backoff.failed()
            self._restore()

    def is_fence_own(self, member: Resumable) -> bool:
        """Whoever has fenced sessions may be a server that was asked for them from here; then they are taken anew."""
        if id(member) in self._away:
            return True
        asked_seconds = self._unanswered_seconds.pop(id(member), -math.inf)
        if self.patience.clock() - asked_seconds >= self.patience.reconnect_seconds:
            return False
        self.recover(member)
        return True

    def unanswered(self, member: Resumable) -> None:
        """A server was asked for sessions and did not answer (called by a round)."""
        if id(member) in self._members:
            self._unanswered_seconds[id(member)] = self.patience.clock()

    def is_away(self, member: Resumable) -> bool:
        """No stream has it at the moment."""
        return id(member) in self._away

    # Asking

    async def up(self) -> Connection:
        """The stream; waits while there is none.

        Raises:
            Disconnected: there was none in time, or the client is closed.
        """
        num_given_up = self._num_given_up
        while True:
            if self._is_closed:
                raise Disconnected("the client was closed", "CLOSED")
            if self._num_given_up != num_given_up:
                raise self._error
            if self._connection is not None:
                return self._connection
            if self._members:
                self._restore()
                await self._changed.wait()
                continue
            delay = self._next_delay_seconds()
            if delay is None:
                self._give_up({}, self._error)
                continue
            if delay:
                await self.patience.sleep(delay)
            if self._connection is None and not self._members and not self._is_closed:
                self._connect()

    async def request(
        self,
        build: Callable[[], inference_pb2.StreamRequest],
        member: Resumable | None = None,
        on_response: Callable[[inference_pb2.StreamResponse], None] | None = None,
    ) -> tuple[inference_pb2.StreamResponse, Connection]:
        """Asks until there is an answer, again on the next stream when one ends before; and the stream it came on.

        Args:
            build: makes the message for the stream that it goes to; it must be right to carry it out twice.
            member: whose sessions it is about: it waits until they are taken back.
            on_response: told the response when it comes, also when nobody waits any more.

        Raises:
            EddyError: it was refused, or there was no stream in time.
        """

        def answered(answer: inference_pb2.StreamResponse | EddyError) -> None:
            if on_response is not None and not isinstance(answer, EddyError):
                on_response(answer)

        while True:
            connection = await self.up()
            if member is not None and id(member) in self._away:
                await self._changed.wait()
                continue
            try:
                return await connection.request(build(), answered), connection
            except (Disconnected, ServerBusy):
                is_over = connection.failure is not None or connection.is_leaving
                if not is_over or (connection.has_answered and not self.patience.is_any):
                    raise
                if self._connection is connection:  # It is about to end.
                    await self._changed.wait()

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Carries work on, whoever stops waiting for it; what it raises is told to those who still do."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    # The stream

    def ended(self, handle: int, error: EddyError) -> None:
        """As `connection.Listener`."""
        self._on_ended(handle, error)

    def lost(self, connection: Connection, error: EddyError, *, is_final: bool) -> None:
        """As `connection.Listener`."""
        if self._connection is not connection:
            return
        self._connection = None
        self._error = error
        lasted = self.patience.clock() - self._begun_seconds >= _LASTING_SECONDS
        self._contact.is_made = self._contact.is_made or connection.has_answered
        if connection.has_progressed or lasted:
            self._backoff.worked()
        self._backoff.failed()
        if self._is_closed or is_final or (self._members and not self.patience.is_any):
            self._give_up(dict(self._members), error)
            return
        if error.reason == "DRAINING" or self._backoff.num_failures > 1:
            self._addresses.leave(self._channel)
        self._away = dict(self._members)
        for member in self._members.values():
            member.lost()
        self._tell_change()
        if self._away:
            self._restore()

    def _connect(self) -> Connection:
        self._connections = [each for each in self._connections if not each.is_over]
        self._channel = self._addresses.channel
        connection = Connection(self._channel, self, moves=self.patience.is_any)
        self._connections.append(connection)
        self._connection = connection
        self._begun_seconds = self.patience.clock()
        self._tell_change()
        return connection

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _next_delay_seconds(self) -> float | None:
        """Before the next stream; None: there is none. What never worked is not waited for."""
        if self._contact.is_made and self.patience.is_any:
            return self._backoff.delay_seconds()
        return 0.0 if self._backoff.num_failures < len(self._addresses) else None

    def _give_up(self, members: dict[int, Resumable], error: EddyError) -> None:
        """Tells `members` that there is no stream for them."""
        for key, member in members.items():
            self._members.pop(key, None)
            self._away.pop(key, None)
            self._unanswered_seconds.pop(key, None)
            member.give_up(error)
        if self._connection is None:
            self._contact.is_made = False
            self._num_given_up += 1
        self._backoff.worked()
        self._tell_change()

    # Taking back

    def _restore(self) -> None:
        if self._restoring is None or self._restoring.done():
            self._restoring = asyncio.create_task(self._take_back_all())

    async def _take_back_all(self) -> None:
        while self._away:
            delay = self._next_delay_seconds()
            if delay is None:
                self._give_up(dict(self._away), self._final_error())
                return
            if delay:
                await self.patience.sleep(delay)
            connection = self._connection or self._connect()
            busy = await self._take_back(connection)
            if busy is not None and self._connection is connection:
                self._error = busy
                self._backoff.failed()

    def _final_error(self) -> EddyError:
        error = self._error
        if isinstance(error, Disconnected) or self._connection is not None:
            return error
        return Disconnected(f"no server took the sessions back in time: {error}", error.reason)

    async def _take_back(self, connection: Connection) -> EddyError | None:
        """Takes back what is away; returns why some of it must be tried again, None when none must."""
        busy: list[EddyError] = []
        rounds = [_Round(self, member, connection, busy) for member in list(self._away.values())]
        for each in rounds:
            each.begin()
        for each in rounds:
            await each.done
        return busy[0] if busy else None

    def returned(self, member: Resumable, connection: Connection) -> None:
        """All sessions of a member were taken back (called by a round)."""
        if self._connection is connection and self._away.pop(id(member), None) is not None:
            member.resume(connection)
            self._tell_change()


class _Round:
    """One attempt to take back the sessions of one member."""

    def __init__(self, link: Link, member: Resumable, connection: Connection, busy: list[EddyError]) -> None:
        self._link = link
        self._member = member
        self._connection = connection
        self._busy = busy
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Changed only by the methods below.
        self._num_waiting = 0
        self._is_complete = True

    def begin(self) -> None:
        """Asks for each session."""
        attachments = self._member.attachments()
        self._num_waiting = len(attachments) + 1
        for number, attach in attachments:
            request = inference_pb2.StreamRequest(attach=attach)
            self._connection.post(request, lambda answer, number=number: self._answered(number, answer))  # type: ignore[misc]
        self._count()

    def _answered(self, number: int, answer: inference_pb2.StreamResponse | EddyError) -> None:
        if not isinstance(answer, EddyError):
            self._member.attached(number, answer.attached)
        elif _is_passing(answer):
            if isinstance(answer, Disconnected):
                self._link.unanswered(self._member)
            self._busy.append(answer)
            self._is_complete = False
        else:
            self._member.refused(number, answer)
        self._count()

    def _count(self) -> None:
        self._num_waiting -= 1
        if not self._num_waiting:
            if self._is_complete:
                self._link.returned(self._member, self._connection)
            self.done.set_result(None)


def _is_passing(error: EddyError) -> bool:
    """The same may succeed later."""
    is_loading = isinstance(error, ModelUnavailable) and error.reason == "MODEL_NOT_READY"
    return isinstance(error, Disconnected | ServerBusy) or is_loading
