"""A start: what sessions begin with, where that is not the model's initial values.

Owns the checks of prime inputs and of states on the client's side, padding, and their way into messages. Must not know
calls.

Dimension key: N sessions or sequences, S source steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eddy.clients.errors import invalid
from eddy.clients.tensors import Signature, TensorSpec, convert, write_tensor
from eddy.clients.vocabulary import Encoder
from eddy.v1 import generation_pb2, inference_pb2, sessions_pb2

# What one session reads first: text, the one prime input's values [S, ...], or every prime input's by name.
Prime = str | ArrayLike | Mapping[str, ArrayLike]
# What many sessions read first: one of these each, or by name of the prime input one array [S, ...] each.
Primes = Sequence[Prime] | np.ndarray | Mapping[str, Sequence[ArrayLike]]
# States to begin with, by name: [...] each for one session, [N, ...] each for many.
States = Mapping[str, ArrayLike]

_Message = inference_pb2.OpenSessions | inference_pb2.InferRequest | generation_pb2.NewSession


class Start:
    """What N sessions begin with.

    Args:
        signature: the model's; sources: of each session one [S, ...] a prime input, in the contract's order, checked;
            none where there is no prime graph. states: [N, ...] by name, checked.
    """

    def __init__(
        self, signature: Signature, sources: Sequence[Sequence[np.ndarray]], states: Mapping[str, np.ndarray]
    ) -> None:
        self._signature = signature
        self._sources = sources
        self._states = states

    @property
    def row_bytes(self) -> int:
        """Bytes of one session's, padded to the longest."""
        longest = max((len(source[0]) for source in self._sources), default=0)
        steps = sum(spec.dtype.itemsize * prod(spec.shape) for spec in self._signature.prime_inputs)
        states: int = sum(array[0].nbytes for array in self._states.values())
        return longest * steps + states

    def write(self, message: _Message, rows: slice = slice(None)) -> None:
        """Puts what the sessions `rows` begin with into a message that opens them."""
        sources = self._sources[rows]
        if sources:
            lengths = np.array([len(source[0]) for source in sources], "<u4")
            message.prime.lengths = lengths.tobytes()
            for spec, column in zip(self._signature.prime_inputs, zip(*sources, strict=True), strict=True):
                write_tensor(message.prime.inputs.add(), spec, _padded(column, int(lengths.max())))
        for spec in self._signature.states:
            if spec.name in self._states:
                write_tensor(message.initial_states.add(), spec, self._states[spec.name][rows])


def write_states(message: sessions_pb2.ResetSessionRequest, signature: Signature, states: States) -> None:
    """Puts one session's states, by name, into a message that sets them.

    Raises:
        InvalidInput: one is unknown, or has the wrong dtype or shape.
    """
    found = _read_states(signature, {name: _alone(value, name) for name, value in states.items()}, 1)
    for spec in signature.states:
        if spec.name in found:
            write_tensor(message.initial_states.add(), spec, found[spec.name])


def start_of_one(signature: Signature, prime: Prime | None, states: States | None) -> Start:
    """What one session begins with.

    Raises:
        InvalidInput: something is missing or unknown, or has the wrong dtype, shape or length.
    """
    sources = [] if prime is None else [prime]
    alone = {name: _alone(value, name) for name, value in (states or {}).items()}
    return Start(signature, _read_sources(signature, sources, "prime"), _read_states(signature, alone, 1))


def start_of_many(signature: Signature, primes: Primes | None, states: States | None, count: int) -> Start:
    """What `count` sessions begin with.

    Raises:
        InvalidInput: as `start_of_one`, or there are not `count`.
    """
    sources: list[Prime] = []
    if primes is not None:
        sources = _transposed(primes) if isinstance(primes, Mapping) else _listed(primes)
        if len(sources) != count:
            raise invalid("INVALID_SHAPE", "prime", f"{len(sources)} sources", f"{count}, one each")
    return Start(signature, _read_sources(signature, sources, "prime"), _read_states(signature, states or {}, count))


def _listed(primes: Any) -> list[Any]:
    if isinstance(primes, str | bytes) or not isinstance(primes, Sequence | np.ndarray):
        raise invalid("INVALID_SHAPE", "prime", "one source", "a list of sources, one a session")
    return list(primes)


