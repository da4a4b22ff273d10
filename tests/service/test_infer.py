"""Infer, through a real server: whole sequences of different lengths against stepping, and what is refused."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import Family, family
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Loopback, array, configure, serve, tensor, until, write_model
from schedule import plain_graph

from eddy.v1 import errors_pb2, inference_pb2

FAMILIES = ("history", "lstm", "gru-stacked", "token-gru", "two-inputs", "causal-convolution")


def request(spec: Family, sequences: Sequence[Sequence[np.ndarray]], **fields: Any) -> inference_pb2.InferRequest:
    """A request for sequences, each one array [T, ...] an input."""
    whole = [np.concatenate([sequence[port] for sequence in sequences]) for port in range(len(spec.inputs))]
    return inference_pb2.InferRequest(
        **{
            "model": spec.name,
            "lengths": np.array([len(sequence[0]) for sequence in sequences], "<u4").tobytes(),
            "inputs": [tensor(port.name, values) for port, values in zip(spec.inputs, whole, strict=True)],
            **fields,
        }
    )


async def infer(running: Loopback, message: inference_pb2.InferRequest) -> list[np.ndarray]:
    """The outputs of a call, [sum of T, ...] each."""
    response = await running.unary("InferenceService/Infer", message, inference_pb2.InferResponse)
    return [array(output) for output in response.outputs]


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
    steps=st.sampled_from([4, 512]),
)
def test_every_sequence_is_as_if_it_were_alone(
    name: str, lengths: list[int], seed: int, steps: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any number of any lengths, also longer than a chunk: the whole graph's outputs, and no session stays."""
    repository = tmp_path_factory.mktemp("models")
    write_model(repository, name)
    model = family(name)
    generator = np.random.default_rng(seed)
    sequences = [model.example(generator, length) for length in lengths]

    async def check() -> None:
        async with serve(configure(repository, model={"max_steps": steps})) as running:
            outputs = await infer(running, request(model, sequences))
            ends = np.cumsum(lengths)
            for sequence, end, length in zip(sequences, ends, lengths, strict=True):
                expected, _ = plain_graph(model).whole(sequence)
                for got, wanted in zip(outputs, expected, strict=True):
                    np.testing.assert_allclose(got[end - length : end], wanted, rtol=0, atol=model.tolerance)
            await until(lambda: running.host.table.num_sessions == 0)
            assert running.host.is_idle

    asyncio.run(check())


def test_calls_share_the_server_with_everything_else(tmp_path: Path) -> None:
    """Several calls and a stream at once: each gets its own."""
    write_model(tmp_path, "history")
    model = family("history")

    async def check() -> None:
        async with serve(configure(tmp_path)) as running, running.stream() as stream:
            handles = await stream.handles("history", 2)
            messages = [
                request(model, [[np.array([(number + place) % 10] * (place + 1))] for place in range(3)])
                for number in range(10)
            ]
            answers = asyncio.gather(*(infer(running, message) for message in messages))
            digit = np.full((2, 1, *model.inputs[0].shape), 3)
            for position in range(5):
                result = await stream.step(model, handles, [position] * 2, digit)
                assert array(result.outputs[0]).reshape(-1).tolist() == [int("3" * (position + 1))] * 2
            for number, (outputs,) in enumerate(await answers):
                expected = [
                    int(str((number + place) % 10) * (step + 1)) for place in range(3) for step in range(place + 1)
                ]
                assert outputs.reshape(-1).tolist() == expected

    asyncio.run(check())


def test_bad_requests_are_refused_with_their_reason(tmp_path: Path) -> None:
    """The reason and the field; a bad value names its sequence; nothing stays."""
    write_model(tmp_path, "lstm")
    write_model(tmp_path, "history")
    model = family("lstm")
    good = [model.example(np.random.default_rng(0), length) for length in (2, 3, 1)]
    wrong = [[values.copy() for values in sequence] for sequence in good]
    wrong[1][0][2, 0] = np.nan
    inputs = [tensor("x", np.concatenate([sequence[0] for sequence in good]))]
    cases: list[tuple[str, str, inference_pb2.InferRequest]] = [
        ("UNKNOWN_MODEL", "model", request(model, good, model="nobody")),
        ("UNKNOWN_VERSION", "version", request(model, good, version="7")),
        ("EMPTY_BATCH", "lengths", request(model, good, lengths=b"")),
        ("INVALID_BYTE_LENGTH", "lengths", request(model, good, lengths=b"abc")),
        ("ZERO_STEPS", "lengths[1]", request(model, good, lengths=np.array([3, 0, 3], "<u4").tobytes())),
        ("TOO_MANY_ROWS", "lengths", request(model, good, lengths=np.ones(65, "<u4").tobytes())),
        ("INVALID_SHAPE", "inputs[x].shape", request(model, good, lengths=np.array([2, 3], "<u4").tobytes())),
        ("MESSAGE_TOO_LARGE", "lengths", request(model, good, lengths=np.array([1 << 31] * 9, "<u4").tobytes())),
        ("MISSING_FIELD", "inputs", request(model, good, inputs=[])),
        ("UNKNOWN_INPUT", "inputs", request(model, good, inputs=[*inputs, tensor("y", np.zeros(1))])),
        ("INVALID_DTYPE", "inputs[x].dtype", request(model, good, inputs=[tensor("x", np.zeros((6, 4)))])),
        ("NON_FINITE", "inputs[x]", request(model, wrong)),
    ]

    async def check() -> None:
        async with serve(configure(tmp_path)) as running:
            for reason, field, message in cases:
                detail = await running.refusal("InferenceService/Infer", message, inference_pb2.InferResponse)
                name = errors_pb2.ErrorReason.Name(detail.reason).removeprefix("ERROR_REASON_")
                assert (name, detail.field) == (reason, field), detail
                if reason == "NON_FINITE":
                    assert "sequence 1" in detail.message
            await until(lambda: running.host.table.num_sessions == 0)
            assert len(await infer(running, request(model, good))) == len(model.outputs)

    asyncio.run(check())


def test_a_call_that_nobody_waits_for_leaves_nothing(tmp_path: Path) -> None:
    """Cancelled in the middle: its sessions end, the model goes on."""
    write_model(tmp_path, "lstm")
    model = family("lstm")
    long = [model.example(np.random.default_rng(0), 20_000)]

    async def check() -> None:
        async with serve(configure(tmp_path, model={"max_steps": 16})) as running:
            calling = asyncio.create_task(infer(running, request(model, long)))
            scheduler = running.host.catalog.ready("lstm", "").scheduler
            await until(lambda: scheduler.num_ticks > 10)
            calling.cancel()
            await until(lambda: running.host.table.num_sessions == 0)
            assert scheduler.num_row_steps < 20_000
            assert len((await infer(running, request(model, [model.example(np.random.default_rng(0), 5)])))[0]) == 5

    asyncio.run(check())


def test_more_sequences_than_slots(tmp_path: Path) -> None:
    """A typed error of capacity, and nothing is opened."""
    write_model(tmp_path, "lstm")
    model = family("lstm")
    many = [model.example(np.random.default_rng(0), 1) for _ in range(9)]

    async def check() -> None:
        async with serve(configure(tmp_path, model={"max_slots": 8})) as running:
            detail = await running.refusal("InferenceService/Infer", request(model, many), inference_pb2.InferResponse)
            assert detail.reason == errors_pb2.ERROR_REASON_TOO_MANY_SESSIONS
            assert running.host.table.num_sessions == 0
            assert len((await infer(running, request(model, many[:8])))[0]) == 8

    asyncio.run(check())
