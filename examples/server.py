"""A real `eddy serve` process on free ports, for the demo and for tests of the documents.

Owns the process, from start to drained end, and the reading of its metrics. Must not know what it is used for.
Ordering rules: the process is ended on every way out, also when its start fails half-way.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.error import HTTPError
from urllib.request import urlopen

MODELS = Path(__file__).resolve().parent.parent / "models"

_READY_SECONDS = 60.0
# The server drains for 10 s at most.
_STOP_SECONDS = 20.0
_ADDRESSES = re.compile(r"models on (\S+), metrics on http://(\S+)/metrics")
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


class ServerFailed(Exception):
    """The server did not start, or did not end as it should; the message holds the last lines of its log."""


class ServerProcess:
    """One server process, for the length of a `with` block.

    Args:
        models: the model repository; arguments: further arguments of `eddy serve`.
    """

    def __init__(self, models: Path = MODELS, arguments: Sequence[str] = ()) -> None:
        self.models = models
        self.command = ["eddy", "serve", "--model-repository", os.path.relpath(models), *arguments]
        # Port 0: the server picks free ports and says which. Arguments given come later and win.
        ports = ["--grpc-port", "0", "--http-port", "0"]
        self._arguments = ["serve", "--model-repository", str(models), *ports, *arguments]
        # Changed only by the methods below.
        self.target = ""
        self.http = ""
        self.first_line = ""
        self.exit_code: int | None = None
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:  # Also Ctrl-C while it loads: no process may be left behind.
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # see `stop`
        self._process = subprocess.Popen(  # noqa: S603  # our own command, no shell
            [sys.executable, "-m", "eddy.cli", *self._arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # A group of its own: Ctrl-C reaches the demo only, which then ends the server in order.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        overdue = threading.Timer(_READY_SECONDS, self._process.kill)
        overdue.start()
        try:
            self.first_line = self._process.stdout.readline().strip()
        finally:
            overdue.cancel()
        found = _ADDRESSES.search(self.first_line)
        if found is None:
            self._process.wait()
            raise ServerFailed(
                f"the server ended with exit code {self._process.returncode}:\n{self.log_tail()}\n"
                "run `make setup` from the repository's root and try again"
            )
        self.target, self.http = found.groups()

    def stop(self) -> None:
        """Ends the process with SIGTERM, waits until it has drained, and keeps its exit code."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self.exit_code = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.exit_code = self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None
        if self._log is not None:
            self._log.close()

    def log_tail(self, num_lines: int = 12) -> str:
        """The last lines that the server logged."""
        assert self._log is not None
        self._log.seek(0)
        return "\n".join(self._log.read().splitlines()[-num_lines:])

    def why_not_ready(self) -> str:
        """What /readyz says, empty when the server is ready with all of its models."""
        try:
            with urlopen(f"http://{self.http}/readyz", timeout=5.0) as response:
                response.read()
        except HTTPError as error:
            with error:
                return error.read().decode().strip()
        return ""

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, summed over its labels and, for those of a model, also as `name:model`."""
        with urlopen(f"http://{self.http}/metrics", timeout=5.0) as response:
            text = response.read().decode()
        totals: dict[str, float] = {}
        for name, labels, value in _SAMPLE.findall(text):
            totals[name] = totals.get(name, 0.0) + float(value)
            if model := re.search(r'model="([^"]*)"', labels or ""):
                key = f"{name}:{model[1]}"
                totals[key] = totals.get(key, 0.0) + float(value)
        return totals
