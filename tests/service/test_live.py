"""The live repository: files come, change and go, models are loaded and unloaded, while a real server serves.

Two models of one name spell the history of a session in different bases, so that every answer says which of them gave
it and which steps it has seen. Looks at the folder are taken by hand: two of them agree on what is settled.
"""

import asyncio
import gc
import os
import shutil
import threading
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from graphs import family, history_in
from grpc_health.v1 import health_pb2, health_pb2_grpc
from loopback import Loopback, StreamClient, array, chunk, configure, serve, until, write_model
from simulation import Clock

from eddy import Client, errors
from eddy.service.catalog import Catalog, Loading, Outcome
from eddy.service.entry import State
from eddy.service.errors import CapacityError, Reason
from eddy.service.totals import totals
from eddy.v1 import inference_pb2, models_pb2, sessions_pb2

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


def _run(root: Path, scenario: Callable[[Loopback, StreamClient], Awaitable[None]], **settings: Any) -> None:
    """Runs a scenario against a server of the repository `root` and one stream to it."""
    options = {"clock": settings.pop("clock")} if "clock" in settings else {}
    config = configure(root, **({"repository": ONLY_BY_HAND} | settings))

    async def run() -> None:
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


def test_a_file_that_is_still_being_copied(tmp_path: Path) -> None:
    """A file that differs at every look is not loaded; once two looks agree it is, once."""
    path = _put(tmp_path, 10)
    whole = history_in(7).model().SerializeToString()

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        await _settle(loopback)
        for size in range(100, len(whole), 100):
            path.write_bytes(whole[:size])
            await loopback.host.watcher.poll()
        status = (await _listed(loopback))["history", "1"]
        assert not status.HasField("error")
        assert await _fresh(stream) == [1, 12, 123]
        path.write_bytes(whole)
        await _settle(loopback)
        assert await _fresh(stream) == _spelled(7, 1, 2, 3)
        version = totals(loopback.host, is_ready=True).versions["history", "1"]
        assert (version.num_loads, version.num_failed_loads) == (2, 0)

    _run(tmp_path, scenario)


