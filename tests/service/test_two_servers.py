"""Two servers over one Redis: a session goes from one to the other and back, and what is left behind does no harm."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import family
from loopback import Loopback, array, attach_request, chunk, configure, serve, write_model
from redis_server import RedisServer, needs_redis, redis_server

from eddy.service.errors import EddyError, Reason
from eddy.service.record import decode
from eddy.service.sessions import ROW_MASK
from eddy.v1 import inference_pb2, sessions_pb2

pytestmark = needs_redis
HISTORY = family("history")


@asynccontextmanager
async def _servers(folder: Path) -> AsyncIterator[tuple[Loopback, Loopback, inference_pb2.SessionsOpened, RedisServer]]:
    """Two servers that write when they are asked to, and a session that the first one has opened."""
    write_model(folder / "models", "history")
    with redis_server(folder) as redis:
        state = {"store": redis.url(), "checkpoint_seconds": 1000.0, "max_lag_seconds": 1e6}
        config = configure(folder / "models", state=state)
        async with serve(config) as first, serve(config) as second:
            async with first.stream() as stream:
                opened = await stream.open("history")
            yield first, second, opened, redis


async def _attach(server: Loopback, opened: inference_pb2.SessionsOpened, digit: int, position: int) -> int:
    """Takes the session over on `server`, steps it, and cuts the connection; returns its answer."""
    async with server.stream() as stream:
        response = await stream.send(attach=attach_request(opened))
        assert response.WhichOneof("event") == "attached", response
        assert response.attached.next_position == position
        handle = response.attached.handle
        await asyncio.wait_for(server.host.persistence.persist(np.array([handle & 0xFFFFFFFF])), 30)
        answer = await stream.send(step=chunk(HISTORY, [handle], [position], [[digit]]))
        assert not answer.step.errors, answer
        await asyncio.wait_for(server.host.persistence.persist(np.array([handle & 0xFFFFFFFF])), 30)
        return int(array(answer.step.outputs[0])[0, 0])


def test_a_session_that_comes_back_is_the_one_in_the_store(tmp_path: Path) -> None:
    """Its old copy is still open on the first server: it ends, and the session goes on where the other one left it."""

    async def go() -> None:
        async with _servers(tmp_path) as (first, second, opened, _):
            assert await _attach(first, opened, 1, 0) == 1
            assert await _attach(second, opened, 2, 1) == 12
            assert await _attach(first, opened, 3, 2) == 123
            assert await _attach(second, opened, 4, 3) == 1234

    asyncio.run(go())


def test_an_attach_whose_client_has_gone_takes_nothing(tmp_path: Path) -> None:
    """A server that gets to a request when its client has gone leaves the session alone: another server may have it."""

    async def go() -> None:
        async with _servers(tmp_path) as (first, second, opened, _):
            assert await _attach(second, opened, 1, 0) == 1
            async with serve(first.host.config) as third:
                durability = third.host.durability
                assert durability is not None
                with pytest.raises(EddyError) as caught:
                    await durability.recaller.find(opened.session_ids[0], lambda _: False)
                assert caught.value.reason is Reason.UNKNOWN_SESSION
            async with second.stream() as stream:
                attached = await stream.send(attach=attach_request(opened))
                assert attached.attached.epoch == 4, "opened 1, brought back 2, attached 3 and 4, and nobody else"

    asyncio.run(go())


def test_who_asks_when_another_has_gone_is_answered(tmp_path: Path) -> None:
    """Two ask for one session at once, and the first has gone: the second has it, whoever began to bring it back."""

    async def go() -> None:
        async with _servers(tmp_path) as (_, second, opened, _):
            durability = second.host.durability
            assert durability is not None
            find = durability.recaller.find
            asked = [find(opened.session_ids[0], lambda _: False), find(opened.session_ids[0])]
            gone, there = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30)
            assert gone == there == second.host.table.row_of_id(opened.session_ids[0])

    asyncio.run(go())


async def _get(server: Loopback, session_id: bytes) -> sessions_pb2.Session:
    request = sessions_pb2.GetSessionRequest(session_id=session_id)
    return (await server.unary("SessionService/GetSession", request, sessions_pb2.GetSessionResponse)).session


async def _copies(server: Loopback, session_id: bytes, digit: int) -> tuple[int, int]:
    """What a snapshot has as the session's history, and what a fork answers to `digit`."""
    taking = sessions_pb2.SnapshotSessionRequest(session_id=session_id)
    taken = await server.unary("SessionService/SnapshotSession", taking, sessions_pb2.SnapshotSessionResponse)
    record = decode(taken.snapshot)
    assert (record.session_id, record.resume_token, record.epoch) == (bytes(16), bytes(16), 0)
    forking = sessions_pb2.ForkSessionRequest(session_id=session_id)
    forked = await server.unary("SessionService/ForkSession", forking, sessions_pb2.ForkSessionResponse)
    copy = forked.session
    assert record.next_position == taken.session.next_position == copy.next_position
    assert taken.session.session_id == session_id != copy.session_id
    history = 0 if record.is_initial else int(record.states[0].reshape(-1)[0])
    async with server.stream() as stream:
        request = inference_pb2.AttachSession(session_id=copy.session_id, resume_token=copy.resume_token)
        handle = (await stream.send(attach=request)).attached.handle
        answer = await stream.step(HISTORY, [handle], [copy.next_position], [[digit]])
        return history, int(array(answer.outputs[0])[0, 0])


