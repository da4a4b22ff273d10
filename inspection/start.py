"""Starts: what a tensor's value is where it does not hang on what a model is given, only on how much of it.

Owns that evaluation: Shape -> Gather -> Concat -> ConstantOfShape and its many relatives, in numpy, within limits. Must
not know what the value is for, nor run a graph.

A shape's unknown axes get stand-ins, and everything is computed for two sets of them: what differs between both is an
axis of unknown size, and what is the same is the value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from eddy.inspection.errors import InspectionError
from eddy.inspection.walk import Scope, all_graphs, attribute, bodies, label, scope_of

# What exporters compute initial states and lengths with. Nothing random, nothing that runs long.
# One line a kind; the formatter would give each a line of its own.
# fmt: off
_COMPARING = frozenset(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"))
_BROADCAST = _COMPARING | {"Add", "And", "Div", "Max", "Min", "Mod", "Mul", "Or", "Sub", "Where"}
OPERATORS = _BROADCAST | {
    "Abs", "Cast", "CastLike", "Ceil", "Concat", "ConstantOfShape", "Expand", "Flatten", "Floor", "Gather", "Identity",
    "Neg", "Not", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Slice", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze",
}
# fmt: on
# Elements of one value and nodes behind it: far above any initial state, far below what takes long.
MAX_ELEMENTS = 1 << 22
MAX_NODES = 2000
# Axes of a tensor of which nothing is known.
_ANY_RANK = 8

Pair = tuple[np.ndarray, np.ndarray]


class Dependent(Exception):  # not a failure: the answer to a question
    """The value hangs on what the model is given. name: the tensor that begins it; node: where it was met."""

    def __init__(self, name: str, node: NodeProto | None) -> None:
        super().__init__(name)
        self.name, self.node = name, node


@dataclass
class Starts:
    """The values of one model's tensors.

    `_shapes` is filled when this is made; the others grow as questions are asked.
    """

    opset: int
    _shapes: dict[str, onnx.TypeProto.Tensor | None] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)
    # By the graph's identity and the name; whoever asks keeps the graph's scope.
    _values: dict[tuple[int, str], Pair] = field(default_factory=dict)
    _inner: dict[tuple[int, str], Scope] = field(default_factory=dict)

    def dtype(self, name: str) -> int:
        """The element type of a tensor as ONNX numbers it; 0 where it is not known."""
        found = self._shapes.get(name)
        return found.elem_type if found is not None else 0

    def sizes(self, name: str) -> tuple[tuple[int, int], ...] | None:
        """Both sizes of every axis of a tensor; None where not even their number is known."""
        found = self._shapes.get(name)
        if found is None or not found.HasField("shape"):
            return None
        return tuple(
            (axis.dim_value, axis.dim_value)
            if axis.HasField("dim_value")
            else self._stand_in(axis.dim_param or f"{name}[{number}]")
            for number, axis in enumerate(found.shape.dim)
        )

    def value(self, scope: Scope, name: str) -> Pair:
        """Both values of a tensor. Raises Dependent."""
        waiting: list[tuple[Scope, str]] = [(scope, name)]
        begun: set[tuple[int, str]] = set()
        while waiting:
            place, wanted = waiting[-1]
            home = place.home(wanted)
            if home is None:
                raise Dependent(wanted, None)
            key = (id(home.graph), wanted)
            if key in self._values:
                waiting.pop()
                continue
            missing = self._missing(home, wanted, key)
            if not missing:
                waiting.pop()
            elif key in begun or len(begun) > MAX_NODES:
                raise Dependent(wanted, home.makers.get(wanted))
            else:
                begun.add(key)
                waiting.extend(missing)
        home = scope.home(name)
        assert home is not None, "it has just been evaluated"
        return self._values[id(home.graph), name]

    def _missing(self, home: Scope, name: str, key: tuple[int, str]) -> list[tuple[Scope, str]]:
        """Evaluates `name`, or says which values that needs first. Raises Dependent."""
        constant = home.constant(name)
        if constant is not None:
            array = _array(constant, home.makers.get(name))
            self._values[key] = (array, array)
            return []
        node = home.makers.get(name)
        if node is None:
            raise Dependent(name, None)
        easy = self._from_shape(home, node)
        if easy is not None:
            self._values[key] = easy
            return []
        if node.op_type == "If":
            return self._through_branch(home, node, name, key)
        if node.op_type not in OPERATORS or node.domain not in {"", "ai.onnx"}:
            raise Dependent(name, node)
        missing = [(home, needed) for needed in node.input if needed and not self._known(home, needed)]
        if missing:
            return missing
        given = [self._read(home, needed) if needed else None for needed in node.input]
        for number, output in enumerate(self._run(node, given)):
            if node.output[number]:
                self._values[id(home.graph), node.output[number]] = output
        return []

    def _through_branch(self, home: Scope, node: NodeProto, name: str, key: tuple[int, str]) -> list[tuple[Scope, str]]:
        """The value of an If whose condition is known."""
        if not self._known(home, node.input[0]):
            return [(home, node.input[0])]
        one, other = (bool(value.reshape(-1)[0]) for value in self._read(home, node.input[0]) if value.size == 1)
        if one != other:
            raise Dependent(name, node)
        branch = dict(bodies(node)).get("then_branch" if one else "else_branch")
        place = list(node.output).index(name)
        if branch is None or place >= len(branch.output):
            raise Dependent(name, node)
        inner, result = self._inner.setdefault(key, scope_of(branch, home)), branch.output[place].name
        if not self._known(inner, result):
            return [(inner, result)]
        self._values[key] = self._read(inner, result)
        return []

    def _known(self, scope: Scope, name: str) -> bool:
        home = scope.home(name)
        return home is not None and (id(home.graph), name) in self._values

    def _read(self, scope: Scope, name: str) -> Pair:
        home = scope.home(name)
        assert home is not None, "only known values are read"
        return self._values[id(home.graph), name]

    def _from_shape(self, home: Scope, node: NodeProto) -> Pair | None:
        """The value of a node for which a shape is enough: sizes, and data times or minus itself; None for others."""
        if node.op_type in {"Shape", "Size"} and node.input:
            sizes = self.sizes(node.input[0])
            if sizes is None and node.op_type == "Size":
                raise Dependent(node.input[0], node)
            if sizes is None:
                sizes = tuple(self._stand_in(f"{node.input[0]}[{axis}]") for axis in range(_ANY_RANK))
            one, other = np.array(sizes, np.int64).reshape(-1, 2).T
            if node.op_type == "Size":
                return np.array(one.prod()), np.array(other.prod())
            begin, end = (attribute(node, word) for word in ("start", "end"))
            cut = slice(begin.i if begin is not None else None, end.i if end is not None else None)
            return one[cut], other[cut]
        is_zero = node.op_type == "Sub" and len(node.input) == 2 and node.input[0] == node.input[1]
        if node.op_type == "Mul":
            is_zero = any(constant is not None and _is_zero(constant) for constant in map(home.constant, node.input))
        if not is_zero or not node.output:
            return None
        sizes, dtype = self.sizes(node.output[0]), self.dtype(node.output[0])
        if sizes is None or not dtype:
            return None
        one, other = (np.array([size[which] for size in sizes], np.int64) for which in (0, 1))
        if max(_product(one), _product(other)) > MAX_ELEMENTS:
            raise Dependent(node.output[0], node)
        kind = helper.tensor_dtype_to_np_dtype(dtype)
        return np.zeros(one, kind), np.zeros(other, kind)

    def _run(self, node: NodeProto, given: Sequence[Pair | None]) -> list[Pair]:
        """Both values of every output of a node whose inputs are known. Raises Dependent where it cannot be run."""
        if node.op_type in _COMPARING and any(pair is not None and _differ(pair) for pair in given):
            raise Dependent(node.output[0], node)  # True for the stand-ins need not be true for every size.
        answers: list[list[np.ndarray]] = []
        for which in (0, 1):
            values = [pair[which] if pair is not None else None for pair in given]
            if _count_elements(node, values) > MAX_ELEMENTS:
                raise Dependent(node.output[0], node)
            feeds = {name: value for name, value in zip(node.input, values, strict=True) if value is not None}
            inputs = [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for name, value in feeds.items()
            ]
            outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
            graph = helper.make_graph([node], "one", inputs, outputs)
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
            try:
                answers.append([np.asarray(found) for found in ReferenceEvaluator(model).run(None, feeds)])
            except Exception as error:  # the reference raises whatever numpy raises, and more
                raise Dependent(node.output[0], node) from error
        return list(zip(*answers, strict=True))

    def _stand_in(self, symbol: str) -> tuple[int, int]:
        """Two sizes for an axis of unknown size, others for each symbol."""
        number = self._sizes.setdefault(symbol, len(self._sizes))
        return 5 + 2 * number, 6 + 2 * number


def find_starts(model: ModelProto) -> Starts:
    """What can be known of a model's tensors without running it."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 1)
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception as error:  # what a stranger's graph makes of it is not known
        raise InspectionError(f"its shapes cannot be followed: {error}") from error
    starts = Starts(opset)
    for graph in all_graphs(inferred.graph):
        for port in (*graph.input, *graph.output, *graph.value_info):
            if port.type.HasField("tensor_type"):
                found = port.type.tensor_type
                # Bodies may use a name twice: what is not the same in both is not known.
                is_new = starts._shapes.setdefault(port.name, found) is found  # noqa: SLF001  # filled here only
                if not is_new and starts._shapes[port.name] != found:  # noqa: SLF001
                    starts._shapes[port.name] = None  # noqa: SLF001
        for tensor in graph.initializer:
            ported = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims)).tensor_type
            starts._shapes[tensor.name] = ported  # noqa: SLF001
    return starts


