"""What else the machine was doing: CPU that other programs took while something was measured.

Owns the accounting: all busy CPU time of the machine, less that of this process and of its children that have ended.
A figure that was taken while others used the cores says little, and the report says so.
"""

from __future__ import annotations

import resource
import time

import psutil


class Contention:
    """Measures from its making on; children started since must have ended when it is read."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._busy, self._own = _busy_seconds(), _own_seconds()

    def other_cores(self) -> float:
        """Cores that other programs, and other guests of the same host, kept busy on average."""
        others = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        return max(0.0, others / (time.perf_counter() - self._begin))


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    # Guest time is part of user time; waiting for a disk is not work.
    idle = times.idle + getattr(times, "iowait", 0.0)
    return float(sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))


def _own_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
