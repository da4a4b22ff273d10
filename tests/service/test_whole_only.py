"""Models that do not stream: listed, told why, refused as sessions behind every door, and exact behind `Infer`."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from graphs import METADATA_KEY, WHOLE_FAMILIES, Family, PlainGraph, PortSpec, family
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Loopback, array, configure, detail_of, serve, tensor, until, write_model
from onnx import helper
from simulation import assert_same
from test_infer import infer, request

from eddy.service.catalog import Catalog
from eddy.service.contract import read_contract
from eddy.service.engine import Engine
from eddy.service.errors import ModelError
from eddy.service.graph import ModelGraphs
from eddy.service.host import Host
from eddy.service.package import read_package
from eddy.v1 import contract_pb2, errors_pb2, generation_pb2, inference_pb2, models_pb2, sessions_pb2


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, and one that streams."""
    root = tmp_path_factory.mktemp("models")
    for name in (*WHOLE_FAMILIES, "history"):
        write_model(root, name)
    return root


def _cut(response: inference_pb2.InferResponse, lengths: Sequence[int]) -> list[list[np.ndarray]]:
    """Each sequence's outputs, [U, ...] each."""
    columns = []
    for number, output in enumerate(response.outputs):
        mine = lengths
        if response.output_lengths:
            mine = np.frombuffer(response.output_lengths[number], "<u4").tolist()
        values = array(output)
        assert len(values) == sum(mine)
        columns.append(np.split(values, np.cumsum(mine)[:-1]))
    return [list(outputs) for outputs in zip(*columns, strict=True)]


def _plain(name: str, cache: dict[str, PlainGraph] = {}) -> PlainGraph:  # noqa: B006  a cache on purpose
    if name not in cache:
        cache[name] = PlainGraph(family(name))
    return cache[name]


@pytest.mark.parametrize("name", WHOLE_FAMILIES)
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), seed=st.integers(0, 1000))
def test_every_sequence_is_as_if_it_were_alone(repository: Path, name: str, lengths: list[int], seed: int) -> None:
    """Any number of any lengths: what the graph gives for each alone, bit for bit, as long as it is there."""
    model = family(name)
    generator = np.random.default_rng(seed)
    sequences = [model.example(generator, length) for length in lengths]

    async def call() -> inference_pb2.InferResponse:
        async with serve(configure(repository)) as running:
            return await running.unary("InferenceService/Infer", request(model, sequences), inference_pb2.InferResponse)

    response = asyncio.run(call())
    is_same = True
    for sequence, got in zip(sequences, _cut(response, lengths), strict=True):
        expected, _ = _plain(name).whole(sequence)
        is_same &= all(len(wanted) == len(sequence[0]) for wanted in expected)
        for values, wanted in zip(got, expected, strict=True):
            assert_same(values, wanted, model.tolerance)
    assert bool(response.output_lengths) != is_same


def test_they_are_listed_with_what_prevents_them(repository: Path) -> None:
    """Ready, without slots; the contract says that it does not stream, and why."""

    async def check() -> None:
        async with serve(configure(repository)) as running:
            listed = await running.unary(
                "ModelService/ListModels", models_pb2.ListModelsRequest(), models_pb2.ListModelsResponse
            )
            assert {model.name for model in listed.models if model.ready} == {*WHOLE_FAMILIES, "history"}
            got = await running.unary(
                "ModelService/GetModel", models_pb2.GetModelRequest(name="pooled"), models_pb2.GetModelResponse
            )
            assert not got.contract.streaming.streamable and "pools over time" in got.contract.streaming.reason
            assert (got.status.num_slots, got.status.num_sessions, got.status.state_bytes_per_session) == (0, 0, 0)
            assert running.host.catalog.ready("pooled", "").engine.arena_bytes == 0
            assert running.host.endings.expire() == 0

    asyncio.run(check())


def test_sessions_of_them_are_refused_behind_every_door(repository: Path) -> None:
    """The same reason with what prevents it; a stream goes on, and nothing stays."""

    def check_detail(detail: errors_pb2.ErrorDetail) -> None:
        assert detail.reason == errors_pb2.ERROR_REASON_NOT_STREAMABLE
        assert detail.grpc_code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
        assert detail.field == "model" and "pools over time" in detail.message and "Infer" in detail.message

    async def check() -> None:
        async with serve(configure(repository)) as running, running.stream() as stream:
            check_detail(await stream.refusal(open=inference_pb2.OpenSessions(model="pooled", count=3)))
            opening = sessions_pb2.OpenSessionRequest(model="pooled")
            check_detail(await running.refusal("SessionService/OpenSession", opening, sessions_pb2.OpenSessionResponse))
            wanted = generation_pb2.GenerateRequest(open=generation_pb2.NewSession(model="pooled"), text=b"a")
            call = running.channel.unary_stream("/eddy.v1.GenerationService/Generate", None, None)
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                async for _ in call(wanted.SerializeToString()):
                    pass
            check_detail(detail_of(failed.value))
            assert running.host.table.num_sessions == 0
            [handle] = await stream.handles("history")
            digit = np.full((1, 1), 3)
            assert array((await stream.step(family("history"), [handle], [0], digit)).outputs[0]).tolist() == [[3]]

    asyncio.run(check())


