"""The server's calls: unary sessions, control on the stream, time, capacity, health and reflection.

The model is `history`: its answers spell what was applied.
"""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from graphs import family
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from loopback import (
    Loopback,
    StreamClient,
    array,
    attach_request,
    chunk,
    column,
    configure,
    detail_of,
    serve,
    tensor,
    until,
    write_model,
)
from simulation import Clock

from eddy.service.cost import Budget
from eddy.service.errors import Reason
from eddy.service.host import Host
from eddy.service.queue import Limits
from eddy.service.server import PortInUse, Server
from eddy.v1 import inference_pb2, models_pb2, sessions_pb2

HISTORY = family("history")
LSTM = family("lstm")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models."""
    root = tmp_path_factory.mktemp("models")
    for name in ("history", "lstm", "token-gru"):
        write_model(root, name)
    return root


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Runs a scenario to its end."""
    asyncio.run(scenario)


async def _open(loopback: Loopback, **fields: Any) -> sessions_pb2.Session:
    request = sessions_pb2.OpenSessionRequest(**({"model": "history"} | fields))
    response = await loopback.unary("SessionService/OpenSession", request, sessions_pb2.OpenSessionResponse)
    session: sessions_pb2.Session = response.session
    return session


async def _step(
    loopback: Loopback, session: sessions_pb2.Session, position: int, *digits: int, seconds: float | None = None
) -> Any:
    request = inference_pb2.StepRequest(
        session_id=session.session_id,
        epoch=session.epoch,
        position=position,
        num_steps=len(digits),
        inputs=[tensor("x", np.array([digits]))],
    )
    return await loopback.unary("InferenceService/Step", request, inference_pb2.StepResponse, timeout=seconds)


async def _get(loopback: Loopback, session_id: bytes) -> sessions_pb2.Session:
    request = sessions_pb2.GetSessionRequest(session_id=session_id)
    response = await loopback.unary("SessionService/GetSession", request, sessions_pb2.GetSessionResponse)
    session: sessions_pb2.Session = response.session
    return session


def _answers(result: Any) -> list[list[int]]:
    answers: list[list[int]] = array(result.outputs[0]).tolist()
    return answers


def _spelled(digits: list[int]) -> int:
    """What `history` answers to the last of `digits`, in 64 bits."""
    total = 0
    for digit in digits:
        total = (total * 10 + digit) % (1 << 64)
    return total - (1 << 64) if total >= 1 << 63 else total


# Unary sessions


def test_a_session_by_unary_calls(repository: Path) -> None:
    """Open, step, repeat, get, reset and close without a stream."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback:
            session = await _open(loopback, idle_timeout_seconds=30)
            assert (session.next_position, session.max_in_flight, session.idle_timeout_seconds) == (0, 1, 30)
            assert (session.model, session.version, session.attached) == ("history", "1", False)
            first = await _step(loopback, session, 0, 1, 2, 3)
            assert (_answers(first), first.next_position, first.replayed) == ([[1, 12, 123]], 3, False)
            again = await _step(loopback, session, 0, 1, 2, 3)
            assert (_answers(again), again.next_position, again.replayed) == ([[1, 12, 123]], 3, True)
            assert _answers(await _step(loopback, session, 3, 4)) == [[1234]]
            assert (await _get(loopback, session.session_id)).next_position == 4
            reset = await loopback.unary(
                "SessionService/ResetSession",
                sessions_pb2.ResetSessionRequest(session_id=session.session_id),
                sessions_pb2.ResetSessionResponse,
            )
            assert reset.session.epoch == session.epoch + 1
            assert reset.session.next_position == 0
            assert _answers(await _step(loopback, reset.session, 0, 7)) == [[7]]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await _step(loopback, session, 1, 7)
            assert Reason(detail_of(caught.value).reason) is Reason.FENCED
            close = sessions_pb2.CloseSessionRequest(session_id=session.session_id)
            await loopback.unary("SessionService/CloseSession", close, sessions_pb2.CloseSessionResponse)
            detail = await loopback.refusal("SessionService/CloseSession", close, sessions_pb2.CloseSessionResponse)
            assert Reason(detail.reason) is Reason.UNKNOWN_SESSION

    run(scenario())


def test_listing_sessions(repository: Path) -> None:
    """Pages cover every session once, by model or all; ids are not shown."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback, loopback.stream() as stream:
            await stream.open("history", 5)
            await stream.open("lstm", 2)
            await _open(loopback)

            async def pages(model: str, size: int) -> list[sessions_pb2.Session]:
                found, token = [], ""
                while True:
                    request = sessions_pb2.ListSessionsRequest(model=model, page_size=size, page_token=token)
                    page = await loopback.unary(
                        "SessionService/ListSessions", request, sessions_pb2.ListSessionsResponse
                    )
                    assert len(page.sessions) <= size
                    found += page.sessions
                    token = page.next_page_token
                    if not token:
                        assert page.total == len(found)
                        return found

            everything = await pages("", 3)
            assert len({session.fingerprint for session in everything}) == 8
            assert all(session.session_id == b"" for session in everything)
            assert sum(session.attached for session in everything) == 7
            assert len(await pages("history", 2)) == 6
            assert [session.model for session in await pages("lstm", 100)] == ["lstm", "lstm"]

    run(scenario())


