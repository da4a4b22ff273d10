"""A client that is cut off comes back by itself: every step takes effect once, and callers see only a pause."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_network import BadNetwork
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Loopback, configure, serve, until
from wire import run, spelled

from eddy import Client
from eddy.clients.backoff import Patience
from eddy.clients.errors import BatchError, Disconnected, Fenced, SessionEnded
from eddy.v1 import inference_pb2


def impatient(**options: Any) -> Patience:
    """As the usual patience, with short delays."""
    return Patience(**({"first_delay_seconds": 0.001, "max_delay_seconds": 0.01, "reconnect_seconds": 20.0} | options))


@asynccontextmanager
async def far(repository: Path, **options: Any) -> AsyncIterator[tuple[Loopback, BadNetwork, Client]]:
    """A server, a bad network before it, and a client of that."""
    async with (
        serve(configure(repository)) as loopback,
        BadNetwork(loopback.server.port).serve() as network,
        Client(f"127.0.0.1:{network.port}", patience=impatient(**options)) as client,
    ):
        yield loopback, network, client


@settings(max_examples=25)
@given(
    cuts=st.lists(st.integers(200, 4000), max_size=12),
    lengths=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=12), min_size=1, max_size=4),
    max_in_flight=st.integers(1, 4),
)
def test_random_cuts_of_sessions(
    repository: Path, cuts: list[int], lengths: list[list[int]], max_in_flight: int
) -> None:
    """However the connection is cut, pipelined or not, each session's answers spell its own history, once."""

    async def scenario() -> None:
        async with far(repository) as (_, network, client):
            await client.models()
            network.plan(cuts)

            async def drive(number: int, mine: list[int]) -> None:
                session = await client.open("history", max_in_flight=max_in_flight)
                digits = [[(number + 3 * place + step) % 10 for step in range(size)] for place, size in enumerate(mine)]
                parts = await asyncio.gather(*[session.step(each) for each in digits])
                assert [int(value) for part in parts for value in part] == spelled([d for each in digits for d in each])
                assert session.position == sum(mine)

            await asyncio.gather(*[drive(number, mine) for number, mine in enumerate(lengths)])

    run(scenario())


@settings(max_examples=25)
@given(
    cuts=st.lists(st.integers(300, 6000), max_size=10),
    picks=st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=12),
    max_in_flight=st.integers(1, 3),
)
def test_random_cuts_of_batches(repository: Path, cuts: list[int], picks: list[set[int]], max_in_flight: int) -> None:
    """However the connection is cut, each row of a batch answers as if it had not been."""

    async def scenario() -> None:
        async with far(repository) as (_, network, client):
            batch = await client.open_batch("history", 6, max_in_flight=max_in_flight)
            network.plan(cuts)
            steps = [sorted(rows) for rows in picks]
            answers = await asyncio.gather(
                *[batch.step([(row + place) % 10 for row in rows], rows) for place, rows in enumerate(steps)]
            )
            for row in range(6):
                digits = [(row + place) % 10 for place, rows in enumerate(steps) if row in rows]
                given_ = [int(part[rows.index(row)]) for part, rows in zip(answers, steps, strict=True) if row in rows]
                assert given_ == spelled(digits)
            assert batch.positions.tolist() == [sum(row in rows for rows in steps) for row in range(6)]

    run(scenario())


def test_a_cut_between_a_step_and_its_answer(repository: Path) -> None:
    """What the server has applied is answered from its kept replies; nothing is applied twice."""

    async def scenario() -> None:
        async with far(repository) as (loopback, network, client):
            session = await client.open("history", max_in_flight=3)
            batch = await client.open_batch("history", 2)
            await asyncio.gather(session.step(1), batch.step([1, 2]))
            table = loopback.host.table
            rows = [table.row_of_id(each) for each in (session.id, *batch.ids)]
            network.may_answer.clear()
            waiting = [asyncio.create_task(session.step(digit)) for digit in (2, 3, 4)]
            both = asyncio.create_task(batch.step([3, 4]))
            await until(lambda: table.next_position[rows].tolist() == [3, 2, 2])
            network.cut()
            assert [int(await step) for step in waiting] == [12, 123, 1234]
            assert (await both).tolist() == [13, 24]
            assert table.next_position[rows].tolist() == [4, 2, 2]
            assert int(await session.step(5)) == 12345

    run(scenario())