def test_bad_sequences_are_refused_alone(repository: Path) -> None:
    """Values, lengths and states that are not taken, each with its reason; the others' calls go on."""
    model = family("pooled")
    generator = np.random.default_rng(0)
    good = [model.example(generator, length) for length in (2, 3)]
    bad = [[values.copy() for values in sequence] for sequence in good]
    bad[1][0][2, 1] = np.inf
    long = [model.example(generator, 65)]
    cases = [
        ("NON_FINITE", "inputs[x]", request(model, bad)),
        ("TOO_MANY_STEPS", "lengths", request(model, long)),
        ("UNKNOWN_INPUT", "initial_states", request(model, good, initial_states=[tensor("h", np.zeros((2, 1)))])),
        ("UNKNOWN_INPUT", "prime", request(model, good, prime=inference_pb2.Prime(inputs=[tensor("x", np.zeros(1))]))),
    ]

    async def check() -> None:
        async with serve(configure(repository, model={"max_steps": 64})) as running:
            fine = asyncio.gather(*(infer(running, request(model, good)) for _ in range(4)))
            for reason, field, message in cases:
                detail = await running.refusal("InferenceService/Infer", message, inference_pb2.InferResponse)
                name = errors_pb2.ErrorReason.Name(detail.reason).removeprefix("ERROR_REASON_")
                assert (name, detail.field.partition(",")[0]) == (reason, field), detail
            for [got] in await fine:
                expected = np.concatenate([_plain("pooled").whole(sequence)[0][0] for sequence in good])
                np.testing.assert_array_equal(got, expected)

    asyncio.run(check())


def test_a_graph_of_one_length(tmp_path: Path) -> None:
    """A graph that declares how many steps it takes is tried with so many, and others are refused by name."""
    model = family("backwards").model()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    write_model(tmp_path, "backwards", model=model)
    spec, generator = family("backwards"), np.random.default_rng(0)

    async def check() -> None:
        async with serve(configure(tmp_path)) as running:
            good, short = spec.example(generator, 7), spec.example(generator, 6)
            [got] = await infer(running, request(spec, [good]))
            np.testing.assert_array_equal(got, _plain("backwards").whole(good)[0][0])
            detail = await running.refusal(
                "InferenceService/Infer", request(spec, [good, short]), inference_pb2.InferResponse
            )
            assert (detail.reason, detail.field) == (errors_pb2.ERROR_REASON_OUT_OF_RANGE, "lengths[1]")
            assert "7" in detail.expected

    asyncio.run(check())


def test_outputs_are_bounded_when_they_come(tmp_path: Path) -> None:
    """How much a sequence is answered with is not known before: a call whose answer grows too large fails, alone."""
    body = onnx.parser.parse_graph(
        "agraph () => () { sizes = Constant <value_ints = [1, 400, 1000]> () y = Tile (x, sizes) }"
    ).node
    spec = Family(
        "tiled",
        (PortSpec("x", np.float32, (1,)),),
        (PortSpec("y", np.float32, (1000,)),),
        (),
        tuple(body),
        prevented_by="it repeats",
    )
    write_model(tmp_path, "tiled", model=spec.model())

    async def check() -> None:
        async with serve(configure(tmp_path, server={"max_message_bytes": 1 << 20})) as running:
            few, many = ([[np.ones((1, 1), np.float32)]] * count for count in (1, 9))
            [got] = await infer(running, request(spec, few))
            assert got.shape == (400, 1000)
            detail = await running.refusal("InferenceService/Infer", request(spec, many), inference_pb2.InferResponse)
            assert detail.reason == errors_pb2.ERROR_REASON_MESSAGE_TOO_LARGE
            assert [len(values) for values in await infer(running, request(spec, few))] == [400]

    asyncio.run(check())


def test_draining_finishes_what_was_accepted(repository: Path) -> None:
    """A call that came before is answered, one that comes after is refused."""
    model = family("bidirectional-gru")
    sequences = [model.example(np.random.default_rng(0), length) for length in range(1, 40)]

    async def check() -> None:
        async with serve(configure(repository)) as running:
            call = asyncio.create_task(infer(running, request(model, sequences)))
            scheduler = running.host.catalog.ready(model.name, "").scheduler
            await until(lambda: scheduler.queue.is_idle is False)
            draining = asyncio.create_task(running.host.drain())
            await until(lambda: running.host.gate.is_draining)
            detail = await running.refusal(
                "InferenceService/Infer", request(model, sequences), inference_pb2.InferResponse
            )
            assert detail.reason == errors_pb2.ERROR_REASON_DRAINING
            assert await draining
            [got] = await call
            assert len(got) == sum(range(1, 40))

    asyncio.run(check())


