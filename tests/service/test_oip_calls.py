"""The calls of the Open Inference Protocol: what it tells of models, and what it refuses, in its words."""

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import oip
import pytest
import tritonclient.grpc.aio as triton_aio
from loopback import Loopback, configure, serve, until, write_model
from triton_steps import history

from eddy.oip import grpc_service_pb2
from eddy.service.oip_infer import Inference
from eddy.service.oip_models import ModelAnswers

X = np.array([[1]], np.int64)


def _run(repository: Path, scenario: Callable[[Loopback], Any], **config: Any) -> None:
    async def main() -> None:
        async with serve(configure(repository, **config)) as loopback:
            await scenario(loopback)

    asyncio.run(main())


async def _refusal(loopback: Loopback, message: grpc_service_pb2.ModelInferRequest, **options: Any) -> tuple[str, str]:
    try:
        answer = await oip.infer(loopback, message, **options)
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    raise AssertionError(f"the call was carried out: {answer}")


def test_tritons_asyncio_client(repository: Path) -> None:
    """Health, metadata, configuration, inference by calls and streams, and statistics that grow."""

    async def scenario(loopback: Loopback) -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{loopback.server.port}") as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("history")
            assert not await client.is_model_ready("history", "2")
            assert "sequence" in (await client.get_server_metadata()).extensions
            metadata = await client.get_model_metadata("history")
            assert [(port.name, port.datatype, list(port.shape)) for port in metadata.inputs] == [
                ("x", "INT64", [-1, -1])
            ]
            assert list(metadata.versions) == ["1"]
            config = (await client.get_model_config("history")).config
            assert config.HasField("sequence_batching")
            assert config.max_batch_size > 0
            assert [state.input_name for state in config.sequence_batching.state] == ["history"]
            tensors = history(4, library=triton_aio)
            given = await client.infer("history", tensors, sequence_id=1, sequence_start=True, request_id="mine")
            assert given.get_response().id == "mine"
            assert given.as_numpy("y").tolist() == [[4]]

            async def requests() -> Any:
                for number in range(1, 4):
                    yield {
                        "model_name": "history",
                        "inputs": history(number, library=triton_aio),
                        "sequence_id": 2,
                        "sequence_start": number == 1,
                        "sequence_end": number == 3,
                    }

            answers = [
                (result.as_numpy("y").tolist(), error) async for result, error in client.stream_infer(requests())
            ]
            assert answers == [([[1]], None), ([[12]], None), ([[123]], None)]
            [stats] = (await client.get_inference_statistics("history")).model_stats
            counts = stats.inference_stats
            assert counts.success.count == counts.queue.count == counts.compute_infer.count == 4
            assert counts.compute_input.count == counts.compute_output.count == 4
            assert counts.success.ns == counts.queue.ns + counts.compute_infer.ns > 0
            assert stats.execution_count == sum(each.compute_infer.count for each in stats.batch_stats) == 4
            assert stats.last_inference > 0

    _run(repository, scenario)


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"model_name": "no"}, "NOT_FOUND", "Request for unknown model: 'no' is not found"),
        ({"model_version": "7"}, "NOT_FOUND", "Request for unknown model: 'history' version 7 is not found"),
    ],
)
def test_unknown_models_are_refused(repository: Path, change: dict[str, str], code: str, text: str) -> None:
    """In the words of Triton, with its code."""

    async def scenario(loopback: Loopback) -> None:
        message = oip.request("history", {"x": X}, sequence=1, start=True)
        for name, value in change.items():
            setattr(message, name, value)
        assert await _refusal(loopback, message) == (code, text)

    _run(repository, scenario)


def _edit(**fields: Any) -> Callable[[grpc_service_pb2.ModelInferRequest], None]:
    def edit(message: grpc_service_pb2.ModelInferRequest) -> None:
        for name, value in fields.items():
            setattr(message.inputs[0], name, value)

    return edit


def _shape(*shape: int) -> Callable[[grpc_service_pb2.ModelInferRequest], None]:
    def edit(message: grpc_service_pb2.ModelInferRequest) -> None:
        message.inputs[0].shape[:] = shape

    return edit


def _both(message: grpc_service_pb2.ModelInferRequest) -> None:
    message.inputs[0].contents.int64_contents.append(1)


def _no_data(message: grpc_service_pb2.ModelInferRequest) -> None:
    del message.raw_input_contents[:]


def _wrong_contents(message: grpc_service_pb2.ModelInferRequest) -> None:
    _no_data(message)
    message.inputs[0].contents.fp32_contents.append(1.0)


def _short(message: grpc_service_pb2.ModelInferRequest) -> None:
    message.raw_input_contents[0] = b"1234"


def _no_input(message: grpc_service_pb2.ModelInferRequest) -> None:
    _no_data(message)
    del message.inputs[:]


def _batch(message: grpc_service_pb2.ModelInferRequest) -> None:
    message.inputs[0].shape[:] = (2, 1)
    message.raw_input_contents[0] *= 2


