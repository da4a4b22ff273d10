"""Work beside sessions' chunks: what sessions begin with, and whole graphs. It takes turns, and fails alone."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from architectures import example, example_folder
from graphs import PRIME_FILE, Family, family
from loopback import Loopback, StreamClient, array, chunk, configure, serve, tensor, until, write_model
from onnx import helper, numpy_helper
from simulation import Rig

from eddy.service.chunk import NO_DEADLINE
from eddy.service.cost import Budget
from eddy.service.dispatcher import Dispatcher
from eddy.service.errors import CapacityError, EddyError, ModelError, Reason, ServerBug
from eddy.service.tick import Job
from eddy.v1 import inference_pb2, sessions_pb2

HISTORY = family("history")
PRIMED = family("primed")
Outcome = list[bytes] | EddyError


def _job(told: list[Any], name: str = "job", deadline: float = NO_DEADLINE) -> Job:
    """A job that answers its name, and tells what came of it."""
    return Job(lambda: [name.encode()], told.append, 1, 1, deadline)


def test_jobs_and_chunks_take_turns() -> None:
    """However many of either wait, the other's next one comes soon."""
    rig = Rig(HISTORY)
    rows = rig.open(4)
    told: list[Outcome] = []
    for number in range(4):
        rig.scheduler.queue.submit_job(_job(told, str(number)))
    tags = [rig.submit(rows[[row]], [0], [np.array([[1] * (row + 1)])]) for row in range(4)]  # Each a tick of its own.
    order = []
    while len(rig.scheduler.queue):
        num_told = len(told)
        rig.run_tick()
        order.append(len(told) > num_told)
    assert told == [[b"0"], [b"1"], [b"2"], [b"3"]]
    assert all(rig.mailbox.results[tag].failure is None for tag in tags)
    assert order in ([True, False] * 4, [False, True] * 4), order
    assert rig.scheduler.queue.is_idle


def test_a_job_that_cannot_be_prepared_fails_alone() -> None:
    """It is told so, once; chunks and jobs that wait are carried out, and nothing runs for ever."""
    rig = Rig(HISTORY)
    rows = rig.open(1)
    told: list[Outcome] = []

    def fail() -> None:
        raise AssertionError("what it needs is not there")

    rig.scheduler.queue.submit_job(Job(list, told.append, 1, 1, prepare=fail), _job(told, "good"))
    result = rig.step(rows, [0], [np.array([[7]])])
    assert rig.outputs(result, 1, 1)[0].tolist() == [[7]]
    error, good = told
    assert isinstance(error, ServerBug)
    assert good == [b"good"]
    assert rig.scheduler.queue.is_idle and not rig.scheduler.queue.num_jobs_away


def test_a_job_that_is_late_fails_and_one_that_nobody_waits_for_is_dropped() -> None:
    """Neither runs; the one behind them does."""
    rig = Rig(HISTORY)
    told: list[Outcome] = []
    gone = _job(told, "gone")
    gone.is_gone = True
    for job in (gone, _job(told, "late", deadline=5.0), _job(told, "good", deadline=6.0)):
        rig.scheduler.queue.submit_job(job)
    tick = rig.scheduler.next_tick(5.5)
    assert isinstance(tick, Job)
    rig.scheduler.commit(tick, tick.run(), 5.5)
    late, good = told
    assert isinstance(late, CapacityError) and late.reason is Reason.DEADLINE_EXCEEDED
    assert good == [b"good"] and rig.scheduler.queue.is_idle


def test_the_queue_of_jobs_is_bounded_and_can_be_failed() -> None:
    """One too many is refused; all that wait can be told that they will not run."""
    rig = Rig(HISTORY)
    told: list[Outcome] = []
    rig.scheduler.queue.limits = replace(rig.scheduler.queue.limits, max_queued_chunks=2)
    for _ in range(2):
        rig.scheduler.queue.submit_job(_job(told))
    with pytest.raises(CapacityError) as caught:
        rig.scheduler.queue.submit_job(_job(told))
    assert caught.value.reason is Reason.QUEUE_FULL and len(rig.scheduler.queue) == 2
    error = ServerBug(Reason.INTERNAL, "no more")
    rig.scheduler.fail_queue(error)
    assert told == [error, error] and rig.scheduler.queue.is_idle


