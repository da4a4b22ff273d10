"""A process that carries out commands: one JSON object a line in, one out.

Owns both ends of the pipe. Must not know what the commands do. Load generator and bare ONNX Runtime are workers: each
measures in a process of its own and starts only once.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

# No command takes so long: a server that hangs must not hang the benchmark.
_MAX_SECONDS = 120.0

ROOT = Path(__file__).resolve().parent.parent

Command = Callable[..., Awaitable[Mapping[str, Any]]]


class WorkerError(Exception):
    """A worker could not do what it was told; the message is its own."""


class Worker:
    """The parent's end.

    Args:
        module: run as `python -m module arguments...`; it calls `run_commands`.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._module = module
        self._process = subprocess.Popen(  # noqa: S603  (our own module)
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Has the worker carry out a command; returns its answer.

        Raises:
            WorkerError: the command failed, or the worker is gone.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps({"command": command, **arguments}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self._module} ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self._module}: {command}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


async def run_commands(commands: Mapping[str, Command]) -> None:
    """The worker's end: carries out commands from standard input until it ends."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        arguments = json.loads(line)
        name = arguments.pop("command")
        try:
            async with asyncio.timeout(_MAX_SECONDS):
                answer = await commands[name](**arguments)
        except Exception as error:  # noqa: BLE001  The task's root: the parent is told, and decides.
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