def _output(message: grpc_service_pb2.ModelInferRequest) -> None:
    message.outputs.add(name="nothing")


def _shared(message: grpc_service_pb2.ModelInferRequest) -> None:
    message.inputs[0].parameters["shared_memory_region"].string_param = "region"


def _classes(message: grpc_service_pb2.ModelInferRequest) -> None:
    message.outputs.add(name="y").parameters["classification"].int64_param = 3


def _flag(message: grpc_service_pb2.ModelInferRequest) -> None:
    message.parameters["sequence_start"].int64_param = 1


def _number_of_a_kind(message: grpc_service_pb2.ModelInferRequest) -> None:
    message.parameters["sequence_id"].double_param = 1.0


def _long_id(message: grpc_service_pb2.ModelInferRequest) -> None:
    message.parameters["sequence_id"].string_param = "x" * 1025


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_number_of_a_kind, "invalid value type for 'sequence_id' parameter, expected int64_param, uint64_param or"),
        (_long_id, "invalid value type for 'sequence_id' parameter, expected at most 1024, got 1025 characters"),
        (_edit(name="z"), "unexpected inference input 'z' for model 'history'"),
        (_edit(datatype="FP32"), "inference input 'x' data-type is 'FP32', but model 'history' expects 'INT64'"),
        (_edit(datatype="BYTES"), "inference input 'x' data-type is 'BYTES', but model 'history' expects 'INT64'"),
        (_shape(1, 1, 1), "unexpected shape for input 'x' for model 'history'. Expected [-1,-1], got [1,1,1]"),
        (_shape(1), "unexpected shape for input 'x' for model 'history'. Expected [-1,-1], got [1]"),
        (_shape(1, 0), "unexpected shape for input 'x' for model 'history'. Expected [-1,-1], got [1,0]"),
        (_both, "contents field must not be specified when using raw_input_contents for 'x' for model 'history'"),
        (_no_data, "unable to find data for input tensor 'x' for model 'history' in request."),
        (_wrong_contents, "unexpected explicit tensor data for input tensor 'x' for model 'history'"),
        (_short, "input byte size mismatch for input 'x' for model 'history'. Expected 8, got 4"),
        (_no_input, "expected 1 inputs but got 0 inputs for model 'history'"),
        (_batch, "must specify batch-size 1 due to requirements of sequence batcher"),
        (_output, "unexpected inference output 'nothing' requested for model 'history'"),
        (_shared, "shared memory"),
        (_classes, "classification"),
        (_flag, "invalid value type for 'sequence_start' parameter, expected bool_param"),
    ],
)
def test_what_does_not_fit_is_refused(
    repository: Path, change: Callable[[grpc_service_pb2.ModelInferRequest], None], text: str
) -> None:
    """Each names what is wrong, as Triton does; nothing is begun, and on a stream the next request is answered."""

    async def scenario(loopback: Loopback) -> None:
        message = oip.request("history", {"x": X}, sequence=1, start=True)
        change(message)
        code, told = await _refusal(loopback, message)
        assert code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")
        assert text in told
        async with oip.stream(loopback) as stream:
            refused = await stream.send(message)
            assert text in refused.error_message
            assert loopback.host.table.num_sessions == 0
            good = await stream.send(oip.request("history", {"x": X}, sequence=1, start=True))
            assert not good.error_message

    _run(repository, scenario)


def test_typed_contents_and_a_choice_of_outputs(repository: Path) -> None:
    """Elements one by one are as good as raw ones; what is answered is raw, and only what was asked for."""

    async def scenario(loopback: Loopback) -> None:
        message = oip.request("history", {"x": np.array([[1, 2]], np.int64)}, sequence=1, start=True, outputs=["y"])
        del message.raw_input_contents[:]
        message.inputs[0].contents.int64_contents.extend([1, 2])
        answer = await oip.infer(loopback, message)
        assert [output.name for output in answer.outputs] == ["y"]
        assert oip.arrays(answer)[0].tolist() == [[1, 12]]

    _run(repository, scenario)


