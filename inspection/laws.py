"""Laws: whether a canonical graph gives the same however a sequence is cut and whoever shares its batch.

Owns the trying. Must not know why a law does not hold.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import helper

from eddy.inspection.canonical import Canonical
from eddy.inspection.program import Program
from eddy.inspection.trial import Values, difference, draw, run, scale

# T, and how it is cut.
CUTS = ((1, 2, 3, 5), (1,) * 6, (5, 1, 2))
BATCHES = (2, 3, 5)
_SEEDS = (0, 1)
_WARM_STEPS = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """What trying a law has shown.

    Attributes:
        worst: the largest absolute difference; relative: the largest, of what the values are at most (at least 1).
        tensor: where `worst` was seen.
    """

    worst: float = 0.0
    relative: float = 0.0
    tensor: str = ""

    def joined(self, other: Finding) -> Finding:
        """The worse of both."""
        worse = other if other.worst > self.worst else self
        return Finding(worse.worst, max(self.relative, other.relative), worse.tensor)


class Stepper:
    """A canonical graph that can be run on parts of sequences."""

    def __init__(self, form: Canonical, program: Program, limits: Mapping[str, tuple[int, int]]) -> None:
        self._form = form
        self.program = program
        self._limits = limits
        self._outputs = [tensor.name for tensor in form.outputs]
        self._nexts = [state.next_name for state in form.states]

    def inputs(self, generator: np.random.Generator, rows: int, steps: int) -> Values:
        """Random inputs, [B, T, ...] each."""
        return {
            tensor.name: draw(
                generator,
                np.dtype(helper.tensor_dtype_to_np_dtype(tensor.element)),
                (rows, steps, *tensor.shape),
                self._limits.get(tensor.source, (0, 1)),
            )
            for tensor in self._form.inputs
        }

    def start(self, rows: int) -> Values:
        """The initial states of `rows` rows."""
        return {state.name: np.repeat(state.initial[None], rows, axis=0) for state in self._form.states}

    def step(self, inputs: Values, states: Values) -> tuple[Values, Values]:
        """Outputs and next states, by the names of the states. Raises RunFailedError."""
        found = run(self.program, [*self._outputs, *self._nexts], {**inputs, **states})
        after = {state.name: found[state.next_name] for state in self._form.states}
        return {name: found[name] for name in self._outputs}, after

    def steps(self, inputs: Values, states: Values, lengths: Sequence[int]) -> tuple[Values, Values]:
        """The same in several runs; outputs put together along time."""
        parts: list[Values] = []
        begin = 0
        for length in lengths:
            part = {name: np.ascontiguousarray(value[:, begin : begin + length]) for name, value in inputs.items()}
            outputs, states = self.step(part, states)
            parts.append(outputs)
            begin += length
        return {name: np.concatenate([part[name] for part in parts], axis=1) for name in self._outputs}, states


def try_chunks(stepper: Stepper, rows: int) -> Finding:
    """Whole sequences against the same in chunks, outputs and final states. Raises RunFailedError."""
    worst = Finding()
    for seed in _SEEDS:
        for cuts in CUTS:
            generator = np.random.default_rng(seed)
            _, states = stepper.step(stepper.inputs(generator, rows, _WARM_STEPS), stepper.start(rows))
            inputs = stepper.inputs(generator, rows, sum(cuts))
            worst = worst.joined(compare(stepper.step(inputs, states), stepper.steps(inputs, states, cuts)))
    return worst


def try_prefixes(whole: Stepper, single: Stepper, rows: int) -> Finding:
    """Whole sequences against the same step by step, for outputs that say something of the last step alone.

    Args:
        single: the graph with outputs [B, 1, ...] of runs of one step.

    Raises:
        RunFailedError: it takes no single steps.
    """
    worst = Finding()
    for seed in _SEEDS:
        for length in (2, 5, 9):
            generator = np.random.default_rng(seed)
            _, states = whole.step(whole.inputs(generator, rows, _WARM_STEPS), whole.start(rows))
            inputs = whole.inputs(generator, rows, length)
            expected, final = whole.step(inputs, states)
            steps, after = single.steps(inputs, states, [1] * length)
            ends = {name: steps[name][:, -value.shape[1] :] for name, value in expected.items()}
            worst = worst.joined(compare((expected, final), (ends, after)))
    return worst


def try_rows(stepper: Stepper, steps: int, alone: int) -> Finding:
    """A batch against its rows each by itself, several calls long.

    Args:
        alone: the rows of a run of a row by itself, of which the others repeat it. ONNX Runtime computes one row by
            another path, with other bits, so that servers run two.
    """
    worst = Finding()
    for seed, rows in enumerate(BATCHES):
        generator = np.random.default_rng(10 + seed)
        states = stepper.start(rows)
        singles = [stepper.start(alone) for _ in range(rows)]
        for _ in range(3):
            inputs = stepper.inputs(generator, rows, steps)
            outputs, states = stepper.step(inputs, states)
            for row in range(rows):
                single = {name: np.repeat(value[row : row + 1], alone, axis=0) for name, value in inputs.items()}
                own, singles[row] = stepper.step(single, singles[row])
                found = compare(
                    ({name: value[:1] for name, value in own.items()}, {n: v[:1] for n, v in singles[row].items()}),
                    (
                        {name: value[row : row + 1] for name, value in outputs.items()},
                        {name: value[row : row + 1] for name, value in states.items()},
                    ),
                )
                worst = worst.joined(found)
    return worst


def try_repeats(stepper: Stepper, rows: int, steps: int) -> Finding:
    """The same run twice."""
    inputs = stepper.inputs(np.random.default_rng(20), rows, steps)
    states = stepper.start(rows)
    return compare(stepper.step(inputs, states), stepper.step(inputs, states))


def compare(one: tuple[Values, Values], other: tuple[Values, Values]) -> Finding:
    """Outputs and states against each other."""
    worst = Finding()
    for first, second in zip(one, other, strict=True):
        for name, value in first.items():
            found = difference(value, second[name])
            worst = worst.joined(Finding(found, found / scale(value), name))
    return worst
