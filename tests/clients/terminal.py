"""`eddy client` in a process of its own: with pipes, or on a terminal.

Owns the processes' lives within a test. Must not know what commands say.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from examples.server import ServerProcess

COMMAND = [sys.executable, "-W", "error", "-m", "eddy.cli", "client"]
PATIENCE_SECONDS = 60.0


def run(server: ServerProcess, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, with something to read."""
    return subprocess.run(  # noqa: S603  # our own command
        [*COMMAND, *arguments, "--target", server.target],
        input=given.decode("utf-8", "surrogateescape"),
        encoding="utf-8",
        errors="surrogateescape",
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


class Terminal:
    """A command on a terminal of 100 columns and 40 rows, ended with its block."""

    def __init__(self, server: ServerProcess, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(  # noqa: S603  # our own command
            [*COMMAND, *arguments, "--target", server.target],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self._overdue = threading.Timer(PATIENCE_SECONDS, self.process.kill)
        self._overdue.start()
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._overdue.cancel()
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def read_until(self, pattern: str) -> None:
        """Reads until something has been shown."""
        while re.search(pattern, self.text) is None:
            assert self._read(), f"{pattern!r} was not shown: {self.text}"

    def _read(self) -> bool:
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # The other side has gone.
            return False
        self.text += data.decode("utf-8", "replace")
        return bool(data)

    def write(self, text: str) -> None:
        """Types."""
        os.write(self._master, text.encode())

    def end(self) -> int:
        """Reads to the end; returns the exit code."""
        while self._read():
            pass
        return self.process.wait()


@contextmanager
def piped(server: ServerProcess, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command with pipes on all sides, ended with its block."""
    with subprocess.Popen(  # noqa: S603  # our own command
        [*COMMAND, *arguments, "--target", server.target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        overdue = threading.Timer(PATIENCE_SECONDS, process.kill)
        overdue.start()
        try:
            yield process
        finally:
            overdue.cancel()
            process.kill()
