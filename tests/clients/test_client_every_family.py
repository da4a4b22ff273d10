"""Every architecture that training knows, through the client: sessions, batches, whole sequences.

All comparisons are bit for bit with the plain graph, which knows nothing of sessions.
"""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import EXAMPLES, example, example_folder
from loopback import configure
from schedule import plain_graph
from wire import connected, run

from eddy.clients.sampling import GenerateOptions
from eddy.v1 import contract_pb2

LENGTHS = (9, 1, 14)
CHUNKS = (1, 4, 2, 3)
TOKEN_MODELS = [
    name for name in EXAMPLES if example(name).task in (contract_pb2.TASK_NEXT_TOKEN, contract_pb2.TASK_TRANSLATION)
]


def _repository(name: str) -> Path:
    return example_folder(name).parent.parent


class Case:
    """One stream: its inputs, its source, and what the plain graph answers, its end included."""

    def __init__(self, name: str, length: int, seed: int) -> None:
        model, generator = example(name), np.random.default_rng([seed, length])
        self.length = length
        self.inputs = {
            port.name: values for port, values in zip(model.inputs, model.example(generator, length), strict=True)
        }
        start = model.start(generator)
        self.prime: dict[str, np.ndarray] | None = None
        if start is not None:
            assert model.prime is not None
            names = [port.name for port in model.prime.inputs]
            self.prime = {each: values[: start.length] for each, values in zip(names, start.inputs, strict=True)}
        feeds = model.feeds(list(self.inputs.values()))
        if model.ends is not None:
            feeds = [np.concatenate(pair) for pair in zip(feeds, model.end(), strict=True)]
        outputs, _ = plain_graph(model).whole(feeds, start)
        self.wanted = {port.name: values for port, values in zip(model.outputs, outputs, strict=True)}

    def check(self, parts: list[dict[str, np.ndarray]]) -> None:
        """The parts, one after the other, are what the plain graph answers."""
        for name, wanted in self.wanted.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), wanted)


@pytest.mark.parametrize("name", EXAMPLES)
def test_sessions(name: str) -> None:
    """Sessions with their own sources, cut differently, pipelined and in shared messages, each to its end."""

    async def scenario() -> None:
        async with connected(configure(_repository(name))) as (_, client, _):
            cases = [Case(name, length, 1) for length in LENGTHS]

            async def play(case: Case, number: int) -> None:
                calls: list[Any] = []
                async with client.session(example(name).name, prime=case.prime, max_in_flight=3) as session:
                    at = 0
                    while at < case.length:
                        end = min(case.length, at + CHUNKS[(len(calls) + number) % len(CHUNKS)])
                        piece = {port: values[at:end] for port, values in case.inputs.items()}
                        calls.append(asyncio.create_task(session.step_outputs(piece)))
                        at = end
                    if example(name).ends is not None:
                        calls.append(asyncio.create_task(session.flush_outputs()))
                    case.check(await asyncio.gather(*calls))

            await asyncio.gather(*(play(case, number) for number, case in enumerate(cases)))

    run(scenario())


@pytest.mark.parametrize("name", EXAMPLES)
def test_batches(name: str) -> None:
    """Rows with sources of different lengths, stepped by arrays, each as it would be alone."""

    async def scenario() -> None:
        async with connected(configure(_repository(name))) as (_, client, _):
            cases = [Case(name, 7, seed) for seed in range(3)]
            primes: Any = None
            if cases[0].prime is not None:
                primes = [case.prime for case in cases]
            async with client.batch(example(name).name, 3, prime=primes) as batch:
                parts = []
                for begin, end in ((0, 1), (1, 5), (5, 7)):
                    piece = {
                        port: np.stack([case.inputs[port][begin:end] for case in cases]) for port in cases[0].inputs
                    }
                    parts.append(await batch.step_ragged_outputs(piece))
                if example(name).ends is not None:
                    parts.append(await batch.flush_outputs())
            for row, case in enumerate(cases):
                case.check([{port: rows[row] for port, rows in part.items()} for part in parts])

    run(scenario())


@pytest.mark.parametrize("name", EXAMPLES)
def test_whole_sequences(name: str) -> None:
    """`infer` gives each sequence as many outputs as it has steps; without a whole graph those of stepping."""

    async def scenario() -> None:
        async with connected(configure(_repository(name))) as (_, client, _):
            cases = [Case(name, length, 2) for length in LENGTHS]
            primes: Any = None
            if cases[0].prime is not None:
                primes = [case.prime for case in cases]
            columns = {port: [case.inputs[port] for case in cases] for port in cases[0].inputs}
            answers = await client.infer_outputs(example(name).name, columns, prime=primes)
            for number, case in enumerate(cases):
                for port, arrays in answers.items():
                    assert len(arrays[number]) == case.length
                    if example(name).ends is None:
                        np.testing.assert_array_equal(arrays[number], case.wanted[port])

    run(scenario())


@pytest.mark.parametrize("name", TOKEN_MODELS)
def test_generation(name: str) -> None:
    """A model of tokens writes what its most likely tokens are, each fed back to it."""
    model, generator = example(name), np.random.default_rng(2)
    start = model.start(generator)
    prompt = [int(number) for number in model.example(generator, 4)[0]]
    wanted = list(prompt)
    for _ in range(8):
        scores = plain_graph(model).whole([np.array(wanted)], start)[0][0]
        wanted.append(int(scores[-1].argmax()))
    options: GenerateOptions = {"max_tokens": 8, "temperature": 0.0}
    if start is not None:
        options["prime"] = start.inputs[0][: start.length]

    async def scenario() -> None:
        async with connected(configure(_repository(name))) as (_, client, _):
            completion = await client.complete(model.name, prompt, **options)
        assert [*prompt, *(token.id for token in completion.tokens)] == wanted

    run(scenario())