@pytest.mark.parametrize("inline_seconds", [0.0, 10.0])
def test_a_job_that_breaks_fails_alone(inline_seconds: float) -> None:
    """What it raises is told as a typed error; sessions go on, on the engine thread as on the event loop."""

    async def scenario() -> None:
        rig = Rig(HISTORY)
        dispatcher = Dispatcher(asyncio.get_running_loop(), rig.clock, inline_seconds)
        told: list[Outcome] = []

        def fail() -> list[bytes]:
            raise ZeroDivisionError

        def refuse() -> list[bytes]:
            raise ModelError(Reason.MODEL_FAILED, "it failed")

        rig.scheduler.queue.submit_job(Job(fail, told.append, 1, 1))
        rig.scheduler.queue.submit_job(Job(refuse, told.append, 1, 1))
        tag = rig.submit(rig.open(1), [0], [np.array([[1, 2]])])
        dispatcher.notify(rig.model)
        await until(lambda: dispatcher.is_idle and rig.scheduler.queue.is_idle)
        bug, refused = told
        assert isinstance(bug, ServerBug) and isinstance(refused, ModelError)
        assert np.frombuffer(rig.mailbox.results[tag].outputs[0], "<i8").tolist() == [1, 12]
        dispatcher.close()

    asyncio.run(scenario())


# Beginnings


