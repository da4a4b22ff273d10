"""The client processes of a crash test, seen from the run: started, listened to, brought to an end.

Owns `worker.py` as a process, and the bound on how long it may take to come to an end.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from worker import Spec

_WORKER = Path(__file__).resolve().parent / "worker.py"
# Beyond what any call takes while servers come and go: what takes longer hangs.
PATIENCE_SECONDS = 120.0


class ClientProcess:
    """A client process, and what it has said."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.num_calls = 0
        self.num_steps = 0
        self.counts: Counter[str] = Counter()
        self.finding = ""
        self._errors = Path(spec.journal).with_suffix(".err")
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts it."""
        with self._errors.open("wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(_WORKER), json.dumps(asdict(self.spec))),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=1 << 20,
            )
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        is_done = False
        async for line in self._process.stdout:
            said = json.loads(line)
            if "calls" in said:
                self.num_calls, self.num_steps = said["calls"], said["steps"]
            elif "counts" in said:
                self.counts = Counter(said["counts"])
                is_done = True
            else:
                self.finding = "\n".join([*said["findings"], said["trace"]])
        code = await self._process.wait()
        if not is_done and not self.finding:
            self.finding = f"client {self.spec.number} ended with {code}: {self._errors.read_text()[-4000:]}"

    async def finish(self) -> None:
        """Tells it to come to an end, and waits for that."""
        assert self._process is not None and self._process.stdin is not None and self._reader is not None
        if self._process.returncode is None:
            self._process.stdin.close()
        done, _ = await asyncio.wait([self._reader], timeout=2 * PATIENCE_SECONDS)
        if not done:
            self.finding = f"client {self.spec.number} does not come to an end"
        else:
            self._reader.result()

    async def kill(self) -> None:
        """Ends it whatever it does."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
