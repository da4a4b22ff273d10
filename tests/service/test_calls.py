"""gRPC calls are counted by method and code, whatever way they end, against a real server."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from graphs import family
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from loopback import Loopback, configure, serve, tensor, until

from eddy.service.calls import UNKNOWN_METHOD
from eddy.service.totals import totals
from eddy.v1 import inference_pb2, models_pb2, sessions_pb2

HISTORY = family("history")
STREAM = "eddy.v1.InferenceService/Stream"
LIST_MODELS = "eddy.v1.ModelService/ListModels"
GET_MODEL = "eddy.v1.ModelService/GetModel"


async def _finished(loopback: Loopback, method: str, code: str, count: int = 1) -> None:
    """Waits until so many calls are counted as ended; the server hears of the end after the client."""
    finished = loopback.host.calls.finished
    await until(lambda: finished.get((method, code), 0) >= count)
    assert finished[method, code] == count


def test_unary_calls_end_with_their_code(repository: Path) -> None:
    """A good call is OK, a refused one has its typed error's code, and both were started."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback:
            await loopback.unary("ModelService/ListModels", models_pb2.ListModelsRequest(), models_pb2.GetModelResponse)
            await loopback.refusal(
                "ModelService/GetModel", models_pb2.GetModelRequest(name="none"), models_pb2.GetModelResponse
            )
            await _finished(loopback, LIST_MODELS, "OK")
            await _finished(loopback, GET_MODEL, "NOT_FOUND")
            assert loopback.host.calls.started == {LIST_MODELS: 1, GET_MODEL: 1}

    asyncio.run(scenario())


def test_streams_are_open_until_they_end(repository: Path) -> None:
    """An open stream is started and not finished; ended by its client it is OK, broken off it is CANCELLED."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback:
            host = loopback.host
            async with loopback.stream() as good, loopback.stream() as broken:
                await good.handles("history", 2)
                await broken.handles("history", 1)
                assert host.streams.num_streams == 2
                assert host.calls.started == {STREAM: 2}
                assert host.calls.finished == {}
                broken.cancel()
                await _finished(loopback, STREAM, "CANCELLED")
                assert host.streams.num_streams == 1
            await _finished(loopback, STREAM, "OK")
            assert host.streams.num_streams == 0

    asyncio.run(scenario())


def test_a_call_that_is_too_late_is_deadline_exceeded(repository: Path) -> None:
    """A health watch, which has no end of its own, ends with its client's deadline."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback:
            stub: Any = health_pb2_grpc.HealthStub(loopback.channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=0.2)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await watch.read()
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            method = "grpc.health.v1.Health/Watch"
            await until(lambda: any(name == method for name, _ in loopback.host.calls.finished))
            assert loopback.host.calls.finished == {(method, "DEADLINE_EXCEEDED"): 1}

    asyncio.run(scenario())


def test_generators_still_answer_and_count(repository: Path) -> None:
    """Reflection, written as a generator, answers through the counter, and a health check does."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback:
            reflection: Any = reflection_pb2_grpc.ServerReflectionStub(loopback.channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            answers = [answer async for answer in reflection.ServerReflectionInfo(iter([request, request]))]
            assert len(answers) == 2
            health: Any = health_pb2_grpc.HealthStub(loopback.channel)
            await health.Check(health_pb2.HealthCheckRequest(service=""))
            await _finished(loopback, "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "OK")
            await _finished(loopback, "grpc.health.v1.Health/Check", "OK")

    asyncio.run(scenario())


def test_methods_that_do_not_exist_share_one_label(repository: Path) -> None:
    """A client cannot invent labels: whatever it calls, it counts as unknown."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback:
            for number in range(3):
                call = loopback.channel.unary_unary(f"/eddy.v1.ModelService/Invented{number}", None, None)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(b"")
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert loopback.host.calls.started == {UNKNOWN_METHOD: 3}
            assert loopback.host.calls.finished == {(UNKNOWN_METHOD, "UNIMPLEMENTED"): 3}

    asyncio.run(scenario())


def test_totals_tell_what_was_done(repository: Path) -> None:
    """Sessions by state and cause of end, and the histograms of chunks that ran, over stream and unary calls."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback:
            host = loopback.host
            [model] = host.catalog.served
            opened = await loopback.unary(
                "SessionService/OpenSession",
                sessions_pb2.OpenSessionRequest(model="history"),
                sessions_pb2.OpenSessionResponse,
            )
            async with loopback.stream() as stream:
                handles = await stream.handles("history", 3)
                await stream.step(HISTORY, handles, [0] * 3, [[1, 2]] * 3)
                await stream.step(HISTORY, handles, [0] * 3, [[1, 2]] * 3)  # Again: nothing runs.
                request = inference_pb2.StepRequest(
                    session_id=opened.session.session_id,
                    epoch=opened.session.epoch,
                    position=0,
                    num_steps=1,
                    inputs=[tensor("x", np.array([[1]]))],
                )
                await loopback.unary("InferenceService/Step", request, inference_pb2.StepResponse)
                close = inference_pb2.CloseSessions(handles=np.array(handles[:1], "<u8").tobytes())
                await stream.send(close=close)
                [found] = totals(host, is_ready=True).models
                assert found.sessions == {"attached": 2, "detached": 1}
            await until(lambda: host.streams.num_streams == 0)
            found_all = totals(host, is_ready=True)
            [found] = found_all.models
            assert found.sessions == {"attached": 0, "detached": 3}
            assert (found.num_opened_sessions, found.num_used_slots) == (4, 3)
            assert {cause: count for cause, count in found.ended_sessions.items() if count} == {"closed": 1}
            assert (found.num_ticks, found.num_row_steps, found.num_replayed) == (2, 7, 3)
            assert found.tick_rows.cumulative()[:3] == [1, 1, 2]
            assert found.tick_rows.total == 4.0
            for histogram in (found.queue_delay, found.latency, found.run_time):
                assert histogram.cumulative()[-1] == 2
                assert 0.0 < histogram.total < 10.0
            assert found.queue_delay.total + found.run_time.total < found.latency.total
            assert found_all.versions["history", "1"].is_ready
            assert model.stats.num_generated_tokens == found.num_generated_tokens == 0

    asyncio.run(scenario())


def test_a_long_chunk_counts_once(repository: Path) -> None:
    """A chunk that is run in slices has many ticks, one queue delay and one latency."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback, loopback.stream() as stream:
            handles = await stream.handles("history", 1)
            await stream.step(HISTORY, handles, [0], [[1] * 300])
            [found] = totals(loopback.host, is_ready=True).models
            assert found.num_ticks > 1
            assert found.tick_rows.cumulative()[-1] == found.run_time.cumulative()[-1] == found.num_ticks
            assert found.queue_delay.cumulative()[-1] == found.latency.cumulative()[-1] == 1

    asyncio.run(scenario())