def _fragile() -> Family:
    """`primed`, whose prime graph fails on sources of five steps, which the contract allows."""
    assert PRIMED.prime is not None
    model = PRIMED.prime.graph()
    model.graph.initializer.append(numpy_helper.from_array(np.arange(5), "table"))
    [total] = [node for node in model.graph.node if node.output[0] == "total"]
    total.CopyFrom(helper.make_node("Gather", ["table", "source_length"], ["total"]))
    return replace(PRIMED, name="fragile", prime=replace(PRIMED.prime, graph=lambda: model))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`primed`."""
    root = tmp_path_factory.mktemp("models")
    write_model(root, "primed")
    return root


def _prime(*digits: int) -> inference_pb2.Prime:
    return inference_pb2.Prime(inputs=[tensor("source", np.array([digits]))])


async def _spell(client: StreamClient, handle: int, position: int = 0) -> int:
    """The answer to a step of 1: total + gain."""
    step = await client.step(PRIMED, [handle], [position], [[1]])
    return int(array(step.outputs[0])[0, 0])


def test_a_prime_graph_that_fails_takes_nobody_with_it(tmp_path: Path) -> None:
    """The opening is answered with an error and leaves no session; sessions beside it go on, and later ones open."""
    model = _fragile()
    path = write_model(tmp_path, "fragile", model=model.model())
    assert model.prime is not None
    (path.parent / PRIME_FILE).write_bytes(model.prime.graph().SerializeToString())

    async def scenario() -> None:
        async with serve(configure(tmp_path)) as running, running.stream() as client:
            [good] = await client.handles("fragile", prime=_prime(1, 2, 3))
            assert await _spell(client, good) == 3 + 6
            request = inference_pb2.OpenSessions(model="fragile", count=1, prime=_prime(1, 2, 3, 4, 5))
            detail = await client.refusal(open=request)
            assert detail.reason == Reason.MODEL_FAILED
            assert running.host.table.num_sessions == 1
            opening = sessions_pb2.OpenSessionRequest(model="fragile", prime=_prime(5, 5, 5, 5, 5))
            detail = await running.refusal("SessionService/OpenSession", opening, sessions_pb2.OpenSessionResponse)
            assert detail.reason == Reason.MODEL_FAILED
            assert running.host.table.num_sessions == 1
            assert await _spell(client, good, 1) == 9 + 6
            [later] = await client.handles("fragile", prime=_prime(4))
            assert await _spell(client, later) == 1 + 4

    asyncio.run(scenario())


def test_a_slot_that_is_used_again_begins_anew(repository: Path) -> None:
    """What one session read first is gone with it, for those that read something else and for states given."""

    async def scenario() -> None:
        async with serve(configure(repository, model={"max_slots": 1})) as running, running.stream() as client:
            for digits in ((9, 9, 9, 9), (1,), (2, 2)):
                [handle] = await client.handles("primed", prime=_prime(*digits))
                assert await _spell(client, handle) == len(digits) + sum(digits)
                await client.send(close=inference_pb2.CloseSessions(handles=np.uint64(handle).tobytes()))
            given = tensor("total", np.array([100]))
            [handle] = await client.handles("primed", prime=_prime(5), initial_states=[given])
            assert await _spell(client, handle) == 100 + 5

    asyncio.run(scenario())


def test_what_was_read_first_stays_while_chunks_are_sliced(repository: Path) -> None:
    """A long chunk moves its states through working slots; what no step writes is read where it is."""

    async def scenario() -> None:
        async with serve(configure(repository)) as running, running.stream() as client:
            scheduler = running.host.catalog.served[0].scheduler
            scheduler.queue.limits = replace(scheduler.queue.limits, budget=Budget(4))
            handles = await client.handles("primed", 3, prime=_primes((1, 2), (3,), (4, 5, 6)))
            step = await client.step(PRIMED, handles, [0, 0, 0], [[1] * 30] * 3)
            starts, gains = np.array([[2], [1], [3]]), np.array([[3], [3], [15]])
            np.testing.assert_array_equal(array(step.outputs[0]), starts + gains * np.arange(1, 31))

    asyncio.run(scenario())


def _primes(*sources: tuple[int, ...]) -> inference_pb2.Prime:
    """Sources of several lengths, padded with what the range allows."""
    most = max(map(len, sources))
    rows = [(*source, *([9] * (most - len(source)))) for source in sources]
    lengths = np.array([len(source) for source in sources], "<u4")
    return inference_pb2.Prime(inputs=[tensor("source", np.array(rows))], lengths=lengths.tobytes())


def test_a_server_that_drains_finishes_what_was_begun(repository: Path) -> None:
    """An opening that was accepted is answered; a later one is refused."""

    async def scenario() -> None:
        async with serve(configure(repository)) as running, running.stream() as client:
            opened = await client.post(
                open=inference_pb2.OpenSessions(model="primed", count=40, prime=_primes(*[(1, 2)] * 40))
            )
            response = await opened
            assert len(response.opened.session_ids) == 40
            assert await running.host.drain()
            detail = await client.refusal(open=inference_pb2.OpenSessions(model="primed", count=1, prime=_prime(1)))
            assert detail.reason == Reason.DRAINING

    asyncio.run(scenario())


# Whole graphs

WHOLE = "bidirectional-lstm"


def _request(model: Family, lengths: list[int], **fields: Any) -> inference_pb2.InferRequest:
    generator = np.random.default_rng(0)
    inputs = [np.concatenate(values) for values in zip(*[model.example(generator, n) for n in lengths], strict=True)]
    request = inference_pb2.InferRequest(model=model.name, lengths=np.array(lengths, "<u4").tobytes(), **fields)
    request.inputs.extend(tensor(port.name, values) for port, values in zip(model.inputs, inputs, strict=True))
    return request


async def _infer(running: Loopback, request: inference_pb2.InferRequest, **options: Any) -> list[np.ndarray]:
    response = await running.unary("InferenceService/Infer", request, inference_pb2.InferResponse, **options)
    return [array(output) for output in response.outputs]


def test_a_whole_graph_is_asked_within_limits() -> None:
    """Sequences that are too long, values that are not allowed and states it has not are refused by their field."""
    model = example(WHOLE)
    bad = _request(model, [3, 4])
    tokens = array(bad.inputs[0]).copy()
    tokens[5] = 1000
    bad.inputs[0].data = tokens.tobytes()
    state = tensor(model.states[0].name, np.zeros((1, *model.states[0].shape), model.states[0].dtype))
    cases = [
        (_request(model, [2, 33]), Reason.TOO_MANY_STEPS, "lengths"),
        (bad, Reason.OUT_OF_RANGE, "inputs[tokens], row 0"),
        (_request(model, [2], initial_states=[state]), Reason.UNKNOWN_INPUT, "initial_states"),
        (_request(model, [2], prime=_prime(1)), Reason.UNKNOWN_INPUT, "prime"),
    ]

    async def scenario() -> None:
        async with serve(configure(example_folder(WHOLE).parent.parent, model={"max_steps": 32})) as running:
            for request, reason, where in cases:
                detail = await running.refusal("InferenceService/Infer", request, inference_pb2.InferResponse)
                assert (detail.reason, detail.field) == (reason, where)
            assert len((await _infer(running, _request(model, [32])))[0]) == 32
            assert running.host.is_idle

    asyncio.run(scenario())


def test_many_sequences_share_runs_of_the_whole_graph() -> None:
    """Sequences of equal length run together, as many as a tick takes, and give what each gives alone."""
    model = example(WHOLE)
    lengths = [7] * 20 + [3] * 9

    async def scenario() -> tuple[list[np.ndarray], list[np.ndarray], int]:
        async with serve(configure(example_folder(WHOLE).parent.parent)) as running:
            scheduler = running.host.catalog.served[0].scheduler
            scheduler.queue.limits = replace(scheduler.queue.limits, budget=Budget(56))
            together = await _infer(running, _request(model, lengths))
            num_ticks = scheduler.num_ticks
            scheduler.queue.limits = replace(scheduler.queue.limits, budget=Budget(1))
            return together, await _infer(running, _request(model, lengths)), num_ticks

    together, alone, num_ticks = asyncio.run(scenario())
    assert num_ticks == 3 + 1, "8 of 7 steps, or 18 of 3, fill a tick"
    for some, others in zip(together, alone, strict=True):
        np.testing.assert_array_equal(some, others)


def test_a_call_of_a_whole_graph_that_nobody_waits_for_is_dropped() -> None:
    """Cancelled, or out of time: what has not begun never runs."""
    model = example(WHOLE)

    async def scenario() -> None:
        config = configure(example_folder(WHOLE).parent.parent, server={"inline_tick_seconds": 0.0})
        async with serve(config) as running:
            scheduler = running.host.catalog.served[0].scheduler
            scheduler.queue.limits = replace(scheduler.queue.limits, budget=Budget(1))
            calling = asyncio.create_task(_infer(running, _request(model, [400] * 64)))
            await until(lambda: scheduler.num_ticks > 2)
            calling.cancel()
            await until(lambda: running.host.is_idle)
            assert scheduler.num_ticks < 64
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await _infer(running, _request(model, [400] * 64), timeout=0.02)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: running.host.is_idle)
            assert len((await _infer(running, _request(model, [5])))[0]) == 5

    asyncio.run(scenario())


def test_a_model_that_looks_ahead_without_a_whole_graph_is_not_inferred(tmp_path: Path) -> None:
    """What it holds back would be missing: the call is refused, and says what to use."""
    write_model(tmp_path, "look-ahead")

    async def scenario() -> None:
        async with serve(configure(tmp_path)) as running:
            detail = await running.refusal(
                "InferenceService/Infer", _request(family("look-ahead"), [3]), inference_pb2.InferResponse
            )
            assert detail.reason == Reason.WRONG_TASK and "Stream or Step" in detail.message

    asyncio.run(scenario())


def test_a_graph_that_says_it_emitted_too_much_is_not_believed(tmp_path: Path) -> None:
    """Its sessions end with the model's fault, and nothing of the answer is sent."""
    model = family("look-ahead")
    graph = model.model()
    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = ["true_count" if name == "emitted" else name for name in names]
    # Sixteen nines are what the self-test does not try.
    for name, values in (("wrong_axis", [1]), ("wrong_sum", 144), ("wrong_count", 99)):
        graph.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
    graph.graph.node.append(helper.make_node("ReduceSum", ["x", "wrong_axis"], ["sum_of_x"], keepdims=0))
    graph.graph.node.append(helper.make_node("Equal", ["sum_of_x", "wrong_sum"], ["is_wrong"]))
    graph.graph.node.append(helper.make_node("Where", ["is_wrong", "wrong_count", "true_count"], ["emitted"]))
    write_model(tmp_path, "look-ahead", model=graph)

    async def scenario() -> None:
        async with serve(configure(tmp_path)) as running, running.stream() as client:
            good, bad = await client.handles("look-ahead", 2)
            await client.step(model, [good], [0], [[1, 2, 3]])
            detail = await client.refusal(step=chunk(model, [bad], [0], [[9] * 16]))
            assert detail.reason == Reason.MODEL_FAILED and "0 to 18 fit" in detail.message
            assert running.host.table.num_sessions == 1
            step = await client.step(model, [good], [3], [[4]])
            assert array(step.outputs[0]).tolist() == [[40302]]

    asyncio.run(scenario())
