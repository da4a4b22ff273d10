"""Beginnings that are still being written: their sessions' slots stay theirs, and large ones are cut into pieces."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from graphs import PRIME_FILE, family
from loopback import Loopback, array, column, configure, serve, tensor, until, write_model
from onnx import helper

from eddy.service import unary
from eddy.service.errors import Reason
from eddy.service.opening import Opened
from eddy.service.sessions import NO_STREAM
from eddy.service.start import Start
from eddy.v1 import inference_pb2, sessions_pb2

PRIMED = family("primed")
STRANGE = 777


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`history`, `lstm` and `primed`."""
    root = tmp_path_factory.mktemp("models")
    for name in ("history", "lstm", "primed"):
        write_model(root, name)
    return root


def open_strange(running: Loopback) -> Opened:
    """A session that begins with a history of its own, which is not written before the event loop goes on."""
    start = Start(states={"history": np.array([STRANGE])})
    return running.host.opening.open("history", "", 1, 1, 5.0, NO_STREAM, start)


def close(running: Loopback, opened: Opened) -> None:
    """As a call does that is cancelled while it waits, or a stream that has guessed the handle."""
    running.host.endings.close(opened.rows, lambda _: None)


def expire(running: Loopback, _: Opened) -> None:
    """As the sweeper does."""
    NOW[0] += 6.0
    running.host.endings.expire()


NOW = [0.0]


@pytest.mark.parametrize("end", [close, expire])
def test_a_session_that_ends_before_it_has_begun_writes_into_no_other(
    repository: Path, end: Callable[[Loopback, Opened], None]
) -> None:
    """Whoever opens next, and steps at once, has a slot to itself: its answers spell its own history."""

    async def scenario() -> None:
        config = configure(repository, model={"max_slots": 2})
        async with serve(config, clock=lambda: NOW[0]) as running:
            strange = open_strange(running)
            end(running, strange)
            other = running.host.opening.open("history", "", 1, 1, 0.0, NO_STREAM)
            for position, expected in enumerate((1, 11, 111)):
                request = inference_pb2.StepRequest(
                    session_id=other.session_ids[0],
                    epoch=int(other.handles[0]) >> 32,
                    position=position,
                    num_steps=1,
                    inputs=[tensor("x", np.array([[1]]))],
                )
                response = await unary.step(running.host, request, None)
                assert array(response.outputs[0]).tolist() == [[expected]]
            assert strange.ready is not None
            await asyncio.wait([strange.ready])
            close(running, other)
            NOW[0] += 6.0
            running.host.endings.expire()
            await until(lambda: running.host.is_idle)
            assert running.host.table.num_sessions == 0

    asyncio.run(scenario())


def test_a_session_is_not_stepped_or_reset_before_it_has_begun(repository: Path) -> None:
    """Requests by a handle that was guessed wait: the step finds what was read first, the reset is refused."""

    async def scenario() -> None:
        async with serve(configure(repository)) as running, running.stream() as client:
            [known] = await client.handles("primed", prime=_sources(1, [1]))
            await client.send(close=inference_pb2.CloseSessions(handles=column([known])))
            guessed = known + (2 << 32)
            opening = await client.post(
                open=inference_pb2.OpenSessions(model="primed", count=1, prime=_sources(1, [7, 8]))
            )
            chunk = inference_pb2.StepChunk(
                handles=column([guessed]), positions=column([0]), num_steps=1, inputs=[tensor("x", np.array([[1]]))]
            )
            stepping = await client.post(step=chunk)
            resetting = await client.post(reset=inference_pb2.ResetSessions(handles=column([guessed])))
            assert np.frombuffer((await opening).opened.handles, "<u8").tolist() == [guessed]
            assert array((await stepping).step.outputs[0]).tolist() == [[2 + 15]]
            assert [each.error.reason for each in (await resetting).reset.errors] == [Reason.OWN_START]

    asyncio.run(scenario())


def _sources(count: int, digits: list[int]) -> inference_pb2.Prime:
    return inference_pb2.Prime(inputs=[tensor("source", np.array([digits] * count))])


