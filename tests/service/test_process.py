"""The real process, `eddy serve`: ready, metrics, SIGTERM under load, and configurations that it refuses."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from authority import Authority
from graphs import family
from loopback import StreamClient, array, chunk, write_model
from target import READY

from eddy import SyncClient, Tls
from eddy.service.errors import Reason
from eddy.v1 import inference_pb2

HISTORY = family("history")
EXPORTED = Path(__file__).parents[1] / "inspection" / "exported"
_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ (INFO|ERROR) eddy\.")


class Process:
    """A server process that is ready."""

    def __init__(self, process: "subprocess.Popen[str]", line: str) -> None:
        match = READY.search(line)
        assert match, f"the server said {line!r}"
        self.process = process
        self.num_ready, self.num_models, self.grpc_port, self.http_port = (int(group) for group in match.groups())

    def http(self, path: str) -> tuple[int, str]:
        """Status and body of an HTTP answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    @property
    def resident_bytes(self) -> int:
        """Resident memory."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "eddy.cli", "serve", "--grpc-port", "0", "--http-port", "0", *arguments]


@contextmanager
def _serving(repository: Path, *arguments: str) -> Iterator[Process]:
    process = subprocess.Popen(  # noqa: S603  our own command
        _command("--model-repository", str(repository), *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
    )
    try:
        assert process.stdout is not None
        yield Process(process, process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def _config(folder: Path, text: str) -> Path:
    path = folder / "eddy.toml"
    path.write_text(text)
    return path


def test_sigterm_while_models_load(tmp_path: Path) -> None:
    """SIGTERM before the server serves ends it with 0 at once: as process 1 of a container it must not be ignored."""
    # Without a contract each is inspected, by a process of its own: all of them take far longer than this test waits.
    for number in range(100):
        version = tmp_path / "models" / str(number) / "1"
        version.mkdir(parents=True)
        shutil.copy(EXPORTED / "torch-dynamo-gru.onnx", version / "model.onnx")
    drafts = tmp_path / "drafts"
    drafts.mkdir()
    process = subprocess.Popen(  # noqa: S603  our own command
        _command("--model-repository", str(tmp_path / "models")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(drafts)},
    )
    try:
        inspecting = _children(process)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, "")
    # It leaves neither the inspecting process nor what that one wrote.
    assert psutil.wait_procs(inspecting, timeout=20)[1] == []
    assert list(drafts.iterdir()) == []


def _children(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that it has started, once there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if found := psutil.Process(process.pid).children():
            return found
        time.sleep(0.01)
    raise AssertionError(f"the server started no process, exit code {process.poll()}")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts of a process's threads are Linux's")
@pytest.mark.parametrize(("asked", "is_woken"), [("", False), ("event_engine_listener", True)])
def test_messages_do_not_wake_grpcs_event_engine(
    asked: str, is_woken: bool, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its threads sleep while messages come, unless the environment asks for it; gRPC knows the setting."""
    num_steps = 300

    async def steps(port: int) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stream = StreamClient(channel)
            handles = await stream.handles("history", 1)
            for position in range(num_steps):
                await stream.step(HISTORY, handles, [position], [[1]])
            await stream.close()

    monkeypatch.delenv("GRPC_EXPERIMENTS", raising=False)
    if asked:
        monkeypatch.setenv("GRPC_EXPERIMENTS", asked)
    with _serving(repository) as server:
        before = _num_wakes(server.process.pid, "event_engine")
        asyncio.run(steps(server.grpc_port))
        num_wakes = _num_wakes(server.process.pid, "event_engine") - before
        server.process.send_signal(signal.SIGTERM)
        _, log = server.process.communicate(timeout=20)
    # Awake for messages they wake four times a step; otherwise now and then, the more often the slower the machine is.
    assert (num_wakes > 2 * num_steps) == is_woken, num_wakes
    assert "experiment" not in log


