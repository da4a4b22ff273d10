"""The attack on the Open Inference Protocol: sequences begun, stepped, begun anew and ended at random, and damage.

Owns what is thrown by that door and the judgement of it: every request of a stream is answered once, every call ends,
and nothing internal fails; and an oracle among them, whose sequences must spell what was applied. Load and unload calls
are not thrown: whoever may send them may take the other attackers' models away.

Dimension key: B rows, T steps.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import grpc
import numpy as np
import oip
from attack import Tally
from graphs import family
from mutation import Mutator
from target import FAMILIES, MAX_BYTES, Target

from eddy.oip import grpc_service_pb2

_PATIENCE_SECONDS = 60.0
_BUG = "the server failed"
_STREAM, _INFER = f"{oip.SERVICE}/ModelStreamInfer", f"{oip.SERVICE}/ModelInfer"
_QUESTIONS: dict[str, Any] = {
    "ModelReady": grpc_service_pb2.ModelReadyRequest(name="history"),
    "ModelMetadata": grpc_service_pb2.ModelMetadataRequest(name="look-ahead"),
    "ModelConfig": grpc_service_pb2.ModelConfigRequest(name="token-gru"),
    "ModelStatistics": grpc_service_pb2.ModelStatisticsRequest(),
    "RepositoryIndex": grpc_service_pb2.RepositoryIndexRequest(),
    "SystemSharedMemoryStatus": grpc_service_pb2.SystemSharedMemoryStatusRequest(),
}
# What a call ends with where it is the client's fault, the server's limits, or our own deadline and cancelling.
_KNOWN = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
)


class SequenceAttack:
    """Streams and calls, valid and damaged, over a few sequences that all attackers share."""

    def __init__(self, target: Target, random: Random, tally: Tally) -> None:
        self._target = target
        self._random = random
        self._tally = tally
        self._mutator = Mutator(random)

    async def run(self, stop: asyncio.Event) -> None:
        """Throws until told to stop."""
        while not stop.is_set():
            async with grpc.aio.insecure_channel(self._target.address) as channel:
                while not stop.is_set() and self._random.random() > 0.1:
                    await asyncio.wait_for(self._stream(channel), 4 * _PATIENCE_SECONDS)
                    for _ in range(self._random.randrange(20)):
                        await self._call(channel)

    def _request(self) -> bytes:
        random = self._random
        spec = family(random.choice(FAMILIES))
        inputs = spec.example(np.random.default_rng(random.getrandbits(64)), random.choice((1, 1, 1, 2, 40, 97)))
        message = oip.request(
            spec.name,
            {port.name: values[None] for port, values in zip(spec.inputs, inputs, strict=True)},
            sequence=random.choice((random.randrange(1, 30), f"text {random.randrange(9)}")),
            start=random.random() < 0.3,
            end=random.random() < 0.15,
            request_id=str(random.randrange(1 << random.choice((1, 20)))),
        )
        if random.random() < 0.05:
            message.parameters["timeout"].int64_param = random.choice((1, 1000, 10_000_000))
        if random.random() < 0.5:
            return message.SerializeToString()
        return self._mutator.damage(message)[: 2 * MAX_BYTES - 100]

    async def _stream(self, channel: Any) -> None:
        random = self._random
        call = channel.stream_stream(_STREAM, None, None)()
        num_waiting = 0
        for _ in range(random.randrange(1, 60)):
            for _ in range(random.choice((1, 1, 3, 20))):
                self._tally.thrown["ModelStreamInfer"] += 1
                await asyncio.wait_for(call.write(self._request()), _PATIENCE_SECONDS)
                num_waiting += 1
            if random.random() < 0.02:
                call.cancel()
                return
            while num_waiting > random.choice((0, 0, 5, 40)):
                assert await self._answer(call), "the server ended the stream"
                num_waiting -= 1
        await call.done_writing()
        while await self._answer(call):
            num_waiting -= 1
        assert num_waiting == 0, f"{num_waiting} requests without an answer"
        assert await call.code() is grpc.StatusCode.OK

    async def _answer(self, call: Any) -> bool:
        """Reads one answer; False at the end of the stream."""
        data = await asyncio.wait_for(call.read(), _PATIENCE_SECONDS)
        if data is grpc.aio.EOF:
            return False
        response = oip.Answer.FromString(data)
        assert _BUG not in response.error_message, response
        self._tally.reasons["refused by a stream of sequences" if response.error_message else "ok"] += 1
        return True

    async def _call(self, channel: Any) -> None:
        random = self._random
        name = random.choice(("ModelInfer", "ModelInfer", *_QUESTIONS))
        self._tally.thrown[name] += 1
        data = self._request() if name == "ModelInfer" else _QUESTIONS[name].SerializeToString()
        if name != "ModelInfer" and random.random() < 0.5:
            data = self._mutator.damage(_QUESTIONS[name])
        try:
            call = channel.unary_unary(f"{oip.SERVICE}/{name}")(data, timeout=random.choice((30.0, 30.0, 0.001)))
            if random.random() < 0.05:
                call.cancel()
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await call
            self._tally.reasons["ok"] += 1
        except grpc.aio.AioRpcError as error:
            self._judge(error, name, data)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            assert current is not None and not current.cancelling(), "silence"

    def _judge(self, error: grpc.aio.AioRpcError, name: str, data: bytes) -> None:
        text = f"{name}: {error.code()} {error.details()} for {data[:2000].hex()}"
        assert error.code() in _KNOWN, text
        assert _BUG not in str(error.details()), text
        self._tally.reasons[f"{name} {error.code().name}"] += 1


class SequenceOracle:
    """Steps sequences of its own, by a stream and by calls; the answers must spell them."""

    _NUM_SEQUENCES = 8

    def __init__(self, target: Target, random: Random) -> None:
        self._target = target
        self._random = random
        self.num_checked = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Steps until told to stop."""
        async with grpc.aio.insecure_channel(self._target.address) as channel:
            while not stop.is_set():
                await asyncio.gather(*(self._play(channel, number) for number in range(self._NUM_SEQUENCES)))

    async def _play(self, channel: Any, number: int) -> None:
        """One sequence from START to END, or left for the next START."""
        random = self._random
        call = channel.stream_stream(_STREAM, None, oip.Answer.FromString)()
        infer = channel.unary_unary(_INFER, None, grpc_service_pb2.ModelInferResponse.FromString)
        spelled, is_begun = 0, False
        length = random.randrange(2, 16)
        while length:
            digit, is_end = random.randrange(10), length == 1 and random.random() < 0.7
            data = oip.request(
                "history",
                {"x": np.array([[digit]], np.int64)},
                sequence=f"oracle {number}",
                start=not is_begun,
                end=is_end,
            ).SerializeToString()
            if random.random() < 0.7:
                await asyncio.wait_for(call.write(data), _PATIENCE_SECONDS)
                answer = await asyncio.wait_for(call.read(), _PATIENCE_SECONDS)
                refusal, response = answer.error_message, answer.infer_response
            else:
                try:
                    refusal, response = "", await infer(data, timeout=_PATIENCE_SECONDS)
                except grpc.aio.AioRpcError as error:
                    refusal = str(error.details())
            if refusal:
                # Slots and queues have bounds, and the attack may fill them: nothing was applied.
                assert any(word in refusal for word in ("slots", "sessions", "queue")), refusal
                continue
            spelled, is_begun, length = spelled * 10 + digit, True, length - 1
            assert oip.arrays(response)[0].tolist() == [[spelled]]
            self.num_checked += 1
        await call.done_writing()
        assert await asyncio.wait_for(call.read(), _PATIENCE_SECONDS) is grpc.aio.EOF
