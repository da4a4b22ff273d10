"""Lexicon: a dictionary learned from sentence pairs, and translation word by word with it.

Owns: IBM model 1 (Brown, Della Pietra, Della Pietra, Mercer 1993) and the baseline that is made of it. Must not know
torch, models or files.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from eddy.training.catalogues import Pair

_WORD = re.compile(r"[^\W\d_]+")
# Every source sentence also has this word, which target words come from that nothing else explains: articles, mostly.
_NOTHING = ""
ITERATIONS = 8


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
    """Learn which word becomes which by expectation maximisation; equal probabilities go by the alphabet."""
    sentences = [([_NOTHING, *_words(pair.source)], _words(pair.target)) for pair in pairs]
    # t(f|e), one table a source word; all equal at first, so the first pass counts how often words meet.
    chances: dict[str, dict[str, float]] = {}
    for _ in range(ITERATIONS):
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for sources, targets in sentences:
            for f in targets:
                shares = [chances[e].get(f, 0.0) if chances else 1.0 for e in sources]
                total = sum(shares)
                for e, share in zip(sources, shares, strict=True):
                    counts[e][f] += share / total  # type: ignore[assignment]  # Counter adds any numbers
        chances = {e: {f: n / table.total() for f, n in table.items() if n > 1e-9} for e, table in counts.items()}
    best = {e: min(table, key=lambda f: (-table[f], f)) for e, table in chances.items() if e != _NOTHING and table}
    return Lexicon(best)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
