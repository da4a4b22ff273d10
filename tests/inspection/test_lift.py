"""Lifting hidden states: cut into pieces with the states carried, a model answers as it does in one call."""

import numpy as np
import onnx
import pytest
from hidden import BATCH, CONSTANTS, FEATURES, GIVEN, REFUSED, STREAMABLE, model_of, refused, streamable
from streams import CUTS, load, run_cut, run_whole

from eddy.inspection.lift import lift


def _feeds(name: str, *, wide: bool) -> dict[str, np.ndarray]:
    x = np.random.default_rng(len(name)).standard_normal((BATCH, CUTS[-1], FEATURES)).astype(np.float32)
    return {"x": x} | ({"wide": np.array(wide)} if "If (wide)" in STREAMABLE[name][0] else {})


# Both branches where there are branches.
CASES = [(name, wide) for name in STREAMABLE for wide in (True, False) if wide or "If (wide)" in STREAMABLE[name][0]]


@pytest.mark.parametrize(("name", "wide"), CASES)
def test_pieces_answer_as_the_whole(name: str, *, wide: bool) -> None:
    """Bit for bit, in either branch, and nothing of the states is left inside."""
    model, feeds = streamable(name), _feeds(name, wide=wide)
    before = model.SerializeToString()
    found = lift(model)
    assert len(found.states) == STREAMABLE[name][1]
    assert not found.obstacles
    assert not found.given
    assert model.SerializeToString() == before, "the model itself stays as it was"
    outputs, _ = run_cut(found, feeds, "x", ["y"])
    np.testing.assert_array_equal(outputs["y"], run_whole(model, feeds)["y"])


@pytest.mark.parametrize("name", REFUSED)
def test_nodes_that_no_stream_can_run(name: str) -> None:
    """They stay as they are, with a reason that names them."""
    found = lift(refused(name))
    assert [obstacle.reason for obstacle in found.obstacles][:1] == [REFUSED[name][1]]
    assert {state.node for state in found.states} <= {obstacle.node for obstacle in found.obstacles}


@pytest.mark.parametrize("name", GIVEN)
def test_states_that_are_computed_from_data(name: str) -> None:
    """They are no states of a stream; the reason names the node that computes and the inputs."""
    found = lift(refused(name))
    assert found.given[0].reason == GIVEN[name][1]
    assert not found.obstacles


def test_initial_values() -> None:
    """A constant becomes the state's initial value, a number where all elements are equal."""
    row = lift(streamable("a learned row expanded")).states[0]
    assert (row.shape, row.batch_axis, row.dtype) == ((1, 4), 1, "float32")
    np.testing.assert_array_equal(row.initial, CONSTANTS["row"][0])
    zero = lift(streamable("lstm absent")).states[1]
    assert zero.initial.shape == ()
    assert zero.initial == 0
    layers = lift(streamable("learned rows expanded and split for two layers")).states
    for number, state in enumerate(layers):
        np.testing.assert_array_equal(state.initial, CONSTANTS["both_rows"][number])


def test_what_a_person_reads() -> None:
    """A state says which operand of which node it is, and how it begins."""
    told = [state.how for state in lift(streamable("other states in each branch")).states]
    assert told == [
        "initial_h of LSTM 'p' is computed from the input's shape alone: it begins with 0 everywhere",
        "initial_c of LSTM 'p' is a constant: it begins with values of its own",
        "initial_h of GRU 'q' is a constant: it begins with values of its own",
    ]
    assert lift(streamable("gru absent")).states[0].how.endswith("is absent: it begins with 0 everywhere")


def test_branches_share_equal_states() -> None:
    """A state that goes through one branch is read by the other: both are weights of one stream."""
    name = "equal states in both branches"
    model, found = streamable(name), lift(streamable(name))
    feeds = [_feeds(name, wide=wide) for wide in (True, False)]
    cuts = (0, CUTS[-1])
    _, states = run_cut(found, feeds[0], "x", ["y"], cuts=cuts)
    session = load(found.model)
    after = session.run(["y"], feeds[1] | states)[0]
    assert not np.array_equal(after, run_whole(model, feeds[1])["y"]), "the first branch's state goes on"


def test_a_branch_leaves_the_others_states_alone() -> None:
    """What a branch does not know goes through it unchanged."""
    found = lift(streamable("a branch without states"))
    feeds = _feeds("a branch without states", wide=False)
    given = {state.input: np.full((1, BATCH, 4), 0.5, np.float32) for state in found.states}
    answers = load(found.model).run([state.output for state in found.states], feeds | given)
    for answer in answers:
        np.testing.assert_array_equal(answer, given["h"])


def test_outputs_that_repeat_the_states() -> None:
    """An output that is a final state, cut and moved, is told apart from one that is computed."""
    text = "Y, last, cell = LSTM <hidden_size = 4> (xt, W_lstm, R_lstm, b_lstm)  both = Concat <axis = 0> (last, cell)"
    model = model_of(f"{text}  flat = Squeeze (last, i0)  scaled = Mul (flat, half)")
    for name in ("both", "last", "scaled"):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    found = lift(model)
    assert found.echoes == ("both", "last")
    assert [port.name for port in found.model.graph.output] == ["y", "both", "last", "scaled", "h_next", "c_next"]


def test_names_that_are_taken() -> None:
    """New tensors never take a name that the graph has."""
    model = streamable("lstm absent")
    model.graph.node.append(onnx.helper.make_node("Identity", ["Y"], ["h"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, None))
    assert [state.input for state in lift(model).states] == ["h_2", "c"]


def test_nothing_is_lifted_that_no_output_hangs_on() -> None:
    """A recurrent node that nobody reads has no state to keep; it goes."""
    found = lift(model_of("Y = Unsqueeze (xt, i1)  dead = LSTM <hidden_size = 4> (xt, W_lstm, R_lstm, b_lstm)"))
    assert not found.states
    assert not found.recurrent
    assert {node.op_type for node in found.model.graph.node} == {"Transpose", "Unsqueeze", "Squeeze"}


def test_a_cycle_is_refused_or_ends() -> None:
    """An initial state that hangs on itself is computed from nothing that is known."""
    model = streamable("lstm absent")
    node = next(node for node in model.graph.node if node.op_type == "LSTM")
    node.input.extend(["", "round"])
    model.graph.node.extend(
        [onnx.helper.make_node("Identity", ["about"], ["round"]), onnx.helper.make_node("Abs", ["round"], ["about"])]
    )
    assert lift(model).given[0].sources == ()
