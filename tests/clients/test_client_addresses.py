"""A client of several servers: who asks about a session asks the server that has it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from bad_network import BadNetwork
from loopback import configure, serve, until
from test_client_returns import impatient
from wire import run

from eddy import Client
from eddy.clients.errors import SessionEnded
from examples.server import MODELS

MODEL = "text-lstm"


def test_calls_about_a_session_go_where_the_stream_is(tmp_path: Path) -> None:
    """Also where the server that the client used before is there again."""
    shutil.copytree(MODELS / MODEL, tmp_path / MODEL)

    async def scenario() -> None:
        async with (
            serve(configure(tmp_path)) as first,
            serve(configure(tmp_path)) as second,
            Client(f"127.0.0.1:{first.server.port},127.0.0.1:{second.server.port}", patience=impatient()) as client,
        ):
            before = await client.open(MODEL)
            await before.step([3, 4])
            first.host.gate.is_draining = True
            session = await client.open(MODEL)
            first.host.gate.is_draining = False
            with pytest.raises(SessionEnded):  # The second server does not share a store with the first.
                await before.step([3, 4])

            await session.step([3, 4, 5])
            assert (await client.find_session(session.id)).next_position == 3
            for copy in (await client.fork(session), await client.restore(await client.snapshot(session))):
                assert copy.position == 3
                await copy.close()
            completion = await client.complete(session=session, prompt="The ", max_tokens=3)
            assert session.position == completion.finished.next_position == 10
            states = (await client.contract(MODEL)).states
            await client.reset(session, {state.name: np.full(tuple(state.shape), 0.25, np.float32) for state in states})
            assert session.position == 0
            await client.close_session(session.id)
            assert first.host.table.num_sessions == 1
            assert second.host.table.num_sessions == 0

    run(scenario())


def test_a_new_client_beside_one_that_waits(tmp_path: Path) -> None:
    """What another client of the process knows of an address does not keep a new one from the server that is there."""
    shutil.copytree(MODELS / MODEL, tmp_path / MODEL)

    async def scenario() -> None:
        async with (
            serve(configure(tmp_path)) as loopback,
            BadNetwork(loopback.server.port).serve() as network,
            Client(f"127.0.0.1:{network.port}", patience=impatient(max_delay_seconds=0.1)) as waiting,
        ):
            session = await waiting.open(MODEL)
            wanted = await session.step([3, 4])
            network.refuses = True
            network.cut()
            before = network.num_connections
            await until(lambda: network.num_connections > before + 5)  # gRPC waits for half a second by then.
            network.refuses = False
            async with Client(f"127.0.0.1:{network.port}") as client, client.session(MODEL) as beside:
                np.testing.assert_array_equal(await beside.step([3, 4]), wanted)
            await session.step([5])

    run(scenario())
