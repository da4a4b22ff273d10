"""Exactly-once law: whatever clients, the network and the server's end do, a session's answers are its history's.

A state machine of hypothesis sends, repeats, reorders and drops chunks over the wire, by two streams and by unary
calls, while the server writes checkpoints, crashes and drains.
"""

import tempfile
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from histories import FAMILIES, NUM_STREAMS, Book, Sent, World
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from loopback import StreamClient, detail_of, tensor

from eddy.v1 import errors_pb2, inference_pb2, sessions_pb2

_SESSIONS = st.integers(0, 7)
_STREAMS = st.integers(0, NUM_STREAMS - 1)
_MAX_SESSIONS = 6


class ExactlyOnce(RuleBasedStateMachine):
    """Sessions of two models on one server."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.world = World(Path(self._folder.name))
        self.generator = np.random.default_rng(0)

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        """The inputs."""
        self.generator = np.random.default_rng(seed)
        for model in FAMILIES:
            self.world.open(model, 0, 2)

    def teardown(self) -> None:
        """Every session goes on where its history ends."""
        try:
            for number, book in enumerate(self.world.books):
                self.world.attach(book, number % NUM_STREAMS)
                self.world.apply(book, [book.make(self.generator, 3)])
        finally:
            self.world.close()
            self._folder.cleanup()

    def _book(self, pick: int) -> Book:
        """One of the sessions, in somebody's hands and with nothing to send again."""
        book = self.world.books[pick % len(self.world.books)]
        self.world.own(book)
        return book

    # What clients do

    @rule(model=st.sampled_from(sorted(FAMILIES)), stream=_STREAMS, max_in_flight=st.integers(1, 3))
    def open(self, model: str, stream: int, max_in_flight: int) -> None:
        """A new session."""
        if len(self.world.books) < _MAX_SESSIONS:
            self.world.open(model, stream, max_in_flight)

    @rule(pick=_SESSIONS, num_steps=st.integers(1, 5))
    def step(self, pick: int, num_steps: int) -> None:
        """The next chunk."""
        book = self._book(pick)
        self.world.apply(book, [book.make(self.generator, num_steps)])

    @rule(pick=_SESSIONS, num_steps=st.integers(1, 3))
    def pipeline(self, pick: int, num_steps: int) -> None:
        """As many chunks as may be under way, without waiting."""
        book = self._book(pick)
        chunks: list[Sent] = []
        for _ in range(book.max_in_flight):
            chunks.append(book.make(self.generator, num_steps, chunks[-1] if chunks else None))
        self.world.apply(book, chunks)

    @rule(pick=_SESSIONS, num_steps=st.integers(1, 3))
    def duplicate(self, pick: int, num_steps: int) -> None:
        """The next chunk twice at once: it is applied once and answered twice."""
        book = self._book(pick)
        sent = book.make(self.generator, num_steps)
        for response in self.world.send(book, [sent, sent]):
            self.world.check(response, sent)
        book.history.append(sent)

    @rule(pick=_SESSIONS, age=st.integers(0, 4))
    def repeat(self, pick: int, age: int) -> None:
        """An applied chunk again: from its kept reply, or refused with the next position."""
        book = self._book(pick)
        if age >= len(book.history):
            return
        sent = book.history[-1 - age]
        (response,) = self.world.send(book, [sent])
        if age < book.max_in_flight:
            self.world.check(response, sent)
            assert response.step.replayed_rows == b"\0\0\0\0"
        else:
            error = self.world.refusal(response)
            assert error.reason == errors_pb2.ERROR_REASON_POSITION_BEHIND
            assert error.next_position == book.position

    @rule(pick=_SESSIONS)
    def change(self, pick: int) -> None:
        """The last chunk again with other inputs: refused."""
        book = self._book(pick)
        if not book.history:
            return
        last = book.history[-1]
        other = [values.copy() for values in last.inputs]
        other[0].flat[0] += 1 if other[0].flat[0] < 9 else -1
        (response,) = self.world.send(book, [Sent(last.position, other, [], {})])
        assert self.world.refusal(response).reason == errors_pb2.ERROR_REASON_REPEAT_MISMATCH

    @rule(pick=_SESSIONS, num_steps=st.integers(1, 3))
    def reorder(self, pick: int, num_steps: int) -> None:
        """The chunk after the next one comes first: it is refused, and the next one applied."""
        book = self._book(pick)
        first = book.make(self.generator, num_steps)
        second = book.make(self.generator, num_steps, first)
        early, on_time = self.world.send(book, [second, first])
        error = self.world.refusal(early)
        assert error.reason == errors_pb2.ERROR_REASON_POSITION_AHEAD
        assert error.next_position == book.position
        self.world.check(on_time, first)
        book.history.append(first)
        self.world.apply(book, [second])

    @rule(pick=_SESSIONS, num_steps=st.integers(1, 3), is_again=st.booleans())
    def unary(self, pick: int, num_steps: int, is_again: bool) -> None:
        """A step without a stream, and perhaps the same one again."""
        book = self._book(pick)
        sent = book.make(self.generator, num_steps)
        inputs = [tensor(port.name, values[None]) for port, values in zip(self._ports(book), sent.inputs, strict=True)]
        request = inference_pb2.StepRequest(
            session_id=book.session_id, epoch=book.epoch, position=sent.position, num_steps=num_steps, inputs=inputs
        )
        for _ in range(2 if is_again else 1):
            response = self._unary("InferenceService/Step", request, inference_pb2.StepResponse)
            self.world.compare(response.outputs, sent)
            assert response.next_position == sent.position + num_steps
        book.history.append(sent)

    @rule(pick=_SESSIONS, stream=_STREAMS)
    def attach(self, pick: int, stream: int) -> None:
        """Somebody takes the session over: another client, or its own one that lost its way."""
        self.world.attach(self.world.books[pick % len(self.world.books)], stream)

    @rule(pick=_SESSIONS)
    def stale_writer(self, pick: int) -> None:
        """Whoever had the session before is fenced, whatever it sends."""
        book = self._book(pick)
        for stream, handle in book.old_handles[-2:]:
            sent = book.make(self.generator, 1)
            client = self.world.streams[stream]
            response = self.world.run(client.send(step=self.world.message(book, sent, handle)))
            assert self.world.refusal(response).reason == errors_pb2.ERROR_REASON_FENCED

    @rule(stream=_STREAMS, pick=_SESSIONS, num_steps=st.integers(1, 3))
    def disconnect(self, stream: int, pick: int, num_steps: int) -> None:
        """A stream breaks with a chunk under way: the session says whether it was applied."""
        book = self._book(pick)
        under_way = book.make(self.generator, num_steps)
        client = self.world.streams[book.stream or 0]
        self.world.run(self._cut(client, book, under_way))
        broken = book.stream
        self.world.streams[broken or 0] = self.world.run(self._stream())
        for each in self.world.books:
            each.old_handles = [old for old in each.old_handles if old[0] != broken]
            if each.stream == broken:
                each.stream = None
        self.world.attach(book, stream, under_way)

    async def _cut(self, client: StreamClient, book: Book, sent: Sent) -> None:
        await client.post(step=self.world.message(book, sent))
        client.cancel()
        # The server lets the stream's sessions go once what they sent is through.
        await self.world.server.unary(
            "SessionService/ListSessions", sessions_pb2.ListSessionsRequest(), sessions_pb2.ListSessionsResponse
        )

    async def _stream(self) -> StreamClient:
        return StreamClient(self.world.server.channel)

    @rule(pick=_SESSIONS)
    def reset(self, pick: int) -> None:
        """The session begins anew, and its past is forgotten for good."""
        book = self._book(pick)
        request = inference_pb2.ResetSessions(handles=book.handle.to_bytes(8, "little"))
        response = self.world.run(self.world.own(book).send(reset=request))
        assert not response.reset.errors, response
        book.old_handles.append((book.stream or 0, book.handle))
        book.handle = int.from_bytes(response.reset.handles, "little")
        book.history, book.num_durable = [], 0

    @precondition(lambda self: len(self.world.books) > 1)
    @rule(pick=_SESSIONS)
    def close(self, pick: int) -> None:
        """The session ends, here and in the store."""
        book = self._book(pick)
        request = inference_pb2.CloseSessions(handles=book.handle.to_bytes(8, "little"))
        assert not self.world.run(self.world.own(book).send(close=request)).closed.errors
        self.world.books.remove(book)
        again = inference_pb2.AttachSession(session_id=book.session_id, resume_token=book.token)
        error = self.world.run(self.world.streams[0].refusal(attach=again))
        assert error.reason in (errors_pb2.ERROR_REASON_SESSION_CLOSED, errors_pb2.ERROR_REASON_UNKNOWN_SESSION)

    # What happens to the server

    @rule()
    def checkpoint(self) -> None:
        """All that has changed is in the store."""
        self.world.checkpoint()

    @rule()
    def crash(self) -> None:
        """The server is gone; what was not in the store is sent again by its clients."""
        self.world.crash()

    @rule()
    def restart(self) -> None:
        """The server drains, and the next one goes on."""
        self.world.restart()

    @invariant()
    def nothing_internal_fails(self) -> None:
        """No request was refused for a fault of the server's."""
        refused = {reason.name for reason in self.world.server.host.refusals}
        assert not refused & {"INTERNAL", "MODEL_FAILED", "STORE_UNAVAILABLE"}

    # Parts

    def _ports(self, book: Book) -> Any:
        return FAMILIES[book.model].inputs

    def _unary(self, method: str, request: Any, response_type: Any) -> Any:
        try:
            return self.world.run(self.world.server.unary(method, request, response_type))
        except grpc.aio.AioRpcError as error:
            raise AssertionError(f"{method}: {detail_of(error)}") from error


ExactlyOnce.TestCase.settings = settings(max_examples=15, stateful_step_count=30)
TestExactlyOnce = ExactlyOnce.TestCase
