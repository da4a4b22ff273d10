"""A client that waits for room while its server is away."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from loopback import configure, serve
from test_client_returns import impatient
from test_client_survives import server
from wire import run

from eddy import Client
from eddy.clients.errors import BatchError, ReplayFull
from eddy.clients.rows import RowFlow
from eddy.v1 import inference_pb2


def test_killed_while_a_batch_waits_for_room(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent again comes in its order, though it is asked what is durable just before the sessions are back."""
    attached = RowFlow.attached

    def ask_first(self: RowFlow, number: int, answer: inference_pb2.SessionAttached) -> None:
        self.ask_durable()
        attached(self, number, answer)

    monkeypatch.setattr(RowFlow, "attached", ask_first)

    async def scenario() -> None:
        async with (
            server(repository, tmp_path, seconds=3600) as killed,
            Client(
                f"127.0.0.1:{killed.network.port}", patience=impatient(max_replay_bytes=1500, reconnect_seconds=15.0)
            ) as client,
        ):
            batch = await client.open_batch("history", 2)
            done = [(await batch.step([place, place])).tolist() for place in range(3)]
            waiting = asyncio.create_task(batch.step([3, 3]))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            killed.kill()
            await killed.start()
            with pytest.raises(ReplayFull):
                await waiting
            assert done == [[0, 0], [1, 1], [12, 12]]
            assert batch.positions.tolist() == [3, 3]
            await batch.reset()
            assert (await batch.step([4, 4])).tolist() == [4, 4]

    run(scenario(), 120)


def test_a_row_that_has_ended_keeps_no_room(repository: Path, tmp_path: Path) -> None:
    """Its steps never become durable, and nobody sends them again."""

    async def scenario() -> None:
        state = {"store": f"sqlite:{tmp_path}/store", "checkpoint_seconds": 0.1, "max_lag_seconds": 1e6}
        async with (
            serve(configure(repository, state=state)) as loopback,
            Client(
                f"127.0.0.1:{loopback.server.port}", patience=impatient(max_replay_bytes=1500, reconnect_seconds=5.0)
            ) as client,
        ):
            batch = await client.open_batch("history", 2)
            await batch.step([1, 1])
            row = loopback.host.table.find(batch.ids[0])
            loopback.host.endings.close(np.array([row]), lambda _: None)
            with pytest.raises(BatchError):
                await batch.step([2, 2])
            for _ in range(8):
                await batch.step([3], rows=[1])

    run(scenario(), 60)
