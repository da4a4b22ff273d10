"""Arrays to and from wire tensors, by a model's contract.

Owns dtype and shape checks on the client's side, so that a mistake is reported where it was made.

Dimension key: B rows, T steps, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eddy.clients.errors import invalid
from eddy.v1 import contract_pb2, inference_pb2

# What `step` takes: the one input's values, or every input's by name.
Inputs = ArrayLike | Mapping[str, ArrayLike]
# What `infer` takes: the one input's sequences, an array [T, ...] each, or every input's by name.
Sequences = Sequence[ArrayLike] | np.ndarray | Mapping[str, Sequence[ArrayLike]]
# What `step_outputs` gives: every output by name.
Outputs = dict[str, np.ndarray]
# What `step_ragged_outputs` gives: every output by name, an array a row.
RaggedOutputs = dict[str, list[np.ndarray]]

_DTYPES: dict[int, np.dtype] = {
    contract_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    contract_pb2.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    contract_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    contract_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
    contract_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    contract_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
    contract_pb2.DATA_TYPE_BOOL: np.dtype("?"),
}

# Room for tags, names and shapes beside a message's tensor data.
MESSAGE_OVERHEAD_BYTES = 4096
# A handle and a position.
_COLUMN_BYTES = 16


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a contract; `shape` is what follows the axes of rows and steps."""

    name: str
    dtype: np.dtype
    wire_dtype: int
    shape: tuple[int, ...]


