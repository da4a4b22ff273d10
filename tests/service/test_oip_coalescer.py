"""Steps of sequences from many streams in one turn of the event loop: rows of one chunk, each as if it were alone.

The streams are the server's own; the connections under them are made of queues, as in `test_coalescer`.

Dimension key: B rows, T steps.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import oip
import pytest
from graphs import family
from loopback import configure, until, write_model
from test_coalescer import Wire

from eddy.oip import grpc_service_pb2
from eddy.service.host import Host
from eddy.service.oip_coalescer import InferCoalescer
from eddy.service.oip_infer import Inference
from eddy.service.oip_stream import InferStream

NUM_STREAMS = 6
Answer = grpc_service_pb2.ModelStreamInferResponse


class Exchange:
    """Streams of one server, and what was coalesced."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._inference = Inference(host)
        self.coalescer = InferCoalescer(host, self._inference.layouts, self._inference.sequences)
        self.wires = [Wire() for _ in range(NUM_STREAMS)]
        streams = [InferStream(host, wire, self._inference, self.coalescer) for wire in self.wires]
        self.tasks = [asyncio.create_task(stream.serve()) for stream in streams]

    async def send(self, messages: dict[int, list[grpc_service_pb2.ModelInferRequest]]) -> dict[int, list[Answer]]:
        """Sends all messages, by stream, in one turn of the loop; the answers of each stream in order."""
        wanted = {number: len(self.wires[number].written) + len(mine) for number, mine in messages.items()}
        for number, mine in messages.items():
            for message in mine:
                self.wires[number].feed(message.SerializeToString())
        await until(lambda: all(len(self.wires[number].written) >= count for number, count in wanted.items()))
        return {
            number: [Answer.FromString(data) for data in self.wires[number].written[-len(mine) :]]
            for number, mine in messages.items()
        }


@asynccontextmanager
async def exchange(folder: Path, model: str) -> AsyncIterator[Exchange]:
    """A host of one model, with streams."""
    write_model(folder, model)
    host = Host(configure(folder))
    host.load()
    host.start()
    streams = Exchange(host)
    try:
        yield streams
        for wire in streams.wires:
            wire.feed(b"")
        await asyncio.gather(*streams.tasks)
    finally:
        await host.stop()


def _digit(sequence: int | str, digit: int, **options: object) -> grpc_service_pb2.ModelInferRequest:
    values = {"x": np.array([[digit]], np.int64)}
    return oip.request("history", values, sequence=sequence, request_id="abc", **options)  # type: ignore[arg-type]


def _value(answer: Answer) -> int:
    assert not answer.error_message
    assert answer.infer_response.id == "abc"
    assert answer.infer_response.parameters["triton_final_response"].bool_param
    return int(oip.arrays(answer.infer_response)[0][0, 0])


@pytest.mark.parametrize("names", [range(1, 7), range(1000, 1006), [f"client {n}" for n in range(6)]])
def test_steps_of_many_streams_become_one_chunk(tmp_path: Path, names: list[int | str]) -> None:
    """All but the first message of a turn, which goes by itself; the answers are their own sequences'."""

    async def scenario() -> None:
        async with exchange(tmp_path, "history") as streams:
            for digit in range(1, 8):
                answers = await streams.send(
                    {n: [_digit(name, (digit + n) % 10, start=digit == 1)] for n, name in enumerate(names)}
                )
                for n in range(NUM_STREAMS):
                    assert _value(answers[n][0]) == int("".join(str((d + n) % 10) for d in range(1, digit + 1)))
            # The first turn begins; the second and its like teach the layout.
            assert streams.coalescer.num_coalesced >= 4 * (NUM_STREAMS - 1)

    asyncio.run(scenario())


def test_one_sequence_on_two_streams_and_twice_on_one(tmp_path: Path) -> None:
    """Each request takes effect once, those of a stream in their order, while others share a chunk with them."""

    async def scenario() -> None:
        async with exchange(tmp_path, "history") as streams:
            for digit in (1, 2, 3):
                await streams.send({n: [_digit(100 + n, digit, start=digit == 1)] for n in range(NUM_STREAMS)})
            # Stream 5 steps sequence 104, too; stream 3 sends three at once.
            asked = {n: [_digit(100 + n, 4)] for n in range(NUM_STREAMS)}
            asked[5] = [_digit(104, 5)]
            asked[3] = [_digit(103, 4), _digit(103, 5), _digit(103, 6)]
            answers = await streams.send(asked)
            assert [_value(each) for each in answers[3]] == [1234, 12345, 123456]
            assert {_value(answers[4][0]), _value(answers[5][0])} in ({1234, 12345}, {1235, 12354})
            assert [_value(answers[n][0]) for n in (0, 1, 2)] == [1234] * 3
            again = await streams.send({n: [_digit(100 + n, 9)] for n in range(NUM_STREAMS)})
            assert _value(again[3][0]) == 1234569
            assert _value(again[5][0]) == 1239

    asyncio.run(scenario())


def test_a_refused_row_fails_alone(tmp_path: Path) -> None:
    """A value that is not finite among coalesced steps: one error with its request's id, nothing of it applied."""
    spec = family("lstm")
    name, port = spec.inputs[0].name, spec.inputs[0]

    def step(n: int, value: float, *, start: bool = False) -> grpc_service_pb2.ModelInferRequest:
        values = np.full((1, 1, *port.shape), value, port.dtype)
        return oip.request("lstm", {name: values}, sequence=100 + n, start=start, request_id=f"r{n}")

    async def scenario() -> None:
        async with exchange(tmp_path, "lstm") as streams:
            for turn in range(3):
                await streams.send({n: [step(n, 0.5, start=turn == 0)] for n in range(NUM_STREAMS)})
            before = streams.coalescer.num_coalesced
            answers = await streams.send({n: [step(n, np.nan if n == 4 else 0.5)] for n in range(NUM_STREAMS)})
            assert streams.coalescer.num_coalesced == before + NUM_STREAMS - 1
            told = {n: answer.error_message for n, [answer] in answers.items() if answer.error_message}
            assert list(told) == [4]
            assert "finite" in told[4]
            assert answers[4][0].infer_response.id == "r4"
            good = await streams.send({4: [step(4, 0.5)]})
            [mine], [other] = good[4], answers[0]
            assert mine.infer_response.raw_output_contents == other.infer_response.raw_output_contents
            [model] = streams.host.catalog.served
            assert model.stats.num_failed_requests == 1
            # Three turns of six, five of six, and one more: who was refused is not answered.
            assert sum(model.stats.latency.counts) == sum(model.stats.queue_delay.counts) == 18 + 5 + 1

    asyncio.run(scenario())
