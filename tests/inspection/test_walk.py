"""Walking over graphs: makers, readers, surroundings of bodies, and graphs that no exporter writes."""

import onnx
import pytest
from onnx import helper

from eddy.inspection.errors import InspectionError
from eddy.inspection.walk import MAX_DEPTH, all_names, all_nodes, captured, fresh_name, label, scope_of

BRANCHES = """
    agraph (float[B] x, bool c) => (float[B] y) <float[1] w = {2}> {
        half = Constant <value_float = 0.5> ()
        alias = Identity (half)
        before = Mul (x, w)
        y = If (c) <
            then_branch = one () => (t) { inner = Add (before, alias)  t = Neg (inner) },
            else_branch = other () => (e) { before = Identity (x)  e = Abs (before) }
        >
    }
"""


def _graph(text: str) -> onnx.GraphProto:
    return onnx.parser.parse_graph(text)


def test_a_body_reads_its_surroundings() -> None:
    """What a body reads from outside is known, and its own names hide those around it."""
    graph = _graph(BRANCHES)
    choice = graph.node[-1]
    then, other = (attribute.g for attribute in choice.attribute)
    assert captured(then) == ["before", "alias"]
    assert captured(other) == ["x"]
    scope = scope_of(graph)
    inner = scope_of(then, scope)
    assert inner.maker("before") is graph.node[2]
    assert scope_of(other, scope).maker("before") is other.node[0]
    assert inner.maker("x") is None
    assert scope.readers["before"] == [choice]
    assert len(list(all_nodes(graph))) == 8
    assert {"inner", "before", "w", "c"} <= all_names(graph)


def test_what_a_tensor_hangs_on() -> None:
    """Ancestors reach through bodies and out of them, descendants stay in their graph."""
    scope = scope_of(_graph(BRANCHES))
    assert {"x", "w", "half", "c"} <= set(scope.ancestors(["y"]))
    assert set(scope.descendants(["w"])) == {"w", "before", "y"}
    then = scope_of(scope.graph.node[-1].attribute[0].g, scope)
    assert set(then.ancestors(["t"])) == {"t", "inner", "before", "alias", "half", "x", "w"}


def test_constants_in_every_spelling() -> None:
    """An initializer, a Constant node and their copies are constants, what is computed is none."""
    scope = scope_of(_graph(BRANCHES))
    for name, value in (("w", [2.0]), ("half", 0.5), ("alias", 0.5)):
        constant = scope.constant(name)
        assert constant is not None
        assert onnx.numpy_helper.to_array(constant).tolist() == value
    assert scope.constant("before") is None
    assert scope.constant("x") is None
    assert scope.constant("nobody") is None


def test_cycles_end() -> None:
    """Nodes that hang on each other are walked once; copies of each other are no constants."""
    scope = scope_of(_graph("agraph (float[B] x) => (float[B] a) { a = Add (b, x) b = Identity (c) c = Identity (b) }"))
    assert set(scope.ancestors(["a"])) == {"a", "b", "c", "x"}
    assert set(scope.descendants(["c"])) == {"a", "b", "c"}
    assert scope.constant("b") is None


def test_a_tensor_has_one_maker() -> None:
    """Two nodes that make one tensor are refused."""
    with pytest.raises(InspectionError, match="'a' is made more than once"):
        scope_of(_graph("agraph (float[B] x) => (float[B] a) { a = Neg (x) a = Abs (x) }"))


def test_bodies_lie_in_each_other_to_a_limit() -> None:
    """Nesting beyond the limit is refused by every walk."""
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "leaf", [], [])
    for _ in range(MAX_DEPTH + 2):
        node = helper.make_node("If", ["c"], ["y"], then_branch=graph)
        graph = helper.make_graph([node], "outer", [], [])
    for walk in (lambda: list(all_nodes(graph)), lambda: captured(graph), lambda: scope_of(graph)):
        with pytest.raises(InspectionError, match="deep in each other"):
            walk()


def test_names() -> None:
    """A new name is one that nobody has; a node without a name is called by its output."""
    taken = {"h", "h_2"}
    assert [fresh_name("h", taken), fresh_name("h", taken), fresh_name("c", taken)] == ["h_3", "h_4", "c"]
    assert label(helper.make_node("LSTM", ["x"], ["", "y"])) == "LSTM 'y'"
    assert label(helper.make_node("LSTM", ["x"], ["y"], name="lstm/1")) == "LSTM 'lstm/1'"