def test_many_beginnings_are_written_in_pieces_of_a_tick(repository: Path) -> None:
    """No run of the prime graph has more rows than a tick: it would hold up everybody, and take their memory."""

    async def scenario() -> None:
        async with serve(configure(repository)) as running, running.stream() as client:
            model = running.host.catalog.ready("primed", "")
            before = model.scheduler.num_ticks
            handles = await client.handles("primed", 150, prime=_sources(150, [4, 5]))
            assert model.scheduler.num_ticks - before == 3, "64, 64 and 22 rows"
            chosen = [handles[0], handles[64], handles[149]]
            step = await client.step(PRIMED, chosen, [0, 0, 0], [[1]] * 3)
            assert array(step.outputs[0]).tolist() == [[2 + 9]] * 3

    asyncio.run(scenario())


def test_a_beginning_that_finds_the_queue_full_leaves_nothing(repository: Path) -> None:
    """Its first pieces would fit, its last does not: it is refused whole, and what was queued of it never runs."""

    async def scenario() -> None:
        config = configure(repository, model={"max_queued_chunks": 2})
        async with serve(config) as running, running.stream() as client:
            request = inference_pb2.OpenSessions(model="primed", count=150, prime=_sources(150, [4, 5]))
            assert (await client.refusal(open=request)).reason == Reason.QUEUE_FULL
            await until(lambda: running.host.is_idle)
            assert running.host.table.num_sessions == 0
            assert running.host.catalog.ready("primed", "").scheduler.num_ticks == 0
            [handle] = await client.handles("primed", prime=_sources(1, [3]))
            step = await client.step(PRIMED, [handle], [0], [[1]])
            assert array(step.outputs[0]).tolist() == [[1 + 3]]

    asyncio.run(scenario())


def test_no_sessions_begin_with_nothing(repository: Path) -> None:
    """A count of zero is refused as such, whatever the sessions were to begin with."""
    nothing = inference_pb2.Prime(inputs=[tensor("source", np.zeros((0, 3), np.int64))])
    requests = [
        inference_pb2.OpenSessions(model="primed", prime=nothing),
        inference_pb2.OpenSessions(model="lstm", initial_states=[tensor("h", np.zeros((0, 1, 12), np.float32))]),
    ]

    async def scenario() -> None:
        async with serve(configure(repository)) as running, running.stream() as client:
            for request in requests:
                detail = await client.refusal(open=request)
                assert (detail.reason, detail.field) == (Reason.OUT_OF_RANGE, "count")

    asyncio.run(scenario())


def test_lengths_need_a_graph_that_reads_them(tmp_path: Path) -> None:
    """A prime graph without that port would read the padding as well: lengths that say otherwise are refused."""
    contract = PRIMED.contract()
    contract.ports.prime_length = ""
    path = write_model(tmp_path, "primed", model=PRIMED.model(contract))
    assert PRIMED.prime is not None
    prime_graph = PRIMED.prime.graph()
    del prime_graph.graph.input[1]
    nodes = [*prime_graph.graph.node]
    del prime_graph.graph.node[:]
    ones = helper.make_node("Div", ["source", "source"], ["ones"])
    count = helper.make_node("ReduceSum", ["ones", "one"], ["source_length"], keepdims=0)
    prime_graph.graph.node.extend([*nodes[:3], ones, count, *nodes[3:]])
    (path.parent / PRIME_FILE).write_bytes(prime_graph.SerializeToString())

    async def scenario() -> None:
        async with serve(configure(tmp_path)) as running:
            prime = _sources(1, [1, 2, 3])
            opened = await running.unary(
                "SessionService/OpenSession",
                sessions_pb2.OpenSessionRequest(model="primed", prime=prime),
                sessions_pb2.OpenSessionResponse,
            )
            assert opened.session.session_id
            prime.lengths = np.uint32(2).tobytes()
            detail = await running.refusal(
                "SessionService/OpenSession",
                sessions_pb2.OpenSessionRequest(model="primed", prime=prime),
                sessions_pb2.OpenSessionResponse,
            )
            assert (detail.reason, detail.field) == (Reason.OUT_OF_RANGE, "prime.lengths[0]")

    asyncio.run(scenario())
