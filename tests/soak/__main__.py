"""`python -m tests.soak`: steps by the million on one stream, sessions by the million, and what memory does meanwhile.

Prints a table of the server's resident memory, descriptors and threads, and a verdict: growth later on by
the million. Ends with 1 where it is more than the bound.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_TESTS)]

import numpy as np  # noqa: E402  after the path
import psutil  # noqa: E402
from loopback import write_model  # noqa: E402
from target import READY  # noqa: E402

from eddy import Client  # noqa: E402

_ROWS = 1000
_STEPS = 50
_SAMPLES = 20
_MAX_GROWTH_MIB = 8.0


async def _steps(client: Client, total: int) -> AsyncIterator[int]:
    """`total` steps of sessions that stay, on one stream; tells how many are done."""
    inputs = np.ones((_ROWS, _STEPS), np.int64)
    async with client.batch("history", _ROWS) as batch:
        for done in range(0, total, _ROWS * _STEPS):
            await batch.step(inputs)
            yield done + _ROWS * _STEPS


async def _sessions(client: Client, total: int) -> AsyncIterator[int]:
    """`total` sessions of one step each."""
    inputs = np.ones((_ROWS, 1), np.int64)
    for done in range(0, total, _ROWS):
        async with client.batch("history", _ROWS) as batch:
            await batch.step(inputs)
        yield done + _ROWS


async def _phase(name: str, work: AsyncIterator[int], total: int, server: psutil.Process) -> bool:
    """Carries out `work` and prints samples of the server; whether it grew by less than the bound."""
    samples: list[tuple[float, float]] = []
    begin, due = time.monotonic(), 0
    async for done in work:
        if done >= due:
            due += total // _SAMPLES
            resident = server.memory_info().rss / 2**20
            samples.append((done / 1e6, resident))
            figures = f"{server.num_fds()} descriptors, {server.num_threads()} threads"
            print(f"{name:9} {done:>11,} {time.monotonic() - begin:6.0f} s {resident:8.1f} MiB, {figures}", flush=True)
    late = samples[len(samples) // 4 :]
    growth = float(np.polyfit([at for at, _ in late], [size for _, size in late], 1)[0])
    print(f"{name:9} grows by {growth:.2f} MiB a million, at most {_MAX_GROWTH_MIB:g} are allowed", flush=True)
    return growth <= _MAX_GROWTH_MIB


async def _soak(port: int, pid: int, num_steps: int, num_sessions: int) -> bool:
    async with Client(f"127.0.0.1:{port}") as client:
        server = psutil.Process(pid)
        is_flat = await _phase("steps", _steps(client, num_steps), num_steps, server)
        return await _phase("sessions", _sessions(client, num_sessions), num_sessions, server) and is_flat


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Looks for what grows.")
    parser.add_argument("--store", choices=("memory", "sqlite"), default="memory")
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "models", "history")
        store = "memory" if options.store == "memory" else f"sqlite:{folder / 'state.db'}"
        command = [sys.executable, "-m", "eddy.cli", "serve", "--grpc-port", "0", "--http-port", "0"]
        command += ["--model-repository", str(folder / "models"), "--state-store", store]
        process = subprocess.Popen(  # noqa: S603  our own command
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
        )
        try:
            assert process.stdout is not None
            match = READY.search(process.stdout.readline())
            assert match, "the server did not start"
            is_flat = asyncio.run(_soak(int(match[3]), process.pid, options.steps, options.sessions))
        finally:
            process.kill()
            process.communicate()
    print("flat" if is_flat else "it grows")
    return 0 if is_flat else 1


if __name__ == "__main__":
    sys.exit(_main())