def _transposed(primes: Mapping[str, Sequence[ArrayLike]]) -> list[Prime]:
    """Of each session a mapping by name."""
    columns = {name: _listed(column) for name, column in primes.items()}
    if len({len(column) for column in columns.values()}) > 1:
        received = ", ".join(f"{len(column)} of {name}" for name, column in columns.items())
        raise invalid("INVALID_SHAPE", "prime", received, "as many of each input")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _read_sources(signature: Signature, primes: Sequence[Prime], field: str) -> list[list[np.ndarray]]:
    specs = signature.prime_inputs
    if bool(specs) != bool(primes):
        received, expected = ("one", "none: the model has no prime graph") if primes else ("none", _names(specs))
        raise invalid("UNKNOWN_INPUT" if primes else "MISSING_FIELD", field, received, expected)
    encoder = None
    if any(isinstance(prime, str) for prime in primes):
        if len(specs) != 1:
            raise invalid("MISSING_FIELD", field, "text", f"a mapping with {_names(specs)}")
        encoder = Encoder(signature.contract.source_vocabulary, field)
    many = len(primes) > 1
    return [
        _read_source(signature, encoder.encode(prime) if encoder is not None and isinstance(prime, str) else prime, at)
        for at, prime in ((f"{field}[{number}]" if many else field, prime) for number, prime in enumerate(primes))
    ]


def _read_source(signature: Signature, prime: Any, field: str) -> list[np.ndarray]:
    specs, most = signature.prime_inputs, signature.contract.max_prime_steps
    if not isinstance(prime, Mapping):
        if len(specs) != 1:
            raise invalid("MISSING_FIELD", field, "one array", f"a mapping with {_names(specs)}")
        prime = {specs[0].name: prime}
    if prime.keys() != {spec.name for spec in specs}:
        raise invalid("UNKNOWN_INPUT", field, ", ".join(map(str, prime)) or "none", _names(specs))
    if any(isinstance(prime[spec.name], Sequence) and not prime[spec.name] for spec in specs):  # It has no dtype.
        raise invalid("ZERO_STEPS", field, "S = 0 source steps", f"1 to {most}")
    arrays = [convert(spec, prime[spec.name], field) for spec in specs]
    for spec, array in zip(specs, arrays, strict=True):
        if array.ndim != 1 + len(spec.shape) or array.shape[1:] != spec.shape or len(array) != len(arrays[0]):
            expected = f"[S{''.join(f', {size}' for size in spec.shape)}], S the same for every input"
            raise invalid("INVALID_SHAPE", field, f"{spec.name} of shape {list(array.shape)}", expected)
    if not 1 <= len(arrays[0]) <= most:
        reason = "TOO_MANY_STEPS" if len(arrays[0]) else "ZERO_STEPS"
        raise invalid(reason, field, f"S = {len(arrays[0])} source steps", f"1 to {most}")
    return arrays


def _read_states(signature: Signature, states: States, count: int) -> dict[str, np.ndarray]:
    specs = {spec.name: spec for spec in signature.states}
    found = {}
    for name, value in states.items():
        if name not in specs:
            raise invalid("UNKNOWN_INPUT", "initial_states", repr(name), _names(signature.states))
        spec, field = specs[name], f"initial_states[{name}]"
        array = convert(spec, value, field)
        if array.shape != (count, *spec.shape):
            raise invalid("INVALID_SHAPE", field, f"shape {list(array.shape)}", f"{[count, *spec.shape]}")
        found[name] = array
    return found


def _alone(value: ArrayLike, name: str) -> np.ndarray:
    """A session's state as the states of one session."""
    try:
        return np.asarray(value)[None]
    except ValueError as error:  # Lists of different lengths.
        raise invalid("INVALID_SHAPE", f"initial_states[{name}]", f"ragged values ({error})", "an array") from error


def _padded(arrays: Sequence[np.ndarray], length: int) -> np.ndarray:
    """[N, S, ...] of one [S, ...] each; what is missing repeats the first step, a value that the input accepts."""
    return np.stack([np.concatenate([array, np.repeat(array[:1], length - len(array), axis=0)]) for array in arrays])


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(spec.name for spec in specs) or "none"
