"""No guess of states or axes is wrong: little graphs of any form, their states called and laid out in any way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.inspection.runtime import Walker, look

FEATURES = 3
# Names before and after a step, {} is the state's own.
_NAMES = st.sampled_from(
    [
        ("{}", "{}n"),
        ("{}", "{}N"),
        ("{}_in", "{}_out"),
        ("past_{}", "present_{}"),
        ("{}0", "{}T"),
        ("prev_{}", "{}"),
        ("{}", "{}_next"),
        ("old_{}", "new_{}"),
    ]
)
_STEMS = ("state", "hidden", "cache", "memory")


@dataclass(frozen=True, slots=True)
class Form:
    """One state: the sizes of a row, where the batch lies among them, what its ports are called."""

    sizes: tuple[int, ...]
    batch_axis: int
    names: tuple[str, str]


@st.composite
def _forms(draw: st.DrawFn) -> Form:
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    return Form(sizes, draw(st.integers(0, len(sizes))), draw(_NAMES))


def model_of(forms: list[Form], order: list[int], free: bool) -> onnx.ModelProto:
    """State' = 0.5 · state + the number of the state · mean(x); y = x + the states' means; one step a call.

    order: of the states among the outputs. free: the batch is declared free, else as 1.
    """
    batch = "N" if free else 1
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, FEATURES])]
    outputs = {}
    nodes = [helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=0)]
    constants = {"half": np.array(0.5, np.float32)}
    total = "x"
    for number, form in enumerate(forms):
        before, after = (name.format(_STEMS[number]) for name in form.names)
        shape = [*form.sizes[: form.batch_axis], batch, *form.sizes[form.batch_axis :]]
        inputs.append(helper.make_tensor_value_info(before, TensorProto.FLOAT, shape))
        outputs[number] = helper.make_tensor_value_info(after, TensorProto.FLOAT, shape)
        view = [1] * len(shape)
        view[form.batch_axis] = -1
        others = [axis for axis in range(len(shape)) if axis != form.batch_axis]
        constants |= {f"view{number}": np.array(view), f"weight{number}": np.array(number + 1, np.float32)}
        nodes += [
            helper.make_node("Reshape", ["mean", f"view{number}"], [f"fed{number}"]),
            helper.make_node("Mul", [f"fed{number}", f"weight{number}"], [f"scaled{number}"]),
            helper.make_node("Mul", [before, "half"], [f"faded{number}"]),
            helper.make_node("Add", [f"faded{number}", f"scaled{number}"], [after]),
            helper.make_node("ReduceMean", [before], [f"told{number}"], axes=others, keepdims=0),
            helper.make_node("Reshape", [f"told{number}", "column"], [f"column{number}"]),
            helper.make_node("Add", [total, f"column{number}"], [f"total{number}"]),
        ]
        total = f"total{number}"
    constants["column"] = np.array([-1, 1])
    nodes.append(helper.make_node("Identity", [total], ["y"]))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, FEATURES])
    graph = helper.make_graph(
        nodes,
        "little",
        inputs,
        [y, *(outputs[number] for number in order)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_states_are_paired_and_their_batch_is_found(data: st.DataObject) -> None:
    """Whatever the rank, the batch's axis, the names and the order: three sessions give what their sums say."""
    forms = data.draw(st.lists(_forms(), min_size=1, max_size=len(_STEMS)))
    order = data.draw(st.permutations(range(len(forms))))
    found = look(model_of(forms, order, data.draw(st.booleans())))
    expected = [tuple(name.format(_STEMS[number]) for name in form.names) for number, form in enumerate(forms)]
    assert [(state.input, state.output) for state in found.report.states] == expected
    assert [state.shape for state in found.report.states] == [form.sizes for form in forms]
    walker = Walker(found, 3)
    generator = np.random.default_rng(0)
    own = np.zeros((3, len(forms)), np.float32)
    for _ in range(3):
        x = generator.standard_normal((3, 1, FEATURES)).astype(np.float32)
        [got] = walker.step(x=x).values()
        # float32 sums in another order.
        np.testing.assert_allclose(got[:, 0], x[:, 0] + own.sum(1, keepdims=True), atol=1e-4)
        own = 0.5 * own + x[:, 0].mean(1, keepdims=True) * np.arange(1, len(forms) + 1)


@pytest.mark.parametrize("suffix", ["_next", "_other"])
def test_many_states_are_found_in_a_moment(suffix: str) -> None:
    """Hundreds of states are no reason to try for ever, nor are hundreds of inputs that might be some."""
    count = 240
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])
    before = [helper.make_tensor_value_info(f"h{n}", TensorProto.FLOAT, ["N", FEATURES]) for n in range(count)]
    after = [helper.make_tensor_value_info(f"h{n}{suffix}", TensorProto.FLOAT, ["N", FEATURES]) for n in range(count)]
    nodes = [helper.make_node("Add", ["x", f"h{n}"], [f"h{n}{suffix}"]) for n in range(count)]
    nodes.append(helper.make_node("Add", ["x", "h0"], ["y"]))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", FEATURES])
    graph = helper.make_graph(nodes, "many", [x, *before], [y, *after])
    found = look(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    expected = [(f"h{n}", f"h{n}{suffix}") for n in range(count)] if suffix == "_next" else []
    assert [(s.input, s.output) for s in found.report.states] == expected
