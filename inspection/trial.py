"""Trials: running a graph on random values to see what it does.

Owns drawing values and running. Must not know what is concluded.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from eddy.inspection.program import Loader, Program

Values = dict[str, np.ndarray]


class RunFailedError(Exception):
    """The runtime did not run the graph on these values; the message is the runtime's."""


def load_graph(load: Loader, model: onnx.ModelProto) -> Program:
    """A program. Raises RunFailedError where the runtime refuses the graph."""
    try:
        return load(model)
    except Exception as error:
        raise RunFailedError(str(error)) from error


def run(program: Program, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> Values:
    """The named outputs.

    Raises:
        RunFailedError: the runtime raised, or gave something that is no tensor.
    """
    try:
        found = program.run(list(names), feed)
    except Exception as error:  # a runtime of the caller's raises what it likes; this is where it ends
        raise RunFailedError(str(error)) from error
    if any(not isinstance(value, np.ndarray) for value in found):
        raise RunFailedError("an output is no tensor")
    return dict(zip(names, found, strict=True))


def draw(
    generator: np.random.Generator, dtype: np.dtype, shape: Sequence[int], limit: tuple[int, int] = (0, 1)
) -> np.ndarray:
    """Random values; integers within `limit`, both ends included."""
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return generator.integers(0, 1, shape, endpoint=True).astype(dtype)
    return generator.integers(limit[0], limit[1], shape, endpoint=True).astype(dtype)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest absolute difference, infinite where the shapes or the places of what is not finite differ."""
    if one.shape != other.shape:
        return float("inf")
    if one.tobytes() == other.tobytes():
        return 0.0
    first, second = one.astype(np.float64), other.astype(np.float64)
    if not np.array_equal(np.isfinite(first), np.isfinite(second)):
        return float("inf")
    finite = np.isfinite(first)
    return float(np.abs(first[finite] - second[finite]).max(initial=0.0))


def scale(values: np.ndarray) -> float:
    """The largest absolute finite value, at least 1: what a difference is compared with."""
    numbers = np.abs(values.astype(np.float64))
    return float(numbers[np.isfinite(numbers)].max(initial=1.0))
