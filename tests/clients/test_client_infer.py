"""Whole sequences through the client: what stepping gives, in their order, however they are packed."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import family
from loopback import configure, until, write_model
from schedule import plain_graph
from wire import Recorder, connected, run, spelled

from eddy import Client, errors
from eddy.v1 import inference_pb2


class Listener(Recorder):
    """A recorder of `Infer` calls: how many sequences and steps each had."""

    def __init__(self, channel: Any) -> None:
        super().__init__(channel)
        self.calls: list[list[int]] = []

    def unary_unary(self, method: str) -> Any:
        """As the channel, for calls that are recorded."""
        inner = super().unary_unary(method)

        def call(data: bytes, **options: Any) -> Any:
            if method.endswith("/Infer"):
                request = inference_pb2.InferRequest.FromString(data)
                self.calls.append(np.frombuffer(request.lengths, "<u4").tolist())
            return inner(data, **options)

        return call


@pytest.mark.parametrize("model", ["history", "lstm"])
def test_sequences_are_what_stepping_gives(repository: Path, model: str) -> None:
    """Each output has its sequence's length and the bits of a session of its own; what no message takes is split."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (loopback, _, _):
            listener = Listener(loopback.channel)
            async with Client(channel=listener) as client:
                generator = np.random.default_rng(1)
                lengths = generator.integers(1, 9, 150).tolist()
                spec = (await client.contract(model)).inputs[0]
                if model == "history":
                    sequences: list[Any] = [generator.integers(0, 9, length) for length in lengths]
                else:
                    sequences = [generator.normal(size=(length, *spec.shape)) for length in lengths]
                answers = await client.infer(model, sequences)
                assert [len(answer) for answer in answers] == lengths
                assert [len(call) for call in listener.calls] == [64, 64, 22]
                assert [length for call in listener.calls for length in call] == lengths
                for number in (0, 63, 64, 149):
                    async with client.session(model) as session:
                        expected = await session.step(sequences[number])
                    assert answers[number].tobytes() == expected.tobytes()
                if model == "history":
                    assert answers[7].tolist() == spelled(sequences[7].tolist())
                named = await client.infer_outputs(model, sequences[:2], "1")
                (outputs,) = named.values()
                assert [output.tobytes() for output in outputs] == [answer.tobytes() for answer in answers[:2]]
            assert loopback.host.table.num_sessions == 0

    run(scenario())


def test_long_sequences_are_split_by_bytes(repository: Path) -> None:
    """No message is larger than the server's limit; one sequence that is, is refused before anything is sent."""

    async def scenario() -> None:
        settings = configure(repository, server={"max_message_bytes": 1 << 16})
        async with connected(settings) as (loopback, _, _):
            listener = Listener(loopback.channel)
            async with Client(channel=listener) as client:
                sequences = [np.full(3000, digit) for digit in range(6)]
                answers = await client.infer("history", sequences)
                assert [answer[2] for answer in answers] == [111 * digit for digit in range(6)]
                assert len(listener.calls) == 3
                with pytest.raises(errors.InvalidInput) as caught:
                    await client.infer("history", [[1], np.zeros(9000, np.int64)])
                assert (caught.value.reason, caught.value.field) == ("MESSAGE_TOO_LARGE", "sequences[1]")
                assert len(listener.calls) == 3

    run(scenario())


def test_several_inputs_and_outputs(repository: Path) -> None:
    """Inputs by name, outputs by name; `infer` refuses a model with several outputs."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, _):
            inputs = {
                "value": [np.ones((length, 2)) for length in (2, 3)],
                "restart": [np.zeros(length, np.bool_) for length in (2, 3)],
            }
            outputs = await client.infer_outputs("two-inputs", inputs)
            assert outputs["total"][1].tolist() == [[1.25, 1.25], [2.25, 2.25], [3.25, 3.25]]
            assert [flags.shape for flags in outputs["was_restarted"]] == [(2,), (3,)]
            with pytest.raises(errors.InvalidInput, match="infer_outputs"):
                await client.infer("two-inputs", inputs)

    run(scenario())


@pytest.mark.parametrize(
    ("model", "sequences", "reason", "field"),
    [
        ("history", [], "EMPTY_BATCH", "inputs"),
        ("history", [[1], np.zeros(0, np.int64)], "ZERO_STEPS", "x[1]"),
        ("history", [[1], 2], "INVALID_SHAPE", "x[1]"),
        ("history", [[1], [[2]]], "INVALID_SHAPE", "x[1]"),
        ("history", [[1], [0.5]], "INVALID_DTYPE", "x"),
        ("history", {"y": [[1]]}, "UNKNOWN_INPUT", "inputs"),
        ("two-inputs", [[1]], "MISSING_FIELD", "inputs"),
        ("two-inputs", {"value": [[[1, 2]]], "restart": []}, "INVALID_SHAPE", "inputs"),
        ("two-inputs", {"value": [[[1, 2]]], "restart": [[True, False]]}, "INVALID_SHAPE", "restart[0]"),
        ("digits", [[1, 2], [3, 10]], "OUT_OF_RANGE", ""),
    ],
)
def test_mistakes_in_sequences(repository: Path, model: str, sequences: Any, reason: str, field: str) -> None:
    """Refused with the reason and the sequence, here or by the server; no session stays."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (loopback, client, _):
            with pytest.raises(errors.InvalidInput) as caught:
                await client.infer_outputs(model, sequences)
            assert caught.value.reason == reason
            assert not field or caught.value.field == field
            assert loopback.host.table.num_sessions == 0

    run(scenario())


def test_time_and_unknown_models(repository: Path) -> None:
    """A timeout is `ServerBusy`, a model that is not there `NotFound`; a cancelled call leaves no session."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (loopback, client, _):
            with pytest.raises(errors.ServerBusy) as caught:
                await client.infer("lstm", [np.ones((2000, 4))] * 60, timeout_seconds=0.0)
            assert caught.value.reason == "DEADLINE_EXCEEDED"
            with pytest.raises(errors.NotFound):
                await client.infer("no-such-model", [[1]])
            task = asyncio.create_task(client.infer("history", [np.ones(400_000, np.int64)]))
            await until(lambda: loopback.host.table.num_sessions or task.done())
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: not loopback.host.table.num_sessions)

    run(scenario())


@pytest.mark.parametrize("model", ["pooled", "strided", "bidirectional-gru"])
def test_models_that_do_not_stream(tmp_path: Path, model: str) -> None:
    """Every output of every sequence as long as the model makes it, in several calls; sessions are refused."""
    spec = family(model)
    write_model(tmp_path, model)
    generator = np.random.default_rng(2)
    sequences = [spec.example(generator, int(length))[0] for length in generator.integers(1, 9, 70)]

    async def scenario() -> None:
        async with connected(configure(tmp_path)) as (_, client, _):
            answers = await client.infer_outputs(model, sequences)
            for number in (0, 63, 64, 69):
                expected, _ = plain_graph(spec).whole([sequences[number]])
                for port, wanted in zip(spec.outputs, expected, strict=True):
                    np.testing.assert_array_equal(answers[port.name][number], wanted)
            for opening in (client.session(model), client.batch(model, 2)):
                with pytest.raises(errors.InvalidInput, match=spec.prevented_by) as refused:
                    async with opening:
                        pass
                assert refused.value.reason == "NOT_STREAMABLE"

    run(scenario())
