"""Graphs with hidden states, one for every way in which exporters write them.

All read `x` [B, T, 3] and answer `y` [B, T, ...]; those that choose between branches read `wide` as well.

Dimension key: B batch (3), T steps, H hidden (4).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

BATCH, FEATURES, HIDDEN = 3, 3, 4
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _weights(cell: str, suffix: str, features: int, seed: int) -> dict[str, np.ndarray]:
    """W, R and B of one node, under names that end with `suffix`."""
    generator, rows = np.random.default_rng(seed), _GATES[cell] * HIDDEN
    shapes = {"W": (1, rows, features), "R": (1, rows, HIDDEN), "b": (1, 2 * rows)}
    return {name + suffix: generator.normal(0, 0.6, shape).astype(np.float32) for name, shape in shapes.items()}


def _everything() -> dict[str, np.ndarray]:
    """The constants that the graphs below name."""
    generator = np.random.default_rng(9)
    found: dict[str, np.ndarray] = {}
    for number, cell in enumerate(_GATES):
        found |= _weights(cell, f"_{cell.lower()}", FEATURES, number)
        found |= _weights(cell, f"_{cell.lower()}2", HIDDEN, 10 + number)
        found |= _weights(cell, f"_{cell.lower()}3", FEATURES, 20 + number)
    found |= {f"{name}_both": np.concatenate([found[f"{name}_lstm"], found[f"{name}_lstm3"]]) for name in "WRb"}
    row = generator.normal(size=(1, 1, HIDDEN)).astype(np.float32)
    return found | {
        "row": row,
        "rows": np.repeat(row, BATCH, axis=1),
        "both_rows": generator.normal(size=(2, 1, HIDDEN)).astype(np.float32),
        "unequal": generator.normal(size=(1, BATCH, HIDDEN)).astype(np.float32),
        "clipped": np.array([0.25], np.float32),
        "i0": np.array([0], np.int64),
        "i1": np.array([1], np.int64),
        "i2": np.array([2], np.int64),
        "i02": np.array([0, 2], np.int64),
        "i4": np.array([4], np.int64),
        "zero": np.array(0, np.float32),
        "nought": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "half": np.array(0.5, np.float32),
        "yes": np.array(True),
        "far": np.array([1 << 40], np.int64),
        "two_steps": np.full(BATCH, 2, np.int32),
        "to_hidden": generator.normal(size=(FEATURES, HIDDEN)).astype(np.float32),
    }


CONSTANTS = _everything()
# x as the recurrent operators want it, its batch and its steps.
_HEAD = """
    xt = Transpose <perm = [1, 0, 2]> (x)
    size = Shape (x)
    batch = Slice (size, i0, i1)
    steps = Slice (size, i1, i2)
    sizes = Concat <axis = 0> (i1, batch, i4)
    stacked_sizes = Concat <axis = 0> (i2, batch, i4)
"""
_TAIL = "  squeezed = Squeeze (Y, i1)  y = Transpose <perm = [1, 0, 2]> (squeezed)"
_LSTM = "LSTM <hidden_size = 4> (xt, W_lstm, R_lstm, b_lstm, , "


def model_of(text: str, *, opset: int = 17, extra: str = "", head: str = _HEAD, tail: str = _TAIL) -> onnx.ModelProto:
    """A model with its constants. text: nodes that make Y [T, 1, B, H]; extra: further inputs."""
    graph = onnx.parser.parse_graph(
        f"hidden (float[B, T, 3] x{extra}) => (float[B, T, C] y) {{ {head} {text} {tail} }}"
    )
    used = {name for inner in _graphs(graph) for node in inner.node for name in node.input}
    graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in CONSTANTS.items() if name in used)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    inner = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [graph] + [deep for one in inner for deep in _graphs(one)]


_TWO_LAYERS = """
    zeros = ConstantOfShape (stacked_sizes)
    h0 = Slice (zeros, i0, i1, i0)  h1 = Slice (zeros, i1, i2, i0)
    first = GRU <hidden_size = 4, linear_before_reset = 1> (xt, W_gru, R_gru, b_gru, , h0)
    between = Squeeze (first, i1)
    Y = GRU <hidden_size = 4, linear_before_reset = 1> (between, W_gru2, R_gru2, b_gru2, , h1)
