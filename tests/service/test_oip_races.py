"""Sequences of the Open Inference Protocol in many hands: connections at once, clients that leave, and swaps.

The model spells a sequence's history, so whatever was lost, doubled or mixed shows in an answer.
"""

import asyncio
from pathlib import Path

import grpc
import numpy as np
import oip
from graphs import history_in
from loopback import configure, serve, until

from eddy.oip import grpc_service_pb2

NUM_STREAMS = 5


def _step(sequence: int, digit: int, **options: bool) -> grpc_service_pb2.ModelInferRequest:
    return oip.request("history", {"x": np.array([[digit]], np.int64)}, sequence=sequence, **options)  # type: ignore[arg-type]


def _value(response: grpc_service_pb2.ModelInferResponse) -> int:
    return int(oip.arrays(response)[0][0, 0])


def test_one_sequence_in_many_hands(repository: Path) -> None:
    """STARTs, steps and ENDs at random from streams and calls, some cancelled: each answer is of one history.

    A START answers its own digit; every other answer ends with its digit, behind those of steps that were sent.
    """

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback:
            streams = [oip.InferStream(loopback) for _ in range(NUM_STREAMS)]
            num_answers = [0, 0]

            def check(digit: int, *, start: bool, error: str, response: grpc_service_pb2.ModelInferResponse) -> None:
                num_answers[bool(error)] += 1
                if error:
                    assert "must specify the START flag" in error
                    assert not start
                else:
                    value = _value(response)
                    assert value == digit if start else value % 10 == digit

            async def hand(number: int) -> None:
                generator = np.random.default_rng(number)
                for _ in range(120):
                    digit, start, end = (
                        int(generator.integers(1, 10)),
                        generator.random() < 0.3,
                        generator.random() < 0.2,
                    )
                    message = _step(9, digit, start=bool(start), end=bool(end))
                    if generator.random() < 0.6:
                        answer = await streams[number].send(message)
                        check(digit, start=bool(start), error=answer.error_message, response=answer.infer_response)
                        continue
                    calling = asyncio.create_task(oip.infer(loopback, message))
                    if generator.random() < 0.3:
                        await asyncio.sleep(0)
                        calling.cancel()
                        await asyncio.wait([calling])
                        continue
                    try:
                        check(digit, start=bool(start), error="", response=await calling)
                    except grpc.aio.AioRpcError as error:
                        refusal = str(error.details())
                        check(digit, start=bool(start), error=refusal, response=grpc_service_pb2.ModelInferResponse())

            await asyncio.gather(*(hand(number) for number in range(NUM_STREAMS)))
            assert min(num_answers) > 20
            assert loopback.host.table.num_sessions <= 1
            await streams[0].send(_step(9, 1, start=True, end=True))
            await until(lambda: loopback.host.table.num_sessions == 0)
            for stream in streams:
                await stream.close()

    asyncio.run(scenario())


def test_sequences_are_stepped_while_files_change(tmp_path: Path) -> None:
    """Begun again and again under the same ids, by any stream or call: all answers of one are of one model."""
    folder = tmp_path / "history" / "1"
    folder.mkdir(parents=True)

    def put(base: int) -> None:
        (folder / ".new").write_bytes(history_in(base).model().SerializeToString())
        (folder / ".new").rename(folder / "model.onnx")

    put(10)

    async def scenario() -> None:
        async with serve(configure(tmp_path, repository={"poll_seconds": 0.0})) as loopback:
            streams = [oip.InferStream(loopback) for _ in range(NUM_STREAMS)]
            done, bases = asyncio.Event(), set[int]()

            async def user(number: int) -> None:
                generator = np.random.default_rng(number)
                while not done.is_set():
                    # The first answers tell the base: 1, then base + 1.
                    digits = [1, 1, *generator.integers(0, 10, int(generator.integers(1, 9))).tolist()]
                    # Some are left without END, for the next START.
                    last = len(digits) - 1 if generator.random() < 0.6 else -1
                    base, state = 0, 0
                    for place, digit in enumerate(digits):
                        message = _step(number + 1, digit, start=place == 0, end=place == last)
                        way = int(generator.integers(0, NUM_STREAMS + 1))
                        if way == NUM_STREAMS:
                            response = await oip.infer(loopback, message)
                        else:
                            answer = await streams[way].send(message)
                            assert not answer.error_message, answer.error_message
                            response = answer.infer_response
                        value = _value(response)
                        if place == 1:
                            base = value - 1
                            bases.add(base)
                        state = state * base + digit
                        assert value == state
                    if done.is_set() and last < 0:
                        await streams[0].send(_step(number + 1, 1, end=True))

            users = [asyncio.create_task(user(number)) for number in range(12)]
            for base in range(11, 19):
                put(base)
                await loopback.host.load_model("history")
                await until(lambda base=base: base in bases or any(each.done() for each in users))
            done.set()
            await asyncio.gather(*users)
            assert bases >= set(range(11, 19))
            for stream in streams:
                await stream.close()
            loopback.host.release_models()
            assert loopback.host.table.num_sessions == 0
            assert len(loopback.host.catalog.served) == 1

    asyncio.run(scenario())


def test_what_was_taken_in_is_carried_out_while_the_server_drains(repository: Path) -> None:
    """Requests that wait behind another of their sequence are answered, in order; one that comes later is refused."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback, oip.stream(loopback) as stream:
            host = loopback.host
            await stream.send(_step(3, 1, start=True))
            # Its session is busy, as if a run of it took long.
            queue = host.catalog.ready("history", "").scheduler.queue
            queue.set_busy(host.table.open_rows(), 1)
            futures = [await stream.post(_step(3, digit, end=digit == 5)) for digit in (2, 3, 4, 5)]
            await stream.send(_step(4, 1, start=True, end=True))  # So that those before it were read.
            draining = asyncio.create_task(host.drain())
            await until(lambda: host.gate.is_draining)
            refused = await stream.send(_step(3, 6, start=True))
            assert "shutting down" in refused.error_message
            queue.clear_busy(host.table.open_rows())
            host.dispatcher.notify(host.catalog.ready("history", ""))
            answers = [await asyncio.wait_for(future, 30) for future in futures]
            assert [_value(answer.infer_response) for answer in answers] == [12, 123, 1234, 12345]
            assert await draining
            assert host.table.num_sessions == 0

    asyncio.run(scenario())
