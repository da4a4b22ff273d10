"""Sessions beyond slots and host memory, over the wire: their states are in a state store, and come back from there."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from graphs import family
from loopback import Loopback, StreamClient, array, attach_request, chunk, column, configure, serve, until, write_model
from redis_server import needs_redis, redis_server

from eddy.service.errors import Reason
from eddy.service.lifecycle import Tier
from eddy.v1 import inference_pb2, sessions_pb2

HISTORY = family("history")
NUM_SLOTS, NUM_CELLS, NUM_SESSIONS = 4, 9, 24
_STATE_BYTES = 8


@asynccontextmanager
async def _crowd(folder: Path) -> AsyncIterator[tuple[Loopback, StreamClient, list[int]]]:
    """A server with a store and room for few sessions, a stream of it, and the handles of more."""
    write_model(folder, "history")
    state = {"store": f"sqlite:{folder / 'sessions'}", "host_bytes": NUM_CELLS * _STATE_BYTES}
    config = configure(folder, model={"max_slots": NUM_SLOTS, "max_rows": NUM_SLOTS}, state=state)
    async with serve(config) as running, running.stream() as stream:
        yield running, stream, await stream.handles("history", NUM_SESSIONS)


def test_sessions_come_back_from_the_store(tmp_path: Path) -> None:
    """Twenty-four sessions over four slots and nine cells: every answer spells its session's own history."""

    async def check() -> None:
        async with _crowd(tmp_path) as (running, stream, handles):
            model = running.host.catalog.ready("history", "")
            for position in range(4):
                for begin in range(0, NUM_SESSIONS, 3):
                    mine = handles[begin : begin + 3]
                    digits = [[1 + (begin + place + position) % 9] for place in range(3)]
                    stepped = await stream.step(HISTORY, mine, [position] * 3, digits)
                    wanted = [
                        int("".join(str(1 + (begin + place + each) % 9) for each in range(position + 1)))
                        for place in range(3)
                    ]
                    assert array(stepped.outputs[0])[:, 0].tolist() == wanted
            counts = model.residence.by_tier
            assert counts[Tier.DEVICE] == NUM_SLOTS
            assert counts[Tier.STORE] > 0
            listing = await running.unary(
                "SessionService/ListSessions",
                sessions_pb2.ListSessionsRequest(page_size=1000),
                sessions_pb2.ListSessionsResponse,
            )
            told = Counter(sessions_pb2.Tier.Name(session.tier) for session in listing.sessions)
            assert told == {f"TIER_{tier.name}": count for tier, count in counts.items() if count}
            # A fork of one that is only in the store.
            table = running.host.table
            rows = table.rows_of(np.array(handles, np.uint64))
            stored = int(np.flatnonzero(table.tiers_of(rows) == Tier.STORE)[0])
            before = int("".join(str(1 + (stored + each) % 9) for each in range(4)))
            response = await stream.send(
                fork=inference_pb2.ForkSessions(handles=np.array([handles[stored]], "<u8").tobytes())
            )
            assert not response.forked.errors
            (forked,) = np.frombuffer(response.forked.handles, "<u8").tolist()
            answer = await stream.send(step=chunk(HISTORY, [forked], [4], [[5]]))
            assert array(answer.step.outputs[0]).tolist() == [[10 * before + 5]]
            answer = await stream.send(step=chunk(HISTORY, [handles[stored]], [4], [[6]]))
            assert array(answer.step.outputs[0]).tolist() == [[10 * before + 6]]

    asyncio.run(check())


@needs_redis
def test_sessions_that_another_server_took_from_the_store(tmp_path: Path) -> None:
    """What is left of them here ends with FENCED; others in the message are stepped, and the rest stays durable.

    Whoever comes back to one by its id finds it as the other server left it.
    """
    repository = tmp_path / "models"
    write_model(repository, "history")

    async def check(url: str) -> None:
        state = {"store": url, "host_bytes": NUM_CELLS * _STATE_BYTES, "checkpoint_seconds": 1000.0}
        state["max_lag_seconds"] = 1e6
        small = configure(repository, model={"max_slots": NUM_SLOTS, "max_rows": NUM_SLOTS}, state=state)
        async with serve(small) as first, serve(small) as second, first.stream() as stream:
            opened = await stream.open("history", NUM_SESSIONS)
            handles = np.frombuffer(opened.handles, "<u8").tolist()
            for begin in range(0, NUM_SESSIONS, 3):
                await stream.step(HISTORY, handles[begin : begin + 3], [0] * 3, [[1]] * 3)
            table = first.host.table
            rows = table.rows_of(np.array(handles, np.uint64))
            stored = np.flatnonzero(table.tiers_of(rows) == Tier.STORE).tolist()
            assert len(stored) >= 3
            async with second.stream() as elsewhere:
                for number in stored[:2]:
                    attached = (await elsewhere.send(attach=attach_request(opened, number))).attached
                    await elsewhere.step(HISTORY, [attached.handle], [1], [[2]])
                taken = np.array([attached.handle], np.uint64)
                await asyncio.wait_for(second.host.persistence.persist(second.host.table.rows_of(taken)), 30)
            # By its handle: it alone is refused.
            both = [handles[stored[0]], handles[stored[2]]]
            result = await stream.step(HISTORY, both, [1, 1], [[3], [3]])
            assert [(error.row, error.error.reason) for error in result.errors] == [(0, Reason.FENCED)]
            assert array(result.outputs[0])[1, 0] == 13
            # By its id.
            response = await stream.send(attach=attach_request(opened, stored[1]))
            assert response.attached.next_position == 2, response
            answer = await stream.step(HISTORY, [response.attached.handle], [2], [[4]])
            assert array(answer.outputs[0]).tolist() == [[124]]
            # And the store is written to as before.
            mine = table.rows_of(np.array(both[1:], np.uint64))
            await asyncio.wait_for(first.host.persistence.persist(mine), 30)
            assert table.durable_position[mine].tolist() == [2]

    with redis_server(tmp_path) as redis:
        asyncio.run(check(redis.url()))


