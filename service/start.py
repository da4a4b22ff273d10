"""A start: what sessions begin with when it is not the contract's initial values.

Owns the reading of prime inputs and of states given by clients, with their checks. Must not know sessions or how
states are written.

Dimension key: B sessions, S source steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from eddy.service.contract import Contract
from eddy.service.errors import Reason, invalid
from eddy.service.ports import Port, State
from eddy.service.tensors import by_name, check_tensor, in_order, missing
from eddy.service.values import check_rows
from eddy.v1 import inference_pb2


@dataclass(frozen=True, slots=True)
class Start:
    """What B sessions begin with.

    Attributes:
        prime: one [B, S, ...] a prime input, none for a model without a prime graph; lengths: int64 [B], valid source
            steps of each.
        states: [B, ...] by name.
        num_steps: S, 1 where there is none.
    """

    prime: Sequence[np.ndarray] = ()
    lengths: np.ndarray | None = None
    states: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        """S, at least 1."""
        return self.prime[0].shape[1] if self.prime else 1

    def take(self, rows: slice) -> Start:
        """The start of some of the sessions."""
        return Start(
            [values[rows] for values in self.prime],
            None if self.lengths is None else self.lengths[rows],
            {name: values[rows] for name, values in self.states.items()},
        )


def read_start(
    contract: Contract, prime: inference_pb2.Prime, states: Sequence[inference_pb2.Tensor], count: int, where: str = ""
) -> Start | None:
    """What `count` sessions begin with; None for the contract's initial values.

    Args:
        where: what the fields' paths begin with.

    Raises:
        ClientError: something is missing, unknown, twice there, or has the wrong dtype, shape, length or values.
    """
    if count < 1:
        raise invalid(Reason.OUT_OF_RANGE, "count", count, "at least 1")
    has_prime = bool(prime.inputs or prime.lengths)
    if not contract.is_primed:
        if has_prime:
            raise invalid(Reason.UNKNOWN_INPUT, f"{where}prime", "one", "none: the model has no prime graph")
        if not states:
            return None
        return Start(states=read_states(contract, states, count, f"{where}initial_states"))
    if not has_prime:
        raise missing(contract.prime_inputs, f"{where}prime")
    arrays = _read_prime(contract, prime, count, f"{where}prime")
    # A graph that is not told of lengths would take padding for the source.
    least = 1 if contract.message.ports.prime_length else arrays[0].shape[1]
    lengths = _read_lengths(prime.lengths, count, least, arrays[0].shape[1], f"{where}prime.lengths")
    return Start(arrays, lengths, read_states(contract, states, count, f"{where}initial_states"))


def _read_prime(contract: Contract, prime: inference_pb2.Prime, count: int, where: str) -> list[np.ndarray]:
    tensors = in_order(prime.inputs, contract.prime_inputs, f"{where}.inputs")
    arrays: list[np.ndarray] = []
    for port, tensor in zip(contract.prime_inputs, tensors, strict=True):
        field_ = f"{where}.inputs[{port.name}]"
        steps = tensor.shape[1] if len(tensor.shape) > 1 else 0
        if arrays:
            steps = arrays[0].shape[1]
        if not 1 <= steps <= contract.max_prime_steps:
            expected = f"[{count}, 1 to {contract.max_prime_steps}{''.join(f', {n}' for n in port.shape)}]"
            raise invalid(Reason.INVALID_SHAPE, f"{field_}.shape", list(tensor.shape[:8]), expected)
        arrays.append(_read_values(tensor, port, (count, steps, *port.shape), field_))
    return arrays


def _read_lengths(raw: bytes, count: int, least: int, steps: int, where: str) -> np.ndarray:
    if not raw:
        return np.full(count, steps, np.int64)
    if len(raw) != 4 * count:
        raise invalid(Reason.INVALID_BYTE_LENGTH, where, f"{len(raw)} bytes", f"{4 * count} bytes (uint32 [{count}])")
    lengths = np.frombuffer(raw, "<u4").astype(np.int64)
    bad = np.flatnonzero((lengths < least) | (lengths > steps))
    if len(bad):
        raise invalid(Reason.OUT_OF_RANGE, f"{where}[{bad[0]}]", lengths[bad[0]], f"{least} to {steps}")
    return lengths


def read_states(
    contract: Contract, tensors: Sequence[inference_pb2.Tensor], count: int, where: str
) -> dict[str, np.ndarray]:
    """States that a client gives, [B, ...] by name; not each must be there.

    Raises:
        ClientError: one is unknown, twice there, or has the wrong dtype, shape, length or values.
    """
    given = by_name(tensors, contract.states, where)
    found: dict[str, np.ndarray] = {}
    for state in contract.states:
        if state.name in given:
            tensor, field_ = given[state.name], f"{where}[{state.name}]"
            if state.dtype.kind in "iu" and state.minimum is None:
                raise invalid(Reason.UNKNOWN_INPUT, field_, "values", "none: the contract gives no range for integers")
            found[state.name] = _read_values(tensor, state, (count, *state.shape), field_)
    return found


def _read_values(tensor: inference_pb2.Tensor, port: Port | State, shape: tuple[int, ...], where: str) -> np.ndarray:
    """The checked values of `tensor`."""
    check_tensor(tensor, port, shape, where)
    values = np.frombuffer(tensor.data, port.dtype).reshape(shape)
    check_rows(port, values, where)
    return values
