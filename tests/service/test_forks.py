"""Forks: sessions that stand where others stand, on a stream and without one."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import family, family_from_file
from loopback import Loopback, StreamClient, array, chunk, column, configure, serve, tensor

from eddy.service.errors import Reason
from eddy.v1 import generation_pb2, inference_pb2, sessions_pb2

HISTORY = family("history")
MODELS = Path(__file__).parents[2] / "models"
TEXT = family_from_file(MODELS / "text-gru" / "1" / "model.onnx")


async def _fork(client: StreamClient, handles: list[int]) -> inference_pb2.SessionsForked:
    response = await client.send(fork=inference_pb2.ForkSessions(handles=column(handles)))
    assert response.WhichOneof("event") == "forked", response
    return response.forked


def _handles(forked: inference_pb2.SessionsForked) -> list[int]:
    handles: list[int] = np.frombuffer(forked.handles, "<u8").tolist()
    return handles


async def _answers(client: StreamClient, handles: list[int], positions: list[int], values: list[int]) -> list[float]:
    """What `history` spells after one more digit each."""
    result = await client.step(HISTORY, handles, positions, [[value] for value in values])
    assert not result.errors, result.errors
    answers: list[float] = array(result.outputs[0]).ravel().tolist()
    return answers


def test_a_fork_goes_on_by_itself(repository: Path) -> None:
    """Parent and fork have one past and each a future of its own; ids, tokens and handles differ."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback, loopback.stream() as client:
            opened = await client.open("history", 2)
            first, second = np.frombuffer(opened.handles, "<u8").tolist()
            await _answers(client, [first, second], [0, 0], [1, 4])
            forked = await _fork(client, [second, first])
            newest, newer = _handles(forked)
            assert np.frombuffer(forked.next_positions, "<u8").tolist() == [1, 1]
            assert await _answers(client, [first, second, newer, newest], [1] * 4, [2, 5, 3, 6]) == [12, 45, 13, 46]
            ids = {*opened.session_ids, *forked.session_ids}
            assert len(ids) == 4 and all(len(each) == 16 for each in ids)
            tokens = opened.resume_tokens + forked.resume_tokens
            assert len({tokens[at : at + 16] for at in range(0, 64, 16)}) == 4
            attach = inference_pb2.AttachSession(
                session_id=forked.session_ids[1], resume_token=forked.resume_tokens[16:]
            )
            attached = (await client.send(attach=attach)).attached
            assert attached.next_position == 2
            assert await _answers(client, [attached.handle], [2], [7]) == [137]

    asyncio.run(scenario())


def test_copies_are_no_steps(repository: Path) -> None:
    """A fork and a snapshot run no graph of the model: neither counts as a tick or as steps."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback, loopback.stream() as client:
            opened = await client.open("history")
            [handle] = np.frombuffer(opened.handles, "<u8").tolist()
            await _answers(client, [handle], [0], [1])
            scheduler = loopback.host.catalog.ready("history", "").scheduler
            before = (scheduler.num_ticks, scheduler.num_row_steps)
            await _fork(client, [handle])
            taking = sessions_pb2.SnapshotSessionRequest(session_id=opened.session_ids[0])
            await loopback.unary("SessionService/SnapshotSession", taking, sessions_pb2.SnapshotSessionResponse)
            assert (scheduler.num_ticks, scheduler.num_row_steps) == before == (1, 1)

    asyncio.run(scenario())


def test_a_fork_of_what_never_stepped_begins_anew(repository: Path) -> None:
    """Nothing is copied where nothing was written, not even what an earlier session left in the slot."""

    async def scenario() -> None:
        async with serve(configure(repository, model={"max_slots": 3})) as loopback, loopback.stream() as client:
            used = await client.handles("history", 3)
            await _answers(client, used, [0, 0, 0], [7, 8, 9])
            await client.send(close=inference_pb2.CloseSessions(handles=column(used)))
            parent = (await client.handles("history"))[0]
            fork = _handles(await _fork(client, [parent]))[0]
            assert await _answers(client, [parent, fork], [0, 0], [1, 2]) == [1, 2]

    asyncio.run(scenario())


def test_a_bad_handle_fails_alone(repository: Path) -> None:
    """The others of the request are forked; the row that is not has zeros."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback, loopback.stream() as client:
            good, closed = await client.handles("history", 2)
            await client.send(close=inference_pb2.CloseSessions(handles=column([closed])))
            forked = await _fork(client, [closed, good])
            assert [(error.row, error.error.reason) for error in forked.errors] == [(0, Reason.SESSION_CLOSED)]
            handles = _handles(forked)
            assert handles[0] == 0 and forked.session_ids[0] == bytes(16) == forked.resume_tokens[:16]
            assert np.frombuffer(forked.epochs, "<u4")[0] == 0
            assert await _answers(client, [handles[1]], [0], [5]) == [5]

    asyncio.run(scenario())


