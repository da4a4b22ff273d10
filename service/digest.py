"""Digests of inputs, a whole tick's at once, to tell a chunk that is sent again from a changed one.

Owns the hash. It guards against mistakes, not adversaries: a client that finds a collision only gets its own old
reply. Source: multilinear hashing of 32-bit words with random 64-bit keys (Lemire and Kaser, "Strongly universal
string hashing is fast", 2014).

Dimension key: B rows, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_WORDS: dict[int, np.dtype[Any]] = {4: np.dtype("<u4"), 2: np.dtype("<u2"), 1: np.dtype("u1")}


class InputDigest:
    """Digests rows of inputs. Two servers with different keys give different digests."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator
        # Grows with the longest row seen; changed only by `__call__`. One key a word, one list an input.
        self._keys: list[np.ndarray] = []

    def __call__(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Digest of each row over all `inputs`, [B, T, ...] each, C order -> uint64 [B]."""
        total: np.ndarray | None = None
        for number, values in enumerate(inputs):
            row_bytes = values.nbytes // len(values)
            word: np.dtype[Any] = _WORDS[4 if row_bytes % 4 == 0 else 2 if row_bytes % 2 == 0 else 1]
            words = values.reshape(len(values), -1).view(word).astype(np.uint64)
            digest = words @ self._key(number, words.shape[1])
            total = digest if total is None else total + digest
        assert total is not None, "a model has at least one input"
        return total

    def _key(self, number: int, length: int) -> np.ndarray:
        while number >= len(self._keys):
            self._keys.append(np.empty(0, np.uint64))
        keys = self._keys[number]
        if len(keys) < length:
            fresh = self._generator.integers(0, 1 << 64, 2 * length - len(keys), np.uint64, endpoint=False)
            keys = self._keys[number] = np.concatenate([keys, fresh])
        return keys[:length]