def test_states_that_are_sent_for_twice(tmp_path: Path) -> None:
    """Two readers send for a session in the store at once, and it is stepped as soon as it is back: no step is lost."""

    async def check() -> None:
        async with _crowd(tmp_path) as (running, stream, handles):
            for begin in range(0, NUM_SESSIONS, 3):
                await stream.step(HISTORY, handles[begin : begin + 3], [0] * 3, [[1]] * 3)
            model, table = running.host.catalog.ready("history", ""), running.host.table
            rows = table.rows_of(np.array(handles, np.uint64))
            stored = int(np.flatnonzero(table.tiers_of(rows) == Tier.STORE)[0])
            read: list[object] = []
            for _ in range(2):
                model.read_states(rows[[stored]], read.append)
            for position, wanted in ((1, 12), (2, 123), (3, 1234)):
                answer = await stream.step(HISTORY, [handles[stored]], [position], [[position + 1]])
                assert array(answer.outputs[0]).tolist() == [[wanted]]
            await until(lambda: len(read) == 2)
            for states in read:
                assert isinstance(states, list)
                assert int(states[0].reshape(-1)[0]) in (1, 12, 123, 1234)
            assert sum(model.residence.by_tier.values()) == NUM_SESSIONS
            assert model.residence.num_stored == int(np.count_nonzero(table.tiers_of(rows) == Tier.STORE))

    asyncio.run(check())


def test_sessions_that_were_reset_come_back_at_their_start(tmp_path: Path) -> None:
    """Whatever pushes them about between a reset and the next step; also where their record has no states at all."""

    async def check() -> None:
        async with _crowd(tmp_path) as (running, stream, handles):
            model, table = running.host.catalog.ready("history", ""), running.host.table
            rows = table.rows_of(np.array(handles, np.uint64))

            async def step_others(position: int) -> None:
                for begin in range(1, NUM_SESSIONS - 2, 3):
                    await stream.step(HISTORY, handles[begin : begin + 3], [position] * 3, [[3]] * 3)

            await stream.step(HISTORY, handles[:1], [0], [[1]])
            await step_others(0)
            await stream.step(HISTORY, handles[:1], [1], [[2]])
            response = await stream.send(reset=inference_pb2.ResetSessions(handles=column(handles[:1])))
            fresh = np.frombuffer(response.reset.handles, "<u8").tolist()
            await step_others(1)
            await asyncio.wait_for(running.host.persistence.persist(rows[:1]), 30)
            await step_others(2)
            assert table.tiers_of(rows[:1]).tolist() == [Tier.INITIAL]
            # As if it had been in memory once, and in the store since.
            model.place_states(rows[:1], [np.array([777])])
            model.residence.shelve(1, rows[1:])
            assert table.tiers_of(rows[:1]).tolist() == [Tier.STORE]
            stepped = await stream.step(HISTORY, fresh, [0], [[5]])
            assert array(stepped.outputs[0]).tolist() == [[5]]

    asyncio.run(check())


def test_reading_beside_the_store_tier(tmp_path: Path) -> None:
    """Snapshots and checkpoints of sessions that come and go are all answered, and the store keeps up."""

    async def check() -> None:
        async with _crowd(tmp_path) as (running, stream, handles):
            table = running.host.table
            rows = table.rows_of(np.array(handles, np.uint64))
            ids = table.ids_of(rows)
            for position in range(6):
                request = [sessions_pb2.SnapshotSessionRequest(session_id=each) for each in ids[position::4]]
                asked = [
                    asyncio.ensure_future(
                        running.unary(
                            "SessionService/SnapshotSession", each, sessions_pb2.SnapshotSessionResponse, timeout=30
                        )
                    )
                    for each in request
                ]
                written = running.host.persistence.persist(rows)
                for begin in range(0, NUM_SESSIONS, 3):
                    mine = handles[begin : begin + 3]
                    stepped = await stream.step(HISTORY, mine, [position] * 3, [[1]] * 3)
                    assert array(stepped.outputs[0])[:, 0].tolist() == [int("1" * (position + 1))] * 3
                taken = await asyncio.gather(*asked)
                assert all(each.snapshot for each in taken)
                await asyncio.wait_for(written, 30)
            await asyncio.wait_for(running.host.persistence.persist(rows), 30)
            assert not table.num_readers.any()

    asyncio.run(check())