def _num_wakes(pid: int, thread: str) -> int:
    """How often threads of that name went to sleep by themselves."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # It has ended meanwhile.
            lines = (task / "status").read_text().splitlines()
            if lines[0].split() == ["Name:", thread]:
                total += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return total


def test_ready_metrics_and_a_quiet_end(repository: Path) -> None:
    """The three HTTP paths answer, metrics count what was done, and SIGTERM ends an idle server with 0 in no time."""

    async def steps(port: int) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stream = StreamClient(channel)
            handles = await stream.handles("history", 3)
            await stream.step(HISTORY, handles, [0] * 3, [[1, 2]] * 3)
            await stream.step(HISTORY, handles, [0] * 3, [[1, 2]] * 3)
            await stream.refusal(step=chunk(HISTORY, handles[:1], [9], [[1]]))
            await stream.close()

    with _serving(repository) as server:
        assert (server.num_ready, server.num_models) == (1, 1)
        assert server.http("/healthz") == (200, "ok\n")
        assert server.http("/readyz") == (200, "ready\n")
        assert server.http("/other")[0] == 404
        asyncio.run(steps(server.grpc_port))
        status, text = server.http("/metrics")
        assert status == 200
        assert 'eddy_steps_total{model="history",version="1"} 6.0' in text
        assert 'eddy_sessions{model="history",state="detached",version="1"} 3.0' in text
        assert 'eddy_replayed_chunks_total{model="history",version="1"} 3.0' in text
        assert 'eddy_refusals_total{reason="position_ahead"} 1.0' in text
        assert "eddy_ready 1.0" in text
        assert 'eddy_model_ready{model="history",version="1"} 1.0' in text
        assert 'eddy_queue_delay_seconds_count{model="history",version="1"} 1.0' in text
        assert 'eddy_tick_rows_bucket{le="4.0",model="history",version="1"} 1.0' in text
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert time.monotonic() - start < 10


def test_a_model_that_does_not_load_is_not_ready(repository: Path, tmp_path: Path) -> None:
    """/readyz names the model and why; the process serves the other, and stays healthy."""
    write_model(tmp_path, "history")
    path = write_model(tmp_path, "lstm")
    path.write_bytes(path.read_bytes()[:100])
    with _serving(tmp_path) as server:
        assert (server.num_ready, server.num_models) == (1, 2)
        status, text = server.http("/readyz")
        assert status == 503
        assert "'lstm'" in text
        assert "truncated" in text
        assert server.http("/healthz")[0] == 200
        assert repository.exists()


def test_sigterm_under_load(repository: Path) -> None:
    """Several streams step as fast as they can when SIGTERM comes: one answer each, results first, then DRAINING.

    Answers are the right ones up to the last, nothing is applied after a refusal, and the process exits 0.
    """
    num_streams, num_sessions = 4, 8

    async def client(channel: grpc.aio.Channel, number: int, warm: asyncio.Semaphore) -> tuple[int, int]:
        stream = StreamClient(channel)
        handles = await stream.handles("history", num_sessions, max_in_flight=4)
        digit, done, refused, step = number + 1, 0, 0, 0
        expected = 0
        futures: list[tuple[int, asyncio.Future[inference_pb2.StreamResponse]]] = []
        while True:
            while len(futures) < 4 and not refused:
                values = [[digit]] * num_sessions
                try:
                    futures.append(
                        (step, await stream.post(step=chunk(HISTORY, handles, [step] * num_sessions, values)))
                    )
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    refused += 1  # The stream has ended: this one was never accepted.
                    break
                step += 1
            if not futures:
                break
            _, future = futures.pop(0)
            response = await asyncio.wait_for(future, 30)
            if response.WhichOneof("event") == "error":
                assert Reason(response.error.reason) is Reason.DRAINING
                refused += 1
                continue
            assert not refused, "a chunk was applied after an earlier one of its session was refused"
            assert not response.step.errors
            expected = int(np.int64(expected * 10 + digit) if done < 15 else 0)
            if done < 15:
                assert array(response.step.outputs[0]).tolist() == [[expected]] * num_sessions
            done += 1
            if done == 20:
                warm.release()
        await stream.close()
        assert [notice.WhichOneof("event") for notice in stream.notices] == ["draining"]
        return done, refused

    async def load(server: Process) -> list[tuple[int, int]]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            warm = asyncio.Semaphore(0)
            clients = [asyncio.create_task(client(channel, number, warm)) for number in range(num_streams)]
            for _ in clients:
                await asyncio.wait_for(warm.acquire(), 30)
            server.process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*clients)

    with _serving(repository) as server:
        results = asyncio.run(load(server))
        assert server.process.wait(20) == 0
        assert all(done >= 20 and refused >= 1 for done, refused in results)


def test_a_slow_reader_does_not_grow_memory(repository: Path, tmp_path: Path) -> None:
    """A client that sends without reading is held back by flow control; others go on, and memory stays."""
    config = _config(tmp_path, "[server]\nmax_stream_requests = 32\n")
    rows, steps = 64, 256
    message_bytes = rows * steps * 8

    async def flood(channel: grpc.aio.Channel) -> tuple[Any, int, bool]:
        """Writes until the server takes no more; reads nothing but the first answer."""
        call: Any = channel.stream_stream(
            "/eddy.v1.InferenceService/Stream", None, inference_pb2.StreamResponse.FromString
        )()
        opening = inference_pb2.OpenSessions(model="history", count=rows)
        await call.write(inference_pb2.StreamRequest(tag=1, open=opening).SerializeToString())
        handles = np.frombuffer((await call.read()).opened.handles, "<u8").tolist()
        values = np.ones((rows, steps), np.int64)
        for number in range(3000):
            message = chunk(HISTORY, handles, [number * steps] * rows, values)
            request = inference_pb2.StreamRequest(tag=2 + number, step=message).SerializeToString()
            try:
                await asyncio.wait_for(call.write(request), 1.0)
            except TimeoutError:
                return call, number, True
        return call, 3000, False

    async def scenario(server: Process) -> None:
        address = f"127.0.0.1:{server.grpc_port}"
        async with grpc.aio.insecure_channel(address) as channel, grpc.aio.insecure_channel(address) as other:
            stream = StreamClient(other)
            handles = await stream.handles("history", 4)
            await stream.step(HISTORY, handles, [0] * 4, [[1]] * 4)
            before = server.resident_bytes
            call, num_written, is_held_back = await flood(channel)
            assert is_held_back, "the server read everything that it was sent"
            for step in range(1, 50):
                result = await stream.step(HISTORY, handles, [step] * 4, [[2]] * 4)
                assert not result.errors
            grown = server.resident_bytes - before
            # What may be unanswered, in and out and kept, and the buffers of the ticks; not what was sent.
            allowed = 6 * 32 * message_bytes + (64 << 20)
            assert grown < allowed, f"{grown} bytes for {num_written} messages of {message_bytes}"
            call.cancel()
            await stream.close()

    with _serving(repository, "--config", str(config)) as server:
        asyncio.run(scenario(server))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[server]\ngrpc_prot = 1\n", "server.grpc_prot: unknown key, did you mean server.grpc_port?"),
        ("[model]\nmax_rows = 'many'\n", "model.max_rows: got 'many', expected a positive integer"),
        ("[server]\nhost = '0.0.0.0'\n", "expected a loopback address; set server.tls_certificate and server.tls_key"),
        ("[model\n", "eddy.toml: not a TOML file"),
    ],
)
def test_a_wrong_configuration_is_refused(repository: Path, tmp_path: Path, text: str, complaint: str) -> None:
    """The process ends with 2 and names the file, the key, what came and what was expected."""
    config = _config(tmp_path, text)
    said = _refused(2, "--model-repository", str(repository), "--config", str(config))
    assert complaint in said
    assert str(config) in said


def _refused(code: int, *arguments: str, command: Sequence[str] = (), **environment: str) -> str:
    """What a server says that must not start: one line, with the exit code."""
    done = subprocess.run(  # noqa: S603  our own command
        [*command, *_command(*arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )
    said = [line for line in done.stderr.splitlines() if not _LOG_LINE.match(line)]
    assert done.returncode == code, done.stderr
    assert len(said) == 1, done.stderr
    assert not done.stdout
    return said[0]


def test_a_wrong_environment_is_refused(tmp_path: Path) -> None:
    """A variable that is nobody's, one with a wrong value, and a file that is not there."""
    assert "did you mean EDDY_SERVER_GRPC_PORT?" in _refused(2, EDDY_SERVER_GRPC_PROT="1")
    assert "EDDY_MODEL_MAX_ROWS: got 'x', expected a positive integer" in _refused(2, EDDY_MODEL_MAX_ROWS="x")
    missing = str(tmp_path / "none.toml")
    assert f"{missing}: No such file or directory" in _refused(2, EDDY_CONFIG=missing)


