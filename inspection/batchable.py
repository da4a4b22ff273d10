"""Batching: a graph that was written for one row is rewritten so that it takes any number.

Owns the search for sizes that were written down where the batch should be counted, and their replacement. What it gives
is right if every tensor of a batch of two is that of the two rows by themselves; that is tried here, and by the caller.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from eddy.inspection.declared import without_declarations
from eddy.inspection.exposed import data_nodes, expose, visible
from eddy.inspection.layout import BATCH, Axes
from eddy.inspection.obstacle import first_that_fails
from eddy.inspection.program import Loader
from eddy.inspection.trial import RunFailedError, Values, difference, load_graph, run, scale
from eddy.inspection.walk import all_names, fresh_name, label

_ROWS = 2
_SAME = 1e-4
# Operators that are told a shape, and by which input.
_TOLD = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}
_MAX_CHANGES = 12
_MAX_TRIES = 80
_MAX_BACK = 6


@dataclass(frozen=True, slots=True)
class Batched:
    """What came of it.

    Attributes:
        model: the rewritten copy, None where it cannot be done; changed: the nodes whose shapes follow B now.
        obstacle: the node that takes one row only, for a person; "" where the model was rewritten.
    """

    model: onnx.ModelProto | None
    changed: tuple[str, ...]
    obstacle: str


def make_batchable(
    model: onnx.ModelProto,
    axes: Mapping[str, Axes],
    results: Mapping[str, Axes],
    row: Values,
    other: Values,
    load: Loader,
) -> Batched:
    """Rewrites a copy of `model`.

    Args:
        axes: of every input, each with a batch axis; results: of the outputs.
        row, other: values of the inputs with B = 1.

    Raises:
        RunFailedError: it does not run on a row with its tensors in sight.
    """
    return _Search(model, axes, results, (row, other), load).result()


class _Search:
    """One model's search."""

    def __init__(
        self,
        model: onnx.ModelProto,
        axes: Mapping[str, Axes],
        results: Mapping[str, Axes],
        rows: tuple[Values, Values],
        load: Loader,
    ) -> None:
        self._results = {name: some.index(BATCH) for name, some in results.items() if BATCH in some}
        self._load = load
        self._model = without_declarations(model)
        self._original = model
        self._nodes = data_nodes(self._model.graph, list(axes))
        self._seen = visible(self._nodes)
        self._place = {name: index for index, node in enumerate(self._nodes) for name in node.output}
        name = next(name for name, some in axes.items() if BATCH in some)
        self._counted = (name, axes[name].index(BATCH))
        program = load_graph(load, expose(self._model, self._told_shapes()))
        self._rows = [run(program, self._told_shapes(), row) for row in rows]
        self._both = {
            name: np.concatenate([row[name] for row in rows], axis=some.index(BATCH))
            if BATCH in some
            else rows[0][name]
            for name, some in axes.items()
        }
        # Changed by `_improve`: (output of a node, place in its shape) that follow B.
        self._changes: dict[str, int] = {}
        self._tries = 0

    def _told_shapes(self) -> list[str]:
        """What is looked at: tensors of data, and the shapes that operators are told."""
        given = {value.name for value in self._model.graph.input}
        given |= {tensor.name for tensor in self._model.graph.initializer}
        told = [node.input[_TOLD[node.op_type]] for node in self._model.graph.node if self._is_told(node)]
        return list(dict.fromkeys([*self._seen, *(name for name in told if name not in given)]))

    @staticmethod
    def _is_told(node: NodeProto) -> bool:
        return node.op_type in _TOLD and len(node.input) > _TOLD[node.op_type]

    def result(self) -> Batched:
        """Goes from obstacle to obstacle."""
        stuck = self._stuck(self._changes)
        while stuck is not None and len(self._changes) < _MAX_CHANGES:
            better = self._improve(stuck)
            if better is None:
                return Batched(None, (), label(self._nodes[stuck]))
            stuck = better if better < len(self._nodes) else None
        if stuck is not None:
            return Batched(None, (), label(self._nodes[stuck]))
        makers = {name: node for node in self._model.graph.node for name in node.output}
        changed = tuple(label(makers[name]) for name in self._changes)
        return Batched(self._changed(self._original, self._changes), changed, "")

    def _improve(self, stuck: int) -> int | None:
        """One more change with which the graph gets further; how far, None where there is none."""
        for node, place in self._options(stuck):
            self._tries += 1
            if self._tries > _MAX_TRIES:
                return None
            changes = {**self._changes, node.output[0]: place}
            reached = self._stuck(changes)
            reached = len(self._nodes) if reached is None else reached
            if reached > stuck:
                self._changes = changes
                return reached
        return None

    def _options(self, stuck: int) -> Iterator[tuple[NodeProto, int]]:
        """Nodes at or before the obstacle that are told a shape, nearest first, with each place of it."""
        graph = self._model.graph
        makers = {name: node for node in graph.node for name in node.output}
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        waiting, seen, met = [self._nodes[stuck]], set(), 0
        while waiting and met < _MAX_BACK:
            node = waiting.pop(0)
            if node.output[0] in seen:
                continue
            seen.add(node.output[0])
            if self._is_told(node) and node.output[0] not in self._changes:
                met += 1
                name = node.input[_TOLD[node.op_type]]
                shape = constants.get(name, self._rows[0].get(name))
                if shape is not None and shape.ndim == 1:
                    # 1 is the likeliest size of a batch of one.
                    places = sorted(range(len(shape)), key=lambda place: (shape[place] != 1, place))
                    yield from ((node, place) for place in places if shape[place] > 0)
            waiting += [makers[name] for name in node.input if name in makers]

    def _length(self, name: str) -> int:
        """Entries of a shape that an operator is told."""
        known = {tensor.name: tensor.dims[0] for tensor in self._model.graph.initializer if len(tensor.dims) == 1}
        return known[name] if name in known else len(self._rows[0][name])

    def _stuck(self, changes: Mapping[str, int]) -> int | None:
        """The first data node whose result for two rows is not that of each; None where all are."""
        model = self._changed(self._model, changes)
        try:
            found = run(load_graph(self._load, expose(model, self._seen)), self._seen, self._both)
        except RunFailedError:
            node = first_that_fails(model, self._load, self._both)
            last = len(self._nodes) - 1
            return last if node is None else self._place.get(node.output[0], last)
        for index, node in enumerate(self._nodes):
            names = [name for name in node.output if name in found]
            if any(not self._is_batch(name, found[name]) for name in names):
                return index
        return None

    def _is_batch(self, name: str, both: np.ndarray) -> bool:
        """A tensor holds that of both rows; an output along its own axis of the batch."""
        rows = [row[name] for row in self._rows]
        if name in self._results:
            joined = np.concatenate(rows, axis=self._results[name])
            return both.shape == joined.shape and _same(both, joined)
        return _is_batch(both, rows)

    def _changed(self, model: onnx.ModelProto, changes: Mapping[str, int]) -> onnx.ModelProto:
        """A copy in which the shapes that the nodes are told count B in these places."""
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        if not changes:
            return copy
        graph, names = copy.graph, all_names(copy.graph)

        def constant(values: list[int]) -> str:
            name = fresh_name("batch_constant", names)
            graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
            return name

        source, axis = self._counted
        shape, rows, more = (fresh_name(f"batch_{part}", names) for part in ("shape", "rows", "more"))
        nodes = [
            helper.make_node("Shape", [source], [shape]),
            helper.make_node("Gather", [shape, constant([axis])], [rows], axis=0),
            helper.make_node("Sub", [rows, constant([1])], [more]),
        ]
        for node in graph.node:
            place = changes.get(node.output[0]) if node.output else None
            if place is not None:
                told = _TOLD[node.op_type]
                size = self._length(node.input[told])
                scaled, times, counted = (fresh_name(f"batch_{part}", names) for part in ("part", "times", "told"))
                one_hot = constant([int(index == place) for index in range(size)])
                nodes.append(helper.make_node("Mul", [more, one_hot], [scaled]))
                nodes.append(helper.make_node("Add", [scaled, constant([1] * size)], [times]))
                nodes.append(helper.make_node("Mul", [node.input[told], times], [counted]))
                node.input[told] = counted
            nodes.append(node)
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
        return copy


def _is_batch(both: np.ndarray, rows: list[np.ndarray]) -> bool:
    """`both` holds the two rows side by side along some axis, or all three are the same."""
    if both.shape == rows[0].shape and all(_same(both, row) for row in rows):
        return True
    if both.ndim != rows[0].ndim:
        return False
    for axis in range(both.ndim):
        size = rows[0].shape[axis]
        if both.shape != (*rows[0].shape[:axis], _ROWS * size, *rows[0].shape[axis + 1 :]):
            continue
        if _same(both, np.concatenate(rows, axis=axis)):
            return True
        # The rows may alternate, where the axis holds both steps and rows.
        if _same(both, np.stack(rows, axis=axis + 1).reshape(both.shape)):
            return True
    return False


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return difference(one, other) <= _SAME * scale(one)
