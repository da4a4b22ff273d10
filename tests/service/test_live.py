"""The live repository: files come, change and go, models are loaded and unloaded, while a real server serves.

Two models of one name spell the history of a session in different bases, so that every answer says which of them gave
it and which steps it has seen. Looks at the folder are taken by hand: two of them agree on what is settled.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from graphs import family, history_in
from grpc_health.v1 import health_pb2, health_pb2_grpc
from loopback import Loopback, StreamClient, array, configure, serve

from eddy.v1 import models_pb2

HISTORY = family("history")
BY_7 = history_in(7)
ONLY_BY_HAND: dict[str, Any] = {"poll_seconds": 0.0}


def _put(repository: Path, base: int, version: str = "1", name: str = "history") -> Path:
    """A model in a version's folder, in place of what was there, in one move."""
    folder = repository / name / version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".new").write_bytes(history_in(base).model().SerializeToString())
    return (folder / ".new").rename(folder / "model.onnx")


async def _settle(loopback: Loopback) -> None:
    """Two looks at the folder: what has changed is loaded, or taken away."""
    await loopback.host.watcher.poll()
    await loopback.host.watcher.poll()


def _run(repository: Path, scenario: Callable[[Loopback, StreamClient], Awaitable[None]], **settings: Any) -> None:
    """Runs a scenario against a server of `repository` and one stream to it."""
    clock = settings.pop("clock", None)
    config = configure(repository, **({"repository": ONLY_BY_HAND} | settings))

    async def run() -> None:
        options = {} if clock is None else {"clock": clock}
        async with serve(config, **options) as loopback, loopback.stream() as stream:
            await scenario(loopback, stream)

    asyncio.run(run())


async def _steps(stream: StreamClient, handle: int, position: int, *digits: int) -> list[int]:
    """The answers to single steps, or to one chunk, of a session."""
    result = await stream.step(HISTORY, [handle], [position], [list(digits)])
    assert not result.errors, result.errors
    values: list[int] = array(result.outputs[0])[0].tolist()
    return values


def _spelled(base: int, *digits: int) -> list[int]:
    answers, state = [], 0
    for digit in digits:
        state = base * state + digit
        answers.append(state)
    return answers


async def _fresh(stream: StreamClient, version: str = "") -> list[int]:
    """What a new session answers to 1, 2, 3."""
    [handle] = await stream.handles("history", version=version)
    return await _steps(stream, handle, 0, 1, 2, 3)


async def _listed(loopback: Loopback) -> dict[tuple[str, str], models_pb2.ModelStatus]:
    response = await loopback.unary(
        "ModelService/ListModels", models_pb2.ListModelsRequest(), models_pb2.ListModelsResponse
    )
    return {(status.name, status.version): status for status in response.models}


async def _health(loopback: Loopback, version: str = "1") -> int:
    stub = health_pb2_grpc.HealthStub(loopback.channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=f"models/history/{version}"))
    return int(response.status)


def test_a_changed_file_under_the_same_version(tmp_path: Path) -> None:
    """New sessions get the new file, those that are open stay on the old one, and both are told of."""
    _put(tmp_path, 10)

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        [old] = await stream.handles("history")
        assert await _steps(stream, old, 0, 1, 2) == [1, 12]
        before = (await _listed(loopback))["history", "1"]
        _put(tmp_path, 7)
        await _settle(loopback)
        assert await _fresh(stream) == _spelled(7, 1, 2, 3)
        assert await _steps(stream, old, 2, 3) == [123]
        after = (await _listed(loopback))["history", "1"]
        assert after.ready
        assert after.state == models_pb2.MODEL_STATE_READY
        assert after.package_digest != before.package_digest
        assert after.digest != before.digest
        assert (after.num_sessions, before.num_sessions) == (1, 1)
        [retiring] = after.retiring
        assert (retiring.package_digest, retiring.digest) == (before.package_digest, before.digest)
        assert retiring.num_sessions == 1

    _run(tmp_path, scenario)


def test_a_new_version(tmp_path: Path) -> None:
    """The latest version is what new sessions get; the one before stays, for those that are open and those that ask."""
    _put(tmp_path, 10)

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        [old] = await stream.handles("history")
        _put(tmp_path, 7, "2")
        await loopback.host.watcher.poll()
        assert await _fresh(stream) == [1, 12, 123]  # Not settled yet.
        await loopback.host.watcher.poll()
        assert await _fresh(stream) == _spelled(7, 1, 2, 3)
        assert await _fresh(stream, "1") == [1, 12, 123]
        assert await _steps(stream, old, 0, 4, 5) == [4, 45]
        assert await _health(loopback, "2") == health_pb2.HealthCheckResponse.SERVING

    _run(tmp_path, scenario)
