"""Inspection of models whose number of steps is fixed or changes, and of loops within a step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from eddy.inspection.errors import InspectionError
from eddy.inspection.settings import Settings
from tests.inspection.exporter import export, nn, torch
from tests.inspection.runtime import Walker, look

BATCH, STEPS, FEATURES, HIDDEN = 2, 6, 8, 16
X = torch.randn(BATCH, STEPS, FEATURES, generator=torch.Generator().manual_seed(1))


class Fronted(nn.Module):
    """A convolution and a recurrent layer, something over time behind them."""

    def __init__(self, stride: int, over_time: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Conv1d(FEATURES, FEATURES, stride, stride=stride)
        self.layer = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.over_time = over_time

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, F] -> [B, T', H]."""
        return self.over_time(self.layer(self.front(x.transpose(1, 2)).transpose(1, 2))[0])


@pytest.mark.parametrize("stride", [2, 3])
def test_a_node_that_gives_fewer_steps_is_named(stride: int) -> None:
    """It is the strided convolution, not the recurrent layer behind it, whose state is lifted."""
    found = look(export(Fronted(stride, nn.Identity()), (X,), ["x"], ["y"], {"x": {0: "b", 1: "t"}}))
    assert not found.report.streamable
    assert "Conv '/front/Conv' gives another number of steps than it is given" in found.report.reason


def test_a_node_that_wants_one_length_is_named() -> None:
    """A normalisation whose weights are as long as the traced sequence runs with no other."""
    module = Fronted(1, lambda y: nn.functional.layer_norm(y.transpose(1, 2), (STEPS,)).transpose(1, 2))
    found = look(export(module, (X,), ["x"], ["y"]))
    assert not found.report.streamable
    assert found.report.reason.startswith("LayerNormalization '/LayerNormalization' runs with 6 steps alone")
    assert found.whole is not None


def test_a_batch_of_two_that_was_written_down_is_one_row() -> None:
    """Where states are cut by sizes of a traced batch of two, both its rows are one session's; the warning says so."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.GRU(FEATURES, HIDDEN, num_layers=2, batch_first=True)

        def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y, h = self.layer(x, h.view(BATCH, 2, HIDDEN).transpose(0, 1).contiguous())
            return y, h.transpose(0, 1).reshape(BATCH, 2 * HIDDEN)

    found = look(export(Flat(), (X, torch.zeros(BATCH, 2 * HIDDEN)), ["x", "h"], ["y", "hn"]))
    assert found.report.streamable, found.report.reason
    assert [(state.shape, state.batch_axis) for state in found.report.states] == [((BATCH, 2 * HIDDEN), None)]
    assert found.report.max_batch == 1
    assert "a file exported with one would be batched" in found.report.warnings[0]


def _loop(trips: int, *names: str) -> ModelProto:
    """`v` goes round so many times: v' = v / 2 + 1; further inputs are added behind it."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Mul", ["v", "half"], ["less"]),
            helper.make_node("Add", ["less", "one"], ["w"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
    )
    shape = ["B", "T", 2]
    nodes = [helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)]
    nodes += [helper.make_node("Add", [name, "y"], [f"sum_{name}"]) for name in names]
    graph = helper.make_graph(
        nodes,
        "loop",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", *names)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("y", *(f"sum_{n}" for n in names))],
        [
            numpy_helper.from_array(np.array(value, dtype), name)
            for name, value, dtype in (("trips", trips, np.int64), ("half", 0.5, np.float32), ("one", 1, np.float32))
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("names", [(), ("z",)])
def test_a_loop_within_a_step_carries_no_state(names: tuple[str, ...]) -> None:
    """What goes round between an input and an output is data that is improved, step by step."""
    found = look(_loop(2, *names))
    assert found.report.streamable, found.report.reason
    assert not found.report.states
    x = np.arange(12, dtype=np.float32).reshape(1, 6, 2)
    got = Walker(found, 1).steps(dict.fromkeys(("x", *names), x), [2, 4])["y"]
    assert np.array_equal(got, x / 4 + 1.5)


def test_something_must_be_streamed() -> None:
    """Settings that make every input a state leave nothing for clients to give."""
    with pytest.raises(InspectionError, match="states: all inputs are states, expected one of"):
        look(_loop(2), Settings(states={"x": "y"}))


def test_an_input_that_is_an_output() -> None:
    """It would have to be called twice alike where the graph is put into the server's form."""
    model = _loop(2)
    model.graph.output.append(model.graph.input[0])
    with pytest.raises(InspectionError, match="'x' is an input and an output at once"):
        look(model)
