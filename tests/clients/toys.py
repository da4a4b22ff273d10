"""Models whose answers spell a session's history, for what `history` cannot show: looking ahead, and reading first.

Owns two graphs of ONNX operators, and the vocabulary of an untrained translator. Must not know clients or servers.

Dimension key: B batch, T steps, S source steps, R steps of look-ahead.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from architectures import example_folder
from google.protobuf import json_format
from graphs import IR_VERSION, METADATA_KEY, OPSET
from onnx import TensorProto, helper, numpy_helper

from eddy.v1 import contract_pb2

LOOK_AHEAD = 3
MAX_PRIME_STEPS = 6
_INT, _BOOL = TensorProto.INT64, TensorProto.BOOL
# The primed models' sources, as text: digits, a space, some digits at once, and a symbol for anything else.
PIECES = ("?", "\u2402", "\u2403", "\u2581", *"123456789", "12", "\u25811", "\u25811234", "34")
UNKNOWN, START, END = 0, 1, 2
# What clients may begin a history with.
STATES = (0, 1000)
# Symbols of the restorer.
LETTERS = ("?", *"abcdeé \n")
# Symbols of the translator, as many as it has.
TRANSLATED = (*PIECES[:4], *"abcdef", "ab", "abc", "\u2581c", "de", "ef", "f\u2581", "cd")
# What ends its text: a symbol that it often writes.
TRANSLATION_END = 14


def write_ahead(repository: Path, name: str = "ahead", values: tuple[int, int] | None = None) -> None:
    """`history`, of digits in a range if one is given, whose answers come R steps later; an end gives the last ones.

    Its whole graph answers at once. The state is the last R answers, and how many of them there are.
    """
    contract = _contract(name, "y")
    if values is not None:
        contract.inputs[0].range.minimum, contract.inputs[0].range.maximum = values
    contract.graphs.whole = "whole.onnx"
    _look_ahead(contract)
    _write(repository, contract, "model.onnx", _ahead())
    _write(repository, contract, "whole.onnx", _whole())


def _look_ahead(contract: contract_pb2.ModelContract) -> None:
    """The states and ports of what answers R steps later."""
    for state, shape in (("held", [LOOK_AHEAD]), ("count", [])):
        contract.states.add(
            name=state, next_name=f"{state}_next", dtype=contract_pb2.DATA_TYPE_INT64, shape=shape
        ).initial.constant = 0
    contract.ports.length, contract.ports.flush, contract.ports.emitted = "length", "flush", "emitted"
    contract.streaming.block_steps, contract.streaming.look_ahead_steps = 1, LOOK_AHEAD


def write_restorer(repository: Path) -> None:
    """`restorer`: characters that come back R steps later, `e` as `é`; any other than `LETTERS` is as it was."""
    contract = _contract("restorer", "scores")
    contract.task = contract_pb2.TASK_TAGGING
    contract.outputs[0].dtype = contract_pb2.DATA_TYPE_FLOAT32
    contract.outputs[0].shape.append(len(LETTERS))
    contract.vocabulary.symbols.extend(LETTERS)
    contract.vocabulary.unit, contract.vocabulary.unknown_id = "character", UNKNOWN
    _look_ahead(contract)
    table = np.eye(len(LETTERS), dtype=np.float32)
    table[LETTERS.index("e")] = table[LETTERS.index("é")]
    _write(repository, contract, "model.onnx", _restorer(table))


def write_primed(repository: Path, name: str = "primed", unit: str = "piece", *, has_unknown: bool = True) -> None:
    """A `history` that begins with the number that its source spells in `PIECES`' ids, as if they were digits.

    Ids above 9 are digits too: what they spell is the sum of id times power of ten.
    """
    contract = _contract(name, "y")
    state = contract.states.add(name="history", next_name="history_next", dtype=contract_pb2.DATA_TYPE_INT64)
    state.initial.constant = 0
    state.range.minimum, state.range.maximum = STATES
    contract.graphs.prime, contract.ports.prime_length, contract.max_prime_steps = (
        "prime.onnx",
        "source_length",
        MAX_PRIME_STEPS,
    )
    source = contract.prime_inputs.add(name="source", dtype=contract_pb2.DATA_TYPE_INT64, meaning="token id")
    # No zero: what pads a source must be one of its values.
    source.range.minimum, source.range.maximum = 0 if has_unknown else 1, len(PIECES) - 1
    vocabulary = contract.source_vocabulary
    vocabulary.symbols.extend(PIECES)
    vocabulary.unit, vocabulary.start_id, vocabulary.end_id = unit, START, END
    if has_unknown:
        vocabulary.unknown_id = UNKNOWN
    _write(repository, contract, "model.onnx", _history(["history"], ["history_next", "y"]))
    _write(repository, contract, "prime.onnx", _prime())


def write_translator(repository: Path) -> None:
    """`translator`: an untrained one whose symbols, read and written, are `TRANSLATED`."""
    folder = repository / "translator" / "1"
    shutil.copytree(example_folder("translation-gru"), folder)
    model = onnx.load(folder / "model.onnx")
    [entry] = [entry for entry in model.metadata_props if entry.key == METADATA_KEY]
    contract = json_format.Parse(entry.value, contract_pb2.ModelContract())
    contract.name = "translator"
    for vocabulary in (contract.vocabulary, contract.source_vocabulary):
        vocabulary.symbols[:] = TRANSLATED
        vocabulary.unit, vocabulary.unknown_id = "piece", UNKNOWN
    contract.vocabulary.start_id, contract.vocabulary.end_id = START, TRANSLATION_END
    entry.value = json_format.MessageToJson(contract, preserving_proto_field_name=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def spelled_source(ids: Sequence[int]) -> int:
    """What a primed model begins with after a source."""
    total = 0
    for each in ids:
        total = total * 10 + each
    return total


def _contract(name: str, output: str) -> contract_pb2.ModelContract:
    contract = contract_pb2.ModelContract(schema_version=1, name=name, task=contract_pb2.TASK_OTHER)
    contract.inputs.add(name="x", dtype=contract_pb2.DATA_TYPE_INT64)
    contract.outputs.add(name=output, dtype=contract_pb2.DATA_TYPE_INT64)
    contract.graphs.step = "model.onnx"
    contract.streaming.streamable = True
    contract.numerics.bitwise = True
    return contract


def _write(repository: Path, contract: contract_pb2.ModelContract, file: str, graph: onnx.GraphProto) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    if file == contract.graphs.step:
        text = json_format.MessageToJson(contract, preserving_proto_field_name=True)
        helper.set_model_props(model, {METADATA_KEY: text})
    onnx.checker.check_model(model)
    folder = repository / contract.name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(model.SerializeToString())


def _value(name: str, shape: Sequence[str | int], dtype: int = _INT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def _weight(name: str, values: Sequence[int] | int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _spell(begin: str, digits: str, end: str, spelled: str) -> onnx.NodeProto:
    """Scan: (begin [B], digits [B, T]) -> (end [B], spelled [B, T]), each ten times the one before, plus its digit."""
    body = helper.make_graph(
        [
            helper.make_node("Constant", [], ["ten"], value=_weight("ten_value", 10)),
            helper.make_node("Mul", ["s", "ten"], ["shifted"]),
            helper.make_node("Add", ["shifted", "digit"], ["s_next"]),
            helper.make_node("Identity", ["s_next"], ["told"]),
        ],
        "spell",
        [_value("s", ["B"]), _value("digit", ["B"])],
        [_value("s_next", ["B"]), _value("told", ["B"])],
    )
    return helper.make_node(
        "Scan", [begin, digits], [end, spelled], body=body, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1]
    )


def _history(states: list[str], outputs: list[str]) -> onnx.GraphProto:
    (state,), (state_next, y) = states, outputs
    return helper.make_graph(
        [_spell(state, "x", state_next, y)],
        "primed",
        [_value("x", ["B", "T"]), _value(state, ["B"])],
        [_value(y, ["B", "T"]), _value(state_next, ["B"])],
    )


def _prime() -> onnx.GraphProto:
    """What the first `source_length` of `source` spell: the Scan's answer at the last of them."""
    nodes = [
        helper.make_node("Sub", ["source_length", "one"], ["last"]),
        helper.make_node("Mul", ["source_length", "zero"], ["begin"]),
        _spell("begin", "source", "all", "spelled"),
        helper.make_node("Unsqueeze", ["last", "axis"], ["place"]),
        helper.make_node("GatherElements", ["spelled", "place"], ["found"], axis=1),
        helper.make_node("Squeeze", ["found", "axis"], ["history"]),
    ]
    inputs = [_value("source", ["B", "S"]), _value("source_length", ["B"])]
    weights = [_weight("one", 1), _weight("zero", 0), _weight("axis", [1])]
    return helper.make_graph(nodes, "prime", inputs, [_value("history", ["B"])], weights)


