"""Finiteness: which outputs and which states are numbers.

Owns the checks of what a model gives and of states that pass through the host. ONNX Runtime's LSTM turns a NaN of its
input into a finite output and hides one in its state, so neither tells of the other. What clients send is `values`'s.
Must not know sessions or messages.

An output is checked in every tick, as raw bytes: a few values as Python numbers, whose sum is not finite where one of
them is not (of finite ones it may overflow, then the exact check decides), more by `np.isfinite`. Sums by numpy take
longer, and products warn where they overflow.

Dimension key: B rows, T steps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import isfinite, prod

import numpy as np

from eddy.service.errors import Detail, ModelError, Reason
from eddy.service.ports import Port

# Until about here Python's sum is faster than a pass by numpy.
_FEW_BYTES = 128
# What a memoryview calls values of the machine's own byte order.
_CODES = {np.dtype("=f4"): "f", np.dtype("=f8"): "d"}


def finite_rows(states: Sequence[np.ndarray]) -> np.ndarray:
    """Rows all of whose values are finite, bool [B].

    Args:
        states: one [B, ...] a state, at least one; integers and booleans are finite. Which of a model's states may be
            anything is the model's to know: see `ServedModel.finite_rows`.
    """
    good = np.ones(len(states[0]), np.bool_)
    for values in states:
        if values.dtype.kind == "f" and values.size:
            is_finite = np.isfinite(values)
            # As a rule; row by row takes three times as long.
            if not is_finite.all():
                good &= is_finite.reshape(len(values), -1).all(axis=1)
    return good


class Outputs:
    """The checks of one model's outputs.

    Args:
        results: what a tick gives (`Contract.results`); emits: the last of them counts the steps emitted.
        unchecked: names of outputs that may be anything.
    """

    def __init__(self, results: Sequence[Port], *, emits: bool = False, unchecked: Collection[str] = ()) -> None:
        self._results = tuple(results)
        self._emits = emits
        self._checked = [
            (number, port.dtype, _CODES.get(port.dtype))
            for number, port in enumerate(results)
            if port.dtype.kind == "f" and port.name not in unchecked
        ]

    def are_finite(self, blocks: Sequence[bytes]) -> bool:
        """All values in `blocks`, raw bytes a result, are finite; False also where only a closer look can tell."""
        for number, dtype, code in self._checked:
            raw = blocks[number]
            if code is not None and len(raw) <= _FEW_BYTES:
                if not isfinite(sum(memoryview(raw).cast(code))):  # type: ignore[call-overload]
                    return False
            elif b"\0" in np.isfinite(np.frombuffer(raw, dtype)).tobytes():
                return False
        return True

    def bad_rows(self, blocks: Sequence[bytes], num_rows: int) -> np.ndarray:
        """Rows of B = `num_rows` with a value that is not finite among what they give, bool [B].

        Args:
            blocks: raw bytes a result, [B, T, ...]; what a row has not emitted is of no account.
        """
        return np.asarray(self._bad(blocks, num_rows).any(axis=1))

    def bad_names(self, blocks: Sequence[bytes], num_rows: int) -> frozenset[str]:
        """The outputs that have given such a value; arguments as in `bad_rows`."""
        is_bad = np.asarray(self._bad(blocks, num_rows).any(axis=0))
        names = [self._results[number].name for number, _, _ in self._checked]
        return frozenset(name for name, bad in zip(names, is_bad.tolist(), strict=True) if bad)

    def _bad(self, blocks: Sequence[bytes], num_rows: int) -> np.ndarray:
        """Which outputs that are checked are bad in which row, bool [B, checked]."""
        counts = np.frombuffer(blocks[-1], "<i8") if self._emits else None
        bad = np.zeros((num_rows, len(self._checked)), np.bool_)
        for place, (number, dtype, _) in enumerate(self._checked):
            is_bad = ~np.isfinite(np.frombuffer(blocks[number], dtype).reshape(num_rows, -1))
            if counts is not None:
                width = prod(self._results[number].shape)
                is_bad &= np.arange(is_bad.shape[1]) < counts[:, None] * width
            bad[:, place] = is_bad.any(axis=1)
        return bad


def blanked(block: bytes, bad: np.ndarray) -> bytes:
    """`block`, raw [B, ...], with zeros in the rows that are `bad`, bool [B]."""
    rows = np.frombuffer(block, np.uint8).reshape(len(bad), -1).copy()
    rows[bad] = 0
    return rows.tobytes()


def not_finite(where: str) -> ModelError:
    """The error for values of a model, those of `where`, that are not finite."""
    return ModelError(
        Reason.QUARANTINED, f"{where}: not finite numbers", Detail("", "values that are not finite", "finite values")
    )


def quarantined(where: str) -> ModelError:
    """The same of a session, which ends."""
    error = not_finite(where)
    return ModelError(error.reason, f"{error.message}; the session has ended", error.detail)
