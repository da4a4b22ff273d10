"""Models that do not stream, by the Open Inference Protocol: whole sequences without a sequence id."""

import asyncio
from pathlib import Path

import numpy as np
import oip
import pytest
from graphs import WHOLE_FAMILIES, PlainGraph, family
from loopback import configure, serve, write_model
from simulation import assert_same
from test_infer import infer
from test_infer import request as whole_request

from eddy.oip import grpc_service_pb2


@pytest.mark.parametrize("name", WHOLE_FAMILIES)
def test_whole_sequences_are_inferred(tmp_path: Path, name: str) -> None:
    """Three sequences of equal length in one call, and on a stream: each as if it were alone; statistics grow."""
    write_model(tmp_path, name)
    model = family(name)
    generator = np.random.default_rng(3)
    sequences = [model.example(generator, 9) for _ in range(3)]
    inputs = {port.name: np.stack([each[n] for each in sequences]) for n, port in enumerate(model.inputs)}

    async def scenario() -> None:
        async with serve(configure(tmp_path)) as loopback:
            kind = grpc_service_pb2.ModelConfigResponse
            told = await oip.call(loopback, "ModelConfig", grpc_service_pb2.ModelConfigRequest(name=name), kind)
            assert not told.config.HasField("sequence_batching")
            answers = [await oip.infer(loopback, oip.request(name, inputs))]
            async with oip.stream(loopback) as stream:
                given = await stream.send(oip.request(name, inputs))
                assert not given.error_message
                answers.append(given.infer_response)
            kind = grpc_service_pb2.ModelStatisticsResponse
            request = grpc_service_pb2.ModelStatisticsRequest(name=name)
            [stats] = (await oip.call(loopback, "ModelStatistics", request, kind)).model_stats
            assert stats.inference_stats.success.count == stats.inference_stats.compute_infer.count == 2
            assert stats.execution_count >= 2
            # One by the other door counts, too.
            await infer(loopback, whole_request(model, sequences))
            [stats] = (await oip.call(loopback, "ModelStatistics", request, kind)).model_stats
            assert stats.inference_stats.success.count == stats.inference_stats.compute_infer.count == 3
        plain = PlainGraph(model)
        for answer in answers:
            for row, sequence in enumerate(sequences):
                expected, _ = plain.whole(sequence)
                for values, wanted in zip(oip.arrays(answer), expected, strict=True):
                    assert_same(values[row], wanted, model.tolerance)

    asyncio.run(scenario())


def test_a_whole_sequence_that_is_refused_is_an_answer(tmp_path: Path) -> None:
    """A value that is not finite: refused by a call and on a stream, which goes on; failures are counted."""
    name = next(each for each in WHOLE_FAMILIES if np.dtype(family(each).inputs[0].dtype).kind == "f")
    write_model(tmp_path, name)
    model = family(name)
    good = {
        port.name: values[None]
        for port, values in zip(model.inputs, model.example(np.random.default_rng(1), 4), strict=True)
    }
    bad = {key: np.full_like(values, np.nan) if values.dtype.kind == "f" else values for key, values in good.items()}

    async def scenario() -> None:
        async with serve(configure(tmp_path)) as loopback, oip.stream(loopback) as stream:
            refused = await stream.send(oip.request(name, bad))
            assert "finite" in refused.error_message
            answered = await stream.send(oip.request(name, good))
            assert not answered.error_message
            model_served = loopback.host.catalog.find(name, "").model
            assert model_served is not None
            assert model_served.stats.num_failed_requests == 1

    asyncio.run(scenario())
