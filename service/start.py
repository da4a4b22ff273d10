"""A start: what sessions begin with when it is not the contract's initial values.

Owns the reading of prime inputs and of states given by clients, with their checks. Must not know sessions or how
states are written.

Dimension key: B sessions, S source steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from eddy.service.contract import Contract
from eddy.service.errors import Reason, invalid
from eddy.service.ports import Port, State
from eddy.service.values import check_rows
from eddy.v1 import contract_pb2, inference_pb2


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
        return Start(states=_read_states(contract, states, count, f"{where}initial_states"))
    if not has_prime:
        raise invalid(Reason.MISSING_FIELD, f"{where}prime", "none", _listed(contract.prime_inputs))
    arrays = _read_prime(contract, prime, count, f"{where}prime")
    # A graph that is not told of lengths would take padding for the source.
    least = 1 if contract.message.ports.prime_length else arrays[0].shape[1]
    lengths = _read_lengths(prime.lengths, count, least, arrays[0].shape[1], f"{where}prime.lengths")
    return Start(arrays, lengths, _read_states(contract, states, count, f"{where}initial_states"))


def _read_prime(contract: Contract, prime: inference_pb2.Prime, count: int, where: str) -> list[np.ndarray]:
    tensors = _by_name(prime.inputs, contract.prime_inputs, f"{where}.inputs")
    arrays: list[np.ndarray] = []
    for port in contract.prime_inputs:
        if port.name not in tensors:
            raise invalid(Reason.MISSING_FIELD, f"{where}.inputs", f"no {port.name!r}", _listed(contract.prime_inputs))
        tensor, field_ = tensors[port.name], f"{where}.inputs[{port.name}]"
        steps = tensor.shape[1] if len(tensor.shape) > 1 else 0
        if arrays:
            steps = arrays[0].shape[1]
        if not 1 <= steps <= contract.max_prime_steps:
            expected = f"[{count}, 1 to {contract.max_prime_steps}{''.join(f', {n}' for n in port.shape)}]"
            raise invalid(Reason.INVALID_SHAPE, f"{field_}.shape", list(tensor.shape[:8]), expected)
        values = _read_tensor(tensor, port.dtype, port.wire_dtype, (count, steps, *port.shape), field_)
        check_rows(port, values, field_)
        arrays.append(values)
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


def _read_states(
    contract: Contract, tensors: Sequence[inference_pb2.Tensor], count: int, where: str
) -> dict[str, np.ndarray]:
    given = _by_name(tensors, contract.states, where)
    found: dict[str, np.ndarray] = {}
    for state in contract.states:
        if state.name in given:
            tensor, field_ = given[state.name], f"{where}[{state.name}]"
            if state.dtype.kind in "iu" and state.minimum is None:
                raise invalid(Reason.UNKNOWN_INPUT, field_, "values", "none: the contract gives no range for integers")
            values = _read_tensor(tensor, state.dtype, state.wire_dtype, (count, *state.shape), field_)
            port = Port(state.name, state.dtype, state.wire_dtype, state.shape, 0, state.minimum, state.maximum)
            check_rows(port, values, field_)
            found[state.name] = values
    return found


def _by_name(
    tensors: Iterable[inference_pb2.Tensor], known: Sequence[Port | State], where: str
) -> dict[str, inference_pb2.Tensor]:
    found: dict[str, inference_pb2.Tensor] = {}
    for tensor in tensors:
        if tensor.name in found or all(tensor.name != each.name for each in known):
            raise invalid(Reason.UNKNOWN_INPUT, where, repr(tensor.name), _listed(known))
        found[tensor.name] = tensor
    return found


def _read_tensor(
    tensor: inference_pb2.Tensor, dtype: np.dtype, wire_dtype: int, shape: tuple[int, ...], where: str
) -> np.ndarray:
    if tensor.dtype != wire_dtype:
        raise invalid(Reason.INVALID_DTYPE, f"{where}.dtype", _dtype_name(tensor.dtype), _dtype_name(wire_dtype))
    if list(tensor.shape) != list(shape):
        raise invalid(Reason.INVALID_SHAPE, f"{where}.shape", list(tensor.shape[:8]), list(shape))
    expected = dtype.itemsize * prod(shape)
    if len(tensor.data) != expected:
        raise invalid(Reason.INVALID_BYTE_LENGTH, f"{where}.data", f"{len(tensor.data)} bytes", f"{expected} bytes")
    return np.frombuffer(tensor.data, dtype).reshape(shape)


def _listed(known: Sequence[Port | State]) -> str:
    return f"each once: {', '.join(each.name for each in known)}"


def _dtype_name(number: int) -> str:
    if number in contract_pb2.DataType.values():
        return contract_pb2.DataType.Name(number).removeprefix("DATA_TYPE_")
    return str(number)
