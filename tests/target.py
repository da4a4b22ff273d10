"""The target: a real `eddy serve` process with the models that abuse is thrown at.

Owns the process, its configuration and what can be seen of it from outside: memory, descriptors, log.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from loopback import write_model

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("history", "two-inputs", "token-gru", "look-ahead", "primed")
SHIPPED = "text-rnn"
MAX_BYTES, MAX_ROWS, MAX_STEPS = 64 << 10, 64, 96

# Small limits, so that all of them are reached.
_SETTINGS: dict[str, dict[str, float]] = {
    "server": {"max_message_bytes": MAX_BYTES, "handshake_seconds": 2.0},
    "session": {
        "max_sessions": 4096,
        "idle_timeout_seconds": 3.0,
        "max_idle_timeout_seconds": 10.0,
        "sweep_seconds": 0.25,
    },
    "state": {"host_bytes": 1 << 20},
    "model": {
        "max_slots": 512,
        "max_rows": MAX_ROWS,
        "max_steps": MAX_STEPS,
        "max_queued_chunks": 512,
        "max_kept_reply_bytes": 1_000_000,
        "max_in_flight": 8,
        "max_generated_tokens": 200,
    },
}
# What `eddy serve` says first: models that are ready, all models, ports of gRPC and HTTP.
READY = re.compile(r"serving (\d+) of (\d+) models on 127\.0\.0\.1:(\d+), metrics on http://127\.0\.0\.1:(\d+)")


class Target:
    """A server process that is ready."""

    def __init__(self, process: subprocess.Popen[str], log: Path, line: str) -> None:
        match = READY.search(line)
        assert match, f"the server said {line!r}: {log.read_text()}"
        assert match[1] == match[2], "a model did not load"
        self.process = process
        self.address = f"127.0.0.1:{match[3]}"
        self.port = int(match[3])
        self._log = log

    @property
    def resident_bytes(self) -> int:
        """Resident memory."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    @property
    def num_descriptors(self) -> int:
        """Open file descriptors."""
        return psutil.Process(self.process.pid).num_fds()

    @property
    def peers(self) -> set[int]:
        """Ports of the clients that it has a connection to."""
        return {each.raddr.port for each in psutil.Process(self.process.pid).net_connections("tcp") if each.raddr}

    def complaints(self) -> str:
        """What the server wrote to its log that it never should."""
        text = self._log.read_text(errors="replace")
        match = re.search(r"Traceback|Unexpected|never retrieved|\bERROR\b|Warning|assert", text)
        return text[max(0, match.start() - 300) : match.start() + 4000] + text[-2000:] if match else ""

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def write_repository(root: Path) -> Path:
    """A repository of the models that are thrown at."""
    for name in FAMILIES:
        write_model(root, name)
    folder = root / SHIPPED / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes((ROOT / "models" / SHIPPED / "1" / "model.onnx").read_bytes())
    return root


@contextmanager
def running(folder: Path, **changes: dict[str, float]) -> Iterator[Target]:
    """Starts a server in `folder`, and kills it at the end if it still runs; `changes` are of settings by section."""
    repository = write_repository(folder / "models")
    config, log = folder / "eddy.toml", folder / "log.txt"
    lines = []
    for section, values in _SETTINGS.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {value}" for key, value in (values | changes.get(section, {})).items()]
    config.write_text("\n".join(lines))
    command = [
        sys.executable,
        "-W",
        "error::RuntimeWarning",
        "-m",
        "eddy.cli",
        "serve",
        "--grpc-port",
        "0",
        "--http-port",
        "0",
    ]
    command += ["--model-repository", str(repository), "--config", str(config)]
    with log.open("w") as errors:
        process = subprocess.Popen(  # noqa: S603  our own command
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
        )
    try:
        assert process.stdout is not None
        yield Target(process, log, process.stdout.readline())
    finally:
        process.kill()
        process.communicate()