def test_a_broken_file_keeps_the_old_one_serving(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is named in the list, the log and the metrics, once; sessions are opened on what was loaded before."""
    path = _put(tmp_path, 10)
    whole = path.read_bytes()

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        [old] = await stream.handles("history")
        path.write_bytes(whole[: len(whole) // 2])
        for _ in range(4):
            await loopback.host.watcher.poll()
        assert await _fresh(stream) == [1, 12, 123]
        assert await _steps(stream, old, 0, 7) == [7]
        status = (await _listed(loopback))["history", "1"]
        assert status.ready
        assert "truncated" in status.error.message
        assert await _health(loopback) == health_pb2.HealthCheckResponse.SERVING
        version = totals(loopback.host, is_ready=True).versions["history", "1"]
        assert (version.is_ready, version.is_stale, version.num_failed_loads) == (True, True, 1)
        assert loopback.host.catalog.refusals_at_start == []
        [line] = [record.getMessage() for record in caplog.records if "truncated" in record.getMessage()]
        assert "loaded before, is still served" in line
        path.write_bytes(whole)  # Repaired: it is what is served.
        await _settle(loopback)
        status = (await _listed(loopback))["history", "1"]
        assert (status.ready, status.HasField("error")) == (True, False)
        version = totals(loopback.host, is_ready=True).versions["history", "1"]
        assert (version.is_stale, version.num_loads) == (False, 1)
        assert len(loopback.host.catalog.served) == 1

    _run(tmp_path, scenario)


def test_what_was_refused_at_the_start_is_repaired(tmp_path: Path) -> None:
    """The server becomes ready with the repair; what is refused later does not make it unready."""
    _put(tmp_path, 10)
    path = _put(tmp_path, 7, name="second")
    whole = path.read_bytes()
    path.write_bytes(whole[:100])

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        [reason] = loopback.host.catalog.refusals_at_start
        assert "'second'" in reason
        path.write_bytes(whole)
        await _settle(loopback)
        assert loopback.host.catalog.refusals_at_start == []
        [handle] = await stream.handles("second")
        assert await _steps(stream, handle, 0, 1, 1) == [1, 8]
        _put(tmp_path, 7, "2").write_bytes(whole[:100])
        await _settle(loopback)
        assert (await _listed(loopback))["history", "2"].state == models_pb2.MODEL_STATE_REFUSED
        assert loopback.host.catalog.refusals_at_start == []
        assert await _fresh(stream) == [1, 12, 123]

    _run(tmp_path, scenario)


def test_a_file_that_is_touched(tmp_path: Path) -> None:
    """The same contents with another time, or in another file, are no change: nothing is loaded."""
    path = _put(tmp_path, 10)

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        [before] = loopback.host.catalog.served
        os.utime(path, (1, 1))
        await _settle(loopback)
        _put(tmp_path, 10)
        await _settle(loopback)
        [after] = loopback.host.catalog.served
        assert after is before
        assert await _fresh(stream) == [1, 12, 123]

    _run(tmp_path, scenario)


def test_any_file_of_the_version_counts(tmp_path: Path) -> None:
    """A file beside the graph makes another model of the same graph, with another package digest."""
    _put(tmp_path, 10)

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        [old] = await stream.handles("history")
        before = (await _listed(loopback))["history", "1"]
        (tmp_path / "history" / "1" / "notes.txt").write_text("another")
        await _settle(loopback)
        after = (await _listed(loopback))["history", "1"]
        assert (after.digest, len(after.retiring)) == (before.digest, 1)
        assert after.package_digest != before.package_digest
        assert await _steps(stream, old, 0, 1) == [1]

    _run(tmp_path, scenario)


def test_links_that_are_set_to_another_file(tmp_path: Path) -> None:
    """A version that is a link, as volumes of Kubernetes are, is changed by setting it to another folder."""
    for base in (10, 7):
        _put(tmp_path / "store", base, name=str(base))
    (tmp_path / "models" / "history").mkdir(parents=True)
    link = tmp_path / "models" / "history" / "1"
    link.symlink_to(tmp_path / "store" / "10" / "1")

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        assert await _fresh(stream) == [1, 12, 123]
        (link.parent / ".new").symlink_to(tmp_path / "store" / "7" / "1")
        (link.parent / ".new").rename(link)
        await _settle(loopback)
        assert await _fresh(stream) == _spelled(7, 1, 2, 3)

    _run(tmp_path / "models", scenario)


def test_a_lone_file(tmp_path: Path) -> None:
    """A file of the repository's top comes, changes and goes as a version 1 does."""
    _put(tmp_path, 10, name="other")
    lone = tmp_path / "history.onnx"

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        lone.write_bytes(history_in(10).model().SerializeToString())
        await _settle(loopback)
        assert await _fresh(stream, "1") == [1, 12, 123]
        lone.write_bytes(history_in(7).model().SerializeToString())
        await _settle(loopback)
        [handle] = await stream.handles("history")
        assert await _steps(stream, handle, 0, 1, 2) == _spelled(7, 1, 2)
        lone.unlink()
        await _settle(loopback)
        assert await _steps(stream, handle, 2, 3) == _spelled(7, 1, 2, 3)[2:]
        detail = await stream.refusal(open=inference_pb2.OpenSessions(model="history", count=1))
        assert detail.reason == Reason.MODEL_NOT_READY

    _run(tmp_path, scenario)


@pytest.mark.parametrize("what", ["file", "version", "model"])
def test_a_removed_model(tmp_path: Path, what: str) -> None:
    """It opens no sessions, those that are open go on, and with the last of them it is gone and freed."""
    path = _put(tmp_path, 10)
    _put(tmp_path, 10, name="other")

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        host = loopback.host
        [handle] = await stream.handles("history")
        if what == "file":
            path.unlink()
        else:
            shutil.rmtree(path.parent if what == "version" else path.parent.parent)
        await host.watcher.poll()
        assert host.catalog.find("history", "1").state is State.READY
        await host.watcher.poll()
        assert host.catalog.find("history", "1").state is State.RETIRING
        detail = await stream.refusal(open=inference_pb2.OpenSessions(model="history", count=1))
        assert detail.reason == Reason.MODEL_NOT_READY
        assert "its files are gone" in detail.message
        assert await _steps(stream, handle, 0, 1, 2) == [1, 12]
        assert await _health(loopback) == health_pb2.HealthCheckResponse.NOT_SERVING
        [listed] = await _sessions(loopback, "history")
        assert (listed.model, listed.next_position) == ("history", 2)
        await stream.send(close=inference_pb2.CloseSessions(handles=np.array([handle], "<u8").tobytes()))
        assert host.release_models() == 1
        assert ("history", "1") not in await _listed(loopback)
        assert [model.file.name for model in host.catalog.served] == ["other"]

    _run(tmp_path, scenario)


async def _sessions(loopback: Loopback, model: str) -> list[sessions_pb2.Session]:
    """The open sessions of a model."""
    request = sessions_pb2.ListSessionsRequest(model=model)
    response = await loopback.unary("SessionService/ListSessions", request, sessions_pb2.ListSessionsResponse)
    return list(response.sessions)


def test_a_model_that_comes_back_while_it_retires(tmp_path: Path) -> None:
    """It is taken back as it is: nothing is loaded, and its sessions and new ones share it."""
    path = _put(tmp_path, 10)
    _put(tmp_path, 10, name="other")

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        before = loopback.host.catalog.ready("history", "")
        handles = await stream.handles("history")
        path.rename(tmp_path / "kept")
        await _settle(loopback)
        assert before.retired_at is not None
        (tmp_path / "kept").rename(path)
        await _settle(loopback)
        assert loopback.host.catalog.ready("history", "") is before
        assert before.retired_at is None
        handles += await stream.handles("history")
        result = await stream.step(HISTORY, handles, [0, 0], [[1], [2]])
        assert array(result.outputs[0]).tolist() == [[1], [2]]

    _run(tmp_path, scenario)


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_the_repository_vanishes(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Everything is served on, the log and the metrics say so once; when the folder is back nothing has changed."""
    _put(tmp_path / "models", 10)

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        (tmp_path / "models").rename(tmp_path / "away")
        if how == "empty":
            (tmp_path / "models").mkdir()
        for _ in range(3):
            await loopback.host.watcher.poll()
        assert await _fresh(stream) == [1, 12, 123]
        assert not totals(loopback.host, is_ready=True).is_repository_readable
        lines = [record.getMessage() for record in caplog.records if "model repository" in record.getMessage()]
        assert len(lines) == 1
        assert "still served" in lines[0]
        before = loopback.host.catalog.ready("history", "")
        if how == "empty":
            (tmp_path / "models").rmdir()
        (tmp_path / "away").rename(tmp_path / "models")
        await _settle(loopback)
        assert totals(loopback.host, is_ready=True).is_repository_readable
        assert loopback.host.catalog.ready("history", "") is before

    _run(tmp_path / "models", scenario)


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    """What was loaded from it is served on, and it is named; other models are followed meanwhile."""
    _put(tmp_path, 10)

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        # A link to itself: nobody, not even root, can look into it.
        folder = tmp_path / "history" / "1"
        (folder / "loop").symlink_to(folder / "loop")
        (folder / "model.onnx").unlink()
        _put(tmp_path, 7, name="second")
        await _settle(loopback)
        assert await _fresh(stream) == [1, 12, 123]
        [handle] = await stream.handles("second")
        assert await _steps(stream, handle, 0, 1, 1) == [1, 8]

    _run(tmp_path, scenario)


async def _load(loopback: Loopback, name: str = "history") -> list[models_pb2.ModelStatus]:
    request = models_pb2.LoadModelRequest(name=name)
    return list((await loopback.unary("ModelService/LoadModel", request, models_pb2.LoadModelResponse)).models)


async def _unload(loopback: Loopback, name: str = "history") -> list[models_pb2.ModelStatus]:
    request = models_pb2.UnloadModelRequest(name=name)
    return list((await loopback.unary("ModelService/UnloadModel", request, models_pb2.UnloadModelResponse)).models)


def test_unload_and_load_by_request(tmp_path: Path) -> None:
    """Unloaded, it opens no sessions though its file lies there; sessions go on; loaded again, it is the same model."""
    _put(tmp_path, 10)

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        [handle] = await stream.handles("history")
        assert await _steps(stream, handle, 0, 1) == [1]
        [status] = await _unload(loopback)
        assert (status.state, status.ready) == (models_pb2.MODEL_STATE_UNLOADED, False)
        assert [each.num_sessions for each in status.retiring] == [1]
        await _settle(loopback)
        detail = await stream.refusal(open=inference_pb2.OpenSessions(model="history", count=1))
        assert (Reason(detail.reason), "unloaded by request" in detail.message) == (Reason.MODEL_NOT_READY, True)
        assert await _steps(stream, handle, 1, 2) == [12]
        [status] = await _unload(loopback)  # Again: as it was.
        assert status.state == models_pb2.MODEL_STATE_UNLOADED
        [status] = await _load(loopback)
        assert (status.state, len(status.retiring)) == (models_pb2.MODEL_STATE_READY, 0)
        assert await _steps(stream, handle, 2, 3) == [123]
        assert await _fresh(stream) == [1, 12, 123]
        assert totals(loopback.host, is_ready=True).versions["history", "1"].num_loads == 1

    _run(tmp_path, scenario)


def test_what_was_unloaded_is_loaded_when_its_file_changes(tmp_path: Path) -> None:
    """A changed file or a new version of an unloaded model is loaded, the others stay unloaded."""
    _put(tmp_path, 10)
    _put(tmp_path, 10, "2")

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        await _unload(loopback)
        assert loopback.host.release_models() == 0  # Freed with the request: nobody had sessions.
        assert len(loopback.host.catalog.served) == 0
        _put(tmp_path, 7)
        await _settle(loopback)
        states = {key: status.state for key, status in (await _listed(loopback)).items()}
        assert states == {
            ("history", "1"): models_pb2.MODEL_STATE_READY,
            ("history", "2"): models_pb2.MODEL_STATE_UNLOADED,
        }
        assert await _fresh(stream) == _spelled(7, 1, 2, 3)
        _put(tmp_path, 8, "3")
        await _settle(loopback)
        assert await _fresh(stream) == _spelled(8, 1, 2, 3)

    _run(tmp_path, scenario)


def test_load_does_not_wait_for_a_look(tmp_path: Path) -> None:
    """A request loads what lies there now: new models, new versions, changed files; and says what is not good."""
    _put(tmp_path, 10)

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        _put(tmp_path, 7, "2")
        assert [status.version for status in await _load(loopback)] == ["1", "2"]
        assert await _fresh(stream) == _spelled(7, 1, 2, 3)
        _put(tmp_path, 8, "2")
        await _load(loopback)
        assert await _fresh(stream) == _spelled(8, 1, 2, 3)
        path = _put(tmp_path, 9, "3")
        path.write_bytes(path.read_bytes()[:99])
        detail = await loopback.refusal(
            "ModelService/LoadModel", models_pb2.LoadModelRequest(name="history"), models_pb2.LoadModelResponse
        )
        assert (Reason(detail.reason), "'3'" in detail.message) == (Reason.MODEL_NOT_READY, True)
        assert await _fresh(stream) == _spelled(8, 1, 2, 3)
        detail = await loopback.refusal(
            "ModelService/LoadModel", models_pb2.LoadModelRequest(name="nobody"), models_pb2.LoadModelResponse
        )
        assert Reason(detail.reason) is Reason.UNKNOWN_MODEL
        detail = await loopback.refusal(
            "ModelService/UnloadModel", models_pb2.UnloadModelRequest(name="nobody"), models_pb2.UnloadModelResponse
        )
        assert Reason(detail.reason) is Reason.UNKNOWN_MODEL

    _run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("host", "control", "is_allowed"),
    [("127.0.0.1", "loopback", True), ("127.0.0.1", "off", False), ("0.0.0.0", "loopback", False), ("::", "on", True)],  # noqa: S104  not listened on
)
def test_who_may_load(host: str, control: str, *, is_allowed: bool) -> None:
    """On loopback everybody unless it is turned off, elsewhere nobody unless it is turned on."""
    config = configure(
        Path("models"), server={"host": host, "allow_plaintext": True}, repository={"load_control": control}
    )
    assert config.allows_load_control == is_allowed


def test_load_control_that_is_off(tmp_path: Path) -> None:
    """Both calls are refused with PERMISSION_DENIED, and nothing changes."""
    _put(tmp_path, 10)

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        for method, request, response in (
            ("LoadModel", models_pb2.LoadModelRequest(name="history"), models_pb2.LoadModelResponse),
            ("UnloadModel", models_pb2.UnloadModelRequest(name="history"), models_pb2.UnloadModelResponse),
        ):
            detail = await loopback.refusal(f"ModelService/{method}", request, response)
            assert Reason(detail.reason) is Reason.LOAD_CONTROL_OFF
            assert detail.grpc_code == grpc.StatusCode.PERMISSION_DENIED.value[0]
        assert await _fresh(stream) == [1, 12, 123]

    _run(tmp_path, scenario, repository=ONLY_BY_HAND | {"load_control": "off"})


def test_the_longest_time_on_old_files(tmp_path: Path) -> None:
    """After `retire_seconds` sessions of a replaced model end with notice; the new ones' go on."""
    _put(tmp_path, 10)
    clock = Clock()

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        host = loopback.host
        [old] = await stream.handles("history")
        _put(tmp_path, 7)
        await _settle(loopback)
        [new] = await stream.handles("history")
        clock.now += 59.0
        assert host.endings.end_retired() == 0
        assert await _steps(stream, old, 0, 1) == [1]
        clock.now += 2.0
        assert host.endings.end_retired() == 1
        ended = await stream.notice("ended")
        assert np.frombuffer(ended.handles, "<u8").tolist() == [old]
        assert Reason(ended.error.reason) is Reason.MODEL_RETIRED
        assert host.release_models() == 1
        assert await _steps(stream, new, 0, 1, 1) == [1, 8]
        [found] = totals(host, is_ready=True).models
        assert found.ended_sessions["retired"] == 1

    _run(tmp_path, scenario, clock=clock, repository=ONLY_BY_HAND | {"retire_seconds": 60.0})


def test_idle_sessions_of_a_replaced_model(tmp_path: Path) -> None:
    """They expire as others do, and the model goes with the last of them; its counters stay."""
    _put(tmp_path, 10)
    clock = Clock()

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        host = loopback.host
        handles = await stream.handles("history", 3)
        await stream.step(HISTORY, handles, [0] * 3, [[1, 2]] * 3)
        _put(tmp_path, 7)
        await _settle(loopback)
        await _fresh(stream)
        [before] = totals(host, is_ready=True).models
        clock.now += 601.0
        await stream.handles("history")
        assert host.endings.expire() == 4
        assert host.release_models() == 1
        [after] = totals(host, is_ready=True).models
        assert (before.num_row_steps, after.num_row_steps, after.num_ticks) == (9, 9, before.num_ticks)
        assert after.num_opened_sessions == 5
        assert (before.num_slots, after.num_slots) == (512, 256)
        assert after.sessions == {"attached": 1, "detached": 0}

    _run(tmp_path, scenario, clock=clock)


def test_sessions_are_stepped_while_files_change(tmp_path: Path) -> None:
    """Streams step, open and close all the while: no step is lost and every answer is of the model of its session."""
    _put(tmp_path, 10)

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        done = asyncio.Event()
        bases: set[int] = set()

        async def user(seed: int) -> int:
            generator = np.random.default_rng(seed)
            num_steps = 0
            async with loopback.stream() as mine:
                while not done.is_set():
                    opened = await mine.open("history", 4)
                    handles = np.frombuffer(opened.handles, "<u8").tolist()
                    # The first answers tell the base: 1, then base + 1.
                    result = await mine.step(HISTORY, handles, [0] * 4, [[1, 1]] * 4)
                    first = array(result.outputs[0])[:, 1]
                    base = int(first[0]) - 1
                    assert first.tolist() == [base + 1] * 4
                    bases.add(base)
                    states, position = first.copy(), 2
                    for _ in range(int(generator.integers(1, 40))):
                        digits = generator.integers(0, 10, (4, 1))
                        result = await mine.step(HISTORY, handles, [position] * 4, digits)
                        assert not result.errors
                        states = states * base + digits[:, 0]
                        assert array(result.outputs[0])[:, 0].tolist() == states.tolist()
                        position += 1
                        num_steps += 4
                    closed = await mine.send(close=inference_pb2.CloseSessions(handles=opened.handles))
                    assert not closed.closed.errors
            return num_steps

        users = [asyncio.create_task(user(seed)) for seed in range(5)]
        for base in range(11, 23):
            _put(tmp_path, base)
            await _settle(loopback)
            assert await _fresh(stream) == _spelled(base, 1, 2, 3)
            await until(lambda base=base: base in bases or any(each.done() for each in users))
        done.set()
        assert min(await asyncio.gather(*users)) > 0
        assert bases >= set(range(11, 23))

    _run(tmp_path, scenario)


def test_many_changes_leave_nothing_behind(tmp_path: Path) -> None:
    """After fifty changes of a model with sessions: one arena, one number, no more threads, files or memory."""
    _put(tmp_path, 10)
    process = psutil.Process()
    bindings: list[int] = []

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        host = loopback.host

        async def change(base: int) -> None:
            handles = await stream.handles("history", 32)
            await stream.step(HISTORY, handles, [0] * 32, [[1]] * 32)
            _put(tmp_path, base)
            await _settle(loopback)
            result = await stream.step(HISTORY, handles, [1] * 32, [[2]] * 32)
            assert array(result.outputs[0])[0].tolist() == [base - 1 + 2]
            await stream.send(close=inference_pb2.CloseSessions(handles=np.array(handles, "<u8").tobytes()))
            assert host.release_models() == 1
            bindings.append(host.catalog.served.num_indices)

        for base in range(11, 21):
            await change(base)
        gc.collect()
        num_files, num_threads, num_bytes = process.num_fds(), threading.active_count(), process.memory_info().rss
        freed = weakref.ref(host.catalog.ready("history", ""))
        for base in range(21, 61):
            await change(base)
        assert freed() is None  # Without a collection: nothing refers to it in a circle.
        assert max(bindings) == 2
        assert len(host.catalog.served) == 1
        gc.collect()
        assert process.num_fds() <= num_files + 2
        assert threading.active_count() <= num_threads + 1
        # The free slots of forty models alone, int64 each, would be 640 MB.
        assert process.memory_info().rss - num_bytes < 100 << 20
        assert await _fresh(stream) == _spelled(60, 1, 2, 3)

    _run(tmp_path, scenario, model={"max_slots": 2_000_000})


def test_a_number_that_another_model_has_now(tmp_path: Path) -> None:
    """What was learned of the messages of a freed model is not believed of the next one with its number."""
    _put(tmp_path, 10, name="alpha")
    _put(tmp_path, 10)
    two = family("two-inputs")

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        host = loopback.host
        [handle] = await stream.handles("alpha")
        for position in range(3):
            await stream.step(HISTORY, [handle], [position], [[1]])
        index = host.catalog.ready("alpha", "").index
        await stream.send(close=inference_pb2.CloseSessions(handles=np.array([handle], "<u8").tobytes()))
        shutil.rmtree(tmp_path / "alpha")
        write_model(tmp_path, "two-inputs")
        await _settle(loopback)
        await _settle(loopback)
        await _load(loopback, "two-inputs")
        served = host.catalog.ready("two-inputs", "")
        shutil.rmtree(tmp_path / "two-inputs")
        if served.index != index:  # It was loaded before the other was freed: once more.
            await _settle(loopback)
            write_model(tmp_path, "two-inputs")
            await _settle(loopback)
            served = host.catalog.ready("two-inputs", "")
        assert served.index == index
        [handle] = await stream.handles("two-inputs")
        assert two.name == "two-inputs"
        detail = await stream.refusal(step=chunk(HISTORY, [handle], [0], [[1]]))
        assert Reason(detail.reason) is Reason.UNKNOWN_INPUT

    _run(tmp_path, scenario)


class _Slow(Catalog):
    """A catalog whose loads wait until they are let go."""

    began = threading.Event()
    may_go_on = threading.Event()

    def carry_out(self, loading: Loading) -> Outcome:
        """As ever, later."""
        self.began.set()
        assert self.may_go_on.wait(30.0)
        return super().carry_out(loading)


def _slow(loopback: Loopback) -> _Slow:
    _Slow.began.clear()
    _Slow.may_go_on.clear()
    catalog: Any = loopback.host.catalog
    catalog.__class__ = _Slow
    return catalog  # type: ignore[no-any-return]


def test_a_model_that_loads_holds_nobody_up(tmp_path: Path) -> None:
    """While one is loading, others step, its state is told, and a request to unload it waits for it."""
    _put(tmp_path, 10)

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        slow = _slow(loopback)
        _put(tmp_path, 7, name="second")
        loading = asyncio.create_task(_load(loopback, "second"))
        await until(slow.began.is_set)
        assert await _fresh(stream) == [1, 12, 123]
        assert (await _listed(loopback))["second", "1"].state == models_pb2.MODEL_STATE_LOADING
        detail = await stream.refusal(open=inference_pb2.OpenSessions(model="second", count=1))
        assert "being loaded" in detail.message
        unloading = asyncio.create_task(_unload(loopback, "second"))
        assert await _fresh(stream) == [1, 12, 123]
        assert not loading.done()
        slow.may_go_on.set()
        await loading
        [status] = await unloading
        assert status.state == models_pb2.MODEL_STATE_UNLOADED

    _run(tmp_path, scenario)


def test_a_caller_that_gives_up(tmp_path: Path) -> None:
    """A load whose caller is gone is finished all the same."""
    _put(tmp_path, 10)

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        slow = _slow(loopback)
        _put(tmp_path, 7)
        loading = asyncio.create_task(_load(loopback))
        await until(slow.began.is_set)
        loading.cancel()
        slow.may_go_on.set()
        await until(lambda: loopback.host.catalog.ready("history", "").file.package and loopback.host.watcher.is_idle)
        assert await _fresh(stream) == _spelled(7, 1, 2, 3)

    _run(tmp_path, scenario)


def test_drain_while_a_model_loads(tmp_path: Path) -> None:
    """What was asked for is finished and answered; further requests are refused, and nothing more is loaded."""
    _put(tmp_path, 10)

    async def scenario() -> None:
        async with serve(configure(tmp_path, repository=ONLY_BY_HAND)) as loopback:
            slow = _slow(loopback)
            _put(tmp_path, 7)
            loading = asyncio.create_task(_load(loopback))
            await until(slow.began.is_set)
            draining = asyncio.create_task(loopback.server.drain())
            await until(lambda: loopback.host.gate.is_draining)
            assert not loopback.host.is_idle
            with pytest.raises(CapacityError, match="shutting down"):
                await loopback.host.load_model("history")
            slow.may_go_on.set()
            [status] = await loading
            assert status.ready
            await draining
            assert not [thread for thread in threading.enumerate() if thread.name == "eddy-loader"]

    asyncio.run(scenario())


def test_the_folder_is_looked_at_by_itself(tmp_path: Path) -> None:
    """With an interval nobody need ask: a change is served soon, and health tells who watches it."""
    _put(tmp_path, 10)

    async def scenario(loopback: Loopback, stream: StreamClient) -> None:
        first = loopback.host.catalog.ready("history", "")
        _put(tmp_path, 7)
        await until(lambda: loopback.host.catalog.ready("history", "") is not first)
        assert await _fresh(stream) == _spelled(7, 1, 2, 3)
        stub = health_pb2_grpc.HealthStub(loopback.channel)
        watching = stub.Watch(health_pb2.HealthCheckRequest(service="models/history/1"))
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        _put(tmp_path, 7, name="other")
        shutil.rmtree(tmp_path / "history")
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watching.cancel()

    _run(tmp_path, scenario, repository={"poll_seconds": 0.01})


def test_clients_keep_sessions_of_two_models_apart(tmp_path: Path) -> None:
    """One client's sessions of one version, opened before and after a change, are stepped together and are right."""
    _put(tmp_path, 10)

    async def scenario(loopback: Loopback, _: StreamClient) -> None:
        async with Client(f"127.0.0.1:{loopback.server.port}") as client:
            old = await client.open("history")
            assert (await client.infer("history", [[1, 2]], "1"))[0].tolist() == [1, 12]
            _put(tmp_path, 7)
            await _settle(loopback)
            new = await client.open("history")
            for digit in (1, 2, 3):
                answers = await asyncio.gather(old.step(digit), new.step(digit))
            assert [int(answer) for answer in answers] == [123, _spelled(7, 1, 2, 3)[-1]]
            assert (await client.infer("history", [[1, 2]], "1"))[0].tolist() == [1, 9]
            attached = await client.attach(old.id, old.resume_token)
            assert int(await attached.step(4)) == 1234
            [status] = await client.unload_model("history")
            assert status.state == models_pb2.MODEL_STATE_UNLOADED
            with pytest.raises(errors.ModelUnavailable):
                await client.open("history")
            [status] = await client.load_model("history")
            assert status.ready

    _run(tmp_path, scenario)
