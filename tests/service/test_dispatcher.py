"""The dispatcher: failures end in one typed result, ticks run where their cost says, answers are encoded as protobuf.

The model is `history`: its answers spell what was applied.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
from graphs import family
from loopback import PATIENCE_SECONDS, until
from simulation import STREAM, Mailbox, Rig

from eddy.service.chunk import Chunk, ChunkResult
from eddy.service.codec import StepResponses
from eddy.service.contract import Contract, read_contract
from eddy.service.cost import TickCost
from eddy.service.dispatcher import Dispatcher
from eddy.service.engine import Engine
from eddy.service.errors import ClientError, Detail, Reason, ServerBug
from eddy.service.polling import BusyPoll
from eddy.service.scheduler import Scheduler
from eddy.service.tick import Tick
from eddy.v1 import contract_pb2, inference_pb2

HISTORY = family("history")
INLINE, THREAD = TickCost(0.0, 1e-9), TickCost(1.0, 1e-9)


class Broken(Exception):
    """What nobody expected."""


class BreakableEngine(Engine):
    """An engine whose next runs fail, after the graph has written its states, with what no caller expects."""

    num_failures = 0

    def run(self, *arguments: Any) -> list[bytes]:
        """As `Engine.run`, then fails."""
        blocks = super().run(*arguments)
        if self.num_failures:
            self.num_failures -= 1
            raise Broken
        return blocks


class BreakableScheduler(Scheduler):
    """A scheduler whose next ticks cannot be formed, or not be committed."""

    num_bad_forms = 0
    num_bad_commits = 0

    def next_tick(self, now: float) -> Tick | None:
        """As `Scheduler.next_tick`, or fails with the queue as it is."""
        if self.num_bad_forms and len(self.queue):
            self.num_bad_forms -= 1
            raise Broken
        return super().next_tick(now)

    def commit(self, tick: Tick, blocks: Sequence[bytes], now: float, *, was_begun: bool = False) -> None:
        """As `Scheduler.commit`, or fails before anything was advanced."""
        if self.num_bad_commits:
            self.num_bad_commits -= 1
            raise Broken
        super().commit(tick, blocks, now, was_begun=was_begun)


def _breakable(cost: TickCost) -> Rig:
    """A rig of `history` that can be made to fail."""
    rig = Rig(HISTORY)
    rig.model.cost = cost
    rig.model.engine.__class__ = BreakableEngine
    rig.scheduler.__class__ = BreakableScheduler
    return rig


def _run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, PATIENCE_SECONDS))


class Floor:
    """A dispatcher on the running loop with rigs to feed it."""

    def __init__(self, *rigs: Rig) -> None:
        self.rigs = rigs
        self.dispatcher = Dispatcher(asyncio.get_running_loop(), rigs[0].clock, 0.5)

    def submit(self, rig: Rig, row: int, position: int, digits: list[int]) -> int:
        """Queues a chunk as the host does; returns its tag."""
        tag = rig.submit(np.array([row]), [position], [np.array([digits], np.int64)])
        self.dispatcher.notify(rig.model)
        return tag

    async def settle(self) -> None:
        """Waits until everything is through."""
        await until(lambda: self.dispatcher.is_idle and all(rig.scheduler.queue.is_idle for rig in self.rigs))

    async def step(self, rig: Rig, row: int, position: int, digits: list[int]) -> list[int]:
        """Steps a session and returns the answers."""
        tag = self.submit(rig, row, position, digits)
        await self.settle()
        return _answers(rig, tag)


def _answers(rig: Rig, tag: int) -> list[int]:
    result = rig.mailbox.results[tag]
    assert result.failure is None
    assert not result.errors
    answers: list[int] = np.frombuffer(result.outputs[0], "<i8").tolist()
    return answers


def _failure(rig: Rig, tag: int) -> ServerBug:
    failure = rig.mailbox.results[tag].failure
    assert isinstance(failure, ServerBug)
    assert failure.reason is Reason.INTERNAL
    return failure


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("cost", [INLINE, THREAD], ids=["inline", "thread"])
@pytest.mark.parametrize("where", ["run", "commit"])
def test_a_tick_that_breaks(where: str, cost: TickCost, caplog: pytest.LogCaptureFixture, *, alone: bool) -> None:
    """Each of its chunks ends in one INTERNAL result and its sessions end; another model and later chunks go on."""

    async def scenario() -> None:
        rig, other = _breakable(cost), Rig(HISTORY)
        floor = Floor(rig, other)
        first, second, calm = rig.open(3).tolist()
        (elsewhere,) = other.open(1).tolist()
        assert await floor.step(rig, calm, 0, [1]) == [1]
        if where == "run":
            rig.model.engine.num_failures = 1
        else:
            rig.scheduler.num_bad_commits = 1
        bad = [floor.submit(rig, first, 0, [1, 2])]
        if not alone:
            bad.append(floor.submit(rig, second, 0, [3, 4]))  # The same tick.
        good = floor.submit(other, elsewhere, 0, [7])
        await floor.settle()
        assert len({str(_failure(rig, tag)) for tag in bad}) == 1
        assert _answers(other, good) == [7]
        ended = [handle for _, handles, _ in rig.ended for handle in handles]
        assert len(ended) == len(bad)
        assert rig.table.num_sessions == 3 - len(bad)
        assert not rig.table.is_busy.any()
        assert await floor.step(rig, calm, 1, [2, 3]) == [12, 123]
        (fresh,) = rig.open(1).tolist()
        assert await floor.step(rig, fresh, 0, [5]) == [5]
        assert len(rig.mailbox.order) == len(set(rig.mailbox.order)) == len(bad) + 3
        floor.dispatcher.close()

    _run(scenario())
    assert "Broken" in caplog.text


@pytest.mark.parametrize("cost", [INLINE, THREAD], ids=["inline", "thread"])
def test_a_tick_that_cannot_be_formed(cost: TickCost, caplog: pytest.LogCaptureFixture) -> None:
    """What waited ends in one INTERNAL result each, nothing was applied, and the sessions go on."""

    async def scenario() -> None:
        rig, other = _breakable(cost), Rig(HISTORY)
        floor = Floor(rig, other)
        rows = rig.open(3).tolist()
        (elsewhere,) = other.open(1).tolist()
        rig.scheduler.num_bad_forms = 1
        bad = [floor.submit(rig, row, 0, [9] * (1 + row % 2)) for row in rows]
        good = floor.submit(other, elsewhere, 0, [7])
        await floor.settle()
        for tag in bad:
            _failure(rig, tag)
        assert _answers(other, good) == [7]
        assert not rig.ended
        for row in rows:
            assert await floor.step(rig, row, 0, [1, 2]) == [1, 12]
        assert len(rig.mailbox.order) == 6
        floor.dispatcher.close()

    _run(scenario())
    assert "no tick could be formed" in caplog.text


class Clumsy(Mailbox):
    """A mailbox that drops the first answer with outputs."""

    has_dropped = False

    def deliver(self, chunk: Chunk, result: ChunkResult) -> None:
        """As a mailbox, but for the first."""
        if result.failure is None and not self.has_dropped:
            self.has_dropped = True
            raise Broken
        super().deliver(chunk, result)


@pytest.mark.parametrize("cost", [INLINE, THREAD], ids=["inline", "thread"])
def test_an_answer_that_cannot_be_delivered(cost: TickCost, caplog: pytest.LogCaptureFixture) -> None:
    """Its chunk ends in an INTERNAL result; the other chunks of the tick are answered, and every session goes on."""

    async def scenario() -> None:
        rig = _breakable(cost)
        rig.mailbox = Clumsy()
        floor = Floor(rig)
        first, second = rig.open(2).tolist()
        tags = [floor.submit(rig, first, 0, [1]), floor.submit(rig, second, 0, [2])]
        await floor.settle()
        assert "not be delivered" in caplog.text
        assert "was applied" in _failure(rig, tags[0]).message
        assert _answers(rig, tags[1]) == [2]
        assert await floor.step(rig, first, 1, [3]) == [13]
        assert await floor.step(rig, second, 1, [4]) == [24]
        floor.dispatcher.close()

    _run(scenario())


def test_a_failure_between_the_slices_of_a_chunk() -> None:
    """A chunk that is cut into slices ends once, whichever slice breaks; its working slots come back."""

    async def scenario() -> None:
        for num_good in range(3):
            rig = Rig(HISTORY, row_steps_budget=1)
            rig.model.cost = INLINE
            rig.model.engine.__class__ = BreakableEngine
            floor = Floor(rig)
            row, calm = rig.open(2).tolist()
            tag = floor.submit(rig, row, 0, [1, 2, 3])
            await until(lambda wanted=num_good, rig=rig: rig.scheduler.num_ticks >= wanted)
            rig.model.engine.num_failures = 1
            await floor.settle()
            _failure(rig, tag)
            # Only the last slice writes the session's own state.
            assert len(rig.ended) == (num_good == 2)
            if num_good < 2:
                assert await floor.step(rig, row, 0, [4, 5]) == [4, 45]
            assert await floor.step(rig, calm, 0, [6, 7]) == [6, 67]
            floor.dispatcher.close()

    _run(scenario())


def test_cheap_ticks_run_inline_and_dear_ones_on_the_thread() -> None:
    """The model's cost decides; the answers are the same, also when a dear model shares the loop with a cheap one."""

    async def scenario() -> None:
        answers = []
        for cost in (INLINE, THREAD):
            rig = Rig(HISTORY, max_rows=4)
            rig.model.cost = cost
            floor = Floor(rig)
            rows = rig.open(9, max_in_flight=3).tolist()
            tags = [floor.submit(rig, row, 2 * turn, [row % 10, turn]) for turn in range(3) for row in rows]
            await floor.settle()
            answers.append([_answers(rig, tag) for tag in tags])
            counts = (floor.dispatcher.num_inline_ticks, floor.dispatcher.num_thread_ticks)
            assert (counts[0] > 0, counts[1] > 0) == (cost is INLINE, cost is THREAD)
            assert sum(counts) == rig.scheduler.num_ticks
            floor.dispatcher.close()
        assert answers[0] == answers[1]

        cheap, dear = Rig(HISTORY), Rig(HISTORY)
        cheap.model.cost, dear.model.cost = INLINE, THREAD
        floor = Floor(cheap, dear)
        for rig in (cheap, dear):
            (row,) = rig.open(1).tolist()
            floor.submit(rig, row, 0, [1, 2])
        await floor.settle()
        assert (floor.dispatcher.num_inline_ticks, floor.dispatcher.num_thread_ticks) == (1, 1)
        assert [_answers(rig, 1) for rig in (cheap, dear)] == [[1, 12]] * 2
        floor.dispatcher.close()

    _run(scenario())


