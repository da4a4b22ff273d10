"""Every architecture that training knows, behind every door: no family without the laws.

All comparisons are bit for bit: graphs that cut, batch and repeat differently have no place among them.
"""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from architectures import EXAMPLES, example, example_folder
from graphs import Family, PlainGraph
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Loopback, array, configure, serve, tensor
from player import Player
from schedule import CALM, STORMY, Action, Schedule, plain_graph
from simulation import Rig

from eddy.v1 import inference_pb2, sessions_pb2

BUDGETS = st.sampled_from([1 << 20, 16, 1])
WHOLE = [name for name in EXAMPLES if (example_folder(name) / "whole.onnx").exists()]


@pytest.mark.parametrize("name", EXAMPLES)
@settings(max_examples=5)
@given(actions=CALM, budget=BUDGETS, seed=st.integers(0, 1000))
def test_calm_schedules_change_nothing(name: str, actions: list[Action], budget: int, seed: int) -> None:
    """However chunks are cut, batched, sliced and overlapped, each session gets what it would get alone."""
    schedule = Schedule(Rig(example(name), row_steps_budget=budget), seed=seed)
    schedule.run(actions)
    schedule.check(plain_graph(example(name)))
    assert schedule.refused() == []


@pytest.mark.parametrize("name", EXAMPLES)
@settings(max_examples=5)
@given(actions=STORMY, budget=BUDGETS, seed=st.integers(0, 1000))
def test_stormy_schedules_change_nothing(name: str, actions: list[Action], budget: int, seed: int) -> None:
    """Retries, abuse, cancelled chunks and failing ticks reach nobody else, and nothing is applied twice."""
    schedule = Schedule(Rig(example(name), row_steps_budget=budget), seed=seed)
    schedule.run(actions)
    schedule.check(plain_graph(example(name)))
    schedule.check_refusals()


@pytest.mark.parametrize("name", EXAMPLES)
def test_streams_that_break(name: str) -> None:
    """Clients that retry and reconnect over a real server get what each would get alone, ends and beginnings too."""

    async def scenario() -> None:
        async with serve(configure(_repository(name))) as loopback:
            players = [Player(loopback, example(name), np.random.default_rng([7, number]), 2) for number in range(2)]
            await asyncio.gather(*(player.play(3, 24, 1, 2, 2) for player in players))
            assert sum(player.check() for player in players) > 0

    asyncio.run(scenario())


@pytest.mark.parametrize("name", EXAMPLES)
def test_unary_steps(name: str) -> None:
    """A session that is opened and stepped without a stream gives the same, a repeated step and a repeated end too."""
    model, generator = example(name), np.random.default_rng(3)
    inputs, start = model.example(generator, 9), model.start(generator)

    async def scenario() -> list[list[np.ndarray]]:
        async with serve(configure(_repository(name))) as loopback:
            opening = sessions_pb2.OpenSessionRequest(model=model.name, prime=prime_of(model, start))
            opened = await loopback.unary("SessionService/OpenSession", opening, sessions_pb2.OpenSessionResponse)
            session = opened.session
            answers, position = [], 0
            for steps in (1, 5, 3):
                request = inference_pb2.StepRequest(
                    session_id=session.session_id, epoch=session.epoch, position=position, num_steps=steps
                )
                for port, values in zip(model.inputs, inputs, strict=True):
                    request.inputs.append(tensor(port.name, values[None, position : position + steps]))
                answers.append(await _step_twice(loopback, request))
                position += steps
            if model.ends is not None:
                request = inference_pb2.StepRequest(
                    session_id=session.session_id, epoch=session.epoch, position=position, flush=True
                )
                answers.append(await _step_twice(loopback, request))
            return answers

    answers = asyncio.run(scenario())
    feeds = model.feeds(inputs)
    if model.ends is not None:
        feeds = [np.concatenate(pair) for pair in zip(feeds, model.end(), strict=True)]
    expected, _ = plain_graph(model).whole(feeds, start)
    for number, wanted in enumerate(expected):
        np.testing.assert_array_equal(np.concatenate([answer[number] for answer in answers]), wanted)


async def _step_twice(loopback: Loopback, request: inference_pb2.StepRequest) -> list[np.ndarray]:
    """The outputs of a step, [U, ...] each, which a repeat answers with the same bits."""
    first = await loopback.unary("InferenceService/Step", request, inference_pb2.StepResponse)
    again = await loopback.unary("InferenceService/Step", request, inference_pb2.StepResponse)
    assert not first.replayed and again.replayed
    assert first.next_position == again.next_position == request.position + (request.num_steps or 1)
    assert first.outputs == again.outputs and first.emitted == again.emitted
    return [array(output)[0] for output in first.outputs]