def _whole() -> onnx.GraphProto:
    nodes = [
        helper.make_node("ReduceSum", ["x", "axis"], ["sums"], keepdims=0),
        helper.make_node("Mul", ["sums", "zero"], ["begin"]),
        _spell("begin", "x", "end", "y"),
    ]
    weights = [_weight("zero", 0), _weight("axis", [1])]
    return helper.make_graph(nodes, "whole", [_value("x", ["B", "T"])], [_value("y", ["B", "T"])], weights)


def _restorer(table: np.ndarray) -> onnx.GraphProto:
    """The rows of `table` [V, V] by the characters that `_ahead` gives back."""
    graph = _ahead(helper.make_node("Identity", ["x"], ["spelled"]))
    graph.node.extend(
        [
            helper.make_node("Gather", ["table", "y"], ["found"], axis=0),
            helper.make_node("Unsqueeze", ["is_emitted", "last_axis"], ["is_emitted_column"]),
            helper.make_node("Where", ["is_emitted_column", "found", "nothing"], ["scores"]),
        ]
    )
    nothing = numpy_helper.from_array(np.zeros((), np.float32), "nothing")
    graph.initializer.extend([numpy_helper.from_array(table, "table"), nothing, _weight("last_axis", [2])])
    graph.output[0].CopyFrom(_value("scores", ["B", "E", len(table)], TensorProto.FLOAT))
    return graph