# Control on the stream


def test_close_and_reset_on_the_stream(repository: Path) -> None:
    """A reset gives a new handle at position 0; a closed session is told to be closed; each row by itself."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback, loopback.stream() as stream:
            first, second, third = await stream.handles("history", 3)
            await stream.step(HISTORY, [first, second, third], [0, 0, 0], [[1], [2], [3]])
            response = await stream.send(reset=inference_pb2.ResetSessions(handles=column([first, 99, second])))
            fresh = np.frombuffer(response.reset.handles, "<u8").tolist()
            assert [error.row for error in response.reset.errors] == [1]
            assert fresh[1] == 0
            result = await stream.step(HISTORY, [fresh[0], fresh[2], third], [0, 0, 1], [[5], [6], [7]])
            assert _answers(result) == [[5], [6], [37]]
            response = await stream.send(close=inference_pb2.CloseSessions(handles=column([third, first])))
            assert [(e.row, Reason(e.error.reason)) for e in response.closed.errors] == [(1, Reason.FENCED)]
            detail = await stream.refusal(step=chunk(HISTORY, [third], [2], [[1]]))
            assert Reason(detail.reason) is Reason.SESSION_CLOSED
            assert loopback.host.table.num_sessions == 2

    run(scenario())


def test_control_keeps_its_place_among_chunks(repository: Path) -> None:
    """Chunk, close, chunk, reset, close in one go: each takes effect in the order sent, and is told what it met."""

    async def scenario() -> None:
        async with serve(configure(repository, server={"inline_tick_seconds": 0.0})) as loopback:
            # One step a tick: the first chunk takes its time.
            loopback.host.catalog.served[0].scheduler.queue.limits = Limits(16, Budget(1), 1024)
            async with loopback.stream() as stream:
                (handle,) = await stream.handles("history")
                applied = await stream.post(step=chunk(HISTORY, [handle], [0], [[1, 2, 3, 4]]))
                closed = await stream.post(close=inference_pb2.CloseSessions(handles=column([handle])))
                late = await stream.post(step=chunk(HISTORY, [handle], [4], [[5]]))
                reset = await stream.post(reset=inference_pb2.ResetSessions(handles=column([handle])))
                again = await stream.post(close=inference_pb2.CloseSessions(handles=column([handle])))
                assert _answers((await applied).step) == [[1, 12, 123, 1234]]
                assert not (await closed).closed.errors
                assert Reason((await late).step.errors[0].error.reason) is Reason.SESSION_CLOSED
                assert Reason((await reset).reset.errors[0].error.reason) is Reason.SESSION_CLOSED
                assert np.frombuffer((await reset).reset.handles, "<u8").tolist() == [0]
                assert Reason((await again).closed.errors[0].error.reason) is Reason.SESSION_CLOSED

    run(scenario())


def test_a_session_moves_from_stream_to_stream(repository: Path) -> None:
    """Whoever knows the id takes over, after what was under way; the old owner is fenced and told the epoch."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback, loopback.stream() as first, loopback.stream() as second:
            opened = await first.open("history", max_in_flight=2)
            (handle,) = np.frombuffer(opened.handles, "<u8").tolist()
            await first.step(HISTORY, [handle], [0], [[1, 2]])
            response = await second.send(attach=attach_request(opened))
            attached = response.attached
            assert (attached.next_position, attached.model, attached.version) == (2, "history", "1")
            assert (attached.max_in_flight, attached.epoch) == (2, np.frombuffer(opened.epochs, "<u4")[0] + 1)
            detail = await first.refusal(step=chunk(HISTORY, [handle], [2], [[9]]))
            assert (Reason(detail.reason), detail.epoch) == (Reason.FENCED, attached.epoch)
            detail = await first.refusal(close=inference_pb2.CloseSessions(handles=column([handle])))
            assert Reason(detail.reason) is Reason.FENCED
            detail = await first.refusal(step=chunk(HISTORY, [attached.handle], [2], [[9]]))
            assert Reason(detail.reason) is Reason.UNKNOWN_SESSION
            result = await second.step(HISTORY, [attached.handle], [0], [[1, 2]])
            assert np.frombuffer(result.replayed_rows, "<u4").tolist() == [0]
            assert _answers(await second.step(HISTORY, [attached.handle], [2], [[3]])) == [[123]]

    run(scenario())


