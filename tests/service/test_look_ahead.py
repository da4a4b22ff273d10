"""Look-ahead on the wire: streams of a bidirectional model against PyTorch, and their ends.

The reference is the definition in PyTorch, run whole; the server sees the same sequences in any cuts.
"""

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import family
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import (
    Loopback,
    StreamClient,
    array,
    attach_request,
    chunk,
    column,
    configure,
    end_chunk,
    serve,
    tensor,
    write_model,
)

from eddy.service.errors import Reason
from eddy.training.export import draw_model, export_graphs
from eddy.training.families.bidirectional.family import BIDIRECTIONAL
from eddy.training.families.bidirectional.latency import run_latency_controlled
from eddy.training.families.bidirectional.model import BidirectionalModel
from eddy.training.families.bidirectional.spec import BidirectionalSpec
from eddy.training.families.registry import build_contract
from eddy.training.spec import LinearHead, TokenInput
from eddy.v1 import errors_pb2, inference_pb2

# More threads only wait for each other.
torch.set_num_threads(1)

SPEC = BidirectionalSpec("lstm", 2, 10, TokenInput(9, 5), (LinearHead(3),), 0.0)
BLOCK = 4
LOOK_AHEADS = (0, 2, 4, 8, 16, 64)
# PyTorch and ONNX Runtime add in different orders.
ROUNDING = 2e-6
STEPS = 60
AHEAD = family("look-ahead")


def model_with(look_ahead: int) -> BidirectionalModel:
    """The same weights on each grid."""
    weights = draw_model(SPEC, 1).state_dict()
    model = BIDIRECTIONAL.build(SPEC.on_grid(BLOCK, look_ahead))
    model.load_state_dict(weights)
    return model.eval()


MODELS = {look_ahead: model_with(look_ahead) for look_ahead in LOOK_AHEADS}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model a look-ahead, all of the same weights, and the hand-made one."""
    root = tmp_path_factory.mktemp("models")
    for look_ahead, model in MODELS.items():
        folder = root / f"ahead-{look_ahead}" / "1"
        folder.mkdir(parents=True)
        export_graphs(model, folder, build_contract(model, f"ahead-{look_ahead}"))
    write_model(root, "look-ahead")
    return root


def run(repository: Path, scenario: Any, **options: Any) -> Any:
    """Runs `scenario(running, client)` with a stream on a server."""

    async def whole() -> Any:
        async with serve(configure(repository), **options) as running, running.stream() as client:
            return await scenario(running, client)

    return asyncio.run(whole())


def wanted(look_ahead: int, tokens: np.ndarray) -> np.ndarray:
    """PyTorch's latency-controlled outputs of whole streams: int64 [T] -> [T, 3]."""
    lengths = torch.tensor([len(tokens)])
    outputs, _, _ = run_latency_controlled(MODELS[look_ahead], torch.from_numpy(tokens)[None], lengths, is_end=True)
    found: np.ndarray = outputs["y"][0].numpy()
    return found


async def stream(client: StreamClient, look_ahead: int, rows: list[np.ndarray], cuts: list[int]) -> list[np.ndarray]:
    """Streams sequences of one length side by side, `cuts` steps at a time, to their ends."""
    name = f"ahead-{look_ahead}"
    handles = await client.handles(name, len(rows))
    parts: list[list[np.ndarray]] = [[] for _ in rows]
    place = 0
    for steps in [*cuts, 0]:
        positions = [place] * len(rows)
        if steps:
            values = np.stack([row[place : place + steps] for row in rows])
            step = inference_pb2.StepChunk(
                handles=column(handles), positions=column(positions), num_steps=steps, inputs=[tensor("tokens", values)]
            )
        else:
            step = end_chunk(handles, positions)
        response = await client.send(step=step)
        assert not response.step.errors
        [output] = [array(each) for each in response.step.outputs]
        for row, emitted in enumerate(np.frombuffer(response.step.emitted, "<i8").tolist()):
            parts[row].append(output[row, :emitted])
        place += steps
        if 0 < place < look_ahead and steps:
            assert not any(len(part[-1]) for part in parts), "nothing is known yet"
    return [np.concatenate(part) for part in parts]


