"""Lexicon: a dictionary learned from sentence pairs, and translation word by word with it.

Owns: the baseline that is made of word probabilities alone. Must not know torch, models or files.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from eddy.training.alignment import NOTHING, fit_chances
from eddy.training.catalogues import Pair

_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Source word (lower case) -> the target word that it most probably becomes."""

    words: dict[str, str]

    def translate(self, text: str) -> str:
        """Every known word replaced where it stands, its first letter as large as it was; the rest stays as it is."""
        return _WORD.sub(lambda match: self._translate_word(match.group()), text)

    def _translate_word(self, word: str) -> str:
        known = self.words.get(word.lower())
        if known is None:
            return word
        return known[:1].upper() + known[1:] if word[:1].isupper() else known


def fit_lexicon(pairs: Sequence[Pair]) -> Lexicon:
    """Learn which word becomes which; of equally probable ones the first in code point order wins."""
    chances = fit_chances([(_words(pair.source), _words(pair.target)) for pair in pairs])
    best = {e: min(table, key=lambda f: (-table[f], f)) for e, table in chances.items() if e != NOTHING and table}
    return Lexicon(best)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
