"""Choices: the sets of states that are tried on a graph, and which of them is served.

Owns their order and the reasons: first what lies open and is sure with what lay hidden, then what might be a state.
Must not know how a set is judged.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from eddy.inspection.attempt import Attempt, attempt
from eddy.inspection.axes import feed_of
from eddy.inspection.batchable import make_batchable
from eddy.inspection.declared import declared_inputs, declared_outputs
from eddy.inspection.errors import InspectionError
from eddy.inspection.laws import BATCHES, CUTS
from eddy.inspection.layout import VARIES
from eddy.inspection.lengths import find_fixed_length, find_resampling
from eddy.inspection.lift import lift
from eddy.inspection.lifted import Lift
from eddy.inspection.obstacle import find_end_of_time, find_obstacle, find_random
from eddy.inspection.pairs import Pair, Pairing, find_pairs
from eddy.inspection.program import Loader
from eddy.inspection.recurrent import unrunnable
from eddy.inspection.report import Origin
from eddy.inspection.settings import Settings
from eddy.inspection.source import Source
from eddy.inspection.trial import RunFailedError
from eddy.inspection.walk import scope_of


@dataclass(frozen=True, slots=True)
class Choice:
    """What is served.

    Attributes:
        served: the attempt whose graph it is; reason: why it streams, or why not.
        streams: it is served step by step; else whole sequences alone.
        tried: the attempt that the probes' figures are of.
    """

    served: Attempt
    tried: Attempt
    streams: bool
    reason: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def choose(source: Source, load: Loader, settings: Settings) -> Choice:
    """Tries one set of states after the other.

    Raises:
        InspectionError: with none of them the graph runs.
    """
    if reason := unrunnable(source.model.graph, source.inputs):
        raise InspectionError(reason)
    ports = tuple(source.inputs.values()), tuple(source.outputs.values())
    pairing = find_pairs(scope_of(source.model.graph), *ports, settings.states)
    lifted = lift(source.model)
    first: Attempt | None = None
    plain: Attempt | None = None
    unproved: Attempt | None = None
    for candidate, pairs in _sets(source, pairing, lifted):
        if unproved is not None and len(pairs) <= len(unproved.pairs):
            continue
        found = attempt(candidate, pairs, load, settings)
        if found is None:
            continue
        is_plain = candidate is source
        if found.streams and not (is_plain and _hides_states(found, lifted)):
            if found.chunks is not None or not pairing.guesses:
                return _streaming(found, lifted, load, settings, pairing)
            unproved = unproved or found
        first = first or found
        plain = plain or (found if is_plain and pairs == pairing.certain else None)
    if unproved is not None:
        return _streaming(unproved, lifted, load, settings, pairing)
    if first is None:
        random = find_random(source.model.graph)
        why = f"; {random} draws random numbers" if random else ""
        raise InspectionError(
            f"no batch and time axes were found with which the graph runs and rows of a batch stay apart{why}; `axes` "
            "in model.toml can say what the axes of its inputs are"
        )
    return _whole(plain or first, first, lifted, load)


def _sets(source: Source, pairing: Pairing, lifted: Lift) -> Iterator[tuple[Source, tuple[Pair, ...]]]:
    """Graphs and their states, the likeliest first."""
    sources: list[tuple[Source, tuple[Pair, ...]]] = [(source, ())]
    if lifted.states:
        opened = tuple(
            Pair(s.input, s.output, s.how, origin=Origin.LIFTED, batch_axis=s.batch_axis, initial=s.initial)
            for s in lifted.states
        )
        inputs = {port.name: port for port in declared_inputs(lifted.model.graph)}
        # What holds nothing but final states would have no time axis, and stands in the states.
        used = {pair.output for pair in pairing.certain}
        every = {port.name: port for port in declared_outputs(lifted.model.graph)}
        rest = {name: port for name, port in every.items() if name not in lifted.echoes or name in used}
        outputs = rest if rest.keys() - used - {state.output for state in lifted.states} else every
        sources.insert(0, (Source(lifted.model, inputs, outputs, source.notes), opened))
    sets = [pairing.certain, *((*pairing.certain, *more) for more in pairing.guesses)]
    doubtful = [pair for pair in pairing.certain if not pair.is_fact]
    sets += [tuple(pair for pair in pairing.certain if pair is not doubt) for doubt in doubtful[:4]]
    for pairs in sets:
        for candidate, opened in sources:
            if all(pair.input in candidate.inputs for pair in pairs):
                yield candidate, (*pairs, *opened)


def _hides_states(found: Attempt, lifted: Lift) -> bool:
    """Nothing was cut, so nothing shows that the states inside need not be carried on."""
    return bool(lifted.recurrent) and found.chunks is None and not found.pairs


def _streaming(found: Attempt, lifted: Lift, load: Loader, settings: Settings, pairing: Pairing) -> Choice:
    """A model that is served step by step, in batches where that can be had."""
    notes = [*found.source.notes]
    warnings = [found.assumed] if found.assumed else []
    left_out = [name for name in lifted.echoes if name not in found.source.outputs]
    if left_out and found.source.model is lifted.model:
        notes.append(f"left out, as they hold final states alone: {', '.join(left_out)}")
    if found.chunks is None and pairing.guesses:
        pairs = ", ".join(f"{pair.input!r} and {pair.output!r}" for pair in pairing.guesses[0])
        notes.append(f"{pairs} look like states, but nothing proves it: `states` in model.toml can say so")
    if found.form.run_rows is not None:
        found, said, is_warning = _batched(found, load, settings)
        (warnings if is_warning else notes).append(said)
    return Choice(found, found, True, _why(found), (*_tried(found), *notes), tuple(warnings))


def _tried(found: Attempt) -> tuple[str, ...]:
    """The probes that were run."""
    tried = ["tried: the same run twice"]
    if found.chunks is not None and found.form.max_run_steps == 1:
        tried.append("tried: whole sequences against the same step by step")
    elif found.chunks is not None:
        cuts = "; ".join("+".join(str(length) for length in cut) for cut in CUTS)
        tried.append(f"tried: whole sequences against the same cut into {cuts} steps, from states under way")
    if found.rows is not None:
        tried.append(f"tried: batches of {', '.join(str(rows) for rows in BATCHES)} against each row by itself")
    return tuple(tried)


def _why(found: Attempt) -> str:
    if not found.form.states:
        return "every step is computed by itself; nothing is carried on"
    if found.chunks is None:
        return "a call is a step: the graph has no time axis, and its states go in and out"
    if found.form.max_run_steps == 1:
        return "its answer after each step is what it gives for the sequence so far"
    return "sequences cut into chunks give the result of the whole"


def _batched(found: Attempt, load: Loader, settings: Settings) -> tuple[Attempt, str, bool]:
    """The attempt on a graph that takes any number of rows, if it can be had; what to say of it; is it a warning."""
    cost = "served row by row: a run of B sessions takes B times as long as one"
    layout = found.layout
    axes = {**layout.inputs, **layout.states}
    lacking = [name for name, some in axes.items() if "batch" not in some]
    if lacking:
        said = (
            f"{cost}, as input {lacking[0]!r} has no batch axis of any size: a file exported with one would be batched"
        )
        return found, said, True
    nexts = {pair.output: layout.states[pair.input] for pair in found.pairs}
    results = {**layout.outputs, **nexts}
    generator = np.random.default_rng(30)
    steps = layout.fixed_steps or 7
    row, other = (feed_of(found.ports, layout, 1, steps, generator) for _ in range(2))
    try:
        batched = make_batchable(found.source.model, axes, results, row, other, load)
    except RunFailedError as error:
        return found, f"{cost}, as the graph was written for one row ({error})", True
    if batched.model is None:
        return found, f"{cost}, as {batched.obstacle} takes one row alone", True
    source = replace(found.source, model=batched.model)
    better = attempt(source, found.pairs, load, settings)
    if better is None or not better.streams or better.form.run_rows is not None or not _agree(found, better):
        return found, f"{cost}, as the graph was written for one row", True
    said = (
        f"made for one row; these now follow the batch: {', '.join(batched.changed) or 'nothing but its declarations'}"
    )
    return better, said, False


def _agree(one: Attempt, many: Attempt) -> bool:
    """The rewritten graph gives for a batch what the file's gives for each row."""
    generator = np.random.default_rng(31)
    single, batch = one.stepper(), many.stepper()
    states = batch.start(3)
    alone = [single.start(1) for _ in range(3)]
    for _ in range(2):
        inputs = batch.inputs(generator, 3, 1 if one.form.max_run_steps else 4)
        outputs, states = batch.step(inputs, states)
        for row in range(3):
            own, alone[row] = single.step({name: value[row : row + 1] for name, value in inputs.items()}, alone[row])
            for name, value in {**own, **alone[row]}.items():
                together = {**outputs, **states}[name][row : row + 1]
                if not np.allclose(value, together, rtol=1e-4, atol=1e-4):
                    return False
    return True


