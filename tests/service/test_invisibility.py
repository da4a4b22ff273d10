"""Invisibility law: wherever a session's state is taken, and however it comes back, its answers are its history's.

A state machine of hypothesis steps sessions over an arena of few slots, so that they leave and come back all the time,
forks them, takes snapshots and restores those of long ago, and moves all of them to the next server.
"""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from histories import FAMILIES, NUM_STREAMS, Book, Sent, World
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from eddy.v1 import sessions_pb2

_SESSIONS = st.integers(0, 23)
_MAX_SESSIONS = 24
_NUM_SLOTS = 4
# Histories beyond these many digits wrap around, out of the range that snapshots may hold.
_MAX_DIGITS = 18


@dataclass(frozen=True)
class _Snapshot:
    """What a session was at one moment: bytes from the server, and its history then."""

    data: bytes
    model: str
    max_in_flight: int
    history: list[Sent]


class Invisibility(RuleBasedStateMachine):
    """Sessions of two models over a few slots each."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        tiny = {"max_slots": _NUM_SLOTS, "max_rows": 2, "max_steps": 64}
        self.world = World(Path(self._folder.name), model=tiny, state={"host_bytes": 1 << 20})
        self.generator = np.random.default_rng(0)
        self.snapshots: list[_Snapshot] = []

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        """More sessions than slots from the start."""
        self.generator = np.random.default_rng(seed)
        for number in range(_NUM_SLOTS + 2):
            for model in FAMILIES:
                self.world.open(model, number % NUM_STREAMS, 1 + number % 3)

    def teardown(self) -> None:
        """Every session goes on where its history ends."""
        try:
            for book in self.world.books:
                self._step(book, 3)
        finally:
            self.world.close()
            self._folder.cleanup()

    def _book(self, pick: int) -> Book:
        return self.world.books[pick % len(self.world.books)]

    def _step(self, book: Book, num_steps: int) -> None:
        self.world.own(book)
        self.world.apply(book, [book.make(self.generator, num_steps)])

    @rule(pick=_SESSIONS, num_steps=st.integers(1, 5))
    def step(self, pick: int, num_steps: int) -> None:
        """One of them, wherever its state is."""
        self._step(self._book(pick), num_steps)

    @rule(num_steps=st.integers(1, 3))
    def step_all(self, num_steps: int) -> None:
        """All of them in turn: each pushes another one out."""
        for book in self.world.books:
            self._step(book, num_steps)

    @rule(pick=_SESSIONS)
    def repeat(self, pick: int) -> None:
        """The last chunk again, wherever the session is: from its kept reply."""
        book = self._book(pick)
        self.world.own(book)
        if book.history:
            (response,) = self.world.send(book, [book.history[-1]])
            self.world.check(response, book.history[-1])

    @rule(pick=_SESSIONS)
    def take_snapshot(self, pick: int) -> None:
        """A copy of the session as it is now."""
        book = self._book(pick)
        self.world.own(book)
        if book.model == "history" and book.position > _MAX_DIGITS:
            return
        request = sessions_pb2.SnapshotSessionRequest(session_id=book.session_id)
        taken = self._unary("SnapshotSession", request, sessions_pb2.SnapshotSessionResponse)
        self.snapshots.append(_Snapshot(taken.snapshot, book.model, book.max_in_flight, list(book.history)))

    @precondition(lambda self: self.snapshots)
    @rule(pick=_SESSIONS)
    def restore(self, pick: int) -> None:
        """A session from a snapshot of any time, of this server or the one before."""
        if len(self.world.books) < _MAX_SESSIONS:
            snapshot = self.snapshots[pick % len(self.snapshots)]
            request = sessions_pb2.RestoreSessionRequest(snapshot=snapshot.data)
            restored = self._unary("RestoreSession", request, sessions_pb2.RestoreSessionResponse).session
            self._adopt(restored, snapshot.model, snapshot.max_in_flight, snapshot.history)

    @rule(pick=_SESSIONS)
    def fork(self, pick: int) -> None:
        """A session that stands where another one stands."""
        book = self._book(pick)
        self.world.own(book)
        if len(self.world.books) < _MAX_SESSIONS:
            request = sessions_pb2.ForkSessionRequest(session_id=book.session_id)
            forked = self._unary("ForkSession", request, sessions_pb2.ForkSessionResponse).session
            self._adopt(forked, book.model, book.max_in_flight, book.history)

    @rule(pick=_SESSIONS, stream=st.integers(0, NUM_STREAMS - 1))
    def attach(self, pick: int, stream: int) -> None:
        """Another stream has it."""
        self.world.attach(self._book(pick), stream)

    @rule()
    def checkpoint(self) -> None:
        """All of them are read, wherever their states are."""
        self.world.checkpoint()

    @rule()
    def migrate(self) -> None:
        """The server drains, and the next one goes on with all of them."""
        self.world.restart()

    @rule()
    def crash(self) -> None:
        """The server is gone."""
        self.world.crash()

    def _adopt(self, session: Any, model: str, max_in_flight: int, history: list[Sent]) -> None:
        position = history[-1].position + history[-1].num_steps if history else 0
        assert session.next_position == position
        book = Book(session.session_id, session.resume_token, model, max_in_flight, None, 0, copy.copy(history))
        book.num_durable = len(history)
        self.world.books.append(book)

    def _unary(self, method: str, request: Any, response_type: Any) -> Any:
        return self.world.run(self.world.server.unary(f"SessionService/{method}", request, response_type))


Invisibility.TestCase.settings = settings(max_examples=8, stateful_step_count=20)
TestInvisibility = Invisibility.TestCase
