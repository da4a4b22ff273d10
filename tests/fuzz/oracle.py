"""Oracles: well-behaved clients beside the attack, who know what every answer must be.

Owns sessions of `history`, whose answers spell what was applied, and a text of a fixed seed. Must not know the attack.

Dimension key: B rows, T steps.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import grpc
import numpy as np
from graphs import family
from loopback import StreamClient, array, attach_request, chunk, tensor
from target import MAX_ROWS, SHIPPED, Target

from eddy.v1 import generation_pb2, inference_pb2

HISTORY = family("history")
_PATIENCE_SECONDS = 60.0
_NUM_SESSIONS = 12


class HistoryOracle:
    """Steps its sessions, in groups and alone, over one stream or by unary calls, with repeats and new connections."""

    def __init__(self, target: Target, random: Random) -> None:
        self._target = target
        self._random = random
        self.num_checked = 0
        # A session's id, handle, position, history, and its last chunk with the answer to that.
        self._ids: list[bytes] = []
        self._attaching: list[inference_pb2.AttachSession] = []
        self._handles: list[int] = []
        self._positions = [0] * _NUM_SESSIONS
        self._spelled = np.zeros(_NUM_SESSIONS, np.int64)

    async def run(self, stop: asyncio.Event) -> None:
        """Steps until told to stop."""
        while not stop.is_set():
            async with grpc.aio.insecure_channel(self._target.address) as channel:
                stream = StreamClient(channel)
                await self._enter(stream)
                for _ in range(self._random.randrange(20, 200)):
                    await self._step(channel, stream)
                    if stop.is_set():
                        break
                assert not stream.notices, stream.notices
                if stop.is_set():
                    await self._leave(stream)
                await stream.close()

    async def _enter(self, stream: StreamClient) -> None:
        if not self._ids:
            opened = await stream.open("history", _NUM_SESSIONS)
            self._ids = list(opened.session_ids)
            self._attaching = [attach_request(opened, number) for number in range(_NUM_SESSIONS)]
            self._handles = np.frombuffer(opened.handles, "<u8").tolist()
        for number, request in enumerate(self._attaching):
            response = await stream.send(attach=request)
            assert response.attached.next_position == self._positions[number], response
            self._handles[number] = response.attached.handle

    async def _leave(self, stream: StreamClient) -> None:
        handles = np.array(self._handles, "<u8").tobytes()
        response = await stream.send(close=inference_pb2.CloseSessions(handles=handles))
        assert response.WhichOneof("event") == "closed", response
        assert not response.closed.errors, response

    async def _step(self, channel: Any, stream: StreamClient) -> None:
        random = self._random
        if random.random() < 0.2:
            await self._step_alone(channel, random.randrange(_NUM_SESSIONS))
            return
        # All, so that none is idle for too long, in a random order.
        rows = random.sample(range(_NUM_SESSIONS), _NUM_SESSIONS)
        num_steps = random.choice((1, 1, 1, 2, 3, 7))
        digits = np.array([[random.randrange(10) for _ in range(num_steps)] for _ in rows], np.int64)
        handles, positions = [self._handles[row] for row in rows], [self._positions[row] for row in rows]
        for _ in range(2 if random.random() < 0.1 else 1):
            message = chunk(HISTORY, handles, positions, digits)
            response = await asyncio.wait_for(await stream.post(step=message), _PATIENCE_SECONDS)
            assert response.WhichOneof("event") == "step", response
            assert not response.step.errors, response
            got = array(response.step.outputs[0])
            expected = self._spelled[rows]
            for step in range(num_steps):
                expected = expected * 10 + digits[:, step]
                assert np.array_equal(got[:, step], expected), f"{got[:, step]} for {expected}"
        self._spelled[rows] = expected
        for row in rows:
            self._positions[row] += num_steps
        self.num_checked += len(rows) * num_steps

    async def _step_alone(self, channel: Any, row: int) -> None:
        digit = self._random.randrange(10)
        request = inference_pb2.StepRequest(
            session_id=self._ids[row],
            epoch=self._handles[row] >> 32,
            position=self._positions[row],
            num_steps=1,
            inputs=[tensor("x", np.array([[digit]], np.int64))],
        )
        method = channel.unary_unary("/eddy.v1.InferenceService/Step", None, inference_pb2.StepResponse.FromString)
        while True:
            try:
                response = await method(request.SerializeToString(), timeout=_PATIENCE_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                continue  # The queue has a bound, and the attack may fill it: nothing was applied.
            break
        self._spelled[row : row + 1] *= 10  # An array wraps as the model's numbers do.
        self._spelled[row] += digit
        assert array(response.outputs[0])[0, 0] == self._spelled[row]
        self._positions[row] += 1
        self.num_checked += 1


class TextOracle:
    """Has one text written again and again: the same seed gives the same tokens whatever else is thrown."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.num_checked = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Asks until told to stop."""
        first: list[int] | None = None
        request = generation_pb2.GenerateRequest(
            open=generation_pb2.NewSession(model=SHIPPED),
            text=b"The class ",
            max_tokens=20,
            sampling=generation_pb2.Sampling(seed=5, temperature=0.7),
        ).SerializeToString()
        async with grpc.aio.insecure_channel(self._target.address) as channel:
            method: Any = channel.unary_stream(
                "/eddy.v1.GenerationService/Generate", None, generation_pb2.GenerateResponse.FromString
            )
            while not stop.is_set():
                try:
                    ids = [
                        token.id
                        async for response in method(request, timeout=_PATIENCE_SECONDS)
                        for token in response.tokens.tokens
                    ]
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise
                    continue  # Slots and queue have bounds, and the attack may fill them.
                first = first or ids
                assert ids == first
                assert len(ids) == 20
                self.num_checked += 1


assert _NUM_SESSIONS <= MAX_ROWS
