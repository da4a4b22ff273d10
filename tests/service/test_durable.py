"""Durable sessions: a real server process that is killed at once after what it answered, and the next one on its store.

The model is `history`: its answers spell what was applied.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from graphs import family
from loopback import StreamClient, array, attach_request, chunk
from target import READY

from eddy.v1 import inference_pb2

HISTORY = family("history")


class Life:
    """One life of a server process, and a client's stream to it."""

    def __init__(self, process: "subprocess.Popen[str]", channel: Any, http_port: int) -> None:
        self.process = process
        self.channel = channel
        self.http_port = http_port
        self.stream = StreamClient(channel)

    async def unary(self, method: str, request: Any, response_type: Any) -> Any:
        """Calls `service/method`."""
        call = self.channel.unary_unary(f"/eddy.v1.{method}", None, response_type.FromString)
        return await asyncio.wait_for(call(request.SerializeToString()), 30)

    async def step(self, handle: int, position: int, digits: Sequence[int]) -> inference_pb2.StepResult:
        """Steps one session."""
        return (await self.stream.send(step=chunk(HISTORY, [handle], [position], [list(digits)]))).step

    def kill(self) -> None:
        """SIGKILL: nothing is written any more."""
        self.process.kill()
        self.process.wait()

    def end(self) -> tuple[int, str]:
        """SIGTERM; exit code and log."""
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=30)
        return self.process.returncode, log


@asynccontextmanager
async def life(repository: Path, store: str, *arguments: str) -> AsyncIterator[Life]:
    """A server process on `store`, killed at the end if it still lives."""
    command = [sys.executable, "-m", "eddy.cli", "serve", "--model-repository", str(repository)]
    ports = ["--grpc-port", "0", "--http-port", "0", "--state-store", store]
    process = subprocess.Popen(  # noqa: ASYNC220, S603  our own command
        [*command, *ports, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = READY.search(line)
        assert match, f"the server said {line!r}"
        async with grpc.aio.insecure_channel(f"127.0.0.1:{match[3]}") as channel:
            yield Life(process, channel, int(match[4]))
    finally:
        process.kill()
        process.communicate()


async def durable(server: Life, handle: int, position: int) -> int:
    """Repeats the session's last chunk until it is durable; returns how often its answer came."""
    count, found = 0, -1
    while found < position:
        last = await server.step(handle, position - 1, [3])
        (found,) = np.frombuffer(last.durable_positions, "<i8").tolist()
        count += 1
    return count


async def taken(server: Life, opened: inference_pb2.SessionsOpened, number: int = 0) -> inference_pb2.SessionAttached:
    """The session, taken over by id and token."""
    return (await server.stream.send(attach=attach_request(opened, number))).attached


def spelled(result: inference_pb2.StepResult) -> int:
    """The history that the answer's last step spells."""
    return int(array(result.outputs[0]).reshape(-1)[-1])


def test_killed_after_a_step_that_was_durable(repository: Path, tmp_path: Path) -> None:
    """Killed once an answer says so, the session stands at its durable position, and goes on from its state."""
    store = f"sqlite:{tmp_path}/store"

    async def scenario() -> None:
        async with life(repository, store, "--set", "state.checkpoint_seconds=0.05") as first:
            opened = await first.stream.open("history")
            assert opened.durable
            (handle,) = np.frombuffer(opened.handles, "<u8").tolist()
            for position, digit in enumerate([1, 2, 3]):
                await first.step(handle, position, [digit])
            await durable(first, handle, 3)
            first.kill()
        async with life(repository, store) as second:
            attached = await taken(second, opened)
            assert (attached.next_position, attached.durable_position, attached.durable) == (3, 3, True)
            assert attached.epoch > np.frombuffer(opened.epochs, "<u4")[0]
            # The reply that was kept is kept, and the state is that of three steps.
            assert spelled(await second.step(attached.handle, 2, [3])) == 123
            assert spelled(await second.step(attached.handle, 3, [4])) == 1234

    asyncio.run(scenario())


def test_killed_at_once_after_an_open(repository: Path, tmp_path: Path) -> None:
    """Whoever was told that sessions are open finds them in the next process, however soon the first one died."""
    store = f"sqlite:{tmp_path}/store"

    async def scenario() -> None:
        async with life(repository, store, "--set", "state.checkpoint_seconds=3600") as first:
            opened = await first.stream.open("history", 50, idle_timeout_seconds=77, max_in_flight=3)
            first.kill()
        async with life(repository, store) as second:
            for number in (0, 49):
                attached = await taken(second, opened, number)
                assert (attached.next_position, attached.durable_position, attached.max_in_flight) == (0, 0, 3)
                assert spelled(await second.step(attached.handle, 0, [7])) == 7

    asyncio.run(scenario())
