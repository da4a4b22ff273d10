"""A window of time: what a load did in it, and the CPU that it took of the server and of the load generator."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Window:
    """What happened in a span of time."""

    seconds: float
    num_messages: int
    server_cpu_seconds: float
    load_cpu_seconds: float

    def report(self, rows: int) -> Mapping[str, Any]:
        """JSON of the window; `rows` steps a message."""
        return {
            "messages_per_second": self.num_messages / self.seconds,
            "steps_per_second": rows * self.num_messages / self.seconds,
            "server_cpu_seconds_per_message": self.server_cpu_seconds / self.num_messages,
            "server_cpu_share": self.server_cpu_seconds / self.seconds,
            "load_cpu_share": self.load_cpu_seconds / self.seconds,
        }


async def watch(count: Callable[[], int], pid: int, warm_up_seconds: float, seconds: float) -> Window:
    """Waits, then watches for `seconds`; `count` is the messages answered so far, `pid` the server's."""
    process = psutil.Process(pid)
    await asyncio.sleep(warm_up_seconds)
    with no_collection():
        begin, before = time.perf_counter(), count()
        cpu, own = _cpu_seconds(process), time.process_time()
        await asyncio.sleep(seconds)
        end, after = time.perf_counter(), count()
        return Window(end - begin, after - before, _cpu_seconds(process) - cpu, time.process_time() - own)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


class no_collection:  # noqa: N801  (used as a verb)
    """No garbage collection within: a pause of the load generator is no latency of the server."""

    def __enter__(self) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()
        gc.unfreeze()
