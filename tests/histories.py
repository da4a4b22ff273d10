"""A server on a state store, its clients, and what every session must say: the ground of the stateful tests.

Owns the lives of the server (in this process, on a clock that stands still), two streams to it, and a book for each
session: the chunks that were sent, what the model's plain graph answers to them, and how many of them must survive a
crash. A crash is the store's files as they are at that moment, and a new server on them.

Dimension key: T steps.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from graphs import Family, PlainGraph, family, family_from_file
from loopback import Loopback, StreamClient, array, chunk, configure, serve, write_model
from simulation import Clock

from eddy.v1 import errors_pb2, inference_pb2

T = TypeVar("T")
MODELS = Path(__file__).parents[1] / "models"
_HISTORY = family("history")
# Snapshots hold integers only within a range that the contract gives.
_RANGED = tuple(replace(state, values=(-(2.0**62), 2.0**62)) for state in _HISTORY.states)
FAMILIES = {
    "history": replace(_HISTORY, states=_RANGED),
    "forecast-lstm": family_from_file(MODELS / "forecast-lstm/1/model.onnx"),
}
NUM_STREAMS = 2
# Nothing happens by itself: the clock stands still until a test moves it on.
CHECKPOINT_SECONDS = 1000.0


class Reference:
    """A model's plain graph, its states carried by hand from chunk to chunk."""

    def __init__(self, model: Family) -> None:
        self.family = model
        self._graph = PlainGraph.load(model.graph())

    def initial(self) -> dict[str, np.ndarray]:
        """The states to begin with, [2, ...] each."""
        return {state.name: state.initial_rows(2) for state in self.family.states}

    def step(
        self, states: dict[str, np.ndarray], inputs: list[np.ndarray]
    ) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        """Outputs [T, ...] and the states after `inputs` [T, ...] each; two equal rows, as the engine runs."""
        feed: dict[str, Any] = {
            port.name: np.stack([each] * 2) for port, each in zip(self.family.inputs, inputs, strict=True)
        }
        names = [port.name for port in self.family.outputs] + [state.next_name for state in self.family.states]
        got = dict(zip(names, self._graph.run(names, feed | states), strict=True))
        outputs = [got[port.name][0] for port in self.family.outputs]
        return outputs, {state.name: got[state.next_name] for state in self.family.states}


REFERENCES = {name: Reference(model) for name, model in FAMILIES.items()}


@dataclass(frozen=True)
class Sent:
    """A chunk of a session's history: inputs and the outputs that it must have, [T, ...] each."""

    position: int
    inputs: list[np.ndarray]
    outputs: list[np.ndarray]
    # The states after it.
    states: dict[str, np.ndarray]

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.inputs[0])