"""
_BRANCHES = """
    zeros = ConstantOfShape (sizes)
    Y = If (wide) <
        then_branch = wide_one () => (p) {{ p = {then} }},
        else_branch = narrow_one () => (q) {{ {other} }}
    >
"""
_NESTED = """
    zeros = ConstantOfShape (sizes)
    Y = If (wide) <
        then_branch = a () => (p) { p = LSTM <hidden_size = 4> (xt, W_lstm, R_lstm, b_lstm, , zeros, zeros) },
        else_branch = b () => (q) {
            low = Not (yes)
            q = If (low) <
                then_branch = c () => (r) { r = LSTM <hidden_size = 4> (xt, W_lstm, R_lstm, b_lstm) },
                else_branch = d () => (s) {
                    t = LSTM <hidden_size = 4> (xt, W_lstm3, R_lstm3, b_lstm3)
                    u = Squeeze (t, i1)
                    s = GRU <hidden_size = 4> (u, W_gru2, R_gru2, b_gru2)
                }
            >
        }
    >
"""
_SCAN_BODY = """
        body = step (float[B, 4] s, float[B, 4] now) => (float[B, 4] s_out, float[B, 4] out) {
            faded = Mul (s, half)  summed = Add (faded, now)  s_out = Tanh (summed)  out = Identity (s_out)
        }
