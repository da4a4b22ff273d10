"""Fork, snapshot, restore and reset through the client: the bits are those of sessions that nothing happened to."""

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import family
from loopback import configure
from schedule import plain_graph
from wire import connected, run

from eddy.clients.errors import InvalidInput, OutOfOrder, SessionEnded
from eddy.clients.sync import SyncClient

LSTM = family("lstm")


def test_a_fork_and_a_snapshot_go_on_alike(repository: Path) -> None:
    """Also with steps under way: they are in it, and the session itself goes on."""

    async def scenario() -> None:
        inputs = LSTM.example(np.random.default_rng(1), 9)[0]
        wanted = plain_graph(LSTM).whole([inputs])[0][0]
        async with (
            connected(configure(repository)) as (_, client, _),
            client.session("lstm", max_in_flight=4, idle_timeout_seconds=33) as session,
        ):
            first = await session.step(inputs[:5])
            fork = await client.fork(session)
            snapshot = await client.snapshot(session)
            restored = await client.restore(snapshot)
            assert len({session.id, fork.id, restored.id}) == 3
            for each in (session, fork, restored):
                assert (each.position, each.max_in_flight, each.model) == (5, 4, "lstm")
                rest = await each.step(inputs[5:])
                np.testing.assert_array_equal(np.concatenate((first, rest)), wanted)
            await fork.close()
            await restored.close()
            with pytest.raises(SessionEnded):
                await client.fork(fork)
            with pytest.raises(InvalidInput, match="checksum"):
                await client.restore(snapshot[:-1] + bytes((snapshot[-1] ^ 1,)))

    run(scenario())


def test_reset_to_given_states(repository: Path) -> None:
    """Position 0 and these states; what does not fit is refused and the session goes on where it stood."""

    async def scenario() -> None:
        states = {state.name: np.full(state.shape, 0.5, np.float32) for state in LSTM.states}
        inputs = LSTM.example(np.random.default_rng(1), 4)[0]
        async with connected(configure(repository)) as (_, client, _), client.session("lstm") as session:
            async with client.session("lstm", initial_states=states) as other:
                wanted = await other.step(inputs)
            await session.step(inputs[::-1])
            with pytest.raises(InvalidInput, match="initial_states"):
                await client.reset(session, {"nobody": np.zeros(3)})
            assert session.position == 4
            await client.reset(session, states)
            assert session.position == 0
            np.testing.assert_array_equal(await session.step(inputs), wanted)
            with pytest.raises(InvalidInput, match="states of its own"):
                await session.reset()

    run(scenario())


def test_a_generation_keeps_its_session(repository: Path) -> None:
    """While a generation has the session nothing else may be done with it."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (_, client, _), client.session("history") as session:
            await session.lend()
            for call in (client.fork, client.snapshot):
                with pytest.raises(OutOfOrder):
                    await call(session)
            session.take_back(0)
            await (await client.fork(session)).close()

    run(scenario())


def test_blocking_code(repository: Path) -> None:
    """The synchronous client does the same."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (running, _, _):

            def work() -> None:
                with SyncClient(f"127.0.0.1:{running.server.port}") as client, client.session("lstm") as session:
                    inputs = LSTM.example(np.random.default_rng(1), 6)[0]
                    session.step(inputs[:3])
                    others = [client.fork(session), client.restore(client.snapshot(session))]
                    wanted = session.step(inputs[3:])
                    for other in others:
                        np.testing.assert_array_equal(other.step(inputs[3:]), wanted)
                        other.close()
                    client.reset(session, {LSTM.states[0].name: np.zeros(LSTM.states[0].shape, np.float32)})

            await asyncio.to_thread(work)

    run(scenario())


def test_the_command_line(repository: Path, tmp_path: Path) -> None:
    """A session is forked, saved to a file, looked at, restored and reset from the shell."""

    async def scenario() -> None:
        async with connected(configure(repository)) as (running, client, _), client.session("lstm") as session:
            inputs = LSTM.example(np.random.default_rng(1), 6)[0]
            await session.step(inputs[:3])
            target = ("--target", f"127.0.0.1:{running.server.port}")

            async def command(*arguments: str) -> bytes:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "eddy.cli", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
                )
                out, err = await process.communicate()
                assert process.returncode == 0, err.decode()
                return out

            file = tmp_path / "session.eddy"
            file.write_bytes(await command("client", "snapshot", session.id.hex(), *target))
            text = (await command("snapshot", str(file))).decode()
            for word in ("lstm", "position\t3", "checksum\tright", "ONNX Runtime", "float32"):
                assert word in text, text
            assert '"position": 3' in (await command("snapshot", str(file), "--json")).decode()
            wanted = await session.step(inputs[3:])
            for arguments in (("restore", str(file)), ("fork", session.id.hex())):
                told = (await command("client", *arguments, *target)).decode().split()
                other = await client.attach(bytes.fromhex(told[0]), bytes.fromhex(told[1]))
                if arguments[0] == "restore":
                    np.testing.assert_array_equal(await other.step(inputs[3:]), wanted)
                else:
                    assert other.position == 6
            states = tmp_path / "states.npz"
            np.savez(states, **{state.name: np.full(state.shape, 0.5, np.float32) for state in LSTM.states})
            await command("client", "reset", session.id.hex(), "--states", str(states), *target)
            assert (await client.find_session(session.id)).next_position == 0

    run(scenario())
