"""The laws through the Open Inference Protocol: sequences over random streams and calls, against the plain graph.

Dimension key: T steps.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import oip
import pytest
from graphs import FAMILIES, Family, family
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Loopback, configure, serve, write_model
from schedule import plain_graph
from simulation import assert_same

from eddy.oip import grpc_service_pb2

# The protocol has no word for what a prime graph reads.
UNPRIMED = [name for name in FAMILIES if family(name).prime is None]
NUM_STREAMS = 4


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every family that a sequence can begin with its model's own states."""
    root = tmp_path_factory.mktemp("models")
    for name in UNPRIMED:
        write_model(root / name, name)
    return root


@dataclass
class Pupil:
    """One sequence, what it is to be fed and what it was answered.

    Attributes:
        inputs: [T, ...] an input; cuts: where its requests begin, and T.
    """

    spec: Family
    number: int
    inputs: list[np.ndarray]
    cuts: list[int]
    answers: list[list[np.ndarray]] = field(default_factory=list)

    def requests(self) -> Iterator[grpc_service_pb2.ModelInferRequest]:
        """Its requests in order."""
        for begin, end in zip(self.cuts, self.cuts[1:], strict=False):
            inputs = {
                port.name: values[None, begin:end] for port, values in zip(self.spec.inputs, self.inputs, strict=True)
            }
            yield oip.request(self.spec.name, inputs, sequence=self.number, start=begin == 0, end=end == self.cuts[-1])

    def check(self) -> None:
        """What it was answered is what the plain graph gives."""
        feeds = self.spec.feeds(self.inputs)
        if self.spec.ends is not None:
            feeds = [np.concatenate(pair) for pair in zip(feeds, self.spec.end(), strict=True)]
        whole, _ = plain_graph(self.spec).whole(feeds)
        for place, expected in enumerate(whole):
            got = np.concatenate([answer[place][0] for answer in self.answers])
            assert_same(got, expected, self.spec.tolerance)


def _pupil(spec: Family, number: int, generator: np.random.Generator) -> Pupil:
    length = int(generator.integers(1, 14))
    inner = np.flatnonzero(generator.random(length - 1) < generator.choice([0.2, 1.0])) + 1
    inputs = spec.example(generator, length)
    if number % 2:  # Large values, so that whatever crossed over would show.
        inputs = [
            values * values.dtype.type(8) if values.dtype.kind == "f" and port.values is None else values
            for values, port in zip(inputs, spec.inputs, strict=True)
        ]
    return Pupil(spec, number, inputs, [0, *inner.tolist(), length])


async def _one_by_one(loopback: Loopback, pupil: Pupil, streams: list[oip.InferStream], seed: int) -> None:
    """Each request waits for the answer before it; each goes by another stream, or by a call."""
    generator = np.random.default_rng([seed, pupil.number])
    for message in pupil.requests():
        way = int(generator.integers(0, NUM_STREAMS + 1))
        if way == NUM_STREAMS:
            pupil.answers.append(oip.arrays(await oip.infer(loopback, message)))
        else:
            response = await streams[way].send(message)
            assert not response.error_message
            pupil.answers.append(oip.arrays(response.infer_response))


async def _at_once(pupil: Pupil, stream: oip.InferStream) -> None:
    """All requests on one stream before any answer."""
    futures = [await stream.post(message) for message in pupil.requests()]
    for future in futures:
        response = await asyncio.wait_for(future, 30)
        assert not response.error_message
        pupil.answers.append(oip.arrays(response.infer_response))


@pytest.mark.parametrize("name", UNPRIMED)
@settings(max_examples=6)
@given(seed=st.integers(0, 1 << 16), is_inline=st.booleans())
def test_sequences_get_what_each_would_get_alone(repository: Path, name: str, seed: int, *, is_inline: bool) -> None:
    """Twelve sequences cut at random share a server and its runs; each gets the plain graph's outputs, bit for bit."""

    async def scenario() -> None:
        generator = np.random.default_rng(seed)
        config = configure(repository / name, server={"inline_tick_seconds": 1.0 if is_inline else 0.0})
        async with serve(config) as loopback:
            pupils = [_pupil(family(name), number, generator) for number in range(1, 13)]
            streams = [oip.InferStream(loopback) for _ in range(NUM_STREAMS)]
            await asyncio.gather(
                *(_one_by_one(loopback, pupil, streams, seed) for pupil in pupils[:8]),
                *(_at_once(pupil, streams[pupil.number % NUM_STREAMS]) for pupil in pupils[8:]),
            )
            for stream in streams:
                await stream.close()
            for pupil in pupils:
                pupil.check()
            assert loopback.host.table.num_sessions == 0
            assert loopback.host.catalog.find(name, "").model.stats.num_failed_requests == 0

    asyncio.run(scenario())


def test_steps_of_many_streams_share_runs(repository: Path) -> None:
    """Steps that arrive together run together, and the answers are those of their own sequences."""

    async def scenario() -> None:
        async with serve(configure(repository / "history")) as loopback:
            streams = [oip.InferStream(loopback) for _ in range(16)]

            async def play(number: int) -> list[int]:
                values = []
                for step in range(1, 9):
                    message = oip.request(
                        "history", {"x": np.array([[(number + step) % 10]], np.int64)}, sequence=100 + number,
                        start=step == 1, end=step == 8,
                    )  # fmt: skip
                    response = await streams[number].send(message)
                    assert not response.error_message
                    assert response.infer_response.parameters["triton_final_response"].bool_param
                    values.append(int(oip.arrays(response.infer_response)[0][0, 0]))
                return values

            given = await asyncio.gather(*(play(number) for number in range(16)))
            for stream in streams:
                await stream.close()
            assert given == [
                [int("".join(str((number + step) % 10) for step in range(1, last + 1))) for last in range(1, 9)]
                for number in range(16)
            ]
            runs = loopback.host.catalog.find("history", "").model.stats.rows_run
            assert sum(int(count) for count, _ in runs.values()) < 16 * 8, "no two steps shared a run"

    asyncio.run(scenario())