@pytest.mark.parametrize("name", EXAMPLES)
def test_whole_sequences(name: str) -> None:
    """`Infer` gives the whole graph's result where there is one, else what stepping gives; lengths may differ."""
    model, generator = example(name), np.random.default_rng(4)
    lengths = [5, 1, 12, 5]
    inputs, starts = [model.example(generator, length) for length in lengths], [model.start(generator) for _ in lengths]

    async def scenario() -> list[np.ndarray]:
        async with serve(configure(_repository(name))) as loopback:
            request = inference_pb2.InferRequest(model=model.name, lengths=np.array(lengths, "<u4").tobytes())
            for port, values in zip(model.inputs, zip(*inputs, strict=True), strict=True):
                request.inputs.append(tensor(port.name, np.concatenate(values)))
            if starts[0] is not None:
                request.prime.CopyFrom(Player(loopback, model, generator, 1).prime(starts))
            response = await loopback.unary("InferenceService/Infer", request, inference_pb2.InferResponse)
            assert loopback.host.table.num_sessions == 0
            return [array(output) for output in response.outputs]

    got = asyncio.run(scenario())
    ends = np.cumsum(lengths)[:-1]
    for number, port in enumerate(model.outputs):
        for sequence, found in enumerate(np.split(got[number], ends)):
            if name in WHOLE:
                wanted = _whole(name, inputs[sequence])[port.name]
            else:
                wanted = plain_graph(model).whole(inputs[sequence], starts[sequence])[0][number]
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", WHOLE)
def test_streams_reach_the_exact_result(name: str) -> None:
    """A stream no longer than its look-ahead gives the exact bidirectional result when it ends; a longer one does not.

    Within rounding: two graphs add in different orders.
    """
    model, generator = example(name), np.random.default_rng(5)
    assert model.ends is not None
    covered = max(1, model.ends.look_ahead_steps)
    for length, is_exact in ((covered, True), (covered + 40, False)):
        inputs = model.example(generator, length)
        feeds = [np.concatenate(pair) for pair in zip(model.feeds(inputs), model.end(), strict=True)]
        streamed, _ = plain_graph(model).whole(feeds)
        exact = _whole(name, inputs)
        for port, got in zip(model.outputs, streamed, strict=True):
            assert np.allclose(got, exact[port.name], rtol=0, atol=1e-5) == is_exact


@pytest.mark.parametrize("name", EXAMPLES)
def test_states_given_by_the_client(name: str) -> None:
    """A session goes on from the states that its client gives at the opening, beside others that begin as usual."""
    model, generator = example(name), np.random.default_rng(6)
    plain = plain_graph(model)
    before, after = model.feeds(model.example(generator, 6)), model.feeds(model.example(generator, 7))
    start = model.start(generator)
    _, states = plain.whole(before, start)
    joined = [np.concatenate(pair) for pair in zip(before, after, strict=True)]
    first, _ = plain.whole(before, start)
    whole, _ = plain.whole(joined, start)
    wanted = [output[len(head) :] for output, head in zip(whole, first, strict=True)]
    usual, _ = plain.whole(after, start)

    async def scenario() -> tuple[Any, Any]:
        async with serve(configure(_repository(name))) as loopback, loopback.stream() as client:
            prime = prime_of(model, start)
            given = [tensor(state.name, values[None]) for state, values in zip(model.states, states, strict=True)]
            [gone_on] = await client.handles(model.name, prime=prime, initial_states=given)
            [fresh] = await client.handles(model.name, prime=prime)
            inputs = [np.stack([values, values]) for values in after[: len(model.inputs)]]
            step = await client.step(model, [gone_on, fresh], [0, 0], *inputs)
            emitted = np.frombuffer(step.emitted, "<i8") if model.ends is not None else [7, 7]
            rows = [[array(output)[row, : emitted[row]] for output in step.outputs] for row in (0, 1)]
            detail = await client.refusal(reset=inference_pb2.ResetSessions(handles=np.uint64(gone_on).tobytes()))
            assert "states of its own" in detail.message
            return rows[0], rows[1]

    for got, expected in zip(asyncio.run(scenario()), (wanted, usual), strict=True):
        for values, hoped in zip(got, expected, strict=True):
            np.testing.assert_array_equal(values, hoped)


def _repository(name: str) -> Path:
    return example_folder(name).parent.parent


def prime_of(model: Family, start: Any) -> inference_pb2.Prime | None:
    """One session's start for the wire."""
    if start is None:
        return None
    assert model.prime is not None
    inputs = [tensor(port.name, values[None]) for port, values in zip(model.prime.inputs, start.inputs, strict=True)]
    return inference_pb2.Prime(inputs=inputs, lengths=np.array([start.length], "<u4").tobytes())


def _whole(name: str, inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The whole graph's outputs for one sequence, [T, ...] by name; two equal rows, as everywhere."""
    model = example(name)
    whole = onnx.load(example_folder(name) / "whole.onnx")
    session = PlainGraph.load(whole)
    feed = {port.name: np.stack([values, values]) for port, values in zip(model.inputs, inputs, strict=True)}
    names = [port.name for port in model.outputs]
    return {port: values[0] for port, values in zip(names, session.run(names, feed), strict=True)}