def _ahead(answer: onnx.NodeProto | None = None) -> onnx.GraphProto:
    """`answer` makes `spelled` [B, T] of x, by default what spells the history.

    `all` [B, R + T] is what was held, at its right end, and the answers to x; the first that are due are emitted.
    """
    nodes = [
        helper.make_node("Slice", ["held", "last", "beyond", "axis"], ["last_held"]),
        helper.make_node("Squeeze", ["last_held", "axis"], ["begin"]),
        answer or _spell("begin", "x", "end", "spelled"),
        helper.make_node("Concat", ["held", "spelled"], ["all"], axis=1),
        # How many there are, and how many are due: all of them at the end of a stream.
        helper.make_node("Add", ["count", "length"], ["present"]),
        helper.make_node("Sub", ["present", "num_held"], ["ripe"]),
        helper.make_node("Max", ["ripe", "zero"], ["due"]),
        helper.make_node("Where", ["flush", "present", "due"], ["emitted"]),
        # They begin at R - count.
        helper.make_node("Shape", ["all"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["width"], axis=0),
        helper.make_node("Range", ["zero", "width", "one"], ["places"]),
        helper.make_node("Sub", ["num_held", "count"], ["first"]),
        helper.make_node("Unsqueeze", ["first", "axis"], ["first_column"]),
        helper.make_node("Add", ["places", "first_column"], ["shifted"]),
        helper.make_node("Sub", ["width", "one"], ["most"]),
        helper.make_node("Min", ["shifted", "most"], ["clipped"]),
        helper.make_node("GatherElements", ["all", "clipped"], ["moved"], axis=1),
        helper.make_node("Unsqueeze", ["emitted", "axis"], ["emitted_column"]),
        helper.make_node("Less", ["places", "emitted_column"], ["is_emitted"]),
        helper.make_node("Where", ["is_emitted", "moved", "zero"], ["y"]),
        # The last R of what is there are held.
        helper.make_node("Unsqueeze", ["length", "axis"], ["length_column"]),
        helper.make_node("Add", ["length_column", "held_places"], ["kept_places"]),
        helper.make_node("GatherElements", ["all", "kept_places"], ["kept"], axis=1),
        helper.make_node("Unsqueeze", ["flush", "axis"], ["flush_column"]),
        helper.make_node("Where", ["flush_column", "zero", "kept"], ["held_next"]),
        helper.make_node("Min", ["present", "num_held"], ["kept_count"]),
        helper.make_node("Where", ["flush", "zero", "kept_count"], ["count_next"]),
    ]
    weights = [
        _weight("zero", 0),
        _weight("one", 1),
        _weight("axis", [1]),
        _weight("last", [LOOK_AHEAD - 1]),
        _weight("beyond", [LOOK_AHEAD]),
        _weight("num_held", LOOK_AHEAD),
        _weight("held_places", list(range(LOOK_AHEAD))),
    ]
    inputs = [
        _value("x", ["B", "T"]),
        _value("held", ["B", LOOK_AHEAD]),
        _value("count", ["B"]),
        _value("length", ["B"]),
        _value("flush", ["B"], _BOOL),
    ]
    outputs = [
        _value("y", ["B", "E"]),
        _value("held_next", ["B", LOOK_AHEAD]),
        _value("count_next", ["B"]),
        _value("emitted", ["B"]),
    ]
    return helper.make_graph(nodes, "ahead", inputs, outputs, weights)
