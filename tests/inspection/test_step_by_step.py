"""Models whose answer belongs to the whole sequence: they stream if it is what they would say after each step."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.inspection.runtime import Walker, look
from tests.inspection.test_verdicts import BATCH, FEATURES, HIDDEN, STEPS, Recurrent, X, export, nn, torch, zeros

FREE_ROWS = {"x": {0: "b", 1: "t"}, "y": {0: "b"}}


def prefixes(module: nn.Module) -> np.ndarray:
    """What torch gives for the first 1, 2, ... steps, [B, T, ...]."""
    with torch.no_grad():
        found = [module(X[:, :end]) for end in range(1, STEPS + 1)]
    return np.stack([(each[0] if isinstance(each, tuple) else each).numpy() for each in found], axis=1)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_the_answer_at_the_last_step_is_one_after_every_step(cell: str) -> None:
    """A model that answers for its last step alone streams: each step's answer is that of the sequence so far."""
    module = Recurrent(lambda y: y[:, -1], cell, num_layers=2)
    found = look(export(module, (X,), ["x"], ["y"], FREE_ROWS))
    assert found.report.streamable, found.report.reason
    assert found.report.probes.chunk_max_difference is not None
    assert found.contract.streaming.max_run_steps == 1
    got = Walker(found, BATCH).steps({"x": X.numpy()}, [1] * STEPS)["y"]
    np.testing.assert_allclose(got, prefixes(module), atol=1e-5)  # torch's rounding is another


class FinalState(nn.Module):
    """The final hidden state and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.GRU(FEATURES, HIDDEN, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The last layer's state, [B, H]."""
        return self.layer(x)[1][-1]


def test_a_final_state_can_be_the_answer() -> None:
    """A model that gives nothing but its final state streams that state."""
    module = FinalState()
    found = look(export(module, (X,), ["x"], ["y"], FREE_ROWS))
    assert found.report.streamable, found.report.reason
    got = Walker(found, BATCH).steps({"x": X.numpy()}, [1] * STEPS)["y"]
    np.testing.assert_allclose(got, prefixes(module), atol=1e-5)  # torch's rounding is another


def test_open_states_with_one_answer_a_call() -> None:
    """States that go in and out beside an answer for the last step: a call of one step is a step."""
    module = Recurrent(lambda y: y[:, -1])
    names = ["x", "h0", "c0"], ["y", "hn", "cn"]
    found = look(export(module, (X, zeros(), zeros()), *names))
    assert found.report.streamable, found.report.reason
    assert {state.origin.value for state in found.report.states} == {"explicit"}
    with torch.no_grad():
        expected = [module(X[:, :end], zeros(), zeros())[0].numpy() for end in range(1, STEPS + 1)]
    got = Walker(found, BATCH).steps({"x": X.numpy()}, [1] * STEPS)["y"]
    np.testing.assert_allclose(got, np.stack(expected, axis=1), atol=1e-5)  # torch's rounding is another


def test_the_last_step_of_a_layer_that_looks_both_ways_is_none() -> None:
    """Backwards, the last step has seen nothing and the first one all: such a model wants whole sequences."""
    module = Recurrent(lambda y: y[:, -1], bidirectional=True)
    found = look(export(module, (X,), ["x"], ["y"], FREE_ROWS))
    assert not found.report.streamable
    assert "LSTM" in found.report.reason


def _switched(compared: int | None) -> bytes:
    """Y = s' = s + x, or twice that where `rate` is what it is compared with; None: the rate is a factor as well."""
    nodes = [
        helper.make_node("Equal", ["rate", "known"], ["is_known"]),
        helper.make_node("Add", ["s", "x"], ["sum"]),
        helper.make_node("Mul", ["sum", "two"], ["twice"]),
        helper.make_node("Where", ["is_known", "twice", "sum"], ["chosen"]),
    ]
    last = "chosen"
    if compared is None:
        nodes.append(helper.make_node("Cast", ["rate"], ["factor"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", ["chosen", "factor"], ["scaled"]))
        last = "scaled"
    nodes += [helper.make_node("Identity", [last], [name]) for name in ("y", "s_next")]
    row = ["b", 4]
    graph = helper.make_graph(
        nodes,
        "switched",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, row),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, row),
            helper.make_tensor_value_info("rate", TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, row) for name in ("y", "s_next")],
        [
            numpy_helper.from_array(np.array(compared or 8), "known"),
            numpy_helper.from_array(np.array(2, np.float32), "two"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized


def test_a_number_that_only_chooses_a_branch_has_a_default() -> None:
    """What the graph compares it with is taken, and said; clients do not give it."""
    found = look(onnx.load_from_string(_switched(48000)))
    assert found.report.streamable, found.report.reason
    assert [port.name for port in found.report.inputs] == ["x"]
    assert any("48000" in note and "'rate'" in note for note in found.report.notes)
    ones = np.ones((2, 1, 4), np.float32)
    assert Walker(found, 2).steps({"x": ones}, [1])["y"].tolist() == (2 * ones).tolist()


def test_a_number_that_is_computed_with_stays_an_input() -> None:
    """A number that means something beyond the choice is the client's to give."""
    found = look(onnx.load_from_string(_switched(None)))
    assert [port.name for port in found.report.inputs] == ["x", "rate"]
