"""Attempts: one graph with one set of states, laid out, rewritten and tried.

Owns the verdict on that set: whether it streams, and within which differences. Must not know which sets there are.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from eddy.inspection.axes import Ports, find_layouts
from eddy.inspection.canonical import Canonical, canonical_form
from eddy.inspection.declared import without_declarations
from eddy.inspection.errors import InspectionError
from eddy.inspection.laws import Finding, Stepper, try_chunks, try_repeats, try_rows
from eddy.inspection.layout import VARIES, Axes, Layout
from eddy.inspection.pairs import Pair
from eddy.inspection.program import Loader, Program
from eddy.inspection.report import Origin
from eddy.inspection.settings import Settings
from eddy.inspection.source import Source
from eddy.inspection.tables import integer_limits
from eddy.inspection.trial import RunFailedError
from eddy.inspection.walk import scope_of

# Beyond this share of the largest value it is another result, not another rounding.
MAX_RELATIVE = 1e-3
# A contract's tolerance is so many times what was seen: what is tried is a sample. The least is a rounding error's.
_HEADROOM = 8.0
_LEAST = 1e-6
_MAX_LAYOUTS = 3


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one set of states.

    Attributes:
        layout: of the graph; form: the step graph.
        chunks: the chunk law's worst, None where the graph takes one step a run, so that nothing can be cut.
        rows: the batch law's worst; paired: the same where no run has fewer than two rows, as the server has it; None
            where the graph fixes its rows.
        failure: why it does not stream, "" where it does; fails_by_trying: a law does not hold.
    """

    source: Source
    pairs: tuple[Pair, ...]
    layout: Layout
    form: Canonical
    program: Program
    limits: Mapping[str, tuple[int, int]]
    chunks: Finding | None
    rows: Finding | None
    paired: Finding | None
    failure: str = ""

    @property
    def streams(self) -> bool:
        """It can be stepped."""
        return not self.failure

    @property
    def tolerance(self) -> float:
        """Largest absolute difference that a user may see; 0 where all bits agree."""
        worst = max((found.worst for found in (self.chunks, self.paired) if found is not None), default=0.0)
        return max(_HEADROOM * worst, _LEAST) if worst else 0.0


def attempt(source: Source, pairs: Sequence[Pair], load: Loader, settings: Settings) -> Attempt | None:
    """Tries `pairs` as the states of a graph; None where no layout makes it run.

    Of several layouts that run the first that streams is taken, else the likeliest.
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
    program = load_graph(load, source)
    first: Attempt | None = None
    for layout in islice(find_layouts(program, ports), _MAX_LAYOUTS):
        found = _judge(source, pairs, layout, load, settings, limits)
        if found.streams:
            return found
        first = first or found
        if not any(isinstance(dim, int) for port in inputs for dim in port.dims or ()):
            break
    return first


def load_graph(load: Loader, source: Source) -> Program:
    """The graph without its declarations. Raises InspectionError where the runtime refuses it."""
    try:
        return load(without_declarations(source.model))
    except Exception as error:  # the runtime is the caller's and raises what it likes
        raise InspectionError(f"the runtime refuses the graph: {error}") from error


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
    pairs: Sequence[Pair],
    layout: Layout,
    load: Loader,
    settings: Settings,
    limits: Mapping[str, tuple[int, int]],
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
    program = load(form.model)
    found = Attempt(source, tuple(pairs), layout, form, program, limits, None, None, None)
    if layout.sums_up:
        return replace(found, failure=f"output {layout.sums_up[0]!r} sums the sequence up: it has no time axis")
    varying = [name for name, axes in layout.outputs.items() if VARIES in axes]
    if varying:
        return replace(found, failure=f"output {varying[0]!r} has another number of steps than the inputs")
    stepper = Stepper(form, program, limits)
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
        raise InspectionError(message)
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
