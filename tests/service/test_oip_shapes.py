"""Requests of the Open Inference Protocol whose bytes are known, and tensors without a time axis.

Dimension key: T steps.
"""

import asyncio
from pathlib import Path

import numpy as np
import oip
import pytest
from graphs import family
from loopback import configure, serve, write_model
from schedule import plain_graph

from eddy.oip import grpc_service_pb2

NUM_STREAMS = 12
BAD = 5
LSTM = family("lstm")


def _named(number: int, *, is_text: bool) -> int | str:
    return f"client {number:03d}" if is_text else 1000 + number


async def _turn(
    streams: list[oip.InferStream], values: list[np.ndarray], *, is_text: bool, start: bool = False
) -> list[tuple[str, list[np.ndarray]]]:
    """Every stream's sequence takes its step, all under way together; error text and outputs of each."""
    futures = []
    for number, (stream, value) in enumerate(zip(streams, values, strict=True)):
        message = oip.request(
            "lstm", {LSTM.inputs[0].name: value[None]}, sequence=_named(number, is_text=is_text), start=start
        )
        futures.append(await stream.post(message))
    responses = [await asyncio.wait_for(future, 30) for future in futures]
    return [(response.error_message, oip.arrays(response.infer_response)) for response in responses]


@pytest.mark.parametrize("is_text", [False, True])
def test_a_bad_step_among_known_ones_fails_alone(tmp_path: Path, *, is_text: bool) -> None:
    """One of many steps that run together has a value that is refused: its sequence stays, the others go on."""
    write_model(tmp_path, "lstm")
    generator = np.random.default_rng(7)
    steps = [LSTM.example(generator, 6)[0] for _ in range(NUM_STREAMS)]

    async def scenario() -> None:
        async with serve(configure(tmp_path)) as loopback:
            streams = [oip.InferStream(loopback) for _ in range(NUM_STREAMS)]
            got: list[list[np.ndarray]] = [[] for _ in streams]
            for turn in range(6):
                if turn == 4:
                    poisoned = [each[turn : turn + 1].copy() for each in steps]
                    poisoned[BAD][0, 0] = np.nan
                    answers = await _turn(streams, poisoned, is_text=is_text)
                    assert ["finite" in error for error, _ in answers] == [n == BAD for n in range(NUM_STREAMS)]
                    for number, (_, outputs) in enumerate(answers):
                        if number != BAD:
                            got[number].append(outputs[0][0])
                    again = oip.request(
                        "lstm",
                        {LSTM.inputs[0].name: steps[BAD][None, turn : turn + 1]},
                        sequence=_named(BAD, is_text=is_text),
                    )
                    got[BAD].append(oip.arrays((await streams[BAD].send(again)).infer_response)[0][0])
                    continue
                answers = await _turn(
                    streams, [each[turn : turn + 1] for each in steps], is_text=is_text, start=turn == 0
                )
                for mine, (error, outputs) in zip(got, answers, strict=True):
                    assert not error
                    mine.append(outputs[0][0])
            for stream in streams:
                await stream.close()
            for mine, inputs in zip(got, steps, strict=True):
                whole, _ = plain_graph(LSTM).whole([inputs])
                assert np.concatenate(mine).tobytes() == whole[0].tobytes()

    asyncio.run(scenario())


def test_tensors_without_a_time_axis(tmp_path: Path) -> None:
    """Metadata tell them without one; [1, ...] is answered so, [1, T, ...] as it was sent."""
    contract = LSTM.contract()
    contract.inputs[0].no_time_axis = contract.outputs[0].no_time_axis = True
    write_model(tmp_path, "lstm", model=LSTM.model(contract))
    [inputs] = LSTM.example(np.random.default_rng(1), 3)
    name = LSTM.inputs[0].name

    async def scenario() -> None:
        async with serve(configure(tmp_path)) as loopback:
            kind = grpc_service_pb2.ModelMetadataResponse
            metadata = await oip.call(
                loopback, "ModelMetadata", grpc_service_pb2.ModelMetadataRequest(name="lstm"), kind
            )
            assert list(metadata.inputs[0].shape) == [-1, *LSTM.inputs[0].shape]
            assert list(metadata.outputs[0].shape) == [-1, *LSTM.outputs[0].shape]
            first = await oip.infer(loopback, oip.request("lstm", {name: inputs[:1]}, sequence=1, start=True))
            rest = await oip.infer(loopback, oip.request("lstm", {name: inputs[None, 1:]}, sequence=1))
            one = await oip.infer(loopback, oip.request("lstm", {name: inputs[None, :1]}, sequence=2, start=True))
        [alone], [both], [stepwise] = oip.arrays(first), oip.arrays(rest), oip.arrays(one)
        assert alone.shape == (1, *LSTM.outputs[0].shape)
        assert both.shape == (1, 2, *LSTM.outputs[0].shape)
        assert stepwise.shape == (1, 1, *LSTM.outputs[0].shape)
        whole, _ = plain_graph(LSTM).whole([inputs])
        assert np.concatenate([alone, both[0]]).tobytes() == whole[0].tobytes()

    asyncio.run(scenario())
