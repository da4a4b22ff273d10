"""Resetting open sessions to states that their client gives, without a stream."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import family
from loopback import Loopback, array, chunk, column, configure, serve, tensor, write_model

from eddy.service.errors import Reason
from eddy.v1 import inference_pb2, sessions_pb2

LSTM, PRIMED = family("lstm"), family("primed")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that begins as the contract says, one that begins with a source."""
    root = tmp_path_factory.mktemp("models")
    write_model(root, "lstm")
    write_model(root, "primed")
    return root


def _states(value: float) -> list[inference_pb2.Tensor]:
    return [
        tensor(state.name, np.full((1, *state.shape), value + number, state.dtype))
        for number, state in enumerate(LSTM.states)
    ]


async def _reset(running: Loopback, session_id: bytes, states: list[inference_pb2.Tensor]) -> sessions_pb2.Session:
    request = sessions_pb2.ResetSessionRequest(session_id=session_id, initial_states=states)
    return (await running.unary("SessionService/ResetSession", request, sessions_pb2.ResetSessionResponse)).session


async def _refusal(running: Loopback, session_id: bytes, states: list[inference_pb2.Tensor]) -> Any:
    request = sessions_pb2.ResetSessionRequest(session_id=session_id, initial_states=states)
    return await running.refusal("SessionService/ResetSession", request, sessions_pb2.ResetSessionResponse)


async def _step(running: Loopback, session: sessions_pb2.Session, inputs: np.ndarray) -> np.ndarray:
    request = inference_pb2.StepRequest(
        session_id=session.session_id, epoch=session.epoch, position=session.next_position, num_steps=len(inputs)
    )
    request.inputs.append(tensor("x", inputs[None]))
    response = await running.unary("InferenceService/Step", request, inference_pb2.StepResponse)
    return array(response.outputs[0])[0]


def test_a_session_begins_again_as_one_that_was_opened_so(models: Path) -> None:
    """Position 0, a new epoch, replies forgotten, and the bits of a session that was opened with these states."""

    async def scenario() -> None:
        inputs = LSTM.example(np.random.default_rng(2), 6)[0]
        async with serve(configure(models)) as running:
            opening = sessions_pb2.OpenSessionRequest(model="lstm", initial_states=_states(0.5))
            response = await running.unary("SessionService/OpenSession", opening, sessions_pb2.OpenSessionResponse)
            wanted = await _step(running, response.session, inputs)
            opening = sessions_pb2.OpenSessionRequest(model="lstm")
            response = await running.unary("SessionService/OpenSession", opening, sessions_pb2.OpenSessionResponse)
            session = response.session
            await _step(running, session, inputs[::-1].copy())
            again = await _reset(running, session.session_id, _states(0.5))
            assert (again.next_position, again.epoch > session.epoch) == (0, True)
            np.testing.assert_array_equal(await _step(running, again, inputs), wanted)
            # What began so has no start of the model's to go back to; but it may be given states again.
            assert (await _refusal(running, session.session_id, [])).reason == Reason.OWN_START
            again = await _reset(running, session.session_id, _states(0.5))
            np.testing.assert_array_equal(await _step(running, again, inputs), wanted)

    asyncio.run(scenario())


def test_a_reset_comes_after_what_was_sent_before(models: Path) -> None:
    """Chunks before it are applied and answered; the stream's handle is fenced, and goes on in the new epoch."""

    async def scenario() -> None:
        inputs = LSTM.example(np.random.default_rng(2), 40)[0]
        async with serve(configure(models, server={"inline_tick_seconds": 0.0})) as running, running.stream() as client:
            opened = await client.open("lstm")
            handle = int(np.frombuffer(opened.handles, "<u8")[0])
            before = await client.post(step=chunk(LSTM, [handle], [0], inputs[None]))
            again = await _reset(running, opened.session_ids[0], _states(0.25))
            assert not (await before).step.errors
            detail = await client.refusal(step=chunk(LSTM, [handle], [40], inputs[None, :1]))
            assert detail.reason == Reason.FENCED
            handle = again.epoch << 32 | handle & 0xFFFFFFFF
            result = await client.step(LSTM, [handle], [0], inputs[None, :2])
            assert not result.errors and not result.replayed_rows
            await client.send(close=inference_pb2.CloseSessions(handles=column([handle])))
            assert (await _refusal(running, opened.session_ids[0], _states(1))).reason == Reason.UNKNOWN_SESSION

    asyncio.run(scenario())


def test_sessions_without_a_slot(models: Path) -> None:
    """Whoever is parked, with states or before the first step, begins again with the states given, and so do all."""

    async def scenario() -> None:
        inputs = LSTM.example(np.random.default_rng(2), 6)[0]
        async with serve(configure(models, model={"max_slots": 2}, state={"host_bytes": 1 << 20})) as running:
            sessions = []
            for number in range(6):
                opening = sessions_pb2.OpenSessionRequest(model="lstm")
                response = await running.unary("SessionService/OpenSession", opening, sessions_pb2.OpenSessionResponse)
                sessions.append(response.session)
                if number < 4:
                    await _step(running, response.session, inputs[: number + 1])
            assert running.host.catalog.served[0].residence.num_parked == 4
            again = [
                await _reset(running, each.session_id, _states(0.1 * place)) for place, each in enumerate(sessions)
            ]
            for _ in range(2):
                got = [await _step(running, each, inputs) for each in again]
                for place, each in enumerate(got):
                    opening = sessions_pb2.OpenSessionRequest(model="lstm", initial_states=_states(0.1 * place))
                    answer = await running.unary(
                        "SessionService/OpenSession", opening, sessions_pb2.OpenSessionResponse
                    )
                    np.testing.assert_array_equal(each, await _step(running, answer.session, inputs))
                again = [await _reset(running, each.session_id, _states(0.1 * at)) for at, each in enumerate(again)]

    asyncio.run(scenario())