def test_a_request_that_is_late_fails(repository: Path) -> None:
    """`timeout` is in microseconds; a request that has not begun by then is not applied, and the text is Triton's."""
    now = [0.0]

    async def scenario() -> None:
        async with serve(configure(repository), clock=lambda: now[0]) as loopback, oip.stream(loopback) as stream:
            await stream.send(oip.request("history", {"x": X}, sequence=1, start=True))
            [model] = loopback.host.catalog.served
            # A session of the table that is busy: the queue waits, the clock goes on.
            row = int(loopback.host.table.open_rows()[0])
            model.scheduler.queue.set_busy(np.array([row]), 1)
            message = oip.request("history", {"x": X}, sequence=1)
            message.parameters["timeout"].int64_param = 1000
            future = await stream.post(message)
            await until(lambda: len(model.scheduler.queue) == 1)
            now[0] = 1.0
            model.scheduler.queue.clear_busy(np.array([row]))
            loopback.host.dispatcher.notify(model)
            assert (await asyncio.wait_for(future, 30)).error_message == "Request timeout expired"
            after = await stream.send(oip.request("history", {"x": X}, sequence=1))
            assert oip.arrays(after.infer_response)[0].tolist() == [[11]]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("SystemSharedMemoryStatus", grpc_service_pb2.SystemSharedMemoryStatusRequest),
        ("CudaSharedMemoryRegister", grpc_service_pb2.CudaSharedMemoryRegisterRequest),
        ("TraceSetting", grpc_service_pb2.TraceSettingRequest),
        ("LogSettings", grpc_service_pb2.LogSettingsRequest),
    ],
)
def test_what_is_not_carried_out_says_so(repository: Path, method: str, kind: Any) -> None:
    """UNIMPLEMENTED, with a sentence that says why."""

    async def scenario(loopback: Loopback) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match="this server") as caught:
            await oip.call(loopback, method, kind(), kind)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    _run(repository, scenario)


def test_models_are_listed_loaded_and_unloaded(tmp_path: Path) -> None:
    """A new folder is loaded by name; after the unloading live sequences go on and none begins."""
    write_model(tmp_path, "history")

    async def scenario(loopback: Loopback) -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{loopback.server.port}") as client:
            write_model(tmp_path, "lstm")
            await client.load_model("lstm")
            index = (await client.get_model_repository_index()).models
            assert {(each.name, each.state) for each in index} == {("history", "READY"), ("lstm", "READY")}
            await client.infer("history", history(1, library=triton_aio), sequence_id=1, sequence_start=True)
            await client.unload_model("history")
            assert not await client.is_model_ready("history")
            given = await client.infer("history", history(2, library=triton_aio), sequence_id=1)
            assert given.as_numpy("y").tolist() == [[12]]
            with pytest.raises(triton_aio.InferenceServerException):
                await client.infer("history", history(1, library=triton_aio), sequence_id=2, sequence_start=True)

    _run(tmp_path, scenario)


def test_a_stream_that_breaks_leaves_its_sequence(repository: Path) -> None:
    """Its client may go on with it by another connection, from what was applied."""

    async def scenario(loopback: Loopback) -> None:
        stream = oip.InferStream(loopback)
        await stream.send(oip.request("history", {"x": X}, sequence=1, start=True))
        await stream.abandon()
        await until(lambda: loopback.host.streams.num_streams == 0)
        answer = await oip.infer(loopback, oip.request("history", {"x": X + 1}, sequence=1))
        assert oip.arrays(answer)[0].tolist() == [[12]]

    _run(repository, scenario)


def test_a_server_that_drains_refuses(repository: Path) -> None:
    """What comes while it shuts down is told to go elsewhere, and it is not ready."""

    async def scenario(loopback: Loopback) -> None:
        loopback.host.gate.is_draining = True
        code, _ = await _refusal(loopback, oip.request("history", {"x": X}, sequence=1, start=True))
        assert code == "UNAVAILABLE"
        kind = grpc_service_pb2.ServerReadyResponse
        answer = await oip.call(loopback, "ServerReady", grpc_service_pb2.ServerReadyRequest(), kind)
        assert not answer.ready

    _run(repository, scenario)


def test_statistics_never_go_back(repository: Path) -> None:
    """While a long request is between its slices: no time is counted of it until it is answered."""

    async def scenario() -> None:
        now = itertools.count()
        # A clock that goes on by a second at every reading, so that every wait is seen.
        config = configure(repository, model={"max_tick_seconds": 1e-6})
        async with serve(config, clock=lambda: float(next(now))) as loopback, oip.stream(loopback) as stream:

            async def read() -> list[int]:
                # Within the process: a call would take longer than the request that it asks about.
                request = grpc_service_pb2.ModelStatisticsRequest(name="history")
                [told] = (await answers.statistics(request)).model_stats
                stats = told.inference_stats
                parts = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
                assert {part.count for part in parts} == {stats.success.count}
                assert sum(part.ns for part in parts) == stats.success.ns
                return [stats.success.count, *(part.ns for part in parts)]

            [model] = loopback.host.catalog.served
            answers = ModelAnswers(loopback.host, Inference(loopback.host))
            await stream.send(oip.request("history", {"x": X}, sequence=1, start=True))
            long = {"x": np.ones((1, 400), np.int64)}
            before, future = await read(), await stream.post(oip.request("history", long, sequence=1))
            await until(lambda: model.stats.begun_seconds > 0)
            middle = await read()
            assert not future.done()
            answer = await asyncio.wait_for(future, 30)
            assert not answer.error_message
            after = await read()
            assert all(first <= second <= third for first, second, third in zip(before, middle, after, strict=True))
            assert (before[0], after[0]) == (1, 2)

    asyncio.run(scenario())