def test_who_only_looks_takes_nothing(tmp_path: Path) -> None:
    """Reading, copying and forking a session on another server leave it with the one that has it, which goes on."""

    async def go() -> None:
        async with _servers(tmp_path) as (first, second, opened, _), first.stream() as stream:
            (session_id,) = opened.session_ids
            attached = (await stream.send(attach=attach_request(opened))).attached
            rows = np.array([attached.handle & ROW_MASK])
            await stream.step(HISTORY, [attached.handle], [0], [[1]])
            await stream.step(HISTORY, [attached.handle], [1], [[2]])
            await asyncio.wait_for(first.host.persistence.persist(rows), 30)
            # Of this one the store knows nothing yet.
            await stream.step(HISTORY, [attached.handle], [2], [[3]])
            here, there = await _get(first, session_id), await _get(second, session_id)
            assert (here.next_position, here.durable_position, here.attached) == (3, 2, True)
            assert (there.next_position, there.durable_position, there.attached) == (2, 2, False)
            assert (here.tier, there.tier) == (sessions_pb2.TIER_DEVICE, sessions_pb2.TIER_STORE)
            fields = ("session_id", "fingerprint", "model", "version", "package_digest", "epoch", "max_in_flight")
            for field in (*fields, "idle_timeout_seconds", "durable"):
                assert getattr(here, field) == getattr(there, field), field
            assert not there.resume_token
            assert 0 <= there.idle_seconds < there.idle_timeout_seconds
            # Copies stand where the server that is asked knows it.
            for server, history in ((first, 123), (second, 12)):
                assert await _copies(server, session_id, 9) == (history, 10 * history + 9)
            assert not second.host.table.find(session_id)
            answer = await stream.step(HISTORY, [attached.handle], [3], [[4]])
            assert array(answer.outputs[0]).tolist() == [[1234]]
            await asyncio.wait_for(first.host.persistence.persist(rows), 30)
            assert first.host.table.durable_position[rows].tolist() == [4]

    asyncio.run(go())


def test_what_has_gone_elsewhere_is_looked_at_there(tmp_path: Path) -> None:
    """The first server still has an old copy of it, which it neither tells nor copies."""

    async def go() -> None:
        async with _servers(tmp_path) as (first, second, opened, _):
            (session_id,) = opened.session_ids
            assert await _attach(first, opened, 1, 0) == 1
            assert await _attach(second, opened, 2, 1) == 12
            assert first.host.table.find(session_id)
            assert (await _get(first, session_id)).next_position == 2
            assert await _copies(first, session_id, 9) == (12, 129)

    asyncio.run(go())


