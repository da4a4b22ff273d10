"""Alignment: which words of a sentence and of its translation belong together, learned from pairs.

Owns: IBM model 1 (Brown, Della Pietra, Della Pietra, Mercer 1993), the joining of both directions (Och and Ney 2003)
and the phrases that follow from it (Koehn, Och, Marcu 2003). Must not know vocabularies, torch, models or files.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from eddy.training.catalogues import Pair

ITERATIONS = 6
# Every sentence also has this word, which words come from that nothing else explains: articles, mostly.
NOTHING = ""
# Its probability counts this much less when words are aligned, so that it takes only what nothing else explains.
NOTHING_WEIGHT = 0.3
# How much less a word at the other end of a sentence counts: exp(-DISTANCE * difference of relative places).
DISTANCE = 2.0

_WORD = re.compile(r"\{\d\}|[^\W\d_]+|\d|[^\w\s]|_")

Chances = dict[str, dict[str, float]]
Links = set[tuple[int, int]]


class Word(NamedTuple):
    """A word, number, mark or placeholder of a text, in lower case, and the characters that it stands at."""

    text: str
    start: int
    end: int


def split_words(text: str) -> list[Word]:
    """The words of a text in order."""
    return [Word(match.group().lower(), match.start(), match.end()) for match in _WORD.finditer(text)]


def fit_chances(sentences: Sequence[tuple[Sequence[str], Sequence[str]]]) -> Chances:
    """t(f|e), the probability that a word e becomes f, by expectation maximisation; what falls below 1e-9 is left out.

    sentences: words and the words of the translation. NOTHING stands beside every sentence's words.
    """
    chances: Chances = {}
    for _ in range(ITERATIONS):
        counts: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        for sources, targets in sentences:
            given = [NOTHING, *sources]
            for f in targets:
                # All alike at first, so that the first pass counts how often words meet.
                shares = [chances[e].get(f, 0.0) if chances else 1.0 for e in given]
                total = sum(shares)
                for e, share in zip(given, shares, strict=True):
                    if share:
                        counts[e][f] += share / total
        totals = {e: sum(table.values()) for e, table in counts.items()}
        chances = {e: {f: n / totals[e] for f, n in table.items() if n > 1e-9} for e, table in counts.items()}
    return chances


@dataclass(frozen=True, slots=True)
class Aligner:
    """Probabilities in both directions."""

    forward: Chances
    backward: Chances

    @staticmethod
    def fit(pairs: Sequence[Pair]) -> "Aligner":
        """Learn from pairs; every word of them can be aligned then."""
        words = [
            ([word.text for word in split_words(pair.source)], [word.text for word in split_words(pair.target)])
            for pair in pairs
        ]
        return Aligner(fit_chances(words), fit_chances([(targets, sources) for sources, targets in words]))

    def align(self, sources: Sequence[str], targets: Sequence[str]) -> Links:
        """Links (i, j) of the i-th source word with the j-th target word.

        Those that both directions agree on, then neighbours of links that one direction has, while they reach a word
        that has none yet.
        """
        one = set(_best(sources, targets, self.forward))
        other = {(i, j) for j, i in _best(targets, sources, self.backward)}
        links, waiting = one & other, one | other
        grown = True
        while grown:
            grown = False
            for i, j in sorted(waiting - links):
                near = any((i + a, j + b) in links for a in (-1, 0, 1) for b in (-1, 0, 1))
                if near and not ({i} <= {x for x, _ in links} and {j} <= {y for _, y in links}):
                    links.add((i, j))
                    grown = True
        return links


def _best(sources: Sequence[str], targets: Sequence[str], chances: Chances) -> Iterator[tuple[int, int]]:
    """For every target word the source word that it comes from, unless that is NOTHING."""
    for j, f in enumerate(targets):
        best, highest = None, NOTHING_WEIGHT * chances[NOTHING].get(f, 0.0)
        for i, e in enumerate(sources):
            distance = abs(i / len(sources) - j / len(targets))
            chance = chances.get(e, {}).get(f, 0.0) * math.exp(-DISTANCE * distance)
            if chance > highest:
                best, highest = i, chance
        if best is not None:
            yield best, j


def extract_phrases(pairs: Sequence[Pair], aligner: Aligner, max_words: int) -> list[Pair]:
    """Parts of sentences that translate each other: at most `max_words` source words and two more in the target.

    A part's words are linked with nothing outside, and its first and last source word are linked. Of several
    translations the most frequent stays, of equal ones the first; what is a whole source already is left out.
    """
    found: Counter[Pair] = Counter()
    for pair in pairs:
        found.update(_phrases(pair, aligner, max_words))
    best: dict[str, Pair] = {}
    for phrase, count in found.items():
        if phrase.source not in best or count > found[best[phrase.source]]:
            best[phrase.source] = phrase
    whole = {pair.source for pair in pairs}
    return [phrase for phrase in best.values() if phrase.source not in whole]


def _phrases(pair: Pair, aligner: Aligner, max_words: int) -> Iterator[Pair]:
    sources, targets = split_words(pair.source), split_words(pair.target)
    links = aligner.align([word.text for word in sources], [word.text for word in targets])
    linked = {i for i, _ in links}
    for first in sorted(linked):
        for last in sorted(i for i in linked if first <= i < first + max_words):
            reached = [j for i, j in links if first <= i <= last]
            low, high = min(reached), max(reached)
            outside = any(low <= j <= high and not first <= i <= last for i, j in links)
            if outside or high - low > max_words:
                continue
            source = pair.source[sources[first].start : sources[last].end]
            target = pair.target[targets[low].start : targets[high].end]
            if any(c.isalpha() for c in source) and any(c.isalpha() for c in target):
                yield Pair(source, target)