def test_closing_by_id_while_another_takes_over(repository: Path) -> None:
    """A unary close that waits behind a chunk and a take-over still closes the session."""

    async def scenario() -> None:
        async with serve(configure(repository, server={"inline_tick_seconds": 0.0})) as loopback:
            loopback.host.catalog.served[0].scheduler.queue.limits = Limits(16, Budget(1), 1024)
            async with loopback.stream() as stream:
                opened = await stream.open("history")
                (handle,) = np.frombuffer(opened.handles, "<u8").tolist()
                applied = await stream.post(step=chunk(HISTORY, [handle], [0], [[1] * 64]))
                attached = await stream.post(attach=attach_request(opened))
                close = sessions_pb2.CloseSessionRequest(session_id=opened.session_ids[0])
                await loopback.unary("SessionService/CloseSession", close, sessions_pb2.CloseSessionResponse)
                assert not (await applied).step.errors
                assert (await attached).WhichOneof("event") in ("attached", "error")
                assert loopback.host.table.num_sessions == 0

    run(scenario())


def test_sessions_outlive_their_stream(repository: Path) -> None:
    """When a stream breaks its sessions stay, owned by nobody, and go on by unary calls."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback:
            async with loopback.stream() as stream:
                opened = await stream.open("history")
                await stream.step(HISTORY, np.frombuffer(opened.handles, "<u8").tolist(), [0], [[4]])
                assert (await _get(loopback, opened.session_ids[0])).attached
            session = await _get(loopback, opened.session_ids[0])
            while session.attached:  # The server hears of the end a moment later.
                session = await _get(loopback, opened.session_ids[0])
            assert _answers(await _step(loopback, session, 1, 2)) == [[42]]

    run(scenario())


# Two models


def test_two_models_at_once(repository: Path) -> None:
    """Streams of both models interleave; each answers as if it were alone."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback, loopback.stream() as stream:
            digits = await stream.handles("history", 3)
            waves = await stream.handles("lstm", 3)
            generator = np.random.default_rng(5)
            inputs = generator.normal(size=(3, 10, 4)).astype(np.float32)
            futures = []
            for step in range(10):
                values = inputs[:, step : step + 1]
                futures.append(
                    (
                        await stream.post(step=chunk(HISTORY, digits, [step] * 3, [[1], [2], [3]])),
                        await stream.post(step=chunk(LSTM, waves, [step] * 3, values)),
                    )
                )
            spelled = [_answers((await history).step) for history, _ in futures]
            assert spelled[-1] == [[int(d * 10)] for d in ("1", "2", "3")]
            got = np.concatenate([array((await wave).step.outputs[0]) for _, wave in futures], axis=1)
            other = await stream.handles("lstm", 3)
            whole = await stream.step(LSTM, other, [0] * 3, inputs)
            np.testing.assert_array_equal(got, array(whole.outputs[0]))

    run(scenario())


# Time