def test_what_is_here_can_be_looked_at_without_the_store(tmp_path: Path) -> None:
    """What only the store has cannot."""

    async def go() -> None:
        async with _servers(tmp_path) as (first, second, opened, redis):
            (session_id,) = opened.session_ids
            redis.kill()
            assert (await _get(first, session_id)).next_position == 0
            assert await _copies(first, session_id, 9) == (0, 9)
            request = sessions_pb2.GetSessionRequest(session_id=session_id)
            detail = await second.refusal("SessionService/GetSession", request, sessions_pb2.GetSessionResponse)
            assert detail.reason == Reason.STORE_UNAVAILABLE

    asyncio.run(go())


def test_a_writer_of_an_old_epoch_takes_nothing(tmp_path: Path) -> None:
    """Its session is on another server in a later epoch; one that shows that epoch goes on here, and is the last."""

    async def go() -> None:
        async with _servers(tmp_path) as (first, second, opened, _), first.stream() as stream:
            (session_id,) = opened.session_ids
            attached = (await stream.send(attach=attach_request(opened))).attached
            await stream.step(HISTORY, [attached.handle], [0], [[1]])
            rows = np.array([attached.handle & ROW_MASK])
            await asyncio.wait_for(first.host.persistence.persist(rows), 30)

            def step(epoch: int, position: int, digit: int) -> inference_pb2.StepRequest:
                row = chunk(HISTORY, [0], [position], [[digit]])
                values = row.inputs
                return inference_pb2.StepRequest(
                    session_id=session_id, epoch=epoch, position=position, num_steps=1, inputs=values
                )

            old = step(attached.epoch - 1, 1, 9)
            detail = await second.refusal("InferenceService/Step", old, inference_pb2.StepResponse)
            assert (detail.reason, detail.epoch) == (Reason.FENCED, attached.epoch)
            answer = await stream.step(HISTORY, [attached.handle], [1], [[2]])
            assert array(answer.outputs[0]).tolist() == [[12]]
            await asyncio.wait_for(first.host.persistence.persist(rows), 30)
            for position, digit, history in ((2, 3, 123), (3, 4, 1234)):
                shown = step(attached.epoch, position, digit)
                answer = await second.unary("InferenceService/Step", shown, inference_pb2.StepResponse)
                assert array(answer.outputs[0]).tolist() == [[history]]
                assert answer.epoch > attached.epoch
            # Whoever begins another epoch there fences it.
            async with second.stream() as elsewhere:
                await elsewhere.send(attach=attach_request(opened))
                detail = await second.refusal(
                    "InferenceService/Step", step(attached.epoch, 4, 5), inference_pb2.StepResponse
                )
                assert detail.reason == Reason.FENCED
                detail = await second.refusal("InferenceService/Step", step(0, 4, 5), inference_pb2.StepResponse)
                assert detail.reason == Reason.FENCED

    asyncio.run(go())


def test_who_may_not_take_a_session_takes_it_from_nobody(tmp_path: Path) -> None:
    """Another token, an id of another length, a client that comes back late: its owner, on another server, goes on."""

    async def go() -> None:
        async with _servers(tmp_path) as (first, second, opened, _), first.stream() as stream:
            request = attach_request(opened)
            request.holder = 7
            attached = (await stream.send(attach=request)).attached
            rows = np.array([attached.handle & ROW_MASK])
            await asyncio.wait_for(first.host.persistence.persist(rows), 30)
            async with second.stream() as elsewhere:
                for changes, reason in (
                    ({"resume_token": bytes(16)}, Reason.WRONG_RESUME_TOKEN),
                    ({"resume_token": b""}, Reason.WRONG_RESUME_TOKEN),
                    ({"session_id": b"short"}, Reason.INVALID_BYTE_LENGTH),
                    ({"holder": 8, "resumes": True}, Reason.FENCED),
                ):
                    changed = attach_request(opened)
                    for name, value in changes.items():
                        setattr(changed, name, value)
                    error = await elsewhere.refusal(attach=changed)
                    assert error.reason == reason, changes
                assert not second.host.table.num_sessions
                for position, history in ((0, 1), (1, 12)):
                    answer = await stream.step(HISTORY, [attached.handle], [position], [[position + 1]])
                    assert array(answer.outputs[0]).tolist() == [[history]]
                    await asyncio.wait_for(first.host.persistence.persist(rows), 30)
                assert first.host.table.durable_position[rows].tolist() == [2]

    asyncio.run(go())


