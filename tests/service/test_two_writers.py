"""Two writers on one session: one history, one effect a step, and a clear error for whoever is not in turn.

The model is `history`: its answers spell what was applied. `text-rnn` for generations.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from graphs import family
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Loopback, StreamClient, array, attach_request, chunk, configure, detail_of, serve, tensor, until

from eddy.service.cost import Budget
from eddy.service.errors import Reason
from eddy.service.queue import Limits
from eddy.v1 import generation_pb2, inference_pb2

HISTORY = family("history")
MODELS = Path(__file__).resolve().parents[2] / "models"
# What a writer may be told that is not in turn.
NOT_IN_TURN = {
    Reason.FENCED,
    Reason.UNKNOWN_SESSION,  # A handle of another stream says nothing of its session.
    Reason.POSITION_AHEAD,
    Reason.POSITION_BEHIND,
    Reason.REPEAT_MISMATCH,
}


class Writer:
    """A client that writes its own digit, wherever it believes the session to be."""

    def __init__(self, stream: StreamClient, digit: int) -> None:
        self.stream = stream
        self.digit = digit
        self.handle = 0
        self.position = 0
        # Position -> the history that the answer spelled.
        self.applied: dict[int, int] = {}

    async def attach(self, opened: inference_pb2.SessionsOpened) -> None:
        """Takes the session over."""
        response = await self.stream.send(attach=attach_request(opened))
        self.handle, self.position = response.attached.handle, response.attached.next_position

    async def write(self, num_chunks: int) -> None:
        """Sends chunks in a row without waiting, then takes what is answered."""
        positions = range(self.position, self.position + num_chunks)
        pending = [
            (at, await self.stream.post(step=chunk(HISTORY, [self.handle], [at], [[self.digit]]))) for at in positions
        ]
        for at, future in pending:
            self.take(at, await asyncio.wait_for(future, 30))

    def take(self, position: int, response: inference_pb2.StreamResponse) -> None:
        """An answer: the step was applied, or why not."""
        if not response.step.errors:
            self.applied[position] = int(array(response.step.outputs[0])[0, 0])
            self.position = max(self.position, position + 1)
            return
        (error,) = response.step.errors
        assert Reason(error.error.reason) in NOT_IN_TURN, error
        if error.error.HasField("next_position"):
            self.position = error.error.next_position


async def _unary(loopback: Loopback, session_id: bytes, epoch: int, position: int, digit: int) -> Any:
    request = inference_pb2.StepRequest(
        session_id=session_id, epoch=epoch, position=position, num_steps=1, inputs=[tensor("x", np.array([[digit]]))]
    )
    return await loopback.unary("InferenceService/Step", request, inference_pb2.StepResponse)


def _assert_one_history(final: int, num_steps: int, *writers: Writer) -> None:
    """Every step belongs to exactly one writer, and every answer spelled the one history up to there."""
    digits = f"{final:0{num_steps}d}"
    assert len(digits) == num_steps
    for writer in writers:
        for position, spelled in writer.applied.items():
            assert digits[position] == str(writer.digit)
            assert spelled == int(digits[: position + 1])
    claimed = sorted(position for writer in writers for position in writer.applied)
    assert claimed == list(range(num_steps)), "a step of nobody's, or of two"


@settings(max_examples=12)
@given(turns=st.lists(st.tuples(st.integers(0, 1), st.booleans(), st.integers(1, 3)), min_size=1, max_size=12))
def test_two_streams_in_turns(repository: Path, turns: list[tuple[int, bool, int]]) -> None:
    """Two streams take a session over and write, both at once: one history, in which the fenced have no part."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback, loopback.stream() as one, loopback.stream() as two:
            opened = await one.open("history", max_in_flight=4)
            (session_id,) = opened.session_ids
            writers = [Writer(one, 1), Writer(two, 2)]
            await writers[0].attach(opened)
            for number, attaches, num_chunks in turns:
                if sum(len(writer.applied) for writer in writers) > 12:
                    break  # An int64 spells no more.
                if attaches:
                    await writers[number].attach(opened)
                await asyncio.gather(writers[number].write(num_chunks), writers[1 - number].write(1))
            row = loopback.host.table.row_of_id(session_id)
            num_steps = int(loopback.host.table.next_position[row])
            assert num_steps == sum(len(writer.applied) for writer in writers)
            await writers[0].attach(opened)
            response = await one.step(HISTORY, [writers[0].handle], [num_steps], [[0]])
            _assert_one_history(int(array(response.outputs[0])[0, 0]) // 10, num_steps, *writers)

    asyncio.run(scenario())


def test_a_unary_step_with_an_old_epoch_is_fenced(repository: Path) -> None:
    """A stream takes over a session that unary calls stepped: those are fenced, also those that wait in its queue."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback, loopback.stream() as stream:
            opened = await stream.open("history")
            (session_id,) = opened.session_ids
            epoch = int(np.frombuffer(opened.epochs, "<u4")[0])
            assert array((await _unary(loopback, session_id, epoch, 0, 4)).outputs[0]).tolist() == [[4]]
            writer = Writer(stream, 7)
            await writer.attach(opened)
            # With the old epoch at every position: nothing of it is applied.
            for position in range(4):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await _unary(loopback, session_id, epoch, position, 5)
                detail = detail_of(caught.value)
                assert Reason(detail.reason) is Reason.FENCED
                assert detail.epoch == epoch + 1
            await writer.write(1)
            # With the new one both may write, each step once.
            both = await asyncio.gather(
                _unary(loopback, session_id, epoch + 1, 2, 5), writer.write(1), return_exceptions=True
            )
            table = loopback.host.table
            assert table.next_position[table.row_of_id(session_id)] == 3
            response = await stream.step(HISTORY, [writer.handle], [3], [[0]])
            final = int(array(response.outputs[0])[0, 0])
            if isinstance(both[0], BaseException):
                assert isinstance(both[0], grpc.aio.AioRpcError)
                assert Reason(detail_of(both[0]).reason) is Reason.REPEAT_MISMATCH
                assert final == 4770
            else:
                assert final == 4750
                assert 2 not in writer.applied

    asyncio.run(scenario())


def test_a_unary_step_does_not_care_whether_the_stream_is_still_there(repository: Path) -> None:
    """Id and epoch are the right to step: the stream that owned the session ends while the step waits."""

    async def scenario() -> None:
        async with serve(configure(repository, server={"inline_tick_seconds": 0.0})) as loopback:
            host = loopback.host
            host.catalog.served[0].scheduler.queue.limits = Limits(16, Budget(1), 1024)
            stream = StreamClient(loopback.channel)
            opened = await stream.open("history", 2)
            epoch = int(np.frombuffer(opened.epochs, "<u4")[0])
            handles = np.frombuffer(opened.handles, "<u8").tolist()
            # A long chunk of the same session keeps it busy while the unary step waits and the stream breaks.
            digits = np.zeros((1, 512), np.int64)
            digits[0, -1] = 3
            await stream.post(step=chunk(HISTORY, handles[:1], [0], digits))
            await until(host.table.is_busy.any)
            waiting = asyncio.create_task(_unary(loopback, opened.session_ids[0], epoch, 512, 8))
            await until(lambda: len(host.catalog.served[0].scheduler.queue) > 0 or waiting.done())
            stream.cancel()
            await until(lambda: not host.table.rows_of_stream(1).size)
            assert array((await waiting).outputs[0]).tolist() == [[38]]
            await stream.close()

    asyncio.run(scenario())


async def _until_at_rest(position: Callable[[], int]) -> None:
    """Waits until a session has not moved for a while."""
    last, num_same = -1, 0
    async with asyncio.timeout(30):
        while num_same < 100:
            await asyncio.sleep(0.002)
            num_same = num_same + 1 if position() == last else 0
            last = position()


async def _told(call: Any) -> tuple[int, Reason]:
    """How many tokens a generation tells, and why it fails."""
    num_tokens = 0
    try:
        while (event := await call.read()) is not grpc.aio.EOF:
            num_tokens += len(event.tokens.tokens)
    except grpc.aio.AioRpcError as error:
        return num_tokens, Reason(detail_of(error).reason)
    raise AssertionError("the generation ended well")


def test_a_stream_against_a_generation() -> None:
    """Taking a session over ends the generation over it with FENCED; stepping it at its own epoch breaks it off.

    The position says how many steps were taken, and each was somebody's.
    """

    async def scenario() -> None:
        # A window that does not grow, so that a generation whose tokens are not read comes to rest early.
        options = [("grpc.http2.bdp_probe", 0)]
        async with (
            serve(configure(MODELS)) as loopback,
            grpc.aio.insecure_channel(f"127.0.0.1:{loopback.server.port}", options=options) as channel,
            loopback.stream() as stream,
        ):
            host = loopback.host
            for takes_over in (True, False):
                opened = await stream.open("text-rnn")
                (session_id,) = opened.session_ids
                epoch = int(np.frombuffer(opened.epochs, "<u4")[0])
                request = generation_pb2.GenerateRequest(
                    existing=generation_pb2.ExistingSession(session_id=session_id, epoch=epoch),
                    text=b"x",
                    sampling=generation_pb2.Sampling(seed=1),
                    num_alternatives=20,
                )
                call = channel.unary_stream(
                    "/eddy.v1.GenerationService/Generate", None, generation_pb2.GenerateResponse.FromString
                )(request.SerializeToString())
                assert (await call.read()).WhichOneof("event") == "started"
                num_applied, row = 0, host.table.row_of_id(session_id)
                if takes_over:
                    await stream.send(attach=attach_request(opened))
                else:
                    # Nobody reads the tokens, so the generation comes to rest.
                    await _until_at_rest(lambda row=row: int(host.table.next_position[row]))
                    step = inference_pb2.StepChunk(
                        handles=opened.handles,
                        positions=int(host.table.next_position[row]).to_bytes(8, "little"),
                        num_steps=1,
                        inputs=[tensor("tokens", np.array([[3]]))],
                    )
                    assert not (await stream.send(step=step)).step.errors
                    num_applied = 1
                num_tokens, reason = await _told(call)
                assert reason is Reason.FENCED if takes_over else reason in NOT_IN_TURN
                next_position = int(host.table.next_position[row])
                # The prompt's one token, those told (the last of which may not have been fed), and the stream's.
                assert next_position - num_applied - 1 in (num_tokens, num_tokens - 1)

    asyncio.run(scenario())


def test_a_generation_goes_on_when_the_stream_that_owned_its_session_ends() -> None:
    """The stream that opened the session breaks while a generation over it runs: the generation does not notice."""

    async def scenario() -> None:
        async with serve(configure(MODELS, model={"max_generated_tokens": 400})) as loopback:
            stream = StreamClient(loopback.channel)
            opened = await stream.open("text-rnn")
            epoch = int(np.frombuffer(opened.epochs, "<u4")[0])
            request = generation_pb2.GenerateRequest(
                existing=generation_pb2.ExistingSession(session_id=opened.session_ids[0], epoch=epoch),
                text=b"def ",
                sampling=generation_pb2.Sampling(seed=1),
            )
            call = loopback.channel.unary_stream(
                "/eddy.v1.GenerationService/Generate", None, generation_pb2.GenerateResponse.FromString
            )(request.SerializeToString())
            assert (await call.read()).WhichOneof("event") == "started"
            stream.cancel()
            await until(lambda: not loopback.host.table.rows_of_stream(1).size)
            last = None
            while (event := await call.read()) is not grpc.aio.EOF:
                last = event
            assert last is not None
            assert last.finished.num_tokens == 400
            await stream.close()

    asyncio.run(scenario())