def test_a_chunk_past_its_deadline_is_not_begun(repository: Path) -> None:
    """A chunk that could not begin in time is refused and applies nothing; one that has begun is finished."""

    async def scenario() -> None:
        clock = Clock()
        config = configure(repository, server={"inline_tick_seconds": 0.0})
        async with serve(config, clock=clock) as loopback, loopback.stream() as stream:
            loopback.host.catalog.served[0].scheduler.queue.limits = Limits(16, Budget(1), 1024)
            (handle,) = await stream.handles("history", max_in_flight=3)
            long = await stream.post(step=chunk(HISTORY, [handle], [0], [[1] * 100], timeout_milliseconds=50))
            late = await stream.post(step=chunk(HISTORY, [handle], [100], [[5]], timeout_milliseconds=50))
            patient = await stream.post(step=chunk(HISTORY, [handle], [100], [[6]], timeout_milliseconds=60_000))
            # The server reads in order: once the last of these is queued, the clock jumps.
            scheduler = loopback.host.catalog.served[0].scheduler
            await until(lambda: long.done() or len(scheduler.queue) >= 2)
            clock.advance(1.0)
            assert not (await long).step.errors
            refused = (await late).error
            assert Reason(refused.reason) is Reason.DEADLINE_EXCEEDED
            assert refused.field == "timeout_milliseconds"
            assert not (await patient).step.errors
            spelled = _answers((await patient).step)[0][0]
            # Sixteen ones, the last place six: the refused five is not in it. (It wraps at 64 bits.)
            assert spelled == _spelled([1] * 100 + [6])

    run(scenario())


def test_a_unary_deadline_is_honoured(repository: Path) -> None:
    """The deadline of a unary call stops a chunk that has not begun; the typed error says so."""

    async def scenario() -> None:
        clock = Clock()
        config = configure(repository, server={"inline_tick_seconds": 0.0})
        async with serve(config, clock=clock) as loopback:
            scheduler = loopback.host.catalog.served[0].scheduler
            scheduler.queue.limits = Limits(16, Budget(1), 1024)
            session = await _open(loopback, max_in_flight=2)
            long = asyncio.create_task(_step(loopback, session, 0, *[1] * 500))
            await until(lambda: not loopback.host.is_idle)
            late = asyncio.create_task(_step(loopback, session, 500, 1, seconds=20.0))
            await until(lambda: long.done() or len(scheduler.queue) >= 2)
            clock.advance(30.0)
            assert (await long).next_position == 500
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await late
            assert Reason(detail_of(caught.value).reason) is Reason.DEADLINE_EXCEEDED
            assert (await _get(loopback, session.session_id)).next_position == 500

    run(scenario())


def test_cancelled_before_it_began(repository: Path) -> None:
    """Chunks of a stream that broke off are dropped unless they have begun; what has begun takes effect as a whole."""

    async def scenario() -> None:
        async with serve(configure(repository, server={"inline_tick_seconds": 0.0})) as loopback:
            scheduler = loopback.host.catalog.served[0].scheduler
            scheduler.queue.limits = Limits(16, Budget(1), 1024)
            stream = StreamClient(loopback.channel)
            opened = await stream.open("history", max_in_flight=3)
            (handle,) = np.frombuffer(opened.handles, "<u8").tolist()
            await stream.post(step=chunk(HISTORY, [handle], [0], [[1] * 200]))
            await stream.post(step=chunk(HISTORY, [handle], [200], [[2] * 100]))
            await until(lambda: len(scheduler.queue) >= 2)
            stream.cancel()
            await stream.close()
            await until(lambda: not loopback.host.table.rows_of_stream(1).size and loopback.host.is_idle)
            session = await _get(loopback, opened.session_ids[0])
            assert session.next_position in (200, 300)
            async with loopback.stream() as other:
                assert _answers(await other.step(HISTORY, await other.handles("history"), [0], [[8]])) == [[8]]

    run(scenario())


