"""Pieces: the symbols of a subword vocabulary, learned by merging, and how text becomes their ids and back.

Owns: the contract's unit "piece" (the longest symbol that the text begins with; U+2581 stands for a space) and how such
a vocabulary is learned. Must not know corpora, torch or models.

Learned by byte pair encoding (Sennrich, Haddow, Birch 2016: the most frequent neighbours are merged, again and again)
over words with the space before them; a merge never crosses words. Encoding takes the longest symbol, not the merges in
their order: a service needs nothing but the list of symbols.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from eddy.training.errors import DataError

SPACE = "\u2581"
# Symbols that no text contains: anything else, the start and the end of an output.
UNKNOWN, START, END = "\ufffd", "\u2402", "\u2403"
SPECIAL = (UNKNOWN, START, END)
UNKNOWN_ID, START_ID, END_ID = 0, 1, 2

# A word, a numbered placeholder, one digit or one mark, each with the space before it.
_WORD = re.compile(f"{SPACE}?(?:[^\\W\\d_]+|{{\\d}}|.)", re.DOTALL)

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """A subword vocabulary; an id is an index into `symbols`, whose first three are SPECIAL."""

    symbols: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.symbols[: len(SPECIAL)] != SPECIAL or len(set(self.symbols)) != len(self.symbols):
            raise DataError(f"symbols: got {self.symbols[:4]} and so on, expected {SPECIAL} first and each symbol once")

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.symbols) if i >= len(SPECIAL)}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids), default=1)

    def encode(self, text: str) -> Tokens:
        """Text to ids, int64 [N]: at every place the longest symbol; a character that begins none is UNKNOWN_ID."""
        rest, ids, at = text.replace(" ", SPACE), [], 0
        while at < len(rest):
            lengths = range(min(self._longest, len(rest) - at), 0, -1)
            found = next((rest[at : at + n] for n in lengths if rest[at : at + n] in self._ids), None)
            ids.append(UNKNOWN_ID if found is None else self._ids[found])
            at += len(found or " ")
        return np.array(ids, np.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        """Ids to text, up to the first END_ID; START_ID is left out."""
        written = []
        for token in tokens:
            if token == END_ID:
                break
            if token != START_ID:
                written.append(self.symbols[token])
        return "".join(written).replace(SPACE, " ")


def fit_pieces(texts: Sequence[str], size: int, min_count: int) -> Pieces:
    """Learn at most `size` symbols: SPECIAL, characters that occur at least `min_count` times, then merged ones.

    Symbols stand in the order in which they were found; of equally frequent ones the first in code point order wins, so
    the result depends on the texts alone. Raises DataError where `size` has no room for the characters.
    """
    words = Counter(word for text in texts for word in _WORD.findall(text.replace(" ", SPACE)))
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    characters = sorted(c for c, n in counts.items() if n >= min_count and c not in SPECIAL)
    if len(SPECIAL) + len(characters) > size:
        raise DataError(f"size: got {size}, expected at least {len(SPECIAL) + len(characters)} for single characters")
    symbols = [*SPECIAL, *characters]
    merges = _Merges(words, set(characters))
    while len(symbols) < size and (merged := merges.next()) is not None:
        if merged not in symbols:  # Two ways to the same symbol.
            symbols.append(merged)
    return Pieces(tuple(symbols))


class _Merges:
    """The words as they stand after the merges so far, and how often each two neighbours occur."""

    def __init__(self, words: Counter[str], known: set[str]) -> None:
        self._words = [([*word], count) for word, count in words.items() if set(word) <= known]
        self._counts: Counter[tuple[str, str]] = Counter()
        self._where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        for i in range(len(self._words)):
            self._count(i, +1)

    def next(self) -> str | None:
        """Merge the most frequent neighbours everywhere; None where none occurs twice."""
        if not self._counts:
            return None
        pair = min(self._counts, key=lambda two: (-self._counts[two], two))
        if self._counts[pair] < 2:
            return None
        for i in sorted(self._where.pop(pair)):
            self._count(i, -1)
            self._join(self._words[i][0], pair)
            self._count(i, +1)
        return "".join(pair)

    def _count(self, i: int, sign: int) -> None:
        parts, count = self._words[i]
        for pair in pairwise(parts):
            self._counts[pair] += sign * count
            if not self._counts[pair]:
                del self._counts[pair]
            if sign > 0:
                self._where[pair].add(i)

    @staticmethod
    def _join(parts: list[str], pair: tuple[str, str]) -> None:
        i = 0
        while i < len(parts) - 1:
            if (parts[i], parts[i + 1]) == pair:
                parts[i : i + 2] = ["".join(pair)]
            i += 1
