"""Scene: a chunk that is sent again takes effect once, and a lost connection loses nothing.

Owns the scene. It speaks to the server with the generated stubs of `eddy.v1`, as a client in any language would.
"""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from eddy import Client
from eddy.v1 import inference_pb2, inference_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from examples import text
from examples.model import Model
from examples.screen import Screen
from examples.server import ServerProcess
from examples.stage import Stage


def choose(stage: Stage) -> list[Model]:
    """A text model."""
    return text.choose(stage)[:1]


async def play(stage: Stage, models: list[Model]) -> str:
    """Plays the scene; returns a line for the summary."""
    [model], client, server, screen = models, stage.client, stage.server, stage.screen
    tokens = text.Writer(model, "").encode(text.read_sample(model))
    await asyncio.to_thread(_repeat, server, screen, model, tokens)
    same = await _come_back(client, server, model.name, tokens)
    screen.say(
        f"{'dropped at step 20':<22} taken up again by id: outputs "
        f"{'[green]equal[/]' if same else '[red]differ from[/]'} an unbroken run's"
    )
    if not same:
        raise AssertionError("a resumed session differs from an unbroken one")
    return "a repeat got its kept reply; a dropped connection went on"


def _repeat(server: ServerProcess, screen: Screen, model: Model, tokens: np.ndarray) -> None:
    """Sends chunk 1 twice, then once more with another input."""
    before = server.metrics()
    with grpc.insecure_channel(server.target) as channel:
        sessions = sessions_pb2_grpc.SessionServiceStub(channel)
        session = sessions.OpenSession(sessions_pb2.OpenSessionRequest(model=model.name)).session
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        stub.Step(_request(model, session, 0, tokens[:8]))
        first = stub.Step(_request(model, session, 8, tokens[8:12]))
        again = stub.Step(_request(model, session, 8, tokens[8:12]))
        _show(screen, "chunk at 8, 4 steps", first)
        _show(screen, "the same chunk again", again)
        assert again.replayed and again.outputs[0].data == first.outputs[0].data, "a repeat got another answer"
        try:
            stub.Step(_request(model, session, 8, tokens[12:16]))
        except grpc.RpcError as error:
            status = rpc_status.from_call(error)
            info = error_details_pb2.ErrorInfo()
            reasons = [info.reason for packed in status.details if packed.Unpack(info)]
            screen.say(f"{'another chunk at 8':<22} refused: {error.code().name}, {reasons[0]}")
        sessions.CloseSession(sessions_pb2.CloseSessionRequest(session_id=session.session_id))
    after = server.metrics()
    steps, replayed = (
        int(after[f"{name}:{model.name}"] - before[f"{name}:{model.name}"])
        for name in ("eddy_steps_total", "eddy_replayed_chunks_total")
    )
    screen.say(f"{'/metrics':<22} {steps} steps ran (8 + 4), {replayed} chunk came from its kept reply")


def _request(
    model: Model, session: sessions_pb2.Session, position: int, tokens: np.ndarray
) -> inference_pb2.StepRequest:
    port = model.contract.inputs[0]
    tensor = inference_pb2.Tensor(
        name=port.name, dtype=port.dtype, shape=[1, len(tokens)], data=tokens.astype("<i8").tobytes()
    )
    return inference_pb2.StepRequest(
        session_id=session.session_id,
        epoch=session.epoch,
        position=position,
        num_steps=len(tokens),
        inputs=[tensor],
    )


def _show(screen: Screen, name: str, response: inference_pb2.StepResponse) -> None:
    values = np.frombuffer(response.outputs[0].data, "<f4")
    screen.say(
        f"{name:<22} replayed: [bold]{str(response.replayed).lower()}[/], next position {response.next_position}, "
        f"first score {values[0]:.6f}"
    )


async def _come_back(client: Client, server: ServerProcess, model: str, tokens: np.ndarray) -> bool:
    """Whether 20 steps, a dropped connection and 20 more steps give what 40 steps do."""
    async with client.session(model) as session:
        unbroken = await session.step(tokens[:40])
    async with Client(server.target) as first:
        session = await first.open(model)
        before = await session.step(tokens[:20])
    async with await client.attach(session.id, session.resume_token) as resumed:
        after = await resumed.step(tokens[resumed.position : 40])
    return np.concatenate([before, after]).tobytes() == unbroken.tobytes()