@pytest.mark.parametrize("look_ahead", LOOK_AHEADS)
@settings(max_examples=8)
@given(data=st.data())
def test_streams_are_what_pytorch_says(repository: Path, look_ahead: int, data: st.DataObject) -> None:
    """However calls are cut, also where the first are shorter than the look-ahead; to rounding."""
    cuts = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    rows = [generator.integers(0, 9, sum(cuts)) for _ in range(3)]

    async def scenario(_: Loopback, client: StreamClient) -> list[np.ndarray]:
        return await stream(client, look_ahead, rows, cuts)

    for got, tokens in zip(run(repository, scenario), rows, strict=True):
        np.testing.assert_allclose(got, wanted(look_ahead, tokens), rtol=0, atol=ROUNDING)


def test_the_further_it_looks_the_nearer_it_is(repository: Path) -> None:
    """Streams come nearer to the exact result with the look-ahead, and reach it where that covers the sequence.

    `Infer` gives the exact result whatever the look-ahead.
    """
    generator = np.random.default_rng(8)
    rows = [generator.integers(0, 9, STEPS) for _ in range(6)]
    with torch.no_grad():
        exact = MODELS[0](torch.from_numpy(np.stack(rows)))["y"].numpy()

    async def scenario(running: Loopback, client: StreamClient) -> list[float]:
        errors = []
        for look_ahead in LOOK_AHEADS:
            found = await stream(client, look_ahead, rows, [7, 20, 1, 32])
            errors.append(float(np.abs(np.stack(found) - exact).mean()))
            request = inference_pb2.InferRequest(
                model=f"ahead-{look_ahead}",
                lengths=np.full(len(rows), STEPS, "<u4").tobytes(),
                inputs=[tensor("tokens", np.concatenate(rows))],
            )
            response = await running.unary("InferenceService/Infer", request, inference_pb2.InferResponse)
            whole = array(response.outputs[0]).reshape(exact.shape)
            np.testing.assert_allclose(whole, exact, rtol=0, atol=ROUNDING)
        return errors

    errors = run(repository, scenario)
    assert errors[-1] < ROUNDING, "64 steps of look-ahead cover the sequence"
    assert all(later < earlier for earlier, later in pairwise(errors)), errors
    assert errors[0] > 1e-3, "without look-ahead the model is another one"


# Ends


def test_an_end_takes_effect_once(repository: Path) -> None:
    """A repeated end is answered as before, bit for bit; a second end gives nothing; what follows is a new stream."""

    async def scenario(_: Loopback, client: StreamClient) -> None:
        [handle] = await client.handles("look-ahead")
        await client.step(AHEAD, [handle], [0], [[1, 2, 3]])
        first = (await client.send(step=end_chunk([handle], [3]))).step
        assert array(first.outputs[0]).tolist() == [[302, 3]]
        again = (await client.send(step=end_chunk([handle], [3]))).step
        assert again.replayed_rows and (again.outputs, again.emitted) == (first.outputs, first.emitted)
        second = (await client.send(step=end_chunk([handle], [4]))).step
        assert array(second.outputs[0]).shape == (1, 0)
        step = await client.step(AHEAD, [handle], [5], [[4, 5, 6, 7]])
        assert array(step.outputs[0]).tolist() == [[60504, 70605]]

    run(repository, scenario)


def test_an_end_is_no_step_of_zeros(repository: Path) -> None:
    """At a position where an end was applied a step is no repeat, nor is an end where a step was."""

    async def scenario(_: Loopback, client: StreamClient) -> None:
        first, second = await client.handles("look-ahead", 2)
        await client.send(step=end_chunk([first], [0]))
        detail = await client.refusal(step=chunk(AHEAD, [first], [0], [[0]]))
        assert detail.reason == Reason.REPEAT_MISMATCH
        await client.step(AHEAD, [second], [0], [[0]])
        detail = await client.refusal(step=end_chunk([second], [0]))
        assert detail.reason == Reason.REPEAT_MISMATCH

    run(repository, scenario)


def test_an_end_after_another_client_has_taken_over(repository: Path) -> None:
    """The one who lost the session is fenced; the one who has it gets what was held back, and nobody gets it twice."""

    async def scenario(running: Loopback, client: StreamClient) -> None:
        opened = await client.open("look-ahead")
        [handle] = np.frombuffer(opened.handles, "<u8").tolist()
        await client.step(AHEAD, [handle], [0], [[1, 2, 3]])
        async with running.stream() as other:
            response = await other.send(attach=attach_request(opened))
            detail = await client.refusal(step=end_chunk([handle], [3]))
            assert detail.reason == Reason.FENCED
            ended = (await other.send(step=end_chunk([response.attached.handle], [3]))).step
            assert array(ended.outputs[0]).tolist() == [[302, 3]]

    run(repository, scenario)