def test_what_is_wrong_changes_nothing(models: Path) -> None:
    """Values, shapes and names are checked before anything happens; the session goes on where it stood."""

    async def scenario() -> None:
        inputs = LSTM.example(np.random.default_rng(2), 6)[0]
        async with serve(configure(models)) as running:
            opening = sessions_pb2.OpenSessionRequest(model="lstm")
            response = await running.unary("SessionService/OpenSession", opening, sessions_pb2.OpenSessionResponse)
            session = response.session
            name, shape = LSTM.states[0].name, (1, *LSTM.states[0].shape)
            for states, reason in (
                ([tensor(name, np.full(shape, np.nan, np.float32))], Reason.NON_FINITE),
                ([tensor("nobody", np.zeros(shape, np.float32))], Reason.UNKNOWN_INPUT),
                ([tensor(name, np.zeros((2, *shape[1:]), np.float32))], Reason.INVALID_SHAPE),
            ):
                detail = await _refusal(running, session.session_id, states)
                assert detail.reason == reason and detail.field.startswith("initial_states"), detail
            assert len(await _step(running, session, inputs)) == 6

    asyncio.run(scenario())


def test_a_primed_session_needs_every_state(models: Path) -> None:
    """Its prime graph is not run again, so what it would write must be given, what is never written, too."""

    async def scenario() -> None:
        async with serve(configure(models)) as running:
            source = inference_pb2.Prime(inputs=[tensor("source", np.array([[2, 3]]))])
            opening = sessions_pb2.OpenSessionRequest(model="primed", prime=source)
            response = await running.unary("SessionService/OpenSession", opening, sessions_pb2.OpenSessionResponse)
            session = response.session
            gain, total = tensor("gain", np.array([7])), tensor("total", np.array([100]))
            detail = await _refusal(running, session.session_id, [total])
            assert (detail.reason, detail.field) == (Reason.MISSING_FIELD, "initial_states[gain]")
            again = await _reset(running, session.session_id, [gain, total])
            assert (await _step(running, again, np.array([1, 2]))).tolist() == [107, 121]

    asyncio.run(scenario())


def test_a_reset_that_is_refused_leaves_the_session_as_it_was(models: Path, tmp_path: Path) -> None:
    """Epoch, position, durable position, the record in the store, handle and state are those of before."""

    async def scenario() -> None:
        inputs = LSTM.example(np.random.default_rng(2), 6)[0]
        name, shape = LSTM.states[0].name, (1, *LSTM.states[0].shape)
        state = {"store": f"sqlite:{tmp_path}/store", "checkpoint_seconds": 1000.0, "max_lag_seconds": 1e6}
        async with serve(configure(models, state=state)) as running, running.stream() as client:
            opened, twin = await client.open("lstm"), await client.open("lstm")
            (handle,), (other,) = (np.frombuffer(each.handles, "<u8").tolist() for each in (opened, twin))
            rows = running.host.table.rows_of(np.frombuffer(opened.handles, "<u8"))
            durability = running.host.durability
            assert durability is not None
            for mine in (handle, other):
                await client.step(LSTM, [mine], [0], inputs[None, :2])
            await running.host.persistence.persist(rows)
            await client.step(LSTM, [handle, other], [2, 2], np.stack([inputs[2:3]] * 2))

            async def standing() -> tuple[object, ...]:
                request = sessions_pb2.GetSessionRequest(session_id=opened.session_ids[0])
                found = await running.unary("SessionService/GetSession", request, sessions_pb2.GetSessionResponse)
                stored = await durability.store.call(lambda store: store.read(opened.session_ids))
                each = found.session
                return each.epoch, each.next_position, each.durable_position, each.durable, stored

            before = await standing()
            assert before[1:4] == (3, 2, True)
            for values, reason in (
                (np.full(shape, np.nan, np.float32), Reason.NON_FINITE),
                (np.full(shape, np.inf, np.float32), Reason.NON_FINITE),
                (np.zeros((2, *shape[1:]), np.float32), Reason.INVALID_SHAPE),
                (np.zeros(shape, np.int64), Reason.INVALID_DTYPE),
            ):
                detail = await _refusal(running, opened.session_ids[0], [tensor(name, values)])
                assert detail.reason == reason, detail
                assert await standing() == before
            answers = [await client.step(LSTM, [mine], [3], inputs[None, 3:]) for mine in (handle, other)]
            assert not answers[0].errors
            assert answers[0].outputs[0].data == answers[1].outputs[0].data

    asyncio.run(scenario())