def test_a_fork_comes_after_what_was_sent_before(repository: Path) -> None:
    """Chunks before the fork are in it, chunks behind it are not, however many wait."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback, loopback.stream() as client:
            handle = (await client.handles("history", max_in_flight=9))[0]
            steps = [await client.post(step=chunk(HISTORY, [handle], [at], [[at + 1]])) for at in range(4)]
            forking = await client.post(fork=inference_pb2.ForkSessions(handles=column([handle])))
            again = await client.post(fork=inference_pb2.ForkSessions(handles=column([handle])))
            steps += [await client.post(step=chunk(HISTORY, [handle], [at], [[at + 1]])) for at in range(4, 6)]
            forks = [_handles((await each).forked)[0] for each in (forking, again)]
            results = [array((await step).step.outputs[0]).item() for step in steps]
            assert results == [1, 12, 123, 1234, 12345, 123456]
            assert await _answers(client, forks, [4, 4], [8, 9]) == [12348, 12349]

    asyncio.run(scenario())


def test_a_fork_has_its_parents_replies_and_limits(repository: Path) -> None:
    """A chunk from before the fork is answered from the kept reply by the fork, too; one before those is refused."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback, loopback.stream() as client:
            opened = await client.open("history", max_in_flight=2, idle_timeout_seconds=7)
            handle = int(np.frombuffer(opened.handles, "<u8")[0])
            for position in range(3):
                await _answers(client, [handle], [position], [position + 1])
            forked = await _fork(client, [handle])
            fork = _handles(forked)[0]
            result = await client.step(HISTORY, [fork], [1], [[2]])
            assert array(result.outputs[0]).item() == 12 and result.replayed_rows
            detail = await client.refusal(step=chunk(HISTORY, [fork], [0], [[1]]))
            assert detail.reason == Reason.POSITION_BEHIND and detail.next_position == 3
            request = sessions_pb2.GetSessionRequest(session_id=forked.session_ids[0])
            found = await loopback.unary("SessionService/GetSession", request, sessions_pb2.GetSessionResponse)
            assert (found.session.max_in_flight, found.session.idle_timeout_seconds) == (2, 7)
            # The parent's replies are its own from now on.
            await client.send(close=inference_pb2.CloseSessions(handles=column([handle])))
            result = await client.step(HISTORY, [fork], [2], [[3]])
            assert array(result.outputs[0]).item() == 123 and result.replayed_rows
            assert await _answers(client, [fork], [3], [4]) == [1234]

    asyncio.run(scenario())


def test_no_room_for_all_is_room_for_none(repository: Path) -> None:
    """Where the forks of a model do not fit, each is refused, and nothing stays open."""

    async def scenario() -> None:
        async with serve(configure(repository, session={"max_sessions": 5})) as loopback, loopback.stream() as client:
            handles = await client.handles("history", 2)
            more = await client.handles("history", 1, max_in_flight=2)
            await _answers(client, handles, [0, 0], [1, 2])
            forked = await _fork(client, [*handles, *more])
            assert [error.error.reason for error in forked.errors] == [Reason.TOO_MANY_SESSIONS] * 3
            assert loopback.host.table.num_sessions == 3
            assert await _answers(client, handles, [1, 1], [3, 4]) == [13, 24]

    asyncio.run(scenario())


