"""A real Redis, or Valkey, of a test's own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def find_redis() -> str | None:
    """The program: what the environment's REDIS_SERVER names, or Redis, or Valkey; None where it is not installed."""
    if name := os.environ.get("REDIS_SERVER"):
        return shutil.which(name)
    return shutil.which("redis-server") or shutil.which("valkey-server")


_MISSING = "neither redis-server nor valkey-server is installed"
needs_redis = pytest.mark.skipif(not find_redis(), reason=_MISSING)


class RedisServer:
    """A server on one port, that may be killed, stopped and started again.

    Args:
        folder: where it keeps its files.
        options: more of the command line.
        port: 0: a free one.
        has_tls: nobody is answered without; the options name the files.
    """

    def __init__(self, folder: Path, *options: str, port: int = 0, has_tls: bool = False) -> None:
        self._folder = folder
        self._options = options
        self._has_tls = has_tls
        self.port = port
        self.process: subprocess.Popen[str]
        self.start()

    def start(self) -> None:
        """Starts it and waits until it listens."""
        program = find_redis()
        if not program:
            pytest.skip(_MISSING)
        while True:
            port = self.port or _free_port()
            place = ["--port", "0", "--tls-port", str(port)] if self._has_tls else ["--port", str(port)]
            options = ["--bind", "127.0.0.1", *place, "--dir", str(self._folder), "--save", ""]
            self.process = subprocess.Popen(  # noqa: S603  our own command
                [program, *options, *self._options], stdout=subprocess.PIPE, text=True
            )
            assert self.process.stdout is not None
            said = []
            for line in self.process.stdout:
                said.append(line)
                if "eady to accept connections" in line:
                    self.port = port
                    return
            self.kill()
            # Somebody took the port meanwhile, perhaps.
            assert any("in use" in line for line in said), "".join(said)

    def url(self, prefix: str = "eddy") -> str:
        """The store in it whose keys begin with `prefix`, for `--state-store`."""
        return f"{'rediss' if self._has_tls else 'redis'}://127.0.0.1:{self.port}/0?prefix={prefix}"

    def signal(self, number: signal.Signals) -> None:
        """SIGSTOP and SIGCONT."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def _free_port() -> int:
    """One that leaves room for the port of a cluster, 10,000 above."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port <= 55_535:
            return port


@contextmanager
def redis_server(folder: Path, *options: str, port: int = 0, has_tls: bool = False) -> Iterator[RedisServer]:
    """One that ends with the block; the arguments are those of `RedisServer`."""
    server = RedisServer(folder, *options, port=port, has_tls=has_tls)
    try:
        yield server
    finally:
        server.kill()