@dataclass
class Book:
    """One session, as its clients know it.

    Attributes:
        stream: which one owns it, None for none; handle: of the last attachment.
        history: the chunks that the server has applied; num_durable: how many of them survive a crash.
        replay: chunks that a crash took back, which its client still has.
    """

    session_id: bytes
    token: bytes
    model: str
    max_in_flight: int
    stream: int | None
    handle: int
    history: list[Sent] = field(default_factory=list)
    num_durable: int = 0
    replay: list[Sent] = field(default_factory=list)
    old_handles: list[tuple[int, int]] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Where the session stands."""
        return self.history[-1].position + self.history[-1].num_steps if self.history else 0

    @property
    def epoch(self) -> int:
        """Of the handle."""
        return self.handle >> 32

    def make(self, generator: np.random.Generator, num_steps: int, after: Sent | None = None) -> Sent:
        """A new chunk behind `after`, or behind what was applied."""
        reference = REFERENCES[self.model]
        before = after or (self.history[-1] if self.history else None)
        inputs = reference.family.example(generator, num_steps)
        outputs, states = reference.step(before.states if before else reference.initial(), inputs)
        return Sent(before.position + before.num_steps if before else 0, inputs, outputs, states)


class World:
    """The server and its sessions; made anew for each example.

    Args:
        folder: for the repository and the store; settings: of the model and of `state.*`.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.clock = Clock()
        self.books: list[Book] = []
        self.streams: list[StreamClient] = []
        self._folder = folder
        self._settings = settings
        self._runner = asyncio.Runner()
        self._num_lives = 0
        self._stack = AsyncExitStack()
        self._server: Loopback | None = None
        self._repository = folder / "models"
        for name, model in FAMILIES.items():
            write_model(self._repository, name, model=model.model())
        self.run(self._begin())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` on the event loop."""
        return self._runner.run(work)

    def close(self) -> None:
        """Ends the server."""
        self.run(self._end())
        self._runner.close()

    @property
    def server(self) -> Loopback:
        """The server that runs."""
        assert self._server is not None
        return self._server

    # Lives of the server

    @property
    def _store(self) -> Path:
        return self._folder / f"store-{self._num_lives}"

    async def _begin(self) -> None:
        self._store.mkdir(exist_ok=True)
        state = {"store": f"sqlite:{self._store / 'state.db'}", "checkpoint_seconds": CHECKPOINT_SECONDS}
        state["max_lag_seconds"] = 10 * CHECKPOINT_SECONDS
        config = configure(
            self._repository,
            session={"idle_timeout_seconds": 1e5},
            model=self._settings.get("model"),
            state=state | self._settings.get("state", {}),
        )
        self._server = await self._stack.enter_async_context(serve(config, clock=self.clock))
        self.streams = [StreamClient(self.server.channel) for _ in range(NUM_STREAMS)]

    async def _end(self) -> None:
        for stream in self.streams:
            stream.cancel()
        await self._stack.aclose()

    def restart(self) -> None:
        """The server drains, and another one goes on with its store: nothing is lost."""
        self.run(self._end())
        for book in self.books:
            book.num_durable = len(book.history)
            book.stream, book.old_handles = None, []
        self.run(self._begin())

    def crash(self) -> None:
        """The server is gone, with all that is not in its store."""

        async def go() -> None:
            before = self._store
            self._num_lives += 1
            shutil.copytree(before, self._store)
            await self._end()  # What it writes now is on files that nobody reads.
            await self._begin()

        self.run(go())
        for book in self.books:
            book.replay = book.history[book.num_durable :] + book.replay
            del book.history[book.num_durable :]
            book.stream, book.old_handles = None, []

    def checkpoint(self) -> None:
        """The time of a checkpoint has come, and it has been written."""
        self.clock.advance(CHECKPOINT_SECONDS)
        # An opening is written through, with what is due by then.
        self.run(self.streams[0].open("history"))
        for book in self.books:
            book.num_durable = len(book.history)

    # Clients

    def open(self, model: str, stream: int, max_in_flight: int) -> Book:
        """Opens a session."""
        opened = self.run(self.streams[stream].open(model, max_in_flight=max_in_flight))
        assert opened.durable, "a session that was opened is in the store"
        handle = int.from_bytes(opened.handles, "little")
        book = Book(opened.session_ids[0], opened.resume_tokens, model, max_in_flight, stream, handle)
        self.books.append(book)
        return book

    def attach(self, book: Book, stream: int, under_way: Sent | None = None) -> None:
        """A stream takes the session over, and its client sends what the server has lost.

        Whether a chunk that was under way is applied, the position says.
        """
        request = inference_pb2.AttachSession(session_id=book.session_id, resume_token=book.token)
        response = self.run(self.streams[stream].send(attach=request))
        assert response.WhichOneof("event") == "attached", response
        attached = response.attached
        if book.stream is not None:
            book.old_handles.append((book.stream, book.handle))
        book.stream, book.handle = stream, attached.handle
        if under_way is not None and attached.next_position > book.position:
            book.history.append(under_way)
        assert attached.next_position == book.position, f"the session stands at {attached.next_position}"
        book.num_durable = len(book.history)  # Its new epoch was written, with all that it is.
        replay, book.replay = book.replay, []
        for sent in replay:
            self.apply(book, [sent])

    def own(self, book: Book) -> StreamClient:
        """The stream that has the session, which is taken over if none does."""
        if book.stream is None:
            self.attach(book, len(book.session_id) % NUM_STREAMS)
        assert book.stream is not None
        return self.streams[book.stream]

    def apply(self, book: Book, chunks: list[Sent]) -> None:
        """Sends chunks that are the next ones, without waiting in between; each is answered as it must be."""
        for response, sent in zip(self.send(book, chunks), chunks, strict=True):
            self.check(response, sent)
            book.history.append(sent)

    def send(self, book: Book, chunks: list[Sent]) -> list[inference_pb2.StreamResponse]:
        """The responses to chunks that are sent in this order, all at once."""
        stream = self.own(book)

        async def go() -> list[inference_pb2.StreamResponse]:
            waiting = [await stream.post(step=self.message(book, sent)) for sent in chunks]
            return list(await asyncio.wait_for(asyncio.gather(*waiting), 30))

        return self.run(go())

    def message(self, book: Book, sent: Sent, handle: int | None = None) -> inference_pb2.StepChunk:
        """The chunk for the wire."""
        inputs = [values[None] for values in sent.inputs]
        return chunk(FAMILIES[book.model], [handle or book.handle], [sent.position], *inputs)

    def check(self, response: inference_pb2.StreamResponse, sent: Sent) -> None:
        """The response is the answer that `sent` must have."""
        assert response.WhichOneof("event") == "step", response
        assert not response.step.errors, response.step.errors
        self.compare(response.step.outputs, sent)

    @staticmethod
    def compare(outputs: Any, sent: Sent) -> None:
        """Outputs [1, T, ...] each, bit for bit."""
        for got, expected in zip(outputs, sent.outputs, strict=True):
            np.testing.assert_array_equal(array(got)[0], expected)

    @staticmethod
    def refusal(response: inference_pb2.StreamResponse) -> errors_pb2.ErrorDetail:
        """Why a chunk, or its row, was refused."""
        if response.WhichOneof("event") == "error":
            return response.error
        assert response.step.errors, "it was carried out"
        return response.step.errors[0].error
