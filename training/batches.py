"""Batches: separate sequences of similar length side by side, padded.

Owns: which sequences stand in a batch, and what padding is: zeros in inputs, marks of "no target" in targets, so that
it never counts. Must not know torch or models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eddy.training.data import NO_TOKEN, NO_VALUE, Array, Example

# Batches whose rows are sorted by length together: the more, the less padding, and the less chance in an epoch.
POOL_BATCHES = 16


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows side by side: inputs and targets [B, T, ...] by name, T the longest row's; lengths int64 [B] by input."""

    inputs: dict[str, Array]
    lengths: dict[str, npt.NDArray[np.int64]]
    targets: dict[str, Array]


def draw_order(examples: Sequence[Example], rows: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """An epoch's order of examples, int64 [N]: chance decides, but those of a batch have similar lengths.

    Cut into pieces of `rows` it gives the batches.
    """
    order = rng.permutation(len(examples))
    lengths = np.array([example.steps for example in examples])
    pools = [order[start : start + rows * POOL_BATCHES] for start in range(0, len(order), rows * POOL_BATCHES)]
    by_length = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    pieces = [by_length[start : start + rows] for start in range(0, len(order), rows)]
    # The last piece may be shorter, so it stays the last: only then do equal cuts give these pieces back.
    full = pieces[:-1]
    return np.concatenate([*(full[i] for i in rng.permutation(len(full))), pieces[-1]])


def cut_batches(examples: Sequence[Example], rows: int) -> Iterator[Batch]:
    """All examples, the shortest first, `rows` at a time."""
    order = sorted(range(len(examples)), key=lambda i: examples[i].steps)
    for start in range(0, len(order), rows):
        yield join_examples([examples[i] for i in order[start : start + rows]])


def join_examples(examples: Sequence[Example]) -> Batch:
    """Stack examples, the shorter ones padded."""
    first = examples[0]
    return Batch(
        inputs={name: _stack([e.inputs[name] for e in examples], 0) for name in first.inputs},
        lengths={name: np.array([len(e.inputs[name]) for e in examples], np.int64) for name in first.inputs},
        targets={
            name: _stack([e.targets[name] for e in examples], NO_VALUE if value.dtype.kind == "f" else NO_TOKEN)
            for name, value in first.targets.items()
        },
    )


def _stack(values: Sequence[Array], fill: float) -> Array:
    """[T_i, ...] each -> [B, T, ...], the end of shorter ones filled."""
    steps = max(len(value) for value in values)
    out = np.full((len(values), steps, *values[0].shape[1:]), fill, values[0].dtype)
    for row, value in zip(out, values, strict=True):
        row[: len(value)] = value
    return out