def test_closing_finishes_what_was_given() -> None:
    """Ticks that are on the engine thread when it is closed are run and answered."""

    async def scenario() -> None:
        rig = Rig(HISTORY)
        rig.model.cost = THREAD
        floor = Floor(rig)
        (row,) = rig.open(1).tolist()
        tag = floor.submit(rig, row, 0, [1, 2])
        await asyncio.sleep(0)  # The event loop's next turn hands the tick to the engine thread.
        assert floor.dispatcher.num_thread_ticks == 1
        floor.dispatcher.close()
        await floor.settle()
        assert _answers(rig, tag) == [1, 12]

    _run(scenario())


# Answers on the wire


def _blocks(contract: Contract, num_rows: int, num_steps: int) -> list[bytes]:
    generator = np.random.default_rng(num_rows * 100 + num_steps)
    return [generator.bytes(port.step_bytes * num_rows * num_steps) for port in contract.outputs]


def _expected(contract: Contract, tag: int, num_rows: int, num_steps: int, result: ChunkResult) -> Any:
    """The answer as protobuf builds it."""
    step = inference_pb2.StepResult(
        outputs=[
            inference_pb2.Tensor(
                name=port.name, dtype=port.wire_dtype, shape=(num_rows, num_steps, *port.shape), data=block
            )
            for port, block in zip(contract.outputs, result.outputs, strict=True)
        ],
        replayed_rows=np.array(result.replayed, "<u4").tobytes(),
    )
    return inference_pb2.StreamResponse(tag=tag, step=step)


