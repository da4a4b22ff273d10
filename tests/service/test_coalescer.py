"""Step messages of one session each, from many streams in one turn of the event loop: as one after the other.

The streams are the server's own; only the connection under them is made of queues, so that messages of many streams
arrive in one turn, which a network never promises.

Dimension key: B rows, T steps.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count

import grpc
import pytest
from graphs import family
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import array, chunk, configure, until, write_model

from eddy.service.chunk import Chunk
from eddy.service.coalescer import Coalescer
from eddy.service.codec import StepResponses
from eddy.service.config import Config
from eddy.service.errors import Reason
from eddy.service.host import Host
from eddy.service.layout import Layouts
from eddy.service.model import ServedModel
from eddy.service.stream import StreamConnection
from eddy.v1 import inference_pb2

HISTORY = family("history")
NUM_STREAMS = 6


class Wire:
    """A connection made of queues, with as much of gRPC's context as a stream uses."""

    def __init__(self) -> None:
        self._incoming: asyncio.Queue[bytes] = asyncio.Queue()
        self.written: list[bytes] = []

    async def read(self) -> bytes:
        """The next message, or the end."""
        data = await self._incoming.get()
        return data or grpc.aio.EOF

    async def write(self, data: bytes) -> None:
        """An answer."""
        self.written.append(data)

    def feed(self, data: bytes) -> None:
        """A message arrives; no bytes for the end."""
        self._incoming.put_nowait(data)


@dataclass
class Line:
    """One stream with one session."""

    wire: Wire
    task: asyncio.Task[None]
    handle: int = 0
    position: int = 0

    def step(self, digit: int, tag: int = 1, **fields: int) -> bytes:
        """The next step of its session; fields given replace what it would have."""
        handle, position = fields.pop("handle", self.handle), fields.pop("position", self.position)
        step = chunk(HISTORY, [handle], [position], [[digit]], **fields)
        return inference_pb2.StreamRequest(tag=tag, step=step).SerializeToString()


class Exchange:
    """Streams of one server, and what was coalesced."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._layouts, self._responses = Layouts(), StepResponses()
        self.coalescer = Coalescer(host, self._layouts, self._responses)
        self.lines: list[Line] = []

    async def connect(self, model: str) -> Line:
        """One more stream, with a session that has taken no step."""
        wire = Wire()
        stream = StreamConnection(self.host, wire, self._layouts, self._responses, self.coalescer)
        line = Line(wire, asyncio.create_task(stream.serve()))
        opening = inference_pb2.OpenSessions(model=model, count=1, max_in_flight=2)
        (opened,) = await self.send({line: [inference_pb2.StreamRequest(open=opening).SerializeToString()]})
        line.handle = int.from_bytes(opened.opened.handles, "little")
        self.lines.append(line)
        return line

    async def send(self, messages: "dict[Line, list[bytes]]") -> list[inference_pb2.StreamResponse]:
        """Sends all messages in one turn of the loop; the answers, stream by stream in the order written."""
        wanted = {id(line): len(line.wire.written) + len(datas) for line, datas in messages.items()}
        for line, datas in messages.items():
            for data in datas:
                line.wire.feed(data)
        await until(lambda: all(len(line.wire.written) >= wanted[id(line)] for line in messages))
        return [
            inference_pb2.StreamResponse.FromString(data)
            for line, datas in messages.items()
            for data in line.wire.written[-len(datas) :]
        ]

    async def step_all(self, digit: int) -> list[int]:
        """Each stream's session takes one step, all in one turn; the histories."""
        answers = await self.send({line: [line.step(digit)] for line in self.lines})
        for line in self.lines:
            line.position += 1
        return [int(array(answer.step.outputs[0])[0, 0]) for answer in answers]

    async def close(self) -> None:
        """The clients hang up."""
        for line in self.lines:
            line.wire.feed(b"")
        await asyncio.gather(*(line.task for line in self.lines), return_exceptions=True)


Line.__hash__ = object.__hash__  # type: ignore[method-assign]  # A key; two lines are never the same.