def test_a_network_that_refuses_for_a_while(repository: Path) -> None:
    """Attempts go on with growing delays; control among steps waits, too, and takes effect once."""

    async def scenario() -> None:
        delays: list[float] = []

        async def sleep(seconds: float) -> None:
            delays.append(seconds)
            await asyncio.sleep(0.005)

        async with far(repository, sleep=sleep, draw=lambda: 0.0, max_delay_seconds=0.004) as (
            loopback,
            network,
            client,
        ):
            async with client.session("history") as session:
                await session.step(9)
                network.refuses = True
                network.cut()
                steps = [asyncio.create_task(each) for each in (session.step(1), session.reset(), session.step(2))]
                await until(lambda: network.num_connections > 3 and len(delays) > 5)
                network.refuses = False
                assert [await each for each in steps] == [91, None, 2]
                assert delays[:4] == [0.001, 0.002, 0.004, 0.004]
            await until(lambda: loopback.host.table.num_sessions == 0)

    run(scenario())


def test_patience_that_is_over(repository: Path) -> None:
    """Whoever waits is told that there is no connection; the client may be used again once there is one."""

    async def scenario() -> None:
        async with far(repository, reconnect_seconds=0.05) as (_, network, client):
            session, batch = await client.open("history", max_in_flight=2), await client.open_batch("history", 2)
            await session.step(1)
            network.refuses = True
            network.cut()
            waiting = [session.step(2), session.step(3), session.step(4), session.reset(), batch.step([1, 2])]
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(result) for result in results] == [Disconnected] * 5
            with pytest.raises(Disconnected):
                await session.step(5)
            assert not session.is_open
            network.refuses = False
            again = None
            while again is None:
                try:
                    again = await client.attach(session.id, session.resume_token)
                except Disconnected:
                    await asyncio.sleep(0)
            assert await again.step(2) == 12

    run(scenario())


def test_only_who_is_gone_is_told(repository: Path) -> None:
    """Sessions that the server does not have any more end, alone; the others go on."""

    async def scenario() -> None:
        async with far(repository) as (loopback, network, client):
            gone, stays = await client.open("history"), await client.open("history")
            batch = await client.open_batch("history", 3)
            await asyncio.gather(gone.step(1), stays.step(1), batch.step([1, 2, 3]))
            network.cut()
            network.refuses = True
            table = loopback.host.table
            rows = np.array([table.row_of_id(gone.id), table.row_of_id(batch.ids[1])])
            closed = asyncio.get_running_loop().create_future()
            loopback.host.endings.close(rows, closed.set_result)
            await closed
            network.refuses = False
            with pytest.raises(SessionEnded):
                await gone.step(2)
            assert await stays.step(2) == 12
            with pytest.raises(BatchError) as caught:
                await batch.step([4, 5, 6])
            assert {row: type(error) for row, error in caught.value.errors.items()} == {1: SessionEnded}
            assert caught.value.outputs["y"].tolist() == [14, 0, 36]
            assert (await batch.step([7, 8], rows=[0, 2])).tolist() == [147, 368]

    run(scenario())


@pytest.mark.parametrize("has_stepped", [False, True])
def test_a_client_that_was_cut_off_does_not_take_a_session_back(repository: Path, *, has_stepped: bool) -> None:
    """Another client took the session over meanwhile, whether or not it has stepped it: the first one is fenced."""

    async def scenario() -> None:
        async with (
            far(repository) as (loopback, network, client),
            Client(f"127.0.0.1:{loopback.server.port}") as other,
        ):
            session, batch = await client.open("history", max_in_flight=2), await client.open_batch("history", 2)
            await asyncio.gather(session.step(1), batch.step([1, 2]))
            network.refuses = True
            network.cut()
            waiting = [asyncio.create_task(session.step(digit)) for digit in (7, 8)]
            taken = await other.attach(session.id, session.resume_token)
            taken_row = await other.attach(batch.ids[1], batch.resume_tokens[1])
            if has_stepped:
                assert await taken.step(2) == 12
                assert await taken_row.step(3) == 23
            network.refuses = False
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(result) for result in results] == [Fenced, Fenced]
            with pytest.raises(BatchError) as caught:
                await batch.step([5, 5])
            assert {row: type(error) for row, error in caught.value.errors.items()} == {1: Fenced}
            assert await taken.step(4) == (124 if has_stepped else 14)
            assert await taken_row.step(4) == (234 if has_stepped else 24)

    run(scenario())


def test_no_ping_pong(repository: Path) -> None:
    """Of two clients that want a session whoever attached last has it; the other one is told once and stays away."""

    async def scenario() -> None:
        async with (
            far(repository) as (loopback, network, client),
            Client(f"127.0.0.1:{loopback.server.port}") as other,
        ):
            session = await client.open("history")
            await session.step(1)
            taken = await other.attach(session.id, session.resume_token)
            with pytest.raises(Fenced):
                await session.step(2)
            network.cut()
            assert await taken.step(3) == 13
            with pytest.raises(Fenced):
                await session.step(2)
            epoch = taken.epoch
            assert await taken.step(4) == 134
            assert taken.epoch == epoch

    run(scenario())