def test_deadlines_and_clients_that_are_gone(repository: Path) -> None:
    """A call whose time is over before its graph is run ends so, and one that was cancelled leaves nothing."""
    model = family("bidirectional-gru")
    many = [model.example(np.random.default_rng(0), length) for length in range(1, 60)]

    async def check() -> None:
        async with serve(configure(repository)) as running:
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await running.unary(
                    "InferenceService/Infer", request(model, many), inference_pb2.InferResponse, timeout=1e-6
                )
            assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            scheduler = running.host.catalog.ready(model.name, "").scheduler
            calling = asyncio.create_task(infer(running, request(model, many)))
            await until(lambda: not scheduler.queue.is_idle)
            calling.cancel()
            await until(lambda: running.host.is_idle)
            assert len((await infer(running, request(model, many[:1])))[0]) == 1

    asyncio.run(check())


# What is refused at load


def _load(spec: Family, contract: contract_pb2.ModelContract | None = None) -> Engine:
    model = spec.model(contract)
    checked = read_contract(model)
    return Engine(ModelGraphs(None, whole=model), checked, num_slots=0)


def test_sequences_that_mix_are_refused() -> None:
    """A graph that normalises over the batch would tell one client of another's sequences."""
    body = tuple(
        onnx.parser.parse_graph(
            "agraph () => () { mean = ReduceMean <axes = [0], keepdims = 1> (x) y = Sub (x, mean) }"
        ).node
    )
    spec = family("pooled")
    mixing = Family("mixing", spec.inputs, spec.outputs, (), body, prevented_by="it normalises")
    with pytest.raises(ModelError, match="between a sequence alone and beside others"):
        _load(mixing)


def test_a_graph_that_takes_no_length_is_refused() -> None:
    """Whatever is tried fails: the first failure is told."""
    body = tuple(
        onnx.parser.parse_graph(
            "agraph () => () { three = Constant <value_ints = [3, 5, -1]> () y = Reshape (x, three) }"
        ).node
    )
    spec = family("pooled")
    with pytest.raises(ModelError, match="failed"):
        _load(Family("stubborn", spec.inputs, spec.outputs, (), body, prevented_by="no"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.graphs.ClearField("whole"), "names no whole graph"),
        (lambda c: c.states.add(name="h", next_name="h2", dtype=1, shape=[1]), "states"),
        (lambda c: setattr(c.ports, "length", "n"), "ports"),
    ],
)
def test_contracts_that_contradict_themselves(change: object, message: str) -> None:
    """A model that does not stream has a whole graph, and nothing of a session."""
    contract = family("pooled").contract()
    change(contract)  # type: ignore[operator]
    with pytest.raises(ModelError, match=message):
        read_contract(family("pooled").model(contract))


def test_the_whole_graph_in_another_file(tmp_path: Path) -> None:
    """The file with the contract may stand for it only: the graph that is named is the one that runs."""
    spec = family("backwards")
    contract = spec.contract()
    contract.graphs.whole = "sequence.onnx"
    carrier = family("history").graph()
    text = next(entry.value for entry in spec.model(contract).metadata_props if entry.key == METADATA_KEY)
    helper.set_model_props(carrier, {METADATA_KEY: text})
    path = write_model(tmp_path, "backwards", model=carrier)
    path.with_name("sequence.onnx").write_bytes(spec.graph().SerializeToString())
    package = read_package(path.parent)
    assert package.graphs.step is None and package.graphs.whole is not None
    assert [node.op_type for node in package.graphs.whole.graph.node][-1] == "Sub"
    host = Host(configure(tmp_path))
    host.load()
    assert isinstance(host.catalog, Catalog) and host.catalog.ready("backwards", "").num_sessions == 0


async def _metrics(running: Loopback) -> int:
    return running.host.catalog.ready("pooled", "").scheduler.num_ticks


def test_their_runs_are_counted(repository: Path) -> None:
    """A whole sequence is work of its model, and counted as such."""
    model = family("pooled")

    async def check() -> None:
        async with serve(configure(repository)) as running:
            before = await _metrics(running)
            await infer(running, request(model, [model.example(np.random.default_rng(0), 4)]))
            assert await _metrics(running) == before + 1
            assert running.host.catalog.ready("pooled", "").scheduler.num_row_steps == 4

    asyncio.run(check())