@asynccontextmanager
async def exchange(config: Config, models: Sequence[str] = ("history",) * NUM_STREAMS) -> AsyncIterator[Exchange]:
    """A host with a stream for each of `models`; their messages' layout is known after two turns."""
    numbers = count(1)
    host = Host(config, random_bytes=lambda size: next(numbers).to_bytes(size, "little"))
    host.load()
    host.start()
    streams = Exchange(host)
    try:
        for model in models:
            await streams.connect(model)
        yield streams
        await streams.close()
    finally:
        await host.stop()


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The history model under two names."""
    repository = tmp_path_factory.mktemp("models")
    write_model(repository, "history")
    write_model(repository, "other", model=HISTORY.model())
    return configure(repository)


def test_streams_share_a_chunk_and_get_their_own_answers(history: Config) -> None:
    """Messages that arrive in one turn become rows of one chunk, but for the first; each stream gets its history."""

    async def main() -> None:
        async with exchange(history) as streams:
            for turn, digit in enumerate((1, 2, 3, 4)):
                assert await streams.step_all(digit) == [int("1234"[: turn + 1])] * NUM_STREAMS
            # All but the first of each turn; the first turn's second message taught the layout.
            assert streams.coalescer.num_coalesced == 4 * (NUM_STREAMS - 1) - 1
            stats = streams.host.catalog.served[0].stats
            assert sum(stats.latency.counts) == sum(stats.queue_delay.counts) == 4 * NUM_STREAMS

    asyncio.run(main())


ACTIONS = ("step", "tagged", "repeat", "changed repeat", "ahead", "stolen", "nowhere", "late", "twice", "wait")


def _messages(line: Line, others: Sequence[Line], action: str, digit: int, memory: dict[int, bytes]) -> list[bytes]:
    """What a stream sends for `action`, and where its session stands then."""
    if action == "wait":
        return []
    if action in ("repeat", "changed repeat"):
        last = memory.get(line.handle)
        if last is None:
            return []
        return [last if action == "repeat" else line.step(digit + 1, position=line.position - 1)]
    if action == "ahead":
        return [line.step(digit, position=line.position + 5)]
    if action == "stolen":
        return [line.step(digit, handle=others[0].handle)]
    if action == "nowhere":
        return [line.step(digit, handle=0xFFFF_FFFF)]
    tag = 1 << 20 if action == "tagged" else 1
    sent = [line.step(digit, tag, timeout_milliseconds=60_000 if action == "late" else 0)]
    if action == "twice":
        sent.append(line.step(digit, 2, position=line.position + 1))
    line.position += len(sent)
    memory[line.handle] = line.step(digit, position=line.position - 1)
    return sent


async def _play(
    config: Config, models: Sequence[str], turns: Sequence[Sequence[tuple[str, int]]], *, together: bool
) -> tuple[list[list[inference_pb2.StreamResponse]], int]:
    """The answers of each turn by stream, and how many messages were coalesced."""
    answers = []
    async with exchange(config, models) as streams:
        for _ in range(3):
            await streams.step_all(7)
        memory: dict[int, bytes] = {}
        for turn in turns:
            sent = {
                line: _messages(line, [each for each in streams.lines if each is not line], action, digit, memory)
                for line, (action, digit) in zip(streams.lines, turn, strict=True)
            }
            sent = {line: datas for line, datas in sent.items() if datas}
            if together:
                answers.append(await streams.send(sent) if sent else [])
            else:
                answers.append([each for line, datas in sent.items() for each in await streams.send({line: datas})])
        return answers, streams.coalescer.num_coalesced


TURNS = st.lists(
    st.lists(
        st.tuples(st.sampled_from(("step", "step", "step", *ACTIONS)), st.integers(0, 9)),
        min_size=NUM_STREAMS,
        max_size=NUM_STREAMS,
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60)
@given(turns=TURNS, mixed=st.booleans())
def test_together_is_as_one_after_the_other(history: Config, turns: list[list[tuple[str, int]]], mixed: bool) -> None:
    """Whatever streams send in one turn, each gets the answers that it gets when nobody else sends anything.

    Isolation and exactly-once law: repeats, changed repeats, gaps, stolen and unknown handles and two steps of a
    session are among good steps of the same model or of two.
    """
    models = ["history", "other"] * (NUM_STREAMS // 2) if mixed else ["history"] * NUM_STREAMS
    alone, _ = asyncio.run(_play(history, models, turns, together=False))
    together, num_coalesced = asyncio.run(_play(history, models, turns, together=True))
    assert together == alone
    assert num_coalesced


def test_a_stream_that_ends_before_the_tick_takes_no_step(history: Config) -> None:
    """Of messages that wait, one whose stream has ended is not carried out, and the others are."""

    async def main() -> None:
        async with exchange(history) as streams:
            for digit in (1, 2):
                await streams.step_all(digit)
            gone, *others = streams.lines[1:]
            submitted: list[Chunk] = []
            submit = streams.host.submit

            def end_then_submit(model: ServedModel, waiting: Chunk) -> None:
                if waiting.num_rows > 1 and not submitted:  # Coalesced, and not yet in a tick.
                    submitted.append(waiting)
                    rows = streams.host.table.rows_of_stream(2)
                    streams.host.table.detach(rows)
                submit(model, waiting)

            streams.host.submit = end_then_submit  # type: ignore[method-assign]
            sent = {line: [line.step(3)] for line in streams.lines}
            answers = await streams.send(sent)
            assert submitted
            by_line = dict(zip(sent, answers, strict=True))
            assert by_line[gone].step.errors[0].error.reason == int(Reason.UNKNOWN_SESSION)
            assert [int(array(by_line[line].step.outputs[0])[0, 0]) for line in others] == [123] * len(others)
            rows = streams.host.table.open_rows()
            assert sorted(streams.host.table.next_position[rows].tolist()) == [2] + [3] * (NUM_STREAMS - 1)

    asyncio.run(main())


def test_a_refused_chunk_is_refused_to_each(history: Config) -> None:
    """When the queue takes no more, everybody in the chunk is told so, and no session of it has moved."""

    async def main() -> None:
        async with exchange(history) as streams:
            for digit in (1, 2):
                await streams.step_all(digit)
            scheduler = streams.host.catalog.served[0].scheduler
            scheduler.queue.limits = replace(scheduler.queue.limits, max_queued_chunks=1)
            first, *others = await streams.send({line: [line.step(3)] for line in streams.lines})
            assert array(first.step.outputs[0]).tolist() == [[123]]
            assert [answer.error.reason for answer in others] == [int(Reason.QUEUE_FULL)] * (NUM_STREAMS - 1)
            rows = streams.host.table.open_rows()
            assert sorted(streams.host.table.next_position[rows].tolist()) == [2] * (NUM_STREAMS - 1) + [3]
            assert streams.host.refusals[Reason.QUEUE_FULL] == NUM_STREAMS - 1

    asyncio.run(main())
