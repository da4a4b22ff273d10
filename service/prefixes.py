"""Known prompts: the states after the beginnings of texts, so that a session that begins so need not be fed them again.

Owns what is kept (copies of states and of the last outputs, in the host's memory), how it is found, and what goes when
there is too much. Must not know sessions or the wire.

Ordering rules: what is found is what the very same tokens gave under the very same model: entries belong to one served
model, and their keys are all tokens of the prefix, which are compared and not only hashed. The states of a session that
another model has fed a part of are kept for neither. A model that is freed takes its entries along. Kept are prefixes
of whole blocks and whole prompts; found is the longest that fits.

Dimension key: N tokens of a prompt.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eddy.service.model import ServedModel
from eddy.service.stats import PrefixStats

# Prompts that are not known are fed in pieces that end at multiples of this, where states are copied.
BLOCK_TOKENS = 64
# What an entry takes beside its bytes.
_ENTRY_BYTES = 512


@dataclass(frozen=True, slots=True)
class Prefix:
    """The state after a prefix.

    Attributes:
        num_tokens: how long it is; states: one row [...] a state, by name.
        outputs: raw bytes of each of the model's results at its last token.
    """

    num_tokens: int
    states: Mapping[str, np.ndarray]
    outputs: tuple[bytes, ...]


class PrefixCache:
    """Prefixes of one model.

    Args:
        max_bytes: for all entries; the least recently used go first. stats: where to count.
    """

    def __init__(self, max_bytes: int, stats: PrefixStats) -> None:
        self.max_bytes = max_bytes
        self.stats = stats
        # Changed only by the methods below, on the event loop. The least recently used first.
        self._entries: OrderedDict[bytes, tuple[Prefix, int]] = OrderedDict()
        self.held_bytes = 0

    def find(self, tokens: Sequence[int], *, takes_all: bool) -> Prefix | None:
        """The state after the longest known prefix of N `tokens`; after all of them only where that is good enough."""
        key = key_of(tokens)
        count = len(tokens)
        blocks = range((count - 1) // BLOCK_TOKENS * BLOCK_TOKENS, 0, -BLOCK_TOKENS)
        for length in (count, *blocks) if takes_all else blocks:
            piece = key[: length * _TOKEN_BYTES]
            found = self._entries.get(piece)
            if found is not None:
                self._entries.move_to_end(piece)
                self.stats.num_hits += 1
                self.stats.num_cached_tokens += length
                return found[0]
        self.stats.num_misses += 1
        return None

    def wants(self, tokens: Sequence[int], length: int) -> bool:
        """Whether the state after the first `length` of `tokens` is one to keep, and is not kept yet.

        What is shorter than a block is fed as soon as it is found.
        """
        is_cut = length >= BLOCK_TOKENS and (length == len(tokens) or length % BLOCK_TOKENS == 0)
        return is_cut and key_of(tokens[:length]) not in self._entries

    def add(self, tokens: Sequence[int], states: Mapping[str, np.ndarray], outputs: Sequence[bytes]) -> None:
        """Keeps the state after `tokens`, unless it alone is too large; `states`: rows that nobody changes."""
        key = key_of(tokens)
        size = len(key) + sum(array.nbytes for array in states.values()) + sum(map(len, outputs)) + _ENTRY_BYTES
        if size > self.max_bytes or key in self._entries:
            return
        self._entries[key] = Prefix(len(tokens), states, tuple(outputs)), size
        self.held_bytes += size
        while self.held_bytes > self.max_bytes:
            _, (_, gone) = self._entries.popitem(last=False)
            self.held_bytes -= gone
            self.stats.num_evictions += 1


class Prefixes:
    """The caches of all models.

    Args:
        max_bytes: of each; 0: nothing is kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # Changed only by the methods below.
        self._caches: dict[ServedModel, PrefixCache] = {}

    def of(self, model: ServedModel) -> PrefixCache | None:
        """The model's; None where nothing is kept.

        Only of models whose bits do not depend on how a sequence is cut: with others a text that begins from a kept
        state would not be quite the one that is fed from its start.
        """
        contract = model.contract
        if not self._max_bytes or contract.is_primed or not contract.message.numerics.bitwise:
            return None
        return self._caches.setdefault(model, PrefixCache(self._max_bytes, model.stats.prefixes))

    def known(self, model: ServedModel) -> PrefixCache | None:
        """The model's where there is one already; any thread may ask."""
        return self._caches.get(model)

    def forget(self, model: ServedModel) -> None:
        """The model is freed."""
        self._caches.pop(model, None)


_TOKEN_BYTES = 8


def key_of(tokens: Sequence[int]) -> bytes:
    """All tokens, as a key."""
    return np.asarray(tokens, "<i8").tobytes()
