"""The client library against every architecture: sessions, batches and whole sequences, by arrays."""

import asyncio
from typing import Any

import numpy as np
import pytest
from architectures import EXAMPLES, example, example_folder
from graphs import Family, Start
from loopback import configure, serve
from schedule import plain_graph
from wire import run

from eddy import Client
from eddy.clients.sampling import GenerateOptions
from eddy.v1 import contract_pb2

NUM_SESSIONS, STEPS = 6, 9
TOKEN_MODELS = [
    name for name in EXAMPLES if example(name).task in (contract_pb2.TASK_NEXT_TOKEN, contract_pb2.TASK_TRANSLATION)
]


def _given(model: Family, rows: list[list[np.ndarray]], span: slice) -> Any:
    """Some steps of several sessions as the client takes them."""
    values = [np.stack(arrays)[:, span] for arrays in zip(*rows, strict=True)]
    return values[0] if len(values) == 1 else dict(zip([port.name for port in model.inputs], values, strict=True))


def _primes(starts: list[Start | None]) -> Any:
    """What sessions read first, one array each."""
    found = [start.inputs[0][: start.length] for start in starts if start is not None]
    return found or None


def _wanted(model: Family, inputs: list[np.ndarray], start: Start | None, *, is_ended: bool) -> list[np.ndarray]:
    """Outputs of a session run alone; padding of what it reads first does not matter."""
    feeds = model.feeds(inputs)
    if is_ended:
        feeds = [np.concatenate(pair) for pair in zip(feeds, model.end(), strict=True)]
    return plain_graph(model).whole(feeds, start)[0]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_batch_and_single_sessions(name: str) -> None:
    """Sessions stepped by arrays and one by one, pipelined, to the ends of their streams: each as if alone."""
    model, generator = example(name), np.random.default_rng(1)
    rows = [model.example(generator, STEPS) for _ in range(NUM_SESSIONS)]
    starts = [model.start(generator) for _ in rows]
    names = [port.name for port in model.outputs]

    async def in_batch(client: Client) -> list[list[np.ndarray]]:
        parts: list[list[dict[str, np.ndarray]]] = [[] for _ in rows]
        async with client.batch(model.name, NUM_SESSIONS, prime=_primes(starts)) as batch:
            for begin, end in ((0, 1), (1, 4), (4, STEPS)):
                answers = [await batch.step_ragged_outputs(_given(model, rows, slice(begin, end)))]
                if end == STEPS and model.ends is not None:
                    answers.append(await batch.flush_outputs())
                for answer in answers:
                    for row, part in enumerate(parts):
                        part.append({port: answer[port][row] for port in names})
        return [[np.concatenate([each[port] for each in part]) for port in names] for part in parts]

    async def alone(client: Client, row: int) -> list[np.ndarray]:
        start = starts[row]
        prime = None if start is None else start.inputs[0][: start.length]
        async with client.session(model.name, max_in_flight=3, prime=prime) as session:
            calls = [session.step_outputs(_first(_given(model, [rows[row]], slice(at, at + 3)))) for at in (0, 3, 6)]
            outputs = list(await asyncio.gather(*calls))
            if model.ends is not None:
                outputs.append(await session.flush_outputs())
        return [np.concatenate([output[port] for output in outputs]) for port in names]

    async def scenario() -> None:
        config = configure(example_folder(name).parent.parent)
        async with serve(config) as loopback, Client(channel=loopback.channel) as client:
            found = await in_batch(client)
            singles = await asyncio.gather(*(alone(client, row) for row in range(NUM_SESSIONS)))
        for row in range(NUM_SESSIONS):
            wanted = _wanted(model, rows[row], starts[row], is_ended=model.ends is not None)
            for expected, one, other in zip(wanted, found[row], singles[row], strict=True):
                np.testing.assert_array_equal(one, expected)
                np.testing.assert_array_equal(other, expected)

    run(scenario())


def _first(given: Any) -> Any:
    """One session's inputs out of a batch of one."""
    return {port: values[0] for port, values in given.items()} if isinstance(given, dict) else given[0]


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
        config = configure(example_folder(name).parent.parent)
        async with serve(config) as loopback, Client(channel=loopback.channel) as client:
            completion = await client.complete(model.name, prompt, **options)
        assert [*prompt, *(token.id for token in completion.tokens)] == wanted

    run(scenario())