@pytest.mark.parametrize(("is_own", "seconds_later"), [(True, 0.0), (True, 3600.0), (False, 0.0)])
def test_a_server_that_did_not_answer_takes_a_session_late(
    repository: Path, is_own: bool, seconds_later: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was asked for it by this very client, which goes on, once and not for ever; another client fences this one."""

    async def scenario() -> None:
        later_seconds = [0.0]
        clock = {"clock": lambda: time.monotonic() + later_seconds[0]}
        async with far(repository, **clock) as (loopback, network, client), loopback.stream() as late:
            session, batch = await client.open("history", max_in_flight=2), await client.open_batch("history", 2)
            await asyncio.gather(session.step(1), batch.step([1, 2]))
            asked: list[object] = []
            with monkeypatch.context() as patch:
                patch.setattr(loopback.host.takeover, "attach", lambda *request, **_: asked.append(request))
                network.cut()
                await until(lambda: len(asked) == 3)
                network.cut()
            assert await session.step(2) == 12
            assert (await batch.step([3, 4])).tolist() == [13, 24]

            async def take(session_id: bytes, token: bytes) -> None:
                table = loopback.host.table
                holder = int(table.holder[table.find(session_id)]) if is_own else 4711
                request = inference_pb2.AttachSession(
                    session_id=session_id, resume_token=token, holder=holder, resumes=is_own
                )
                assert (await late.send(attach=request)).attached.next_position

            async def taken(digits: list[int]) -> tuple[list[Any], Any]:
                await take(session.id, session.resume_token)
                await take(batch.ids[1], batch.resume_tokens[1])
                steps = [session.step(digit) for digit in digits]
                return (
                    await asyncio.gather(*steps, return_exceptions=True),
                    (await asyncio.gather(batch.step(digits), return_exceptions=True))[0],
                )

            later_seconds[0] = seconds_later
            results, rows = await taken([3, 4])
            if is_own and not seconds_later:
                assert results == [123, 1234]
                assert rows.tolist() == [133, 244]
                results, rows = await taken([5, 6])
            assert [type(result) for result in results] == [Fenced, Fenced]
            assert isinstance(rows, BatchError)
            assert {row: type(error) for row, error in rows.errors.items()} == {1: Fenced}

    run(scenario())


def test_a_server_that_is_drained_beside_another_one(repository: Path) -> None:
    """Steps that a draining server refuses are not told to callers; the next address is asked, which knows nothing."""

    async def scenario() -> None:
        async with (
            serve(configure(repository)) as first,
            serve(configure(repository)) as second,
            Client(f"127.0.0.1:{first.server.port},127.0.0.1:{second.server.port}", patience=impatient()) as client,
        ):
            session = await client.open("history")
            await session.step(1)
            assert await first.host.drain()
            with pytest.raises(SessionEnded):
                await session.step(2)
            async with client.session("history") as anew:
                assert await anew.step(3) == 3
                assert second.host.table.num_sessions == 1

    run(scenario())


def test_a_cut_between_closing_a_batch_and_the_answer(repository: Path, tmp_path: Path) -> None:
    """Nothing of it is left in the server or its store, its caller is told nothing, and the next batch begins anew."""

    async def scenario() -> None:
        state = {"store": f"sqlite:{tmp_path}/store", "checkpoint_seconds": 1000.0, "max_lag_seconds": 1e6}
        async with (
            serve(configure(repository, state=state)) as loopback,
            BadNetwork(loopback.server.port).serve() as network,
            Client(f"127.0.0.1:{network.port}", patience=impatient()) as client,
        ):
            table, durability = loopback.host.table, loopback.host.durability
            assert durability is not None
            batch, session = await client.open_batch("history", 3), await client.open("history")
            await asyncio.gather(batch.step([1, 2, 3]), session.step(7))
            network.may_answer.clear()
            closing = asyncio.create_task(batch.close())
            await until(lambda: table.num_sessions == 1)
            network.cut()
            await closing
            await batch.close()
            with pytest.raises(SessionEnded):
                await batch.step([1, 2, 3])
            assert await session.step(8) == 78
            again = await client.open_batch("history", 3)
            assert (await again.step([4, 5, 6])).tolist() == [4, 5, 6]
            assert table.num_sessions == 4
            # Whatever was written since, the deletions went with it.
            assert await durability.store.call(lambda store: store.read(batch.ids)) == [None] * 3
            assert await durability.store.call(lambda store: store.count()) == 4

    run(scenario())