class Signature:
    """What a model takes and gives, from its contract.

    Args:
        contract: as GetModel returns it.
    """

    def __init__(self, contract: contract_pb2.ModelContract) -> None:
        self.contract = contract
        self.inputs = tuple(_spec(spec) for spec in contract.inputs)
        self.outputs = tuple(_spec(spec) for spec in contract.outputs)
        self.prime_inputs = tuple(_spec(spec) for spec in contract.prime_inputs)
        self.states = tuple(_spec(spec) for spec in contract.states)
        # Without: sequences only, whose answers may have any number of steps.
        self._is_streamable = contract.streaming.streamable
        # The model emits outputs when it has seen enough of what follows, not one a step, and says how many.
        self.is_ahead = bool(contract.ports.emitted)
        streaming = contract.streaming
        self._extra_steps = max(0, streaming.block_steps - 1) + streaming.look_ahead_steps if self.is_ahead else 0

    def arrays(self, values: Inputs, leading: int) -> tuple[list[np.ndarray], bool]:
        """Checked, contiguous arrays in the contract's order, and whether T was left out (one step).

        Args:
            values: one array, or a mapping by input name; shapes [*leading axes, (T,) ...].
            leading: axes before T: 0 for a session, 1 for a batch.

        Raises:
            InvalidInput: names, dtype or shape are wrong.
        """
        given = self._by_input(values, "array")
        arrays = [convert(spec, value) for spec, value in zip(self.inputs, given, strict=True)]
        is_single = arrays[0].ndim == leading + len(self.inputs[0].shape)
        lead = arrays[0].shape[: leading if is_single else leading + 1]
        for spec, array in zip(self.inputs, arrays, strict=True):
            if array.shape != (*lead, *spec.shape) or len(lead) != leading + (not is_single):
                expected = self._shape_text(spec, leading)
                raise invalid("INVALID_SHAPE", spec.name, f"shape {list(array.shape)}", expected)
        return arrays, is_single

    def sequences(self, values: Sequences) -> list[list[np.ndarray]]:
        """Checked, contiguous arrays [T, ...], sequence by sequence, in the contract's order within each.

        Args:
            values: one array [T, ...] a sequence, or a mapping by input name of such lists.

        Raises:
            InvalidInput: names, dtype or shape are wrong, or there is nothing to do.
        """
        columns = [list(column) for column in self._by_input(values, "list")]
        if len({len(column) for column in columns}) > 1:
            received = ", ".join(str(len(column)) for column in columns)
            raise invalid("INVALID_SHAPE", "inputs", f"{received} sequences", "as many of each input")
        if not columns[0]:
            raise invalid("EMPTY_BATCH", "inputs", "no sequences", "at least one")
        return [self._sequence(number, arrays) for number, arrays in enumerate(zip(*columns, strict=True))]

    def _sequence(self, number: int, values: Sequence[ArrayLike]) -> list[np.ndarray]:
        arrays = [convert(spec, value) for spec, value in zip(self.inputs, values, strict=True)]
        for spec, array in zip(self.inputs, arrays, strict=True):
            name = f"{spec.name}[{number}]"
            if array.ndim != 1 + len(spec.shape) or array.shape[1:] != spec.shape or len(array) != len(arrays[0]):
                steps = "T" if spec is self.inputs[0] or not arrays[0].ndim else len(arrays[0])
                expected = f"[{', '.join([str(steps), *map(str, spec.shape)])}]"
                raise invalid("INVALID_SHAPE", name, f"shape {list(array.shape)}", expected)
            if not len(array):
                raise invalid("ZERO_STEPS", name, "T = 0 steps", "at least 1")
        return arrays

    def _by_input(self, values: Any, kind: str) -> list[Any]:
        """Each input's values, in the contract's order; `kind` is what one input's are."""
        names = ", ".join(spec.name for spec in self.inputs)
        if isinstance(values, Mapping):
            if values.keys() != {spec.name for spec in self.inputs}:
                raise invalid("UNKNOWN_INPUT", "inputs", ", ".join(map(str, values)) or "none", names)
            return [values[spec.name] for spec in self.inputs]
        if len(self.inputs) != 1:
            raise invalid("MISSING_FIELD", "inputs", f"one {kind}", f"a mapping with {names}")
        return [values]

    @staticmethod
    def _shape_text(spec: TensorSpec, leading: int) -> str:
        rows = ["B"] * leading
        one, many = [*rows, *map(str, spec.shape)], [*rows, "T", *map(str, spec.shape)]
        return f"[{', '.join(one)}] for one step or [{', '.join(many)}]"

    def write(
        self, message: inference_pb2.StepChunk | inference_pb2.InferRequest, raw: Sequence[bytes], *leading: int
    ) -> None:
        """Adds the inputs to a message; `raw` is [*leading, ...] an input, in the contract's order."""
        for spec, data in zip(self.inputs, raw, strict=True):
            _fill(message.inputs.add(), spec, (*leading, *spec.shape), data)

    def read(self, tensors: Sequence[inference_pb2.Tensor]) -> list[np.ndarray]:
        """Writable arrays of a response's outputs, [B, T, ...] or [T, ...], in the contract's order."""
        assert len(tensors) == len(self.outputs), "every output of the contract is answered"
        return [read_tensor(tensor) for tensor in tensors]

    def by_name(self, arrays: Sequence[np.ndarray]) -> Outputs:
        """Every output by its name."""
        return {spec.name: array for spec, array in zip(self.outputs, arrays, strict=True)}

    def check_single_output(self, call: str = "step") -> None:
        """Raises InvalidInput when the model has several outputs; `call` cannot give them, `call`_outputs can."""
        if len(self.outputs) != 1:
            names = ", ".join(spec.name for spec in self.outputs)
            raise invalid(
                "UNKNOWN_OUTPUT", call, f"a model with the outputs {names}", f"one output (use {call}_outputs)"
            )

    def check_every_step(self, call: str) -> None:
        """Raises InvalidInput when the model looks ahead; `call` cannot give its outputs, `call`_ragged can."""
        if self.is_ahead:
            expected = f"one that answers every step (use {call}_ragged)"
            raise invalid("WRONG_TASK", call, "a model that looks ahead", expected)

    def check_flush(self) -> None:
        """Raises InvalidInput when streams of the model know no end."""
        if not self.contract.ports.flush:
            raise invalid("WRONG_TASK", "flush", "a model that holds nothing back", "one that looks ahead")

    def row_bytes(self, num_steps: int) -> int:
        """Bytes that one row of T steps, or the end of a stream, counts against a message's limit.

        Its inputs and columns; or its outputs, of which the service answers four times the limit.
        """
        num_steps = max(1, num_steps)
        given = sum(spec.dtype.itemsize * prod(spec.shape) for spec in self.inputs) * num_steps + _COLUMN_BYTES
        if not self._is_streamable:
            return given
        num_outputs = num_steps + self._extra_steps
        wanted = sum(spec.dtype.itemsize * prod(spec.shape) for spec in self.outputs) * num_outputs
        return max(given, -(-wanted // 4))


def read_tensor(message: inference_pb2.Tensor) -> np.ndarray:
    """A writable array."""
    return np.frombuffer(message.data, _DTYPES[message.dtype]).reshape(tuple(message.shape)).copy()


def write_tensor(message: inference_pb2.Tensor, spec: TensorSpec, array: np.ndarray) -> None:
    """Puts an array, of the spec's dtype, into a message."""
    _fill(message, spec, array.shape, array.tobytes())


def _fill(message: inference_pb2.Tensor, spec: TensorSpec, shape: Sequence[int], data: bytes) -> None:
    message.name = spec.name
    message.dtype = spec.wire_dtype  # type: ignore[assignment]  # the stub wants its own enum type
    message.shape.extend(shape)
    message.data = data


def _spec(spec: contract_pb2.TensorSpec | contract_pb2.StateSpec) -> TensorSpec:
    return TensorSpec(spec.name, _DTYPES[spec.dtype], spec.dtype, tuple(spec.shape))


def convert(spec: TensorSpec, value: ArrayLike, field: str = "") -> np.ndarray:
    """`value` as a contiguous array of the spec's dtype; `field` is what it is, for errors, the spec's name by default.

    Raises:
        InvalidInput: it is ragged, or the dtype cannot hold it.
    """
    field = field or spec.name
    try:
        array = np.asarray(value)
    except ValueError as error:  # Lists of different lengths.
        raise invalid("INVALID_SHAPE", field, f"ragged values ({error})", "an array") from error
    if array.dtype != spec.dtype:
        array = _narrow(spec.dtype, array, field)
    return np.ascontiguousarray(array) if array.ndim else array


def _narrow(dtype: np.dtype, array: np.ndarray, field: str) -> np.ndarray:
    """Narrowing within a kind is what callers mean by plain Python numbers; float to int, or overflow, is a mistake."""
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise invalid("INVALID_DTYPE", field, f"dtype {array.dtype}", dtype)
    with np.errstate(over="ignore"):
        narrowed = array.astype(dtype)
    is_lost = np.isinf(narrowed) & np.isfinite(array) if dtype.kind == "f" else narrowed != array
    if is_lost.any():
        raise invalid("OUT_OF_RANGE", field, array[is_lost].flat[0], f"values that {dtype} can hold")
    return narrowed
