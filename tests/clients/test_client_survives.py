"""A client whose server is killed at once and started again on its state store: its caller sees only a pause.

The model is `history`: its answers spell what was applied.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_network import BadNetwork
from target import READY
from test_client_returns import impatient
from wire import run, spelled

from eddy import Client
from eddy.clients.errors import ReplayFull, StepsLost
from examples.server import MODELS

# A server process starts within seconds, or many where the machine is busy.
_SECONDS = 120.0


class Server:
    """A server process on a store, behind a proxy that keeps its address."""

    def __init__(self, repository: Path, store: str, seconds: float) -> None:
        self._command = [sys.executable, "-m", "eddy.cli", "serve", "--model-repository", str(repository)]
        self._command += ["--grpc-port", "0", "--http-port", "0", "--state-store", store]
        self._command += ["--set", f"state.checkpoint_seconds={seconds}"]
        self._process: subprocess.Popen[str] | None = None
        self.network = BadNetwork(0)

    async def start(self) -> None:
        """Starts it, and has the proxy lead there."""
        self._process = subprocess.Popen(  # noqa: ASYNC220, S603  our own command
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
        )
        assert self._process.stdout is not None
        line = await asyncio.to_thread(self._process.stdout.readline)
        match = READY.search(line)
        assert match, f"the server said {line!r}"
        self.network.target = int(match[3])

    @property
    def pid(self) -> int:
        """The process'."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: nothing is written any more."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


@asynccontextmanager
async def server(repository: Path, folder: Path, seconds: float = 0.05) -> AsyncIterator[Server]:
    """A server on a store of its own."""
    started = Server(repository, f"sqlite:{folder / 'sessions.db'}", seconds)
    try:
        await started.start()
        async with started.network.serve():
            yield started
    finally:
        started.kill()


def test_a_server_that_is_killed_in_mid_stream(repository: Path, tmp_path: Path) -> None:
    """Sessions, pipelined ones and batches go on; each answers as if nothing had happened."""

    async def scenario() -> None:
        async with (
            server(repository, tmp_path) as killed,
            Client(f"127.0.0.1:{killed.network.port}", patience=impatient()) as client,
        ):
            is_over = False
            sessions = [await client.open("history", max_in_flight=1 + number) for number in range(3)]
            batch = await client.open_batch("history", 20)
            numbers = dict.fromkeys(range(3), 0) | {"batch": 0}

            async def drive(number: int) -> None:
                place, answers = 0, []
                while not is_over:
                    steps = [sessions[number].step((number + place + each) % 10) for each in range(5)]
                    answers += [int(answer) for answer in await asyncio.gather(*steps)]
                    place += 5
                    numbers[number] = place
                assert answers == spelled([(number + each) % 10 for each in range(place)])

            async def drive_batch() -> None:
                place, answers = 0, []
                while not is_over:
                    answers.append(await batch.step((np.arange(20) + place) % 10))
                    place += 1
                    numbers["batch"] = place
                for row in range(20):
                    digits = [(row + each) % 10 for each in range(place)]
                    assert [int(answer[row]) for answer in answers] == spelled(digits)

            work = asyncio.gather(*[drive(number) for number in range(3)], drive_batch())
            for _ in range(2):
                before = dict(numbers)
                while any(numbers[key] < before[key] + 20 for key in numbers):
                    assert not work.done(), work.exception()
                    await asyncio.sleep(0)
                killed.kill()
                await killed.start()
            is_over = True
            await work

    run(scenario(), _SECONDS)


def test_what_is_kept_is_bounded(repository: Path, tmp_path: Path) -> None:
    """While nothing becomes durable steps wait, and are told so when nothing does in time; what was done stands."""

    async def scenario() -> None:
        async with (
            server(repository, tmp_path, seconds=3600) as slow,
            Client(
                f"127.0.0.1:{slow.network.port}", patience=impatient(reconnect_seconds=0.3, max_replay_bytes=1000)
            ) as client,
        ):
            session = await client.open("history")
            done: list[int] = []

            async def drive() -> None:
                while True:
                    done.append(int(await session.step(1)))

            with pytest.raises(ReplayFull):
                await drive()
            assert done == spelled([1] * len(done))
            assert len(done) < 20
            assert session.position == len(done)
            await session.close()
            assert int(await (await client.open("history")).step(5)) == 5

    run(scenario(), _SECONDS)


