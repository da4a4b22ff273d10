"""Accents data: sentences without their accents, and what each character was.

Owns: the [data] table, what stripping is, the vocabulary, and the examples that training draws. Must not know torch or
models.

Stripping leaves one character for one, so that input and target have the same length. The vocabulary comes from the
training part only.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from eddy.training.catalogues import Parts, load_sentences
from eddy.training.data import NO_TOKEN, UNKNOWN, Example, SetData, Vocabulary
from eddy.training.errors import DataError
from eddy.training.fields import require

TOKENS, CHARACTERS = "tokens", "characters"


@dataclass(frozen=True, slots=True)
class AccentsSource:
    """Message catalogues whose translations are the sentences.

    catalogues: paths of .po files, or wheel:NAME:PATTERN. licence: of all of them.
    """

    kind: ClassVar[str] = "accents"

    catalogues: tuple[str, ...]
    licence: str
    # Characters rarer than this in the training part become the unknown symbol.
    min_count: int = 3
    # Longer sentences are left out, in all parts.
    max_characters: int = 200
    # Share of characters that training cannot read: their neighbours must do.
    forget_share: float = 0.05
    # Share of sentences that training reads in lower case: words begin sentences now and then.
    lower_share: float = 0.2
    seed: int = 1

    def __post_init__(self) -> None:
        require(len(self.catalogues) >= 1, "data.catalogues", self.catalogues, "at least one")
        for name in ("min_count", "max_characters"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "at least 1")
        for name in ("forget_share", "lower_share"):
            require(0 <= getattr(self, name) < 1, f"data.{name}", getattr(self, name), "a share in [0, 1)")
        require(self.seed >= 0, "data.seed", self.seed, "0 or more")

    @property
    def source(self) -> str:
        """All catalogues in one line."""
        return ", ".join(self.catalogues)


@dataclass(frozen=True, slots=True)
class AccentsExamples:
    """Training sentences, some in lower case and with characters put out, drawn anew for every epoch."""

    source: AccentsSource
    sentences: tuple[str, ...]
    vocabulary: Vocabulary

    def epoch(self, number: int) -> Sequence[Example]:
        """The examples of an epoch."""
        rng = np.random.default_rng((self.source.seed, number))
        return [self._draw(sentence, rng) for sentence in self.sentences]

    def _draw(self, sentence: str, rng: np.random.Generator) -> Example:
        """One sentence. A character that cannot be read has no target: guessing it is another task."""
        if rng.random() < self.source.lower_share and len(sentence.lower()) == len(sentence):
            sentence = sentence.lower()
        example = make_example(self.vocabulary, sentence)
        is_lost = rng.random(len(sentence)) < self.source.forget_share
        tokens, targets = example.inputs[TOKENS], example.targets[CHARACTERS]
        return Example({TOKENS: np.where(is_lost, 0, tokens)}, {CHARACTERS: np.where(is_lost, NO_TOKEN, targets)})


@dataclass(frozen=True, slots=True)
class AccentsData(SetData):
    """Sentences as examples, and as they are written. sentences: by part."""

    sentences: Parts[str] = field(default_factory=lambda: Parts((), (), ()))


def load_accents(source: AccentsSource) -> AccentsData:
    """Read, split and encode. Raises DataError, PackageError."""
    parts = load_sentences(source.catalogues, max_characters=source.max_characters)
    text = "".join(parts.train)
    if strip(text) == text:
        raise DataError(f"{source.source}: no character with an accent in the training part, expected some")
    vocabulary = fit_vocabulary(text, source.min_count)
    validation, test = (
        tuple(make_example(vocabulary, sentence) for sentence in part) for part in (parts.validation, parts.test)
    )
    return AccentsData(
        AccentsExamples(source, parts.train, vocabulary), validation, test, vocabulary.symbols, sentences=parts
    )


def strip(text: str) -> str:
    """Text without accents: each character that is an ASCII letter with marks becomes that letter, others stay."""
    return "".join(_strip(character) for character in text)


def _strip(character: str) -> str:
    parts = unicodedata.normalize("NFD", character)
    is_marked = len(parts) > 1 and parts[0].isascii() and all(unicodedata.combining(mark) for mark in parts[1:])
    return parts[0] if is_marked else character


def fit_vocabulary(text: str, min_count: int) -> Vocabulary:
    """The unknown symbol, and every character that occurs `min_count` times, as it is or stripped. Raises DataError."""
    counts = Counter(text) + Counter(strip(character) for character in text if strip(character) != character)
    kept = sorted(c for c, n in counts.items() if n >= min_count and c != UNKNOWN)
    if not kept:
        raise DataError(f"text: no character occurs {min_count} times in its {len(text)} characters")
    return Vocabulary((UNKNOWN, *kept))


def make_example(vocabulary: Vocabulary, sentence: str) -> Example:
    """A sentence stripped, and as it is: tokens int64 [T], characters int64 [T], without a target where unknown."""
    targets = vocabulary.encode(sentence)
    return Example(
        {TOKENS: vocabulary.encode(strip(sentence))}, {CHARACTERS: np.where(targets == 0, NO_TOKEN, targets)}
    )
