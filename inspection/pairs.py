"""Pairs: which outputs of a graph are the next values of which of its inputs.

Owns the judgement by the flow of data, by names and by shapes. What it finds is tried afterwards: `certain` pairs are
believed unless trying refutes them, the others only where trying proves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, permutations, product

import numpy as np

from eddy.inspection.carried import carried_pairs
from eddy.inspection.declared import Declared
from eddy.inspection.errors import InspectionError
from eddy.inspection.names import Match, is_state_word, match
from eddy.inspection.report import Origin
from eddy.inspection.walk import Scope

# Further pairs than the certain ones are tried in so many combinations, of so many inputs at most.
_MAX_GUESSES = 24
_MAX_GUESSED = 4


@dataclass(frozen=True, slots=True)
class Pair:
    """One state.

    Attributes:
        input, output: tensors of the graph; how: how they were found, for a person.
        is_fact: an LSTM, GRU or RNN carries one to the other, or the settings say so; needs_proof: nothing but shapes
            speaks for it.
        batch_axis: where it is known already; initial: one row's worth, None for zeros.
    """

    input: str
    output: str
    how: str
    is_fact: bool = False
    needs_proof: bool = False
    origin: Origin = Origin.EXPLICIT
    batch_axis: int | None = None
    initial: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Pairing:
    """The pairs of one graph: `certain`, and `guesses`, sets of further ones to be tried, best first."""

    certain: tuple[Pair, ...]
    guesses: tuple[tuple[Pair, ...], ...] = ()


def find_pairs(
    scope: Scope,
    inputs: tuple[Declared, ...],
    outputs: tuple[Declared, ...],
    wanted: Mapping[str, str],
) -> Pairing:
    """The explicit states of a graph.

    Args:
        inputs: without those that have constant values; wanted: input -> output, of the settings.

    Raises:
        InspectionError: what the settings say cannot be.
    """
    given = {port.name: port for port in inputs}
    results = {port.name: port for port in outputs}
    pairs = [_wanted_pair(given, results, *names) for names in wanted.items()]
    if pairs and len(pairs) == len(given):
        raise InspectionError(f"states: all inputs are states, expected one of {sorted(given)} that clients give")
    facts = carried_pairs(scope)
    candidates = sorted(_candidates(scope, given, results, facts), key=lambda found: -found[0])
    pairs += _certain(candidates, pairs)
    pairs = _leave_an_input(pairs, list(given))
    order = {name: index for index, name in enumerate(given)}
    pairs.sort(key=lambda pair: order[pair.input])
    left = [port for port in inputs if port.name not in {pair.input for pair in pairs}]
    free = [port for port in outputs if port.name not in {pair.output for pair in pairs}]
    return Pairing(tuple(pairs), () if wanted else tuple(islice(_guesses(scope, left, free), _MAX_GUESSES)))


def _wanted_pair(given: Mapping[str, Declared], results: Mapping[str, Declared], name: str, result: str) -> Pair:
    if name not in given:
        raise InspectionError(f"states: {name!r} is no input of the graph, expected one of {sorted(given)}")
    if result not in results:
        raise InspectionError(f"states: {result!r} is no output of the graph, expected one of {sorted(results)}")
    if not _fits(given[name], results[result]):
        raise InspectionError(
            f"states: input {name!r} and output {result!r} must agree in dtype and shape, got "
            f"{given[name].dtype}{list(given[name].dims or ())} and "
            f"{results[result].dtype}{list(results[result].dims or ())}"
        )
    return Pair(name, result, "the settings", is_fact=True)


def _fits(given: Declared, result: Declared) -> bool:
    """Dtype, rank and declared sizes agree, as far as they are said."""
    if given.element != result.element:
        return False
    if given.dims is None or result.dims is None:
        return True
    if len(given.dims) != len(result.dims):
        return False
    sizes = zip(given.dims, result.dims, strict=True)
    return all(one == other for one, other in sizes if isinstance(one, int) and isinstance(other, int))


# How sure, and the pair.
_Candidate = tuple[float, Pair]


def _candidates(
    scope: Scope, given: Mapping[str, Declared], results: Mapping[str, Declared], facts: Mapping[tuple[str, str], bool]
) -> Iterator[_Candidate]:
    """Every pair that something speaks for."""
    for port in given.values():
        reached = scope.descendants([port.name])
        for result in results.values():
            if not _fits(port, result):
                continue
            says = match(port.name, result.name)
            shape = "shape and dtype agree"
            if (port.name, result.name) in facts:
                how = f"a recurrent node carries it from {port.name!r} to {result.name!r}; {shape}"
                # Names break ties only: of two outputs that hold one final state.
                yield 10 + says, Pair(port.name, result.name, how, is_fact=facts[port.name, result.name])
            elif says >= Match.SIDES:
                depends = result.name in reached
                how = f"the names {port.name!r} and {result.name!r}; {shape}" + (
                    "; it depends on it" if depends else ""
                )
                yield 2 * says + (0.5 if depends else 0.0), Pair(port.name, result.name, how)


def _certain(candidates: list[_Candidate], taken: list[Pair]) -> list[Pair]:
    """The candidates that are the best, and the only best, for their input and for their output."""
    inputs, outputs = {pair.input for pair in taken}, {pair.output for pair in taken}
    found: list[Pair] = []
    for sure, pair in candidates:
        if sure < 2 * Match.STATE or pair.input in inputs or pair.output in outputs:
            continue
        rivals = [
            other
            for other_sure, other in candidates
            if other is not pair
            and other_sure == sure
            and (other.input == pair.input or other.output == pair.output)
            and other.input not in inputs
            and other.output not in outputs
        ]
        if rivals:
            continue
        inputs.add(pair.input)
        outputs.add(pair.output)
        found.append(pair)
    return found


def _leave_an_input(pairs: list[Pair], given: list[str]) -> list[Pair]:
    """Something must be streamed: where all inputs look like states, the least sure pair is none."""
    if len(pairs) < len(given):
        return pairs
    doubtful = [pair for pair in pairs if not pair.is_fact]
    plain = [pair for pair in doubtful if not is_state_word(pair.input)] or doubtful
    # By convention what is streamed is the first input.
    return [pair for pair in pairs if pair is not plain[0]] if plain else pairs


def _guesses(scope: Scope, inputs: list[Declared], outputs: list[Declared]) -> Iterator[tuple[Pair, ...]]:
    """Sets of pairs that nothing but shape and dependence speaks for, at least one input left over."""
    reached = {port.name: scope.descendants([port.name]) for port in inputs[: _MAX_GUESSED + 1]}
    fitting = {
        port.name: [result.name for result in outputs if _fits(port, result) and result.name in reached[port.name]]
        for port in inputs[: _MAX_GUESSED + 1]
    }
    names = [name for name in fitting if fitting[name]]
    for count in range(min(len(names), len(inputs) - 1, _MAX_GUESSED), 0, -1):
        # The last inputs first: states follow what is streamed.
        for chosen in sorted(permutations(names, count), key=lambda some: [-names.index(name) for name in some]):
            if list(chosen) != sorted(chosen, key=names.index):
                continue
            for some in product(*(fitting[name] for name in chosen)):
                if len({*some}) == count:
                    yield tuple(
                        Pair(
                            name,
                            result,
                            f"equal shape and dtype; {result!r} depends on {name!r}; proved by trying",
                            needs_proof=True,
                        )
                        for name, result in zip(chosen, some, strict=True)
                    )