def test_what_is_done_by_id_is_done_to_the_session_and_not_to_an_old_copy(tmp_path: Path) -> None:
    """A step in the epoch that it is in elsewhere, a reset and a close, on the server that had it before."""

    async def go() -> None:
        async with _servers(tmp_path) as (first, second, opened, _):
            (session_id,) = opened.session_ids

            async def both(digits: tuple[int, int], position: int) -> int:
                """Stepped on the first server, then on the second one: the copy on the first is old."""
                await _attach(first, opened, digits[0], position)
                await _attach(second, opened, digits[1], position + 1)
                assert first.host.table.find(session_id)
                return (await _get(second, session_id)).epoch

            epoch = await both((1, 2), 0)
            values = chunk(HISTORY, [0], [2], [[3]]).inputs
            step = inference_pb2.StepRequest(session_id=session_id, epoch=epoch, position=2, num_steps=1, inputs=values)
            answer = await first.unary("InferenceService/Step", step, inference_pb2.StepResponse)
            assert array(answer.outputs[0]).tolist() == [[123]]
            await both((4, 5), 3)
            resetting = sessions_pb2.ResetSessionRequest(session_id=session_id)
            reset = await first.unary("SessionService/ResetSession", resetting, sessions_pb2.ResetSessionResponse)
            assert (reset.session.next_position, reset.session.durable) == (0, True)
            await both((6, 7), 0)
            closing = sessions_pb2.CloseSessionRequest(session_id=session_id)
            await first.unary("SessionService/CloseSession", closing, sessions_pb2.CloseSessionResponse)
            detail = await first.refusal(
                "SessionService/GetSession",
                sessions_pb2.GetSessionRequest(session_id=session_id),
                sessions_pb2.GetSessionResponse,
            )
            assert detail.reason == Reason.UNKNOWN_SESSION

    asyncio.run(go())


def test_what_is_written_while_another_server_reads_is_not_lost(tmp_path: Path) -> None:
    """The owner's step becomes durable between the other server's reading and writing: the session is read again."""

    async def go() -> None:
        async with _servers(tmp_path) as (first, second, opened, _), first.stream() as stream:
            attached = (await stream.send(attach=attach_request(opened))).attached
            rows = np.array([attached.handle & ROW_MASK])
            await stream.step(HISTORY, [attached.handle], [0], [[1]])
            await asyncio.wait_for(first.host.persistence.persist(rows), 30)
            assert second.host.durability is not None
            store = second.host.durability.store
            write, is_late = store.call, [False]

            async def later(work: Any) -> Any:
                """What was read is old by the time it is used."""
                found = await write(work)
                if not is_late[0]:
                    is_late[0] = True
                    await stream.step(HISTORY, [attached.handle], [1], [[2]])
                    await asyncio.wait_for(first.host.persistence.persist(rows), 30)
                    assert first.host.table.durable_position[rows].tolist() == [2]
                return found

            store.call = lambda work: asyncio.ensure_future(later(work))  # type: ignore[method-assign]
            async with second.stream() as elsewhere:
                taken = (await elsewhere.send(attach=attach_request(opened))).attached
                assert taken.next_position == 2
                answer = await elsewhere.step(HISTORY, [taken.handle], [2], [[3]])
                assert array(answer.outputs[0]).tolist() == [[123]]

    asyncio.run(go())


def test_an_old_copy_that_expires_takes_nothing_with_it(tmp_path: Path) -> None:
    """It is forgotten before the store is told; the session, which is elsewhere, is found all the time."""

    async def go() -> None:
        async with _servers(tmp_path) as (first, second, opened, _):
            (session_id,) = opened.session_ids
            await _attach(first, opened, 1, 0)
            await _attach(second, opened, 2, 1)
            table = first.host.table
            copy = np.array([table.find(session_id)])
            table.last_used[copy] -= 1e9
            first.host.endings.expire()
            assert not table.find(session_id)
            assert (await _get(first, session_id)).next_position == 2
            assert await _attach(first, opened, 3, 2) == 123

    asyncio.run(go())