def _array(tensor: onnx.TensorProto, node: NodeProto | None) -> np.ndarray:
    if np.prod(tensor.dims, dtype=np.float64) > MAX_ELEMENTS:
        raise Dependent(tensor.name, node)
    try:
        return numpy_helper.to_array(tensor)
    except Exception as error:
        where = label(node) if node is not None else f"initializer {tensor.name!r}"
        raise InspectionError(f"{where}: its value cannot be read: {error}") from error


def _is_zero(tensor: onnx.TensorProto) -> bool:
    return bool(np.prod(tensor.dims, dtype=np.float64) <= MAX_ELEMENTS) and not bool(_array(tensor, None).any())


def _differ(pair: Pair) -> bool:
    return pair[0].shape != pair[1].shape or not np.array_equal(*pair)


def _product(sizes: Sequence[int] | np.ndarray) -> float:
    """How many elements; a float, which does not overflow."""
    return float(np.prod(np.asarray(sizes, np.float64)))


def _count_elements(node: NodeProto, values: Sequence[np.ndarray | None]) -> float:
    """How many elements the result of a node has at most, before it is made."""
    known = [value for value in values if value is not None]
    if node.op_type == "ConstantOfShape":
        return _product(known[0]) if known else 0.0
    if node.op_type == "Expand" and len(known) == 2:
        return max(known[0].size, 1) * max(_product(known[1]), 1.0)
    if node.op_type == "Tile" and len(known) == 2:
        return known[0].size * _product(known[1])
    if node.op_type == "Range" and len(known) == 3:
        start, limit, step = (float(value.reshape(-1)[0]) for value in known)
        return abs((limit - start) / step) if step else float("inf")
    if node.op_type == "Gather" and len(known) == 2:
        return float(known[0].size) * known[1].size
    if node.op_type in _BROADCAST:
        widest = max((value.ndim for value in known), default=0)
        padded = [(1,) * (widest - value.ndim) + value.shape for value in known]
        return _product([max(sizes) for sizes in zip(*padded, strict=True)])
    return float(sum(value.size for value in known))