@pytest.mark.parametrize("name", ["history", "lstm", "token-gru", "half-precision", "two-inputs"])
def test_encoded_answers_are_what_protobuf_would_write(name: str) -> None:
    """Whatever shape and tag, in any order and again, the bytes parse to the same message, of the same length."""
    contract = read_contract(family(name).model())
    responses = StepResponses()
    for tag in (0, 1, 127, 128, 1 << 20, (1 << 64) - 1):
        for num_rows, num_steps in ((1, 1), (1, 300), (64, 1), (3, 5), (5, 3), (1024, 2)):
            for replayed in ((), tuple(range(0, num_rows, 2))):
                result = ChunkResult(_blocks(contract, num_rows, num_steps), replayed=replayed)
                data = responses.encode(contract, tag, num_rows, num_steps, result)
                expected = _expected(contract, tag, num_rows, num_steps, result)
                assert inference_pb2.StreamResponse.FromString(data) == expected
                assert len(data) == expected.ByteSize()
    assert {port.wire_dtype for port in contract.outputs} <= set(contract_pb2.DataType.values())


def test_encoded_refusals() -> None:
    """Rows that were refused come with the outputs of the others; a chunk that failed has nothing but its error."""
    contract = read_contract(HISTORY.model())
    responses = StepResponses()
    refused = ClientError(Reason.OUT_OF_RANGE, "no", Detail("inputs[x]", "10", "0 to 9"))
    rows = ChunkResult(_blocks(contract, 3, 2), errors={1: refused})
    response = inference_pb2.StreamResponse.FromString(responses.encode(contract, 9, 3, 2, rows))
    assert [(error.row, Reason(error.error.reason)) for error in response.step.errors] == [(1, Reason.OUT_OF_RANGE)]
    assert [list(tensor.shape) for tensor in response.step.outputs] == [[3, 2]]
    failed = ChunkResult(failure=refused)
    response = inference_pb2.StreamResponse.FromString(responses.encode(contract, 0, 3, 2, failed))
    assert (response.tag, response.WhichOneof("event")) == (0, "error")
    assert response.error.field == "inputs[x]"