"""
_PROJECTED = "  wide_x = MatMul (xt, to_hidden)"
# [T, B, H] -> [T, 1, B, H].
_OUT = "  Y = Unsqueeze (gathered, i1)"

# Name -> the nodes, how many states are found, and the nodes' further inputs.
STREAMABLE: dict[str, tuple[str, int]] = {
    "lstm absent": ("Y = LSTM <hidden_size = 4> (xt, W_lstm, R_lstm, b_lstm)", 2),
    "gru absent": ("Y = GRU <hidden_size = 4> (xt, W_gru, R_gru, b_gru)", 1),
    "rnn absent": ("Y = RNN <hidden_size = 4> (xt, W_rnn, R_rnn)", 1),
    "only h is there": (f"Y = {_LSTM} rows)", 2),
    "an initializer with equal rows": (f"Y = {_LSTM} rows, rows)", 2),
    "a constant node": (
        (
            "h0 = Constant <value = float[1, 3, 4] {1,2,3,4, 1,2,3,4, 1,2,3,4}> ()  alias = Identity (h0)"
            f"Y = {_LSTM} alias, alias)"
        ),
        2,
    ),
    "zeros of a shape": (f"zeros = ConstantOfShape (sizes)  Y = {_LSTM} zeros, zeros)", 2),
    "zeros of a shape, sliced for two layers": (_TWO_LAYERS, 2),
    "a zero expanded": (f"zeros = Expand (zero, sizes)  Y = {_LSTM} zeros, zeros)", 2),
    "a learned row expanded": (f"h0 = Expand (row, sizes)  Y = {_LSTM} h0, h0)", 2),
    "a learned row repeated": (
        f"many = Concat <axis = 0> (i1, batch, i1)  h0 = Tile (row, many)  Y = {_LSTM} h0, h0)",
        2,
    ),
    "learned rows expanded and split for two layers": (
        _TWO_LAYERS.replace("ConstantOfShape (stacked_sizes)", "Expand (both_rows, stacked_sizes)"),
        2,
    ),
    "the input times zero": (
        (
            "sums = ReduceSum <keepdims = 0> (x, i2)  column = Gather <axis = 1> (sums, nought)"
            "nothing = Mul (column, zero)  flat = Unsqueeze (nothing, i02)  zeros = Expand (flat, sizes)"
            f"Y = {_LSTM} zeros, zeros)"
        ),
        2,
    ),
    "the input less itself": (
        (
            "sums = ReduceSum <keepdims = 0> (x, i2)  column = Gather <axis = 1> (sums, nought)"
            "nothing = Sub (column, column)  flat = Unsqueeze (nothing, i02)  zeros = Expand (flat, sizes)"
            f"Y = {_LSTM} zeros, zeros)"
        ),
        2,
    ),
    "sizes through int32 and a product": (
        (
            "short = Cast <to = 6> (batch)  long = Cast <to = 7> (short)  all = Mul (long, i1)"
            "flat_sizes = Concat <axis = 0> (all, i4)  flat = ConstantOfShape (flat_sizes)"
            f"zeros = Unsqueeze (flat, i0)  Y = {_LSTM} zeros, zeros)"
        ),
        2,
    ),
    "final states are used": (
        (
            "Y, last, cell = LSTM <hidden_size = 4> (xt, W_lstm, R_lstm, b_lstm)"
            "unused = Add (last, cell)  more = Neg (unused)"
        ),
        2,
    ),
    "clip and activations": (
        (
            'Y = LSTM <hidden_size = 4, clip = 0.5, activations = ["Sigmoid", "Tanh", "Softsign"], input_forget = 1>'
            "(xt, W_lstm, R_lstm, b_lstm)"
        ),
        2,
    ),
    "several nodes, one zero for all": (
        (
            f"zeros = ConstantOfShape (sizes)  left = {_LSTM} zeros, zeros)"
            "right = GRU <hidden_size = 4> (xt, W_gru, R_gru, b_gru, , zeros)  Y = Add (left, right)"
        ),
        3,
    ),
    "lengths that mean all steps": (
        (
            "long = Expand (steps, batch)  lengths = Cast <to = 6> (long)"
            "Y = GRU <hidden_size = 4> (xt, W_gru, R_gru, b_gru, lengths)"
        ),
        1,
    ),
    "equal states in both branches": (
        _BRANCHES.format(
            then="LSTM <hidden_size = 4> (xt, W_lstm, R_lstm, b_lstm, , zeros, zeros)",
            other="q = LSTM <hidden_size = 4> (xt, W_lstm3, R_lstm3, b_lstm3)",
        ),
        2,
    ),
    "other states in each branch": (
        _BRANCHES.format(
            then="LSTM <hidden_size = 4> (xt, W_lstm, R_lstm, b_lstm, , zeros, rows)",
            other="q = GRU <hidden_size = 4> (xt, W_gru, R_gru, b_gru, , rows)",
        ),
        3,
    ),
    "a branch without states": (
        _BRANCHES.format(
            then="LSTM <hidden_size = 4> (xt, W_lstm, R_lstm, b_lstm)",
            other="wide_x = MatMul (xt, to_hidden)  q = Unsqueeze (wide_x, i1)",
        ),
        2,
    ),
    "two layers in one branch": (
        _BRANCHES.format(
            then="LSTM <hidden_size = 4> (xt, W_lstm, R_lstm, b_lstm)",
            other="r = LSTM <hidden_size = 4> (xt, W_lstm3, R_lstm3, b_lstm3)  s = Squeeze (r, i1)"
            "q = LSTM <hidden_size = 4> (s, W_lstm2, R_lstm2, b_lstm2)",
        ),
        4,
    ),
    "a branch within a branch": (_NESTED, 3),
    "a scan": (
        _PROJECTED + "  zeros = ConstantOfShape (scan_sizes)  last, gathered = Scan <num_scan_inputs = 1, "
        f"{_SCAN_BODY}> (zeros, wide_x)" + _OUT,
        1,
    ),
    "a scan that begins with a constant": (
        _PROJECTED + "  start = Squeeze (rows, i0)  last, gathered = Scan <num_scan_inputs = 1, "
        f"{_SCAN_BODY}> (start, wide_x)" + _OUT,
        1,
    ),
    "a loop with a counter": (
        _PROJECTED + "  trips = Squeeze (steps, i0)  zeros = ConstantOfShape (scan_sizes)"
        "  count, last, gathered = Loop <body = step (int64 at, bool go, int64 place, float[B, 4] s) => "
        "(bool go_out, int64 place_out, float[B, 4] s_out, float[B, 4] out) {"
        "  go_out = Identity (go)  place_out = Add (place, one)  now = Gather <axis = 0> (wide_x, place)"
        "  faded = Mul (s, half)  summed = Add (faded, now)  s_out = Tanh (summed)  out = Identity (s_out)"
        "}> (trips, yes, nought, zeros)" + _OUT,
        1,
    ),
    "a loop that fills a buffer": (
        _PROJECTED + "  trips = Squeeze (steps, i0)  zeros = ConstantOfShape (scan_sizes)"
        "  all_sizes = Concat <axis = 0> (steps, batch, i4)  empty = ConstantOfShape (all_sizes)"
        "  last, gathered = Loop <body = step (int64 at, bool go, float[B, 4] s, float[T, B, 4] buffer) => "
        "(bool go_out, float[B, 4] s_out, float[T, B, 4] buffer_out) {"
        "  go_out = Identity (go)  place = Unsqueeze (at, i0)  now = Gather <axis = 0> (wide_x, at)"
        "  faded = Mul (s, half)  summed = Add (faded, now)  s_out = Tanh (summed)  rows_out = Unsqueeze (s_out, i0)"
        "  where = Unsqueeze (place, i0)  buffer_out = ScatterND (buffer, where, rows_out)"
        "}> (trips, yes, zeros, empty)" + _OUT,
        1,
    ),
    "a loop that keeps a list": (
        _PROJECTED + "  trips = Squeeze (steps, i0)  zeros = ConstantOfShape (scan_sizes)  none = SequenceEmpty ()"
        "  last, list = Loop <body = step (int64 at, bool go, float[B, 4] s, seq(float[B, 4]) kept) => "
        "(bool go_out, float[B, 4] s_out, seq(float[B, 4]) kept_out) {"
        "  go_out = Identity (go)  now = Gather <axis = 0> (wide_x, at)"
        "  faded = Mul (s, half)  summed = Add (faded, now)  s_out = Tanh (summed)"
        "  kept_out = SequenceInsert (kept, s_out)"
        "}> (trips, yes, zeros, none)  gathered = ConcatFromSequence <axis = 0, new_axis = 1> (list)" + _OUT,
        1,
    ),
    "a scan in a branch": (
        (
            "zeros = ConstantOfShape (scan_sizes)  wide_x = MatMul (xt, to_hidden)  Y = If (wide) <"
            f"then_branch = a () => (p) {{ last, g = Scan <num_scan_inputs = 1, {_SCAN_BODY}> (zeros, wide_x)"
            " p = Unsqueeze (g, i1) },"
            "else_branch = b () => (q) { q = Unsqueeze (wide_x, i1) } >"
        ),
        1,
    ),
}


# Name -> the nodes, and what is told of them.
REFUSED: dict[str, tuple[str, str]] = {
    "bidirectional": (
        (
            'both = LSTM <hidden_size = 4, direction = "bidirectional"> (xt, W_both, R_both, b_both)'
            "  Y = ReduceMean <axes = [1], keepdims = 1> (both)"
        ),
        "LSTM 'both' is bidirectional: each of its outputs needs the steps that come later",
    ),
    "reverse": (
        'Y = GRU <hidden_size = 4, direction = "reverse"> (xt, W_gru, R_gru, b_gru)',
        "GRU 'Y' runs in reverse: each of its outputs needs the steps that come later",
    ),
    "batch-first": (
        "Y = RNN <hidden_size = 4, layout = 1> (x, W_rnn, R_rnn)",
        "RNN 'Y' is batch-first (layout 1), which ONNX Runtime cannot run",
    ),
    "rows that begin differently": (
        f"Y = {_LSTM} unequal, rows)",
        "initial_h of LSTM 'Y' begins differently in each row of a batch",
    ),
    "rows that begin differently, computed": (
        (
            "numbers_end = Squeeze (batch, i0)  numbers = Range (nought, numbers_end, one)"
            "real = Cast <to = 1> (numbers)"
            f"  column = Unsqueeze (real, i02)  h0 = Expand (column, sizes)  Y = {_LSTM} h0, h0)"
        ),
        "initial_h of LSTM 'Y' begins differently in each row of a batch",
    ),
    "a fixed length": (
        "Y = RNN <hidden_size = 4> (xt, W_rnn, R_rnn, , two_steps)",
        "sequence_lens of RNN 'Y' is fixed at [2, 2, 2] steps",
    ),
    "a scan from the end": (
        (
            "wide_x = MatMul (xt, to_hidden)  zeros = ConstantOfShape (scan_sizes)"
            f"last, gathered = Scan <num_scan_inputs = 1, scan_input_directions = [1], {_SCAN_BODY}>"
            f" (zeros, wide_x){_OUT}"
        ),
        "Scan 'last' runs backwards: each of its outputs needs the steps that come later",
    ),
}
# The same where what is told is what the state is computed from.
GIVEN: dict[str, tuple[str, str]] = {
    "a learned projection": (
        (
            "first_x = Gather <axis = 0> (xt, nought)  wide_x = MatMul (first_x, to_hidden)"
            "h0 = Unsqueeze (wide_x, i0)  Y = GRU <hidden_size = 4> (xt, W_gru, R_gru, b_gru, , h0)"
        ),
        "initial_h of GRU 'Y' is computed from 'x' by MatMul 'wide_x': no state that a stream carries",
    ),
    "another node's final state": (
        (
            "first, last = GRU <hidden_size = 4> (xt, W_gru, R_gru, b_gru)"
            "Y = GRU <hidden_size = 4> (xt, W_gru3, R_gru3, b_gru3, , last)"
        ),
        "initial_h of GRU 'Y' is computed from 'x' by GRU 'first': no state that a stream carries",
    ),
    "lengths counted in the data": (
        (
            "signs = ReduceSum <keepdims = 0> (x, i2)  positive = Greater (signs, zero)"
            "counted = Cast <to = 7> (positive)  sums = ReduceSum <keepdims = 0> (counted, i1)"
            "lengths = Cast <to = 6> (sums)  Y = GRU <hidden_size = 4> (xt, W_gru, R_gru, b_gru, lengths)"
        ),
        "sequence_lens of GRU 'Y' is computed from 'x' by ReduceSum 'sums': no state that a stream carries",
    ),
    "a scan that begins with the first step": (
        (
            "wide_x = MatMul (xt, to_hidden)  start = Gather <axis = 0> (wide_x, nought)"
            f"last, gathered = Scan <num_scan_inputs = 1, {_SCAN_BODY}> (start, wide_x){_OUT}"
        ),
        "carried variable 0 of Scan 'last' is computed from 'x' by MatMul 'wide_x': no state that a stream carries",
    ),
    "an absurd shape": (
        f"absurd = Concat <axis = 0> (far, far, far)  h0 = ConstantOfShape (absurd)  Y = {_LSTM} h0, h0)",
        (
            "initial_h of LSTM 'Y' is computed from nothing that is known by ConstantOfShape 'h0': "
            "no state that a stream carries"
        ),
    ),
}


def streamable(name: str) -> onnx.ModelProto:
    """One of the first table's graphs."""
    return _finished(STREAMABLE[name][0])


def refused(name: str) -> onnx.ModelProto:
    """One of the other tables' graphs."""
    return _finished((REFUSED | GIVEN)[name][0])


def _finished(text: str) -> onnx.ModelProto:
    extra = ", bool wide" if "If (wide)" in text else ""
    return model_of(text, extra=extra, head=_HEAD + "  scan_sizes = Concat <axis = 0> (batch, i4)")
