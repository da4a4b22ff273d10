"""Sessions that were forked, restored or set to given states are in the state store before that is answered.

A real server process is killed right behind the answer, and the next one is asked.
"""

import asyncio
from pathlib import Path

import numpy as np
from graphs import family
from loopback import array, column, tensor, write_model
from test_durable import Life, life

from eddy.v1 import inference_pb2, sessions_pb2

LSTM = family("lstm")


async def _step(server: Life, session: sessions_pb2.Session, inputs: np.ndarray) -> np.ndarray:
    request = inference_pb2.StepRequest(
        session_id=session.session_id, epoch=session.epoch, position=session.next_position, num_steps=len(inputs)
    )
    request.inputs.append(tensor("x", inputs[None]))
    response = await server.unary("InferenceService/Step", request, inference_pb2.StepResponse)
    return array(response.outputs[0])[0]


async def _found(server: Life, session_id: bytes) -> sessions_pb2.Session:
    request = sessions_pb2.GetSessionRequest(session_id=session_id)
    return (await server.unary("SessionService/GetSession", request, sessions_pb2.GetSessionResponse)).session


def test_killed_at_once_after_the_answer(tmp_path: Path) -> None:
    """A fork by stream, one by id, a restored session and one that was reset go on in the next process."""
    write_model(tmp_path / "models", "lstm")
    store = f"sqlite:{tmp_path}/store"
    inputs = LSTM.example(np.random.default_rng(5), 8)[0]

    async def scenario() -> None:
        async with life(tmp_path / "models", store, "--set", "state.checkpoint_seconds=3600") as first:
            opening = sessions_pb2.OpenSessionRequest(model="lstm")
            response = await first.unary("SessionService/OpenSession", opening, sessions_pb2.OpenSessionResponse)
            parent = response.session
            await _step(first, parent, inputs[:3])
            attach = inference_pb2.AttachSession(session_id=parent.session_id, resume_token=parent.resume_token)
            handle = (await first.stream.send(attach=attach)).attached.handle
            forked = (await first.stream.send(fork=inference_pb2.ForkSessions(handles=column([handle])))).forked
            assert forked.durable and not forked.errors
            forking = sessions_pb2.ForkSessionRequest(session_id=parent.session_id)
            fork = await first.unary("SessionService/ForkSession", forking, sessions_pb2.ForkSessionResponse)
            taking = sessions_pb2.SnapshotSessionRequest(session_id=parent.session_id)
            taken = await first.unary("SessionService/SnapshotSession", taking, sessions_pb2.SnapshotSessionResponse)
            restoring = sessions_pb2.RestoreSessionRequest(snapshot=taken.snapshot)
            restored = await first.unary(
                "SessionService/RestoreSession", restoring, sessions_pb2.RestoreSessionResponse
            )
            assert fork.session.durable_position == restored.session.durable_position == 3
            states = [tensor(state.name, np.full((1, *state.shape), 0.5, state.dtype)) for state in LSTM.states]
            resetting = sessions_pb2.ResetSessionRequest(session_id=parent.session_id, initial_states=states)
            reset = await first.unary("SessionService/ResetSession", resetting, sessions_pb2.ResetSessionResponse)
            assert reset.session.durable_position == 0
            wanted = await _step(first, reset.session, inputs)
            rest = await _step(first, fork.session, inputs[3:])
            first.kill()
        async with life(tmp_path / "models", store) as second:
            for session_id in (forked.session_ids[0], fork.session.session_id, restored.session.session_id):
                found = await _found(second, session_id)
                assert found.next_position == 3
                np.testing.assert_array_equal(await _step(second, found, inputs[3:]), rest)
            found = await _found(second, parent.session_id)
            assert found.next_position == 0
            np.testing.assert_array_equal(await _step(second, found, inputs), wanted)

    asyncio.run(scenario())
