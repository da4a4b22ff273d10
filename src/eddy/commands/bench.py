"""`eddy bench`: a closed-loop load on a running server, through the client library.

Owns the load and its figures. Every session has at most one step under way: the next one begins when the answer is
there. What is measured includes this process: for the server's own limits see the repository's benchmarks.

Dimension key: B sessions, T steps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

from eddy.clients.flags import add_tls, tls_of
from eddy.commands.parser import fail_call

if TYPE_CHECKING:
    import numpy as np

    from eddy import Client, Session
    from eddy.commands.parser import Commands
    from eddy.v1 import contract_pb2

_EXAMPLES = """\
examples:
  eddy bench --model text-lstm
  eddy bench --target 127.0.0.1:8500 --model forecast-gru --sessions 64 --seconds 5
  eddy bench --model text-lstm --sessions 1024 --batch --json
"""
# Connections, first ticks and layouts that are learnt do not count.
_WARM_UP_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Figures:
    """What a load gave; latencies of calls in microseconds."""

    model: str
    sessions: int
    steps_per_call: int
    seconds: float
    calls: int
    steps_per_second: float
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "bench",
        help="load a running server and show steps/s and latencies",
        description="Steps sessions of one model as fast as the answers come, with random inputs, and shows steps a "
        "second and the latency of a call. Client and server share a machine's cores where both run on it.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--target", default="127.0.0.1:8500", metavar="HOST:PORT", help="(default: 127.0.0.1:8500)")
    parser.add_argument("--model", required=True, metavar="NAME", help="the model to step (`eddy models` lists them)")
    parser.add_argument("--sessions", type=_positive(int), default=16, metavar="B", help="(default: 16)")
    parser.add_argument("--steps", type=_positive(int), default=1, metavar="T", help="steps of a call (default: 1)")
    parser.add_argument("--seconds", type=_positive(float), default=5.0, metavar="S", help="(default: 5)")
    parser.add_argument("--batch", action="store_true", help="step all sessions by one array, not each by itself")
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_tls(parser)
    parser.set_defaults(func=_run)


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"got {text}, expected a positive number")
        return value

    number.__name__ = "whole number" if kind is int else "number"
    return number


def _run(options: argparse.Namespace) -> int:
    from eddy import errors

    try:
        figures = _run_loop(measure(options))
    except errors.EddyError as error:
        return fail_call(options.target, error)
    if options.json:
        print(json.dumps(asdict(figures), indent=2))
    else:
        _show(figures)
    return 0


def _run_loop(work: Awaitable[Figures]) -> Figures:
    try:
        import uvloop
    except ImportError:  # Not on Windows.
        return asyncio.run(work)  # type: ignore[arg-type]
    return uvloop.run(work)  # type: ignore[arg-type]


async def measure(options: argparse.Namespace) -> Figures:
    """Runs the load.

    Raises:
        EddyError: the server cannot be reached, does not know the model, or refused a step.
    """
    from eddy import Client

    async with Client(options.target, tls=tls_of(options)) as client:
        contract = await client.contract(options.model)
        if options.batch:
            latencies, steps = await _load_batch(client, contract, options)
        else:
            latencies, steps = await _load_sessions(client, contract, options)
    return _figures(options, latencies, steps)


async def _load_batch(
    client: Client, contract: contract_pb2.ModelContract, options: argparse.Namespace
) -> tuple[list[float], int]:
    inputs = random_inputs(contract, (options.sessions, options.steps))
    async with client.batch(options.model, options.sessions) as batch:
        latencies = await _loop(partial(batch.step_outputs, inputs), options.seconds)
    return latencies, len(latencies) * options.sessions * options.steps


async def _load_sessions(
    client: Client, contract: contract_pb2.ModelContract, options: argparse.Namespace
) -> tuple[list[float], int]:
    inputs = random_inputs(contract, (options.steps,))
    sessions: Sequence[Session] = await asyncio.gather(*(client.open(options.model) for _ in range(options.sessions)))
    try:
        loops = (_loop(partial(session.step_outputs, inputs), options.seconds) for session in sessions)
        latencies = [latency for one in await asyncio.gather(*loops) for latency in one]
    finally:
        await asyncio.gather(*(session.close() for session in sessions), return_exceptions=True)
    return latencies, len(latencies) * options.steps


async def _loop(step: Callable[[], Awaitable[object]], seconds: float) -> list[float]:
    """Seconds of every call that began after the warm-up; there is at least one."""
    begin = time.perf_counter() + seconds * _WARM_UP_SHARE
    end = begin + seconds
    latencies: list[float] = []
    start = time.perf_counter()
    while start < end or not latencies:
        await step()
        now = time.perf_counter()
        if start >= begin:
            latencies.append(now - start)
        start = now
    return latencies


def random_inputs(contract: contract_pb2.ModelContract, lead: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Inputs within the contract's ranges by name, [*lead, ...]: the same ones at every run."""
    import numpy as np

    from eddy.clients.tensors import Signature

    generator = np.random.default_rng(0)
    inputs = {}
    for port, spec in zip(Signature(contract).inputs, contract.inputs, strict=True):
        low, high = (spec.range.minimum, spec.range.maximum) if spec.HasField("range") else (0.0, 1.0)
        shape = (*lead, *port.shape)
        if port.dtype.kind == "f":
            inputs[port.name] = generator.uniform(low, high, shape).astype(port.dtype)
        else:
            inputs[port.name] = generator.integers(int(low), int(high), shape, endpoint=True).astype(port.dtype)
    return inputs


def _figures(options: argparse.Namespace, latencies: list[float], steps: int) -> Figures:
    import numpy as np

    p50, p90, p99 = (np.quantile(latencies, [0.5, 0.9, 0.99]) * 1e6).tolist()
    return Figures(
        options.model,
        options.sessions,
        options.steps,
        options.seconds,
        len(latencies),
        steps / options.seconds,
        p50,
        p90,
        p99,
        max(latencies) * 1e6,
    )


def _show(figures: Figures) -> None:
    from rich.table import Table

    from eddy.commands.table import show

    table = Table("figure", "value", title=f"{figures.model}, {figures.sessions} sessions, {figures.seconds:g} s")
    table.add_row("steps/s", f"{figures.steps_per_second:,.0f}")
    table.add_row("calls", f"{figures.calls:,}")
    for name in ("p50", "p90", "p99", "max"):
        table.add_row(f"latency {name}, µs", f"{getattr(figures, f'{name}_us'):,.0f}")
    show(table)
