"""Ports and states: the tensors that a model takes and gives, as plain values.

Owns what follows from a dtype and a shape. Must not know contracts, files or how models are run.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a graph, [B, T, *shape].

    Attributes:
        dtype: numpy dtype; wire_dtype: its number in `eddy.v1.DataType`.
        shape: one row's one step.
        step_bytes: bytes of one row's one step.
        minimum, maximum: the inclusive range of accepted values, None when unchecked.
        extra_steps: an output may have so many more steps than the inputs, [B, T + extra_steps, *shape].
        is_per_row: it has no time axis, [B, *shape].
    """

    name: str
    dtype: np.dtype
    wire_dtype: int
    shape: tuple[int, ...]
    step_bytes: int
    minimum: float | None = None
    maximum: float | None = None
    extra_steps: int = 0
    is_per_row: bool = False

    def row_shape(self, num_steps: int) -> tuple[int, ...]:
        """Shape of one row where the inputs have T = `num_steps`."""
        return self.shape if self.is_per_row else (num_steps + self.extra_steps, *self.shape)

    def row_bytes(self, num_steps: int) -> int:
        """Bytes of one row where the inputs have T = `num_steps`."""
        return self.step_bytes if self.is_per_row else (num_steps + self.extra_steps) * self.step_bytes

    def view(self, raw: bytes | bytearray, num_rows: int, num_steps: int) -> np.ndarray:
        """`raw` as [B, *row_shape]."""
        return np.frombuffer(raw, self.dtype).reshape(num_rows, *self.row_shape(num_steps))

    def blank_step(self) -> bytes:
        """One row's one step of a value that is accepted: zero, or the nearest to it."""
        value = 0.0 if self.minimum is None else max(self.minimum, 0.0)
        value = value if self.maximum is None else min(self.maximum, value)
        return np.full(self.shape, value, self.dtype).tobytes()


@dataclass(frozen=True, slots=True)
class State:
    """One state tensor, [B, *shape].

    Attributes:
        next_name: the graph output that replaces it, empty when immutable.
        wire_dtype: its dtype's number in `eddy.v1.DataType`.
        initial: one row, shape `shape`: the value before the first step.
        row_bytes: bytes of one row.
        minimum, maximum: the inclusive range of values that clients may give, None when unchecked.
    """

    name: str
    next_name: str
    dtype: np.dtype
    wire_dtype: int
    shape: tuple[int, ...]
    initial: np.ndarray
    row_bytes: int
    minimum: float | None = None
    maximum: float | None = None


def step_bytes(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of one element of `shape`."""
    return dtype.itemsize * prod(shape)
