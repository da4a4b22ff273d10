"""Attempts: one graph with one set of states, laid out, rewritten and tried.

Owns the verdict on that set: whether it streams, and within which differences. Must not know which sets there are.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from eddy.inspection.axes import find_layouts
from eddy.inspection.candidates import Ports
from eddy.inspection.canonical import Canonical, canonical_form
from eddy.inspection.declared import without_declarations
from eddy.inspection.errors import InspectionError
from eddy.inspection.laws import Finding, Stepper, try_chunks, try_repeats, try_rows
from eddy.inspection.layout import VARIES, Axes, Layout
from eddy.inspection.obstacle import find_random
from eddy.inspection.pairs import Pair
from eddy.inspection.program import Loader, Program
from eddy.inspection.report import Origin
from eddy.inspection.settings import Settings
from eddy.inspection.source import Source
from eddy.inspection.tables import integer_limits
from eddy.inspection.trial import RunFailedError, load_graph
from eddy.inspection.walk import scope_of

# Beyond this share of the largest value it is another result, not another rounding.
MAX_RELATIVE = 1e-3
# A contract's tolerance is so many times what was seen: what is tried is a sample. The least is a rounding error's.
_HEADROOM = 8.0
_LEAST = 1e-6
# What a whole sequence may differ by from the same in another batch.
_WHOLE = 1e-5


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one set of states.

    Attributes:
        layout: of the graph; form: the step graph.
        chunks: the chunk law's worst, None where the graph takes one step a run, so that nothing can be cut.
        rows: the batch law's worst; paired: the same where no run has fewer than two rows, as the server has it; None
            where the graph fixes its rows.
        failure: why it does not stream, "" where it does.
    """

    source: Source
    ports: Ports
    pairs: tuple[Pair, ...]
    layout: Layout
    form: Canonical
    program: Program
    limits: Mapping[str, tuple[int, int]]
    chunks: Finding | None
    rows: Finding | None
    paired: Finding | None
    failure: str = ""

    def stepper(self) -> Stepper:
        """The step graph, to be run."""
        return Stepper(self.form, self.program, self.limits)

    @property
    def streams(self) -> bool:
        """It can be stepped."""
        return not self.failure

    @property
    def tolerance(self) -> float:
        """Largest absolute difference that a user may see; 0 where all bits agree."""
        if not self.streams:
            return _WHOLE
        worst = max((found.worst for found in (self.chunks, self.paired) if found is not None), default=0.0)
        return max(_HEADROOM * worst, _LEAST) if worst else 0.0


def attempt(source: Source, pairs: Sequence[Pair], load: Loader, settings: Settings) -> Attempt | None:
    """Tries `pairs` as the states of a graph; None where no layout makes it run.

    Raises:
        InspectionError: the runtime refuses the graph, or it draws random numbers.
    """
    names = {pair.input for pair in pairs}
    scope = scope_of(source.model.graph)
    inputs = [port for port in source.inputs.values() if port.name not in names]
    limits = integer_limits(scope, [port.name for port in inputs if port.dtype.kind in "iu"])
    ports = Ports(
        inputs=tuple(inputs),
        states=tuple(source.inputs[pair.input] for pair in pairs),
        outputs=tuple(source.outputs.values()),
        nexts={pair.input: pair.output for pair in pairs},
        known={pair.input: pair.batch_axis for pair in pairs if pair.batch_axis is not None},
        limits=limits,
        sizes=_weight_sizes(source),
        wanted=_wanted(source, settings),
    )
    try:
        program = load_graph(load, without_declarations(source.model))
    except RunFailedError as error:
        raise InspectionError(f"the runtime refuses the graph: {error}") from error
    layout = next(find_layouts(program, ports), None)
    return None if layout is None else _judge(source, ports, pairs, layout, load, settings)


def _wanted(source: Source, settings: Settings) -> dict[str, Axes]:
    return {name: tuple(axes) for name, axes in settings.axes.items() if name in source.inputs}


def _weight_sizes(source: Source) -> tuple[int, ...]:
    """Sizes that an axis without a declared one may have: those of the weights, frequent ones first."""
    counts: dict[int, int] = {}
    for tensor in source.model.graph.initializer:
        for size in tensor.dims:
            counts[size] = counts.get(size, 0) + 1
    return tuple(sorted(counts, key=lambda size: (-counts[size], size)))


def _judge(
    source: Source,
    ports: Ports,
    pairs: Sequence[Pair],
    layout: Layout,
    load: Loader,
    settings: Settings,
) -> Attempt:
    """Rewrites the graph and tries the laws."""
    form = canonical_form(
        source.model,
        layout,
        pairs,
        source.inputs,
        source.outputs,
        context=settings.context_steps,
        names=settings.names,
    )
    program = load_graph(load, form.model)
    found = Attempt(source, ports, tuple(pairs), layout, form, program, ports.limits, None, None, None)
    if layout.sums_up:
        return replace(found, failure=f"output {layout.sums_up[0]!r} sums the sequence up: it has no time axis")
    varying = [name for name, axes in layout.outputs.items() if VARIES in axes]
    if varying:
        return replace(found, failure=f"output {varying[0]!r} has another number of steps than the inputs")
    stepper = found.stepper()
    rows = form.run_rows or 2
    try:
        return _tried(found, stepper, rows)
    except RunFailedError as error:
        return replace(found, failure=f"the graph does not run on parts of a sequence: {_first_line(error)}")


def _tried(found: Attempt, stepper: Stepper, rows: int) -> Attempt:
    form = found.form
    repeats = try_repeats(stepper, rows, 1)
    if repeats.worst > 0:
        message = f"the same inputs give other results each time (output {repeats.tensor!r})"
        if node := find_random(found.source.model.graph):
            message = f"{node} draws random numbers: {message}"
        raise InspectionError(f"{message}; what is sent again would not be answered alike")
    if form.max_run_steps is None:
        chunks = try_chunks(stepper, rows)
        found = replace(found, chunks=chunks)
        if chunks.relative > MAX_RELATIVE:
            return replace(found, failure=f"cut into chunks, {chunks.tensor!r} differs by {chunks.worst:.3g}")
    elif any(pair.origin is Origin.LIFTED or pair.needs_proof for pair in found.pairs):
        return replace(found, failure="the graph takes one step a run, so that nothing shows what it carries on")
    if form.run_rows is None:
        steps = 1 if form.max_run_steps else 3
        found = replace(found, rows=try_rows(stepper, steps, 1), paired=try_rows(stepper, steps, 2))
        assert found.paired is not None, "it was just found"
        if found.paired.relative > MAX_RELATIVE:
            return replace(found, failure=f"rows of a batch change each other in {found.paired.tensor!r}")
    return found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0]
