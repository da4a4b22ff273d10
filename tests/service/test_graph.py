"""Graph surgery and the engine: wrapped equals plain, in every order a runtime may choose."""

import numpy as np
import onnx
import pytest
from graphs import FAMILIES, Family, PortSpec, StateSpec, family
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from schedule import plain_graph
from simulation import assert_same

from eddy.service.arena import INITIAL_SLOT, NUM_RESERVED_SLOTS, SCRATCH_SLOT
from eddy.service.contract import read_contract
from eddy.service.engine import Engine
from eddy.service.errors import ModelError, Reason
from eddy.service.graph import READ_SLOTS, WRITE_SLOTS, ModelGraphs, wrap_step_graph

_engines: dict[str, Engine] = {}
NUM_SLOTS = 40


def _engine(name: str) -> Engine:
    if name not in _engines:
        model = family(name).model()
        prime = family(name).prime
        graphs = ModelGraphs(model, None if prime is None else prime.graph())
        _engines[name] = Engine(graphs, read_contract(model), num_slots=NUM_SLOTS)
    return _engines[name]


@pytest.mark.parametrize("name", FAMILIES)
@given(st.data())
def test_wrapped_is_plain_however_it_is_cut_and_batched(name: str, data: st.DataObject) -> None:
    """Parity, chunk and batch law in the engine alone: sessions stepped together in random groups, slots and cuts.

    Bit for bit; states move to other slots on the way, as in a fork or a retry.
    """
    engine, spec = _engine(name), family(name)
    num_sessions = data.draw(st.integers(1, 9))
    length = data.draw(st.integers(1, 12))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    inputs = [spec.feeds(spec.example(generator, length)) for _ in range(num_sessions)]
    starts = [spec.start(generator) for _ in range(num_sessions)]
    slots = generator.permutation(NUM_SLOTS)[:num_sessions] + NUM_RESERVED_SLOTS
    reads = np.full(num_sessions, INITIAL_SLOT)
    for session, start in enumerate(starts):
        if start is not None:
            engine.begin(slots[[session]], [values[None] for values in start.inputs], np.array([start.length]))
            reads[session] = slots[session]
    homes = reads.copy()
    collected: list[list[list[np.ndarray]]] = [[[] for _ in spec.outputs] for _ in range(num_sessions)]
    place = 0
    while place < length:
        steps = data.draw(st.integers(1, length - place))
        order = generator.permutation(num_sessions)
        for group in np.array_split(order, data.draw(st.integers(1, num_sessions))):
            if not len(group):
                continue
            values = [
                np.stack([inputs[session][port][place : place + steps] for session in group]).tobytes()
                for port in range(len(engine.contract.feeds))
            ]
            blocks = engine.run(values, reads[group], slots[group], len(group), steps, homes[group])
            results = [
                port.view(block, len(group), steps) for block, port in zip(blocks, engine.contract.results, strict=True)
            ]
            for port in range(len(spec.outputs)):
                for row, session in enumerate(group):
                    emitted = results[-1][row] if spec.ends is not None else steps
                    collected[session][port].append(results[port][row, :emitted])
            reads[group] = slots[group]
        if generator.random() < 0.5:  # The state moves: read from one slot, written to another.
            free = np.setdiff1d(np.arange(NUM_SLOTS) + NUM_RESERVED_SLOTS, [*slots, *homes])
            moved = generator.integers(num_sessions)
            slots[moved] = free[0]
        place += steps
    for session in range(num_sessions):
        outputs, states = plain_graph(spec).whole(inputs[session], starts[session])
        for parts, expected in zip(collected[session], outputs, strict=True):
            assert_same(np.concatenate(parts), expected, spec.tolerance)
        found = engine.read_states(reads[session : session + 1])
        for state, expected, described in zip(found, states, spec.states, strict=True):
            if described.next_name:  # The others stay where they are: here in the initial slot.
                assert_same(state[0], expected, spec.tolerance)


def test_what_is_only_read_is_read_where_it_lies() -> None:
    """Sessions whose slots follow each other get what they get in any other order, whatever lies beside them."""
    engine, spec = _engine("primed"), family("primed")
    generator = np.random.default_rng(9)
    slots = np.arange(5, 5 + 9)
    starts = [spec.start(generator) for _ in slots]
    inputs = np.stack([spec.example(generator, 4)[0] for _ in slots])
    answers = []
    for order in (np.arange(9), np.arange(9)[::-1], generator.permutation(9), np.array([3, 4, 5]), np.array([2])):
        for slot, start in zip(slots, starts, strict=True):
            assert start is not None
            engine.begin(np.array([slot]), [start.inputs[0][None]], np.array([start.length]))
        mine = slots[order]
        [block] = engine.run([inputs[order].tobytes()], mine, mine, len(order), 4, mine)
        answers.append(dict(zip(order.tolist(), np.frombuffer(block, "<i8").reshape(-1, 4).tolist(), strict=True)))
    for found in answers:
        for row, values in found.items():
            start = starts[row]
            assert start is not None
            assert values == plain_graph(spec).whole([inputs[row]], start)[0][0].tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_neighbouring_slots_keep_their_bits(name: str) -> None:
    """Every slot that a tick does not write keeps a marker, the initial slot included; padding writes scratch only."""
    engine, spec = _engine(name), family(name)
    generator = np.random.default_rng(4)
    everything = np.arange(NUM_SLOTS + NUM_RESERVED_SLOTS)
    marker = [generator.integers(0, 2, state.shape).astype(state.dtype) for state in engine.read_states(everything)]
    marker = [
        before if not state.next_name else mark
        for before, mark, state in zip(engine.read_states(everything), marker, spec.states, strict=True)
    ]
    initial = [state.initial_rows(1) for state in spec.states]
    engine.write_states(everything, marker)
    engine.write_states(np.array([INITIAL_SLOT]), initial)
    for rows in (1, 2, 5):
        before = engine.read_states(everything)
        write = np.arange(rows) * 3 + NUM_RESERVED_SLOTS
        rows_of = [spec.feeds(spec.example(generator, 2)) for _ in range(rows)]
        values = [np.stack(arrays).tobytes() for arrays in zip(*rows_of, strict=True)]
        engine.run(values, np.full(rows, INITIAL_SLOT), write, rows, 2)
        untouched = np.setdiff1d(everything, [*write, SCRATCH_SLOT])
        for ours, theirs in zip(before, engine.read_states(everything), strict=True):
            np.testing.assert_array_equal(ours[untouched], theirs[untouched])
    # The engine is shared: leave it as it was found.
    engine.write_states(
        everything, [np.repeat(state.initial_rows(1), len(everything), axis=0) for state in spec.states]
    )