def test_many_shapes_of_answers() -> None:
    """A stream that uses more shapes than are remembered is answered as well, from its own model's contract."""
    contracts = [read_contract(family(name).model()) for name in ("history", "lstm")]
    responses = StepResponses()
    for num_steps in (*range(1, 400), *range(1, 20)):
        for contract in contracts:
            result = ChunkResult(_blocks(contract, 2, num_steps))
            data = responses.encode(contract, num_steps, 2, num_steps, result)
            assert inference_pb2.StreamResponse.FromString(data) == _expected(contract, num_steps, 2, num_steps, result)


def test_a_result_is_delivered_once() -> None:
    """The mailbox of these tests refuses a second result for a chunk."""
    rig = Rig(HISTORY)
    chunk: Chunk = rig.chunk(rig.table.handle[rig.open(1)], [0], [np.array([[1]], np.int64)], stream=STREAM)
    chunk.reply(ChunkResult())
    with pytest.raises(AssertionError, match="twice"):
        chunk.reply(ChunkResult())


@pytest.mark.parametrize("cost", [INLINE, THREAD], ids=["inline", "thread"])
@pytest.mark.parametrize(("num_sessions", "expected"), [(1, 3), (2, 0)])
def test_only_a_session_alone_is_polled_for(
    num_sessions: int, expected: int, cost: TickCost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps of a session alone are told to the poll, once each, after their answers; ticks of several are not."""
    told: list[tuple[float, int]] = []

    async def scenario() -> None:
        rig = _breakable(cost)
        monkeypatch.setattr(BusyPoll, "stepped", lambda _, now: told.append((now, len(rig.mailbox.order))))
        floor = Floor(rig)
        rows = rig.open(num_sessions).tolist()
        for step in range(3):
            for row in rows:
                floor.submit(rig, row, step, [1])
            await floor.settle()
        floor.dispatcher.close()

    _run(scenario())
    assert [answered for _, answered in told] == list(range(1, expected + 1))