def _whole(plain: Attempt, tried: Attempt, lifted: Lift, load: Loader) -> Choice:
    """A model that is served for whole sequences alone, and why."""
    notes = (*_tried(tried), *tried.source.notes)
    return Choice(plain, tried, False, _why_not(plain, tried, lifted, load), notes, ())


def _why_not(plain: Attempt, tried: Attempt, lifted: Lift, load: Loader) -> str:
    """The sentence, with the node in it."""
    if tried.layout.sums_up and lifted.obstacles:
        # That it wants the last step, say, is no reason by itself.
        return lifted.obstacles[0].reason
    for found in (tried, plain):
        varying = any(VARIES in axes for axes in found.layout.outputs.values())
        if varying and (said := find_resampling(found, load)):
            return f"{said} ({found.failure})"
    if not tried.layout.has_time and (said := find_fixed_length(tried, load)):
        return said
    for found in (tried, plain):
        if found.layout.sums_up:
            [output] = [tensor.name for tensor in found.form.outputs if tensor.source == found.layout.sums_up[0]]
            said = find_end_of_time(found.form, load, found.limits, output)
        else:
            said = find_obstacle(found.form, load, found.limits)
        if said:
            return f"{said} ({found.failure})" if found.failure else said
    if lifted.obstacles:
        return lifted.obstacles[0].reason
    if tried.failure or plain.failure:
        return tried.failure or plain.failure
    return f"it takes one step a run, so that nothing shows what {', '.join(lifted.recurrent)} would carry on"