def test_an_end_after_the_session_was_evicted(repository: Path) -> None:
    """A session that was idle for too long has ended: its end is refused with the reason, and its slot is clean."""

    async def scenario(running: Loopback, client: StreamClient) -> None:
        [handle] = await client.handles("look-ahead", idle_timeout_seconds=5.0)
        await client.step(AHEAD, [handle], [0], [[1, 2, 3]])
        now[0] += 6.0
        assert running.host.endings.expire() == 1
        detail = await client.refusal(step=end_chunk([handle], [3]))
        assert detail.reason == errors_pb2.ERROR_REASON_SESSION_EXPIRED
        [fresh] = await client.handles("look-ahead")
        ended = (await client.send(step=end_chunk([fresh], [0]))).step
        assert array(ended.outputs[0]).shape == (1, 0), "nothing of another session's"

    now = [100.0]
    run(repository, scenario, clock=lambda: now[0])


def test_ends_share_messages_and_ticks(repository: Path) -> None:
    """Many streams end in one message while others step: each gets its own, whatever its count."""

    async def scenario(_: Loopback, client: StreamClient) -> None:
        handles = await client.handles("look-ahead", 12)
        for row, handle in enumerate(handles):
            if row % 4:
                await client.step(AHEAD, [handle], [0], [list(range(1, row % 4 + 1))])
        ending, going = handles[:8], handles[8:]
        positions = [row % 4 for row in range(12)]
        ends = await client.post(step=end_chunk(ending, positions[:8]))
        steps = await client.post(step=chunk(AHEAD, going, positions[8:], [[9]] * 4))
        ended, stepped = (await ends).step, (await steps).step
        held = {0: [], 1: [1], 2: [201, 2], 3: [302, 3]}
        counts = np.frombuffer(ended.emitted, "<i8").tolist()
        assert [array(ended.outputs[0])[row, :count].tolist() for row, count in enumerate(counts)] == [
            held[row % 4] for row in range(8)
        ]
        assert np.frombuffer(stepped.emitted, "<i8").tolist() == [0, 0, 1, 1]

    run(repository, scenario)


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"num_steps": 1, "flush": True}, Reason.OUT_OF_RANGE, "step.num_steps"),
        ({"flush": True, "inputs": [tensor("x", np.array([[1]]))]}, Reason.UNKNOWN_INPUT, "inputs"),
        ({}, Reason.ZERO_STEPS, "step.num_steps"),
    ],
)
def test_wrong_ends_are_refused(repository: Path, fields: dict[str, Any], reason: Reason, field: str) -> None:
    """An end has neither steps nor inputs, and no steps are no end; the session stands where it stood."""

    async def scenario(_: Loopback, client: StreamClient) -> None:
        [handle] = await client.handles("look-ahead")
        step = inference_pb2.StepChunk(handles=column([handle]), positions=column([0]), **fields)
        detail = await client.refusal(step=step)
        assert (detail.reason, detail.field) == (reason, field)
        await client.step(AHEAD, [handle], [0], [[1]])

    run(repository, scenario)


def test_a_model_that_does_not_look_ahead_has_no_ends(tmp_path: Path) -> None:
    """The end of its stream is refused, on a stream and as a unary step."""
    write_model(tmp_path, "history")

    async def scenario(running: Loopback, client: StreamClient) -> None:
        opened = await client.open("history")
        [handle] = np.frombuffer(opened.handles, "<u8").tolist()
        detail = await client.refusal(step=end_chunk([handle], [0]))
        assert (detail.reason, detail.field) == (Reason.WRONG_TASK, "flush")
        request = inference_pb2.StepRequest(session_id=opened.session_ids[0], epoch=handle >> 32, flush=True)
        detail = await running.refusal("InferenceService/Step", request, inference_pb2.StepResponse)
        assert (detail.reason, detail.field) == (Reason.WRONG_TASK, "flush")

    run(tmp_path, scenario)
