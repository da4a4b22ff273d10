"""Attempts: one graph with one set of states, laid out, rewritten and tried.

Owns the verdict on that set: whether it streams, and within which differences. Must not know which sets there are.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eddy.inspection.axes import feed_of, find_layouts
from eddy.inspection.candidates import Ports
from eddy.inspection.canonical import Canonical, canonical_form
from eddy.inspection.declared import without_declarations
from eddy.inspection.errors import InspectionError
from eddy.inspection.laws import Finding, Stepper, try_chunks, try_prefixes, try_repeats, try_rows
from eddy.inspection.layout import TIME, VARIES, Axes, Layout, in_windows, step_by_step
from eddy.inspection.obstacle import find_random
from eddy.inspection.pairs import Pair
from eddy.inspection.program import Loader, Program
from eddy.inspection.report import Origin
from eddy.inspection.settings import Settings
from eddy.inspection.source import Source
from eddy.inspection.tables import integer_limits
from eddy.inspection.trial import RunFailedError, load_graph, run
from eddy.inspection.walk import scope_of

# Beyond this share of the largest value it is another result, not another rounding.
MAX_RELATIVE = 1e-3
# A contract's tolerance is so many times what was seen: what is tried is a sample. The least is a rounding error's.
_HEADROOM = 8.0
_LEAST = 1e-6
# What a whole sequence may differ by from the same in another batch.
_WHOLE = 1e-5
# Values of a step that are tried where the file does not say how many a call takes: common ones of sound first.
_WINDOWS = (512, 256, 1024, 128, 160, 320, 480, 2048, 64, 32, 16, 8, 4, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one set of states.

    Attributes:
        layout: of the graph; form: the step graph.
        chunks: the chunk law's worst, None where the graph takes one step a run, so that nothing can be cut.
        rows: the batch law's worst; paired: the same where no run has fewer than two rows, as the server has it; None
            where the graph fixes its rows.
        repeats: the same run twice.
        failure: why it does not stream, "" where it does; assumed: what its user should know was assumed.
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
    repeats: Finding | None = None
    failure: str = ""
    assumed: str = ""

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


def _form(source: Source, layout: Layout, pairs: Sequence[Pair], settings: Settings) -> Canonical:
    return canonical_form(
        source.model,
        layout,
        pairs,
        source.inputs,
        source.outputs,
        context=settings.context_steps,
        names=settings.names,
    )


def _judge(
    source: Source,
    ports: Ports,
    pairs: Sequence[Pair],
    layout: Layout,
    load: Loader,
    settings: Settings,
) -> Attempt:
    """Rewrites the graph and tries the laws."""
    form = _form(source, layout, pairs, settings)
    program = load_graph(load, form.model)
    found = Attempt(source, ports, tuple(pairs), layout, form, program, ports.limits, None, None, None)
    if layout.sums_up and layout.fixed_steps == 1:
        tried = _tried(found)
        return tried if tried.streams else _in_windows(found, load, settings) or tried
    if layout.sums_up:
        return _by_steps(found, load, settings)
    varying = [name for name, axes in layout.outputs.items() if VARIES in axes]
    if varying:
        return replace(found, failure=f"output {varying[0]!r} has another number of steps than the inputs")
    return _tried(found)


def _by_steps(found: Attempt, load: Loader, settings: Settings) -> Attempt:
    """The verdict on a graph that sums a sequence up.

    Cases:
    1. it says of each beginning of a sequence what it would say of that alone, so that it can be asked after each step;
    2. it does not run on single steps, and its states go in and out: a call is a step, a window of some size;
    3. otherwise it wants whole sequences.
    """
    failure = f"output {found.layout.sums_up[0]!r} sums the sequence up: it has no time axis"
    if VARIES in {axis for axes in found.layout.outputs.values() for axis in axes}:
        return replace(found, failure=failure)
    single = _laid_out(found, step_by_step(found.layout), load, settings)
    try:
        chunks = try_prefixes(found.stepper(), single.stepper(), found.form.run_rows or 2)
    except RunFailedError:
        return _in_windows(found, load, settings) or replace(found, failure=failure)  # 2.
    if chunks.relative > MAX_RELATIVE:
        return replace(found, chunks=chunks, failure=failure)  # 3.
    return _tried(replace(single, chunks=chunks))  # 1.


def _in_windows(found: Attempt, load: Loader, settings: Settings) -> Attempt | None:
    """The graph with calls that are steps; None where that is no way to run it."""
    is_sure = found.pairs and not any(pair.origin is Origin.LIFTED or pair.needs_proof for pair in found.pairs)
    if not is_sure or len(found.layout.sums_up) < len(found.layout.outputs):
        return None
    program = load_graph(load, without_declarations(found.source.model))
    for size in _WINDOWS:
        layout = in_windows(found.layout, size)
        try:
            feed = feed_of(found.ports, layout, layout.fixed_rows or 2, 1, np.random.default_rng(6))
            run(program, [*found.source.outputs], feed)
        except RunFailedError:
            continue
        names = [name for name, axes in found.layout.inputs.items() if TIME in axes]
        assumed = (
            f"a step is assumed to be {size} values of {names[0]!r}: the file does not say how many it takes, and it "
            "runs with these; `axes` in model.toml can say"
        )
        return _tried(replace(_laid_out(found, layout, load, settings), assumed=assumed))
    return None


def _laid_out(found: Attempt, layout: Layout, load: Loader, settings: Settings) -> Attempt:
    """The same graph and states, laid out otherwise."""
    form = _form(found.source, layout, found.pairs, settings)
    return replace(found, layout=layout, form=form, program=load_graph(load, form.model))


def _tried(found: Attempt) -> Attempt:
    """The verdict by the laws."""
    try:
        return _by_laws(found, found.stepper(), found.form.run_rows or 2)
    except RunFailedError as error:
        return replace(found, failure=f"the graph does not run on parts of a sequence: {_first_line(error)}")


def _by_laws(found: Attempt, stepper: Stepper, rows: int) -> Attempt:
    form = found.form
    repeats = try_repeats(stepper, rows, 1)
    if repeats.worst > 0:
        message = f"the same inputs give other results each time (output {repeats.tensor!r})"
        if node := find_random(found.source.model.graph):
            message = f"{node} draws random numbers: {message}"
        raise InspectionError(f"{message}; what is sent again would not be answered alike")
    found = replace(found, repeats=repeats)
    if form.run_rows is None:
        steps = 1 if form.max_run_steps else 3
        found = replace(found, rows=try_rows(stepper, steps, 1), paired=try_rows(stepper, steps, 2))
    if form.max_run_steps is None:
        chunks = try_chunks(stepper, rows)
        found = replace(found, chunks=chunks)
        if chunks.relative > MAX_RELATIVE:
            return replace(found, failure=f"cut into chunks, {chunks.tensor!r} differs by {chunks.worst:.3g}")
    elif found.chunks is None and any(pair.origin is Origin.LIFTED or pair.needs_proof for pair in found.pairs):
        return replace(found, failure=_why_one_step(found.layout))
    if found.paired is not None and found.paired.relative > MAX_RELATIVE:
        return replace(found, failure=f"rows of a batch change each other in {found.paired.tensor!r}")
    return found


def _why_one_step(layout: Layout) -> str:
    lacking = [name for name, axes in layout.inputs.items() if TIME not in axes]
    if layout.has_time and lacking:
        return (
            f"input {lacking[0]!r} has no time axis, so that a run is one step and nothing shows what is carried on; "
            "`constants` in model.toml can give it a value for all clients"
        )
    return "the graph takes one step a run, so that nothing shows what it carries on"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0]
