"""The load generator: raw `grpc.aio` streams and hand-made messages, in a process of its own.

`python -m benchmarks.load REPOSITORY` is a worker; it reads there what a model takes and gives. Every load is a closed
loop: a stream sends its next message when the reply to the last has come. Eddy and the echo are loaded by the same code
with messages of the same sizes.

Dimension key: B rows of a message, one session each, one step (T = 1).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import psutil
import uvloop

from benchmarks.message import StepMessage, reply_sizes
from benchmarks.models import model_path
from benchmarks.streams import EDDY_METHOD, Loop, echo_loops, eddy_loops, oip_loops, open_channel, open_sessions
from benchmarks.values import draw_inputs
from benchmarks.window import no_collection, watch
from benchmarks.worker import run_commands
from eddy.service.contract import Contract, read_contract

_LOOPS = {"eddy": eddy_loops, "oip": oip_loops, "echo": echo_loops, "alike": echo_loops}


class Load:
    """The commands.

    Args:
        repository: folder of the models that are served.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        # Streams of `fill`; changed only by it and by `release`.
        self._held: list[tuple[grpc.aio.Channel, Any]] = []
        # The sessions of the last `fill`, which have taken one step each, uint64 [n], and their model.
        self._filled = np.empty(0, np.uint64)
        self._filled_contract: Contract | None = None

    async def throughput(
        self,
        server: str,
        target: str,
        pid: int,
        model: str,
        streams: int,
        rows: int,
        warm_up_seconds: float,
        seconds: float,
        one_connection: bool = False,
        turns: int = 1,
    ) -> Mapping[str, Any]:
        """Closed loops for a while: messages/s, steps/s and the server's CPU a message, after a warm-up.

        Args:
            server: "eddy", "oip" (Eddy by the Open Inference Protocol), "echo" or "alike" (an echo, too).
            pid: its process, to read its CPU.
            streams: closed loops; rows: B of each message.
            one_connection: all streams share one, otherwise each has its own.
            turns: messages of a stream that take turns, each with sessions of its own; of Eddy's streams.
        """
        further = {"num_turns": turns} if turns > 1 else {}
        async with _LOOPS[server](target, self._contract(model), streams, rows, one_connection, **further) as loops:
            stop = asyncio.Event()
            tasks = [asyncio.create_task(_run(loop, stop)) for loop in loops]
            window = asyncio.create_task(
                watch(lambda: sum(each.num_messages for each in loops), pid, warm_up_seconds, seconds)
            )
            await asyncio.wait([window, *tasks], return_when=asyncio.FIRST_COMPLETED)
            stop.set()
            await asyncio.gather(*tasks)
            return (await window).report(rows)

    async def latency(
        self,
        eddy: str,
        echo: str,
        alike: str,
        floor: str,
        model: str,
        block_steps: int,
        num_blocks: int,
        warm_up_steps: int = 200,
    ) -> Mapping[str, Any]:
        """One session alone, and echoes alone, in alternating blocks of closed-loop steps: median and p99, seconds.

        Args:
            echo: gRPC as it comes; alike: one that waits for its sockets as Eddy; floor: that runs a bare step, too.
        """
        contract = self._contract(model)
        samples: dict[str, list[float]] = {"eddy": [], "echo": [], "alike": [], "floor": []}
        async with (
            eddy_loops(eddy, contract, 1, 1) as ours,
            echo_loops(echo, contract, 1, 1) as bare,
            echo_loops(alike, contract, 1, 1) as waiting,
            echo_loops(floor, contract, 1, 1) as stepping,
        ):
            ways = {"eddy": ours[0], "echo": bare[0], "alike": waiting[0], "floor": stepping[0]}
            with no_collection():
                for loop in ways.values():
                    await _block(loop, warm_up_steps)
                for number in range(num_blocks):
                    for way in sorted(ways, reverse=bool(number % 2)):
                        samples[way] += await _block(ways[way], block_steps)
        return {way: _percentiles(values) for way, values in samples.items()}

    async def coalescing(
        self, target: str, pid: int, model: str, sessions: int, warm_up_seconds: float, seconds: float
    ) -> Mapping[str, Any]:
        """Coroutines that each await their own session's steps through the client library: steps/s."""
        from eddy import Client

        contract = self._contract(model)
        num_steps = [0]
        stop = asyncio.Event()
        [values] = draw_inputs(contract, sessions)

        async def steps(client: Any, x: np.ndarray) -> None:
            async with client.session(model) as session:
                while not stop.is_set():
                    await session.step(x)
                    num_steps[0] += 1

        async with Client(target) as client:
            tasks = [asyncio.create_task(steps(client, x)) for x in values[:, 0]]
            window = asyncio.create_task(watch(lambda: num_steps[0], pid, warm_up_seconds, seconds))
            await asyncio.wait([window, *tasks], return_when=asyncio.FIRST_COMPLETED)
            stop.set()
            await asyncio.gather(*tasks)
            return (await window).report(1)

    async def fill(
        self, target: str, pid: int, model: str, warm_up_sessions: int, sessions: int, rows: int
    ) -> Mapping[str, Any]:
        """Opens many sessions, then steps each once: the server's resident bytes before, between and after.

        Before come `warm_up_sessions`, opened and stepped as well. All sessions stay open until `release`.
        """
        contract = self._contract(model)
        process = psutil.Process(pid)
        channel = open_channel(target)
        call: Any = channel.stream_stream(EDDY_METHOD)()
        self._held.append((channel, call))

        async def step(handles: np.ndarray) -> None:
            for begin in range(0, len(handles), rows):
                mine = handles[begin : begin + rows]
                message = StepMessage(contract, mine, np.zeros(len(mine)))
                await Loop(call, message, reply_sizes(contract, len(mine))).step()

        await step(await open_sessions(call, contract, warm_up_sessions))
        before = await _settled_bytes(process)
        handles = await open_sessions(call, contract, sessions)
        opened = await _settled_bytes(process)
        await step(handles)
        self._filled, self._filled_contract = handles, contract
        stepped = await _settled_bytes(process)
        return {"before_bytes": before, "opened_bytes": opened, "stepped_bytes": stepped}

    async def revisit(self, begin: int, rows: int, messages: int) -> Mapping[str, Any]:
        """Steps sessions of the last `fill` from `begin` on, each twice, `rows` a message: median seconds of each time.

        The first time they come from wherever they were, the second time they are where they step.
        """
        contract = self._filled_contract
        assert contract is not None, "there are sessions"
        _, call = self._held[-1]
        durations: dict[str, list[float]] = {"parked": [], "resident": []}
        for number in range(messages):
            mine = self._filled[begin + number * rows :][:rows]
            loop = Loop(call, StepMessage(contract, mine, np.ones(len(mine))), reply_sizes(contract, len(mine)))
            durations["parked"] += await _block(loop, 1)
            durations["resident"] += await _block(loop, 1)
        return {f"{name}_seconds": float(np.median(values)) for name, values in durations.items()}

    async def release(self) -> Mapping[str, Any]:
        """Ends the streams of `fill`."""
        while self._held:
            channel, call = self._held.pop()
            call.cancel()
            await channel.close()
        return {}

    def _contract(self, model: str) -> Contract:
        return read_contract(onnx.load(model_path(self._repository, model)))


# Parts


async def _run(loop: Loop, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await loop.step()


async def _settled_bytes(process: psutil.Process) -> int:
    """Resident bytes, once what was asked for is over."""
    await asyncio.sleep(0.3)
    return int(process.memory_info().rss)


async def _block(loop: Loop, num_steps: int) -> list[float]:
    durations = []
    for _ in range(num_steps):
        begin = time.perf_counter()
        await loop.step()
        durations.append(time.perf_counter() - begin)
    return durations


def _percentiles(durations: list[float]) -> Mapping[str, float]:
    median, high = np.percentile(durations, [50, 99]).tolist()
    return {"median_seconds": median, "p99_seconds": high}


if __name__ == "__main__":
    load = Load(Path(sys.argv[1]))
    commands = (load.throughput, load.latency, load.coalescing, load.fill, load.revisit, load.release)
    uvloop.run(run_commands({command.__name__: command for command in commands}))
