"""The processes of a crash test: servers and a Redis, started on fixed ports and killed without warning.

Owns their command lines, their logs, and what can be read of a server's metrics before it is gone. Must not know why
or when they are killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from redis_server import find_redis
from target import READY

_START_SECONDS = 60.0
_END_SECONDS = 30.0
_METRIC = re.compile(r"^(eddy_\w+_total)(?:\{([^}]*)\})? ([0-9.e+]+)$", re.MULTILINE)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """One `eddy serve`, again and again on the same ports."""

    def __init__(self, folder: Path, name: str, repository: Path, store: str, settings: Callable[[int], str]) -> None:
        self.grpc_port, self.http_port = free_port(), free_port()
        self.log = folder / f"{name}.log"
        # Counted over all of its lives.
        self.counts: Counter[str] = Counter()
        self.num_starts = 0
        self._latest: Counter[str] = Counter()
        self._process: asyncio.subprocess.Process | None = None
        # What a life of it is told, by its number.
        self._settings = settings
        self._config = config = folder / f"{name}.toml"
        self._command = [
            *(sys.executable, "-m", "eddy.cli", "serve", "--model-repository", str(repository)),
            *("--grpc-port", str(self.grpc_port), "--http-port", str(self.http_port), "--config", str(config)),
            *(("--state-store", store) if store != "memory" else ()),
        ]

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Started, and not ended."""
        return self._process is not None and self._process.returncode is None

    async def spawn(self) -> None:
        """Starts it, and does not wait."""
        self.num_starts += 1
        self._latest = Counter()
        self._config.write_text(self._settings(self.num_starts))
        with self.log.open("a") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
            )

    async def ready(self) -> None:
        """Waits until it serves."""
        assert self._process is not None and self._process.stdout is not None
        async with asyncio.timeout(_START_SECONDS):
            line = (await self._process.stdout.readline()).decode()
        match = READY.search(line)
        assert match and match[1] == match[2], f"the server said {line!r}: {self.log.read_text()[-4000:]}"

    async def read_metrics(self) -> None:
        """Notes its counters, as far as it still tells them."""
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(2.0):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.http_port)
                writer.write(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
                text = (await reader.read()).decode(errors="replace")
                writer.close()
            self._latest = Counter()
            for name, labels, value in _METRIC.findall(text):
                self._latest[name] += int(float(value))
                for reason in re.findall(r'reason="(\w+)"', labels):
                    self._latest[f"{name}/{reason}"] += int(float(value))

    async def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        if self.is_running:
            self._signal(signal.SIGKILL)
        await self._gone()

    async def drain(self) -> int:
        """SIGTERM; the exit code."""
        self._signal(signal.SIGTERM)
        return await self._gone()

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _gone(self) -> int:
        assert self._process is not None
        async with asyncio.timeout(_END_SECONDS):
            code = await self._process.wait()
        self.counts += self._latest
        self._latest = Counter()
        return code

    def complaints(self) -> str:
        """What it wrote to its log that it never should."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        match = re.search(r"Traceback|Unexpected|never retrieved", text)
        return text[max(0, match.start() - 300) : match.start() + 4000] if match else ""


class RedisProcess:
    """A Redis that loses nothing that it has acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder / "redis"
        self._folder.mkdir()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """For `--state-store`."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        """Starts it and waits until it answers."""
        program = find_redis()
        assert program, "neither redis-server nor valkey-server is installed"
        self._process = await asyncio.create_subprocess_exec(
            *(program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--daemonize", "no"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(_START_SECONDS):
            while await self.ask("PING") != "+PONG":  # noqa: ASYNC110  it tells nobody when it is up
                await asyncio.sleep(0.02)

    async def ask(self, command: str) -> str:
        """The answer to an inline command; empty while it is away."""
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(2.0):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    writer.write(f"{command}\r\n".encode())
                    first = (await reader.readline()).decode().strip()
                    if first.startswith("$") and first != "$-1":
                        return (await reader.readexactly(int(first[1:]))).decode()
                    return first
                finally:
                    writer.close()
        return ""

    async def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    def pause(self) -> None:
        """It stands still."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


class StoreWatch:
    """Whether the store is being written: the file of what was written last, or the commands that Redis has run."""

    def __init__(self, redis: RedisProcess | None, path: Path) -> None:
        self._redis = redis
        self._log = path.with_name(f"{path.name}-log")

    async def mark(self) -> str:
        """Changes with every write; empty while the store is away."""
        if self._redis is None:
            return str(self._log.stat().st_mtime_ns) if self._log.exists() else ""
        said = await self._redis.ask("INFO commandstats")
        return " ".join(
            line.partition("calls=")[2].partition(",")[0]
            for line in said.splitlines()
            if line.startswith("cmdstat_eval")
        )