def test_steps_that_nobody_has_are_named(repository: Path, tmp_path: Path) -> None:
    """A store that was put back to what it once was has lost what it had said was durable: which steps, is told."""

    async def scenario() -> None:
        present, old = tmp_path / "present", tmp_path / "old"
        present.mkdir()
        async with (
            server(repository, present) as killed,
            Client(f"127.0.0.1:{killed.network.port}", patience=impatient()) as client,
        ):
            session = await client.open("history")
            await session.step(1)
            killed.kill()
            shutil.copytree(present, old)
            await killed.start()
            assert [int(await session.step(digit)) for digit in (2, 3)] == [12, 123]
            while (await client.find_session(session.id)).durable_position < 3:  # noqa: ASYNC110  it has no event
                await asyncio.sleep(0.01)
            assert await session.step(4) == 1234
            killed.kill()
            shutil.rmtree(present)
            shutil.copytree(old, present)
            await killed.start()
            with pytest.raises(StepsLost) as caught:
                await session.step(5)
            assert caught.value.first <= 1
            assert caught.value.end == 3

    run(scenario(), _SECONDS)


@pytest.mark.parametrize("seconds", [0.02, 3600.0], ids=["durable", "not durable"])
def test_a_server_that_is_killed_while_it_writes(tmp_path: Path, seconds: float) -> None:
    """Tokens, text and log-probabilities go on, in an open session and in one that is kept, and both can be stepped.

    Whatever was durable: the server stands where the state store has the session, and is fed the rest again.
    """
    repository = tmp_path / "models"
    shutil.copytree(MODELS / "text-lstm", repository / "text-lstm")

    async def scenario() -> None:
        options: Any = {"max_tokens": 300, "seed": 5, "log_probabilities": True, "stop": "\0"}
        async with (
            server(repository, tmp_path, seconds) as killed,
            Client(f"127.0.0.1:{killed.network.port}", patience=impatient(reconnect_seconds=60.0)) as client,
        ):

            async def again() -> None:
                killed.kill()
                await killed.start()

            async def written(kills: bool, *names: str, **named: Any) -> tuple[Any, ...]:
                async with client.generate(*names, **named, **options) as generation:
                    first = await anext(generation)
                    if kills:
                        await again()
                    rest = await generation.read()
                return first.text + rest.text, first.tokens + rest.tokens, rest.finished, rest.session

            async def drive(kills: bool) -> list[Any]:
                async with client.session("text-lstm") as session:
                    await session.step([3, 4, 5])
                    seen: list[Any] = [(await written(kills, session=session, prompt="The class "))[:3]]
                    if kills:
                        await again()
                    seen += [(await session.step([6])).tobytes(), session.position]
                *first, kept = await written(kills, "text-lstm", "The class ", keep_session=True)
                *then, kept = await written(kills, session=kept, prompt=" is ")
                session = await client.attach(kept.id, kept.resume_token)
                seen += [first, then, session.position, (await session.step([6])).tobytes()]
                await session.close()
                return seen

            wanted = await drive(kills=False)
            assert await drive(kills=True) == wanted

    run(scenario(), _SECONDS)


def test_a_kept_session_after_the_server_ended(tmp_path: Path) -> None:
    """Its next turn goes on on the next server, also where the turn before was not durable in whole."""
    repository = tmp_path / "models"
    shutil.copytree(MODELS / "text-lstm", repository / "text-lstm")

    async def scenario() -> None:
        async with (
            server(repository, tmp_path) as killed,
            Client(f"127.0.0.1:{killed.network.port}", patience=impatient(reconnect_seconds=60.0)) as client,
        ):
            wanted = await client.complete("text-lstm", "The class ", max_tokens=80, seed=1)
            first = await client.complete("text-lstm", "The class ", max_tokens=40, seed=1, keep_session=True)
            assert first.session is not None
            while not (await client.find_session(first.session.id)).durable_position:  # noqa: ASYNC110  it has no event
                await asyncio.sleep(0.01)
            killed.kill()
            await killed.start()
            then = await client.complete(session=first.session, max_tokens=40, seed=1)
            assert first.text + then.text == wanted.text
            assert then.finished.next_position == wanted.finished.next_position

    run(scenario(), _SECONDS)
