"""`python -m benchmarks`: measures, prints a table, writes JSON.

The exit code is 0 whatever the figures are, and 1 when something could not be measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks import checkpoints, int8, latency, memory, packed, parked, ready, singles
from benchmarks.contention import Contention
from benchmarks.figure import DEFINITIONS, Measurement
from benchmarks.machine import describe_machine
from benchmarks.models import write_repository
from benchmarks.plan import QUICK, Plan
from benchmarks.report import print_report, write_json
from benchmarks.server import ServerError
from benchmarks.worker import WorkerError

Measure = Callable[[Path, Sequence[str], Plan], Measurement]

_SIZES = ("ceiling_128", "packed_128", "ceiling_512", "packed_512")

# What is measured together, because it shares servers and yardsticks.
_GROUPS: tuple[tuple[tuple[str, ...], Measure], ...] = (
    (("ready_seconds",), ready.measure),
    (("idle_session_bytes",), memory.measure),
    (("latency_excess_us", "latency_tail_ratio"), latency.measure),
    (("singles_cpu_ratio", "oip_cpu_ratio", "coalescing_gain"), singles.measure),
    (_SIZES, packed.measure),
    (("checkpoint_cost",), checkpoints.measure),
    (("parked_throughput_ratio",), parked.measure),
    (("int8_speedup",), int8.measure),
    (tuple(name for name in DEFINITIONS if name.startswith("packed_") and name not in _SIZES), packed.measure_families),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is asked for; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures the speed of Eddy.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--only", nargs="+", choices=list(DEFINITIONS), metavar="NAME", help="only these figures")
    parser.add_argument("--quick", action="store_true", help="short and few repetitions: shows that it works, no more")
    parser.add_argument("--repetitions", type=int, metavar="N", help="repetitions of every measurement")
    options = parser.parse_args(arguments)
    plan = QUICK if options.quick else Plan()
    if options.repetitions is not None:
        if options.repetitions < 1:
            parser.error(f"--repetitions: got {options.repetitions}, expected at least 1")
        count = options.repetitions
        plan = replace(
            plan, repetitions=count, memory_repetitions=count, ready_repetitions=count, family_repetitions=count
        )
    measurements, num_failed = _measure(options.only or list(DEFINITIONS), plan)
    machine = describe_machine()
    # A pipe has no width of its own; a table in 80 columns would be tall.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    print_report(console, measurements, machine)
    if options.json is not None:
        write_json(options.json, measurements, machine)
    return 1 if num_failed else 0


def _measure(names: Sequence[str], plan: Plan) -> tuple[list[Measurement], int]:
    """What was measured, and the number of groups that could not be."""
    progress = Console(stderr=True)
    measurements: list[Measurement] = []
    num_failed = 0
    with tempfile.TemporaryDirectory(prefix="eddy-benchmarks-") as folder:
        repository = write_repository(Path(folder) / "models")
        for group, measure in _GROUPS:
            wanted = [name for name in group if name in names]
            if not wanted:
                continue
            begin, contention = time.monotonic(), Contention()
            try:
                with progress.status(f"measuring {', '.join(wanted)}"):
                    found = measure(repository, wanted, plan)
            except (ServerError, WorkerError) as error:
                num_failed += 1
                progress.print(f"could not measure {', '.join(wanted)}: {error}", style="red", markup=False)
                continue
            measurements.append(replace(found, other_cores=contention.other_cores()))
            progress.print(f"measured {', '.join(wanted)} in {time.monotonic() - begin:.0f} s", style="dim")
    return measurements, num_failed


if __name__ == "__main__":
    sys.exit(main())
