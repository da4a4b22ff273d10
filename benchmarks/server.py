"""Server processes under test: `eddy serve` and the echo.

Owns their start, their readiness and their end; reads the metrics of a server. Listens on and talks to 127.0.0.1 only.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from benchmarks.worker import ROOT
from eddy.service.polling import COMPLETION_QUEUE_POLLS

_START_SECONDS = 60.0
_SAMPLE = re.compile(r'^(?P<name>\w+)\{model="(?P<model>[^"]*)",version="[^"]*"\} (?P<value>\S+)$', re.MULTILINE)


def eddy_command() -> str:
    """The `eddy` of this environment."""
    return str(Path(sys.executable).with_name("eddy"))


class ServerError(Exception):
    """A server did not start or ended too early."""


class EddyServer:
    """`eddy serve` on free ports.

    Args:
        repository: folder of models; config_file: TOML, None for the defaults.
        poll_seconds: how often to ask whether it is ready; arguments: further ones of the command.
    """

    def __init__(
        self,
        repository: Path,
        config_file: Path | None = None,
        poll_seconds: float = 0.005,
        arguments: Sequence[str] = (),
    ) -> None:
        self.grpc_port, self.http_port = _free_ports(2)
        command = [
            *(eddy_command(), "serve", "--model-repository", str(repository), "--log-level", "WARNING"),
            *("--grpc-port", str(self.grpc_port), "--http-port", str(self.http_port)),
        ]
        if config_file is not None:
            command += ["--config", str(config_file)]
        command += arguments
        begin = time.perf_counter()
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)  # noqa: S603  (what we measure)
        try:
            self._wait_ready(begin, poll_seconds)
        except BaseException:
            self.close()
            raise
        self.ready_seconds = time.perf_counter() - begin

    def __enter__(self) -> EddyServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def target(self) -> str:
        """Its gRPC address."""
        return f"127.0.0.1:{self.grpc_port}"

    def metric(self, name: str, model: str) -> float:
        """The value of one of its per-model metrics now."""
        return read_metric(self.http_port, name, model)

    def total(self, name: str) -> float:
        """The value of one of its metrics without labels now."""
        return read_total(self.http_port, name)

    def close(self) -> None:
        """Ends it: SIGTERM, and SIGKILL if it does not drain."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(15.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_ready(self, begin: float, poll_seconds: float) -> None:
        reason = "nothing answers"
        while time.perf_counter() - begin < _START_SECONDS:
            if self._process.poll() is not None:
                raise ServerError(f"eddy serve ended with exit code {self._process.returncode}")
            try:
                status, reason = _get(self.http_port, "/readyz")
                if status == 200:
                    return
            except OSError as error:
                reason = str(error)
            time.sleep(poll_seconds)
        raise ServerError(f"eddy serve is not ready after {_START_SECONDS:.0f} s: {reason}")


def read_metric(http_port: int, name: str, model: str) -> float:
    """One per-model metric from a server's /metrics page.

    Raises:
        ServerError: there is no such metric.
    """
    for sample in _SAMPLE.finditer(_get(http_port, "/metrics")[1]):
        if sample["name"] == name and sample["model"] == model:
            return float(sample["value"])
    raise ServerError(f"/metrics has no {name} of model {model!r}")


def read_total(http_port: int, name: str) -> float:
    """One metric without labels from a server's /metrics page.

    Raises:
        ServerError: there is no such metric.
    """
    for line in _get(http_port, "/metrics")[1].splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise ServerError(f"/metrics has no {name}")


class EchoServer:
    """`python -m benchmarks.echo` on a free port.

    Args:
        arguments: its own.
        is_like_eddy: its gRPC waits for sockets as that of `eddy serve` does, not as gRPC does by itself.
    """

    def __init__(self, *arguments: str, is_like_eddy: bool = False) -> None:
        environment = os.environ | ({"GRPC_EXPERIMENTS": COMPLETION_QUEUE_POLLS} if is_like_eddy else {})
        self._process = subprocess.Popen(  # noqa: S603  (what we measure)
            [sys.executable, "-m", "benchmarks.echo", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ServerError(f"the echo server ended with exit code {self._process.wait()}")
        self.target = f"127.0.0.1:{int(line)}"

    def __enter__(self) -> EchoServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10.0)
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid


def _get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
