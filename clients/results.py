"""Results: what an answer to a step message says of its rows.

Owns the cutting of outputs by row. A model that looks ahead emits as many outputs as it can, not one a step, so each
row has its own number of them. Must not know sessions.

Dimension key: B rows, T steps, E outputs emitted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eddy.clients.tensors import Signature
from eddy.v1 import inference_pb2


class Results:
    """The outputs of one step message.

    Args:
        arrays: one [B, E, ...] an output, in the contract's order.
        counts: outputs that count, of each row, int64 [B]; None: all of them.
    """

    __slots__ = ("arrays", "counts")

    def __init__(self, arrays: list[np.ndarray], counts: Sequence[int] | None) -> None:
        self.arrays = arrays
        self.counts = counts

    def __len__(self) -> int:
        return len(self.arrays[0])

    def row(self, row: int) -> list[np.ndarray]:
        """A row's outputs, one [T, ...] or [E, ...] each."""
        if self.counts is None:
            return [array[row] for array in self.arrays]
        return [array[row, : self.counts[row]] for array in self.arrays]


def read_results(signature: Signature, step: inference_pb2.StepResult, *, is_end: bool = False) -> Results:
    """The results in an answer that has outputs; `is_end`: it answers the end of streams, which is no step."""
    arrays = signature.read(step.outputs)
    if signature.is_ahead:
        return Results(arrays, np.frombuffer(step.emitted, "<i8").tolist())
    # Nothing is held back by a model that answers every step at once.
    return Results([array[:, :0] for array in arrays] if is_end else arrays, None)


def expanded(results: Results, picks: np.ndarray, num_rows: int) -> Results:
    """The same for `num_rows` rows, of which these are those in `picks` int64 [n]; the others are zero."""
    arrays = []
    for array in results.arrays:
        whole = np.zeros((num_rows, *array.shape[1:]), array.dtype)
        whole[picks] = array
        arrays.append(whole)
    counts = results.counts
    if counts is None:
        return Results(arrays, None)
    spread = [0] * num_rows
    for place, count in zip(picks.tolist(), counts, strict=True):
        spread[place] = count
    return Results(arrays, spread)


def no_results(signature: Signature, num_rows: int, num_steps: int) -> Results:
    """The results of rows that were refused: zeros, [B, T, ...] each; nothing where the model looks ahead."""
    num_outputs = 0 if signature.is_ahead else num_steps
    return Results([np.zeros((num_rows, num_outputs, *spec.shape), spec.dtype) for spec in signature.outputs], None)