def test_idle_sessions_end_with_notice_and_reason(repository: Path) -> None:
    """A session that is idle for longer than its timeout ends; its owner is told, and any use says why."""

    async def scenario() -> None:
        clock = Clock()
        async with serve(configure(repository), clock=clock) as loopback, loopback.stream() as stream:
            short = await stream.handles("history", 2, idle_timeout_seconds=10)
            (long,) = await stream.handles("lstm", idle_timeout_seconds=100)
            lonely = await _open(loopback, idle_timeout_seconds=10)
            clock.advance(8)
            await stream.step(HISTORY, short[:1], [0], [[5]])
            clock.advance(4)
            assert loopback.host.endings.expire() == 2
            ended = await stream.notice("ended")
            assert np.frombuffer(ended.handles, "<u8").tolist() == short[1:]
            assert Reason(ended.error.reason) is Reason.SESSION_EXPIRED
            detail = await stream.refusal(step=chunk(HISTORY, short[1:], [0], [[5]]))
            assert Reason(detail.reason) is Reason.SESSION_EXPIRED
            detail = await loopback.refusal(
                "SessionService/GetSession",
                sessions_pb2.GetSessionRequest(session_id=lonely.session_id),
                sessions_pb2.GetSessionResponse,
            )
            assert Reason(detail.reason) is Reason.UNKNOWN_SESSION
            assert _answers(await stream.step(HISTORY, short[:1], [1], [[6]])) == [[56]]
            clock.advance(11)
            assert loopback.host.endings.expire() == 1
            assert loopback.host.endings.num_expired == 3
            result = await stream.step(LSTM, [long], [0], np.zeros((1, 1, 4), np.float32))
            assert not result.errors

    run(scenario())


def test_the_server_sweeps_by_itself(repository: Path) -> None:
    """Nobody calls `expire` but the server's own sweeper."""

    async def scenario() -> None:
        clock = Clock()
        config = configure(repository, session={"sweep_seconds": 0.01})
        async with serve(config, clock=clock) as loopback, loopback.stream() as stream:
            handles = await stream.handles("history", idle_timeout_seconds=10)
            clock.advance(11)
            ended = await stream.notice("ended")
            assert np.frombuffer(ended.handles, "<u8").tolist() == handles

    run(scenario())


# Capacity


def test_the_cap_on_sessions(repository: Path) -> None:
    """Opening beyond the cap is refused as a whole with what is left; closing makes room."""

    async def scenario() -> None:
        config = configure(repository, session={"max_sessions": 5})
        async with serve(config) as loopback, loopback.stream() as stream:
            handles = await stream.handles("history", 4)
            detail = await stream.refusal(open=inference_pb2.OpenSessions(model="lstm", count=2))
            assert (Reason(detail.reason), detail.received) == (Reason.TOO_MANY_SESSIONS, "2")
            assert detail.expected == "at most 1"
            assert detail.grpc_code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
            await stream.send(close=inference_pb2.CloseSessions(handles=column(handles[:1])))
            await stream.open("lstm", 2)

    run(scenario())


def test_the_slots_of_one_model(repository: Path) -> None:
    """A model's arena is full before the server is: the other model still opens sessions."""

    async def scenario() -> None:
        config = configure(repository, model={"max_slots": 3})
        async with serve(config) as loopback, loopback.stream() as stream:
            await stream.open("history", 3)
            detail = await stream.refusal(open=inference_pb2.OpenSessions(model="history", count=1))
            assert Reason(detail.reason) is Reason.TOO_MANY_SESSIONS
            await stream.open("lstm", 3)

    run(scenario())


def test_a_full_queue_refuses(repository: Path) -> None:
    """More chunks than may wait are refused with QUEUE_FULL; the accepted ones are carried out."""

    async def scenario() -> None:
        config = configure(repository, server={"inline_tick_seconds": 0.0}, model={"max_queued_chunks": 3})
        async with serve(config) as loopback, loopback.stream() as stream:
            scheduler = loopback.host.catalog.served[0].scheduler
            scheduler.queue.limits = Limits(16, Budget(1), 3)
            handles = await stream.handles("history", 12)
            futures = [await stream.post(step=chunk(HISTORY, [handle], [0], [[1] * 50])) for handle in handles]
            responses = [await future for future in futures]
            kinds = [response.WhichOneof("event") for response in responses]
            reasons = {Reason(r.error.reason) for r in responses if r.WhichOneof("event") == "error"}
            assert kinds.count("step") >= 3
            assert reasons == {Reason.QUEUE_FULL}
            for handle, kind in zip(handles, kinds, strict=True):
                position = 50 if kind == "step" else 0
                assert not (await stream.step(HISTORY, [handle], [position], [[1]])).errors

    run(scenario())


