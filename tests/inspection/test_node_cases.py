"""The ONNX project's own test cases of LSTM, GRU, RNN, Scan and Loop, with reference inputs and outputs.

They come with the `onnx` package, as code that builds them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case import node as cases
from onnx.backend.test.case.node import gru, loop, lstm, rnn, scan
from streams import begin, load

from eddy.inspection.errors import InspectionError
from eddy.inspection.lift import lift
from tests.inspection.runtime import Walker, look

WRITERS = (gru, loop, lstm, rnn, scan)
CASES: dict[str, Any] = {
    case.name: case
    for case in cases._NodeTestCases  # noqa: SLF001  # the package offers no other way to a part of them
    if case.model is not None
}
ORDINARY = (
    "test_lstm_defaults",
    "test_lstm_with_initial_bias",
    "test_lstm_with_peepholes",
    "test_gru_defaults",
    "test_gru_with_initial_bias",
    "test_gru_seq_length",
    "test_simple_rnn_defaults",
    "test_simple_rnn_with_initial_bias",
    "test_rnn_seq_length",
)
BATCHWISE = ("test_lstm_batchwise", "test_gru_batchwise", "test_simple_rnn_batchwise")
LOOPS = ("test_scan_sum", "test_scan9_sum", "test_loop11", "test_loop13_seq", "test_loop16_seq_none")


def _data(case: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A case's inputs and outputs by name."""
    graph = case.model.graph
    given, wanted = case.data_sets[0]
    inputs = dict(zip([port.name for port in graph.input], given, strict=True))
    return inputs, dict(zip([port.name for port in graph.output], wanted, strict=True))


@pytest.mark.parametrize("name", ORDINARY)
def test_recurrent_cases(name: str) -> None:
    """Lifted, each gives its reference outputs when its states have their initial values, and ends in its last ones."""
    case = CASES[name]
    inputs, wanted = _data(case)
    found = lift(case.model)
    kinds = [node.op_type for node in case.model.graph.node]
    explicit = [
        one.operand for one in found.given if one.operand.startswith("initial")
    ]  # peepholes come with states of the caller's
    assert len(found.states) + len(explicit) == (2 if "LSTM" in kinds else 1)
    assert not found.obstacles
    states = {state.input: begin(state, inputs["X"].shape[1]) for state in found.states}
    names = [*wanted, *(state.output for state in found.states)]
    answers = dict(zip(names, load(found.model).run(names, inputs | states), strict=True))
    for output, value in wanted.items():
        # The references are computed in numpy, in another order of additions.
        np.testing.assert_allclose(answers[output], value, rtol=1e-3, atol=1e-7)
    last = next((state for state in found.states if state.operand == "initial_h"), None)
    if last is not None and "Y_h" in wanted:
        np.testing.assert_array_equal(answers[last.output], answers["Y_h"])


@pytest.mark.parametrize("name", BATCHWISE)
def test_batchwise_cases(name: str) -> None:
    """Recurrent nodes with the batch in front are refused: ONNX Runtime has no kernel for them."""
    found = lift(CASES[name].model)
    assert not found.states
    assert [one.reason.endswith("is batch-first (layout 1), which ONNX Runtime cannot run") for one in found.obstacles]
    with pytest.raises(Exception, match=r"[Bb]atchwise|layout"):
        load(CASES[name].model)


@pytest.mark.parametrize("name", BATCHWISE)
def test_batchwise_cases_are_refused_by_inspection(name: str) -> None:
    """The reason is ours and short, not the runtime's."""
    with pytest.raises(InspectionError, match=r"is batch-first \(layout 1\), which ONNX Runtime cannot run$"):
        look(CASES[name].model)


@pytest.mark.parametrize("name", ORDINARY)
def test_recurrent_cases_inspected(name: str) -> None:
    """With weights from the caller a case is refused; with constant ones it streams, and ends in its reference."""
    case = CASES[name]
    with pytest.raises(InspectionError, match="takes its weights 'W' and 'R' from its caller"):
        look(case.model)
    inputs, wanted = _data(case)
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    del model.graph.input[1:]
    model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in inputs.items() if key != "X")
    found = look(model)
    assert found.report.streamable, found.report.reason
    assert found.report.inputs[0].shape[:2] == ("time", "batch")
    values = inputs["X"].transpose(1, 0, 2)
    last = Walker(found, len(values)).steps({"X": values}, [1] * values.shape[1])["Y_h"][:, -1, 0]
    np.testing.assert_allclose(last, wanted["Y_h"][0], rtol=1e-6, atol=2e-7)  # NumPy rounds otherwise


@pytest.mark.parametrize("name", LOOPS)
def test_loop_cases(name: str) -> None:
    """Their variables come from the caller: nothing is hidden, and the graph computes what it did."""
    case = CASES[name]
    found = lift(case.model)
    assert not found.states
    assert not found.obstacles
    sources = {source for one in found.given for source in one.sources}
    assert sources <= {port.name for port in case.model.graph.input}
    if all(port.type.HasField("tensor_type") for port in case.model.graph.input):
        inputs, wanted = _data(case)
        answers = load(found.model).run(list(wanted), {key: np.asarray(value) for key, value in inputs.items()})
        for answer, value in zip(answers, wanted.values(), strict=True):
            np.testing.assert_allclose(np.asarray(answer), np.asarray(value), rtol=1e-6)


@pytest.mark.parametrize("cell", ["lstm", "gru", "simple_rnn"])
@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_cases_that_look_ahead(cell: str, direction: str) -> None:
    """Nodes that read from the end are refused; the cases are there from onnx 1.20 on."""
    case = CASES.get(f"test_{cell}_{direction}")
    if case is None:
        pytest.skip(f"onnx {onnx.__version__} has no such case")
    [obstacle] = lift(case.model).obstacles
    assert direction in obstacle.reason


def test_every_case_is_known() -> None:
    """A newer package with further cases shows here."""
    known = {*ORDINARY, *BATCHWISE, *LOOPS, "test_scan9_multi_state", "test_scan9_scalar"}
    known |= {f"test_{cell}_{way}" for cell in ("lstm", "gru", "simple_rnn") for way in ("reverse", "bidirectional")}
    mine = {name for name in CASES if any(name.startswith(f"test_{part}") for part in ("lstm", "gru", "rnn", "simple"))}
    assert mine <= known