def test_a_wrong_command_line_is_refused() -> None:
    """A misspelt flag, a value of the wrong type and an unknown key."""
    assert "unknown flag --grpc-prot, did you mean --grpc-port?" in _refused(2, "--grpc-prot", "1")
    assert "--grpc-port: got 'x', expected an integer, 0 to 65535" in _refused(2, "--grpc-port", "x")
    assert "did you mean model.max_rows?" in _refused(2, "--set", "model.maxrows=1")


def test_ports_in_use(repository: Path) -> None:
    """A taken port of either kind, and one port for both, are told before any model is loaded, with the fix."""
    with _serving(repository) as server:
        for flag, port in (("--grpc-port", server.grpc_port), ("--http-port", server.http_port)):
            said = _refused(1, "--model-repository", str(repository), flag, str(port))
            assert f"cannot listen on 127.0.0.1:{port}: the port is in use; choose another with {flag}" in said
        assert server.http("/healthz")[0] == 200
        free = server.http_port
    said = _refused(1, "--model-repository", str(repository), "--http-port", str(free), "--grpc-port", str(free))
    assert "the port is in use; choose another with --grpc-port" in said
    said = _refused(
        1,
        "--model-repository",
        str(repository),
        "--host",
        "127.0.0.1",
        "--set",
        "server.http_host=::2",
        "--allow-plaintext",
    )
    assert "cannot listen on [::2]:0" in said


