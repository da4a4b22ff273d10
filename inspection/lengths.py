"""Lengths: the node that keeps a graph to sequences of one length, or gives another number of steps than came in.

Owns the search, by running a graph with other sizes. Must not know how the verdict came about.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto

from eddy.inspection.attempt import Attempt
from eddy.inspection.axes import feed_of
from eddy.inspection.declared import without_declarations
from eddy.inspection.exposed import data_nodes, expose, visible
from eddy.inspection.laws import Stepper
from eddy.inspection.layout import BATCH, Axes, Layout
from eddy.inspection.obstacle import first_that_fails
from eddy.inspection.program import Loader
from eddy.inspection.trial import RunFailedError, Values, load_graph, run
from eddy.inspection.walk import label

_ROWS = 2
# Two lengths; the longer ones for graphs that want some.
_LENGTHS = ((8, 13), (37, 90))


def find_fixed_length(found: Attempt, load: Loader) -> str | None:
    """A sentence that names the node which runs with one number of steps alone; None if none is found.

    That number stands where an input has a fixed size. Of the sizes, the one is meant that may be another for the
    longest: a size of features is missed by the first node that has weights for it.
    """
    model = without_declarations(found.source.model)
    order = {name: place for place, node in enumerate(data_nodes(model.graph, list(found.layout.inputs)))
             for name in node.output}  # fmt: skip
    best: tuple[int, int, NodeProto] | None = None
    for name, axes in found.layout.inputs.items():
        for place, size in enumerate(axes):
            if not isinstance(size, int) or len(axes) < 2 + (BATCH in axes):
                continue
            node = first_that_fails(model, load, _resized(found, name, place, size + 1))
            if node is not None and (best is None or order.get(node.output[0], 0) > best[0]):
                best = order.get(node.output[0], 0), size, node
    if best is None or not best[0]:
        return None
    return f"{label(best[2])} runs with {best[1]} steps alone, so that a sequence cannot be cut"


def _resized(found: Attempt, name: str, place: int, size: int) -> Values:
    """Values of the graph's inputs, of which one has another size in one place, and the others that were as long."""
    before = found.layout.inputs[name][place]

    def changed(axes: Axes) -> Axes:
        return (*axes[:place], size, *axes[place + 1 :]) if len(axes) > place and axes[place] == before else axes

    inputs = {other: changed(axes) for other, axes in found.layout.inputs.items()}
    layout = Layout(inputs, found.layout.states, {})
    return feed_of(found.ports, layout, found.layout.fixed_rows or _ROWS, 1, np.random.default_rng(7))


def find_resampling(found: Attempt, load: Loader) -> str | None:
    """A sentence that names the first node whose number of steps does not follow that of the inputs; None if none."""
    form = found.form
    nodes = data_nodes(form.model.graph, [tensor.name for tensor in form.inputs])
    names = visible(nodes)
    try:
        stepper = Stepper(form, load_graph(load, expose(form.model, names)), found.limits)
    except RunFailedError:
        return None
    for lengths in _LENGTHS:
        try:
            one, other = (_tensors(stepper, names, found.layout.fixed_rows or _ROWS, steps) for steps in lengths)
        except RunFailedError:
            continue
        return next((_said(node) for node in nodes if not _follows(node, one, other, lengths)), None)
    return None


def _tensors(stepper: Stepper, names: list[str], rows: int, steps: int) -> Values:
    feed = {**stepper.inputs(np.random.default_rng(8), rows, steps), **stepper.start(rows)}
    return run(stepper.program, names, feed)


def _said(node: NodeProto) -> str:
    return f"{label(node)} gives another number of steps than it is given"


def _follows(
    node: NodeProto, one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], lengths: tuple[int, int]
) -> bool:
    """With so many more steps, every axis is longer by a multiple of as many: nothing is left out of a sequence."""
    more = lengths[1] - lengths[0]
    for name in node.output:
        if name in one and one[name].ndim == other[name].ndim:
            sizes = zip(one[name].shape, other[name].shape, strict=True)
            if any((longer - size) % more for size, longer in sizes):
                return False
    return True