def test_an_answer_that_would_be_too_large_is_refused(repository: Path) -> None:
    """Outputs may be larger than inputs: what would not fit into a message is refused before it runs."""

    async def scenario() -> None:
        config = configure(repository, server={"max_message_bytes": 64 * 90 * 12 - 1}, model={"max_steps": 90})
        async with serve(config) as loopback, loopback.stream() as stream:
            model = family("token-gru")
            handles = await stream.handles(model.name, 64)
            # 64 x 90 x 48 bytes of outputs for 64 x 90 x 8 bytes of inputs: over four times the limit of a message.
            detail = await stream.refusal(step=chunk(model, handles, [0] * 64, np.ones((64, 90))))
            assert (Reason(detail.reason), detail.field) == (Reason.MESSAGE_TOO_LARGE, "step.num_steps")
            assert str(64 * 90 * 48) in detail.received
            assert not (await stream.step(model, handles, [0] * 64, np.ones((64, 80)))).errors

    run(scenario())


def test_a_unary_answer_that_would_be_too_large_is_refused(repository: Path) -> None:
    """A step without a stream has the same limit."""

    async def scenario() -> None:
        async with serve(configure(repository, server={"max_message_bytes": 90 * 12 - 1})) as loopback:
            opening = sessions_pb2.OpenSessionRequest(model="token-gru")
            opened = await loopback.unary("SessionService/OpenSession", opening, sessions_pb2.OpenSessionResponse)
            step = inference_pb2.StepRequest(session_id=opened.session.session_id, epoch=opened.session.epoch)
            step.num_steps = 90
            step.inputs.append(tensor("token", np.ones((1, 90), np.int64)))
            detail = await loopback.refusal("InferenceService/Step", step, inference_pb2.StepResponse)
            assert (Reason(detail.reason), detail.field) == (Reason.MESSAGE_TOO_LARGE, "num_steps")
            assert str(90 * 48) in detail.received

    run(scenario())


# Around


def test_reflection_lists_every_service(repository: Path) -> None:
    """A client without our files finds the services and their messages."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback:
            stub = reflection_pb2_grpc.ServerReflectionStub(loopback.channel)
            call = stub.ServerReflectionInfo(
                iter(
                    [
                        reflection_pb2.ServerReflectionRequest(list_services=""),
                        reflection_pb2.ServerReflectionRequest(file_containing_symbol="eddy.v1.StreamRequest"),
                    ]
                )
            )
            listed, described = [response async for response in call]
            names = {service.name for service in listed.list_services_response.service}
            assert {
                "eddy.v1.InferenceService",
                "eddy.v1.SessionService",
                "eddy.v1.ModelService",
                "grpc.health.v1.Health",
            } <= names
            assert described.file_descriptor_response.file_descriptor_proto

    run(scenario())


def test_a_port_in_use(repository: Path) -> None:
    """A second server on the same port says so and leaves nothing running."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback:
            config = configure(repository, server={"grpc_port": loopback.server.port})
            host = Host(config)
            host.load()
            with pytest.raises(PortInUse, match=str(loopback.server.port)):
                await Server(config, host).start()
            listed = await loopback.unary(
                "ModelService/ListModels", models_pb2.ListModelsRequest(), models_pb2.ListModelsResponse
            )
            assert len(listed.models) == 3

    run(scenario())


def test_draining_refuses_what_is_new_and_finishes_what_was_accepted(repository: Path) -> None:
    """During a drain accepted chunks are answered, new requests get DRAINING, and the stream gets a notice."""

    async def scenario() -> None:
        async with serve(configure(repository, server={"inline_tick_seconds": 0.0})) as loopback:
            scheduler = loopback.host.catalog.served[0].scheduler
            scheduler.queue.limits = Limits(16, Budget(1), 1024)
            stream = StreamClient(loopback.channel)
            (handle,) = await stream.handles("history")
            accepted = await stream.post(step=chunk(HISTORY, [handle], [0], [[1] * 500]))
            await until(lambda: not loopback.host.is_idle)
            drained = asyncio.create_task(loopback.server.drain())
            notice = await stream.notice("draining")
            assert notice.grace_seconds == 10.0
            detail = await stream.refusal(open=inference_pb2.OpenSessions(model="history", count=1))
            assert Reason(detail.reason) is Reason.DRAINING
            detail = await stream.refusal(step=chunk(HISTORY, [handle], [500], [[1]]))
            assert Reason(detail.reason) is Reason.DRAINING
            assert not (await accepted).step.errors
            await drained
            await stream.close()
            assert stream.call.done()

    run(scenario())