def test_bad_repositories(tmp_path: Path) -> None:
    """A folder that is missing, empty, or a file: what was expected, and how to choose another."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, complaint in (
        ("nowhere", "No such file or directory"),
        ("empty", "the folder holds no models"),
        ("file", "Not a directory"),
    ):
        said = _refused(1, "--model-repository", str(tmp_path / name))
        assert f"model repository '{tmp_path / name}': {complaint}; expected a folder of" in said
        assert "--model-repository" in said


def test_what_is_not_permitted(repository: Path, tmp_path: Path) -> None:
    """A privileged port and a folder that may not be read, for a process without root's rights."""
    command: tuple[str, ...] = ()
    if os.geteuid() == 0:
        path = shutil.which("setpriv")
        if path is None:
            pytest.skip("root has every permission, and setpriv is not installed")
        rights = "-net_bind_service,-dac_override,-dac_read_search"
        command = (path, f"--bounding-set={rights}", f"--inh-caps={rights}")
    folder = tmp_path / "sealed"
    folder.mkdir(0)
    try:
        said = _refused(1, "--model-repository", str(folder), command=command)
        assert f"model repository '{folder}': Permission denied; " in said
    finally:
        folder.chmod(0o700)
    limit = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if limit.exists() and int(limit.read_text()) > 1:
        said = _refused(1, "--model-repository", str(repository), "--grpc-port", "1", command=command)
        assert "cannot listen on 127.0.0.1:1: no permission for port 1; choose another with --grpc-port" in said


def test_tls_from_the_command_line(repository: Path, tmp_path: Path) -> None:
    """A process with certificates serves clients that trust them; files that are no good end it with their name."""
    authority = Authority(tmp_path / "authority")
    pair = authority.sign("server")
    flags = ("--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key))
    with (
        _serving(repository, *flags) as server,
        SyncClient(f"localhost:{server.grpc_port}", tls=Tls(authority.certificate)) as client,
        client.session("history") as session,
    ):
        assert [int(session.step(digit)) for digit in (1, 2, 3)] == [1, 12, 123]
        assert server.http("/readyz") == (200, "ready\n")
    other = authority.sign("other")
    said = _refused(1, "--model-repository", str(repository), *flags, "--tls-key", str(other.key))
    assert f"{other.key}: the key does not belong to the certificate {pair.certificate}" in said
    said = _refused(1, "--model-repository", str(repository), *flags, "--tls-certificate", str(tmp_path / "none"))
    assert f"{tmp_path / 'none'}: No such file or directory" in said
    assert "server.tls_key: got none" in _refused(2, *flags[:2])