def test_the_guard_stands_where_it_is_needed() -> None:
    """A state that is replaced by a cut of the input is guarded; one that depends on its old value is not."""
    assert _engine("causal-convolution").guarded_states == ("cache",)
    for name in FAMILIES:
        if name != "causal-convolution":
            assert _engine(name).guarded_states == (), name


def _edge_only_through(nodes: list[onnx.NodeProto], weights: tuple[onnx.TensorProto, ...] = ()) -> Family:
    """s_next is made by `nodes` from x and s; y = s_next + s for every step."""
    return Family(
        "edge",
        (PortSpec("x", np.float32, (2,)),),
        (PortSpec("y", np.float32, (2,)),),
        (StateSpec("s", "s_next", np.float32, (2,)),),
        (
            helper.make_node("ReduceSum", ["x", "one"], ["x_sum"], keepdims=0),
            *nodes,
            helper.make_node("Unsqueeze", ["s", "one"], ["s_wide"]),
            helper.make_node("Add", ["x", "s_wide"], ["y"]),
        ),
        (numpy_helper.from_array(np.array([1]), "one"), *weights),
    )


def test_an_edge_that_carries_no_values_does_not_count() -> None:
    """The shape of the old state is known without reading it: such an edge orders nothing, and is guarded."""
    spec = _edge_only_through(
        [
            helper.make_node("Shape", ["s"], ["s_shape"]),
            helper.make_node("Expand", ["x_sum", "s_shape"], ["s_next"]),
        ]
    )
    wrapped = wrap_step_graph(spec.model(), read_contract(spec.model()))
    assert wrapped.guarded == ("s",)


def test_an_edge_through_a_subgraph_counts() -> None:
    """A state that is read only inside of an If's branches still comes before the If."""
    zero = numpy_helper.from_array(np.array(0.0, np.float32), "zero")
    flag = numpy_helper.from_array(np.array(1, np.bool_), "flag")
    out = helper.make_tensor_value_info("branch", onnx.TensorProto.FLOAT, ["B", 2])
    branches = [
        helper.make_graph([helper.make_node(op, ["s", "x_sum"], ["branch"])], op.lower(), [], [out])
        for op in ("Add", "Sub")
    ]
    choose = helper.make_node("If", ["flag"], ["s_next"], then_branch=branches[0], else_branch=branches[1])
    spec = _edge_only_through([choose], (zero, flag))
    wrapped = wrap_step_graph(spec.model(), read_contract(spec.model()))
    assert wrapped.guarded == ()


def test_wrapping_leaves_the_model_alone_and_hides_no_port() -> None:
    """The model given is not changed; the wrapped graph has the model's ports, the slots, and one arena a state."""
    model = family("lstm").model()
    raw = model.SerializeToString()
    wrapped = wrap_step_graph(model, read_contract(model))
    assert model.SerializeToString() == raw
    assert [port.state.name for port in wrapped.arenas] == ["h", "c"]
    assert {value.name for value in wrapped.model.graph.input} == {
        "x",
        READ_SLOTS,
        WRITE_SLOTS,
        *(port.input_name for port in wrapped.arenas),
    }
    assert {value.name for value in wrapped.model.graph.output} == {"y", *(p.output_name for p in wrapped.arenas)}


def test_reserved_names_are_refused() -> None:
    """A graph that uses names of ours cannot be wrapped, and the name is told."""
    spec = _edge_only_through([helper.make_node("Add", ["x_sum", "s"], ["s_next"])])
    model = spec.model()
    model.graph.node[0].output[0] = "eddy_sum"
    model.graph.node[1].input[0] = "eddy_sum"
    with pytest.raises(ModelError, match="eddy_sum"):
        wrap_step_graph(model, read_contract(model))


def test_the_self_test_finds_a_missing_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its guard the cache is overwritten before it is read, and the model is not served.

    The guard is the proof; the self-test is a second line, and shows that this model needs the guard.
    """
    monkeypatch.setattr("eddy.service.graph._is_ancestor", lambda *_: True)
    model = family("causal-convolution").model()
    with pytest.raises(ModelError, match="self-test: 'y' differs") as caught:
        Engine(ModelGraphs(model), read_contract(model), num_slots=8)
    assert caught.value.reason is Reason.MODEL_NOT_READY


def test_an_unknown_provider_is_refused() -> None:
    """A provider that this build does not have is named, with those that it has."""
    model = family("history").model()
    with pytest.raises(ModelError, match="CPUExecutionProvider"):
        Engine(ModelGraphs(model), read_contract(model), num_slots=2, provider="TPUExecutionProvider")