async def _open(loopback: Loopback, **fields: Any) -> sessions_pb2.Session:
    request = sessions_pb2.OpenSessionRequest(model="history", **fields)
    return (await loopback.unary("SessionService/OpenSession", request, sessions_pb2.OpenSessionResponse)).session


def test_a_fork_without_a_stream(repository: Path) -> None:
    """`ForkSession` answers with a session of its own, that anybody with its id goes on with."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback:
            parent = await _open(loopback)
            request = inference_pb2.StepRequest(session_id=parent.session_id, epoch=parent.epoch, num_steps=1)
            request.inputs.extend(chunk(HISTORY, [0], [0], [[3]]).inputs)
            await loopback.unary("InferenceService/Step", request, inference_pb2.StepResponse)
            forking = sessions_pb2.ForkSessionRequest(session_id=parent.session_id)
            response = await loopback.unary("SessionService/ForkSession", forking, sessions_pb2.ForkSessionResponse)
            fork = response.session
            assert fork.session_id != parent.session_id and fork.resume_token and fork.next_position == 1
            assert response.limits.max_rows == 64
            request.session_id, request.epoch, request.position = fork.session_id, fork.epoch, 1
            answer = await loopback.unary("InferenceService/Step", request, inference_pb2.StepResponse)
            assert array(answer.outputs[0]).item() == 33
            forking.session_id = bytes(16)
            detail = await loopback.refusal("SessionService/ForkSession", forking, sessions_pb2.ForkSessionResponse)
            assert detail.reason == Reason.UNKNOWN_SESSION

    asyncio.run(scenario())


@pytest.mark.parametrize("num_forks", [1, 3])
def test_texts_from_one_point(tmp_path: Path, num_forks: int) -> None:
    """Forks of a text's session go on without another token, each with a seed of its own, as the parent would."""
    shutil.copytree(MODELS / "text-gru", tmp_path / "text-gru")

    async def write(loopback: Loopback, session: sessions_pb2.Session, seed: int) -> list[int]:
        request = generation_pb2.GenerateRequest(
            existing=generation_pb2.ExistingSession(session_id=session.session_id, epoch=session.epoch),
            sampling=generation_pb2.Sampling(seed=seed),
            max_tokens=12,
        )
        call = loopback.channel.unary_stream(
            "/eddy.v1.GenerationService/Generate", None, generation_pb2.GenerateResponse.FromString
        )
        return [token.id async for event in call(request.SerializeToString()) for token in event.tokens.tokens]

    async def scenario() -> None:
        async with serve(configure(tmp_path)) as loopback:
            opening = sessions_pb2.OpenSessionRequest(model="text-gru")
            response = await loopback.unary("SessionService/OpenSession", opening, sessions_pb2.OpenSessionResponse)
            parent = response.session
            step = inference_pb2.StepRequest(session_id=parent.session_id, epoch=parent.epoch, num_steps=3)
            step.inputs.append(tensor(TEXT.inputs[0].name, np.array([[3, 1, 2]], TEXT.inputs[0].dtype)))
            await loopback.unary("InferenceService/Step", step, inference_pb2.StepResponse)
            forking = sessions_pb2.ForkSessionRequest(session_id=parent.session_id)
            forks = [
                (await loopback.unary("SessionService/ForkSession", forking, sessions_pb2.ForkSessionResponse)).session
                for _ in range(num_forks)
            ]
            texts = await asyncio.gather(*(write(loopback, fork, seed) for seed, fork in enumerate(forks)))
            assert all(len(text) == 12 for text in texts)
            assert texts[-1] == await write(loopback, parent, num_forks - 1)

    asyncio.run(scenario())
