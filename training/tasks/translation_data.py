"""Translation data: sentence pairs as symbols, and what training reads of them in each epoch.

Owns: the [data] table of translations, the vocabulary, and the examples that training draws. Must not know torch or
models.

Vocabulary, alignments and phrases come from the training part only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from eddy.training.alignment import Aligner, Word, extract_phrases, split_words
from eddy.training.catalogues import Pair, Parts, load_pairs
from eddy.training.data import NO_TOKEN, Array, Example, SetData
from eddy.training.errors import DataError
from eddy.training.fields import require
from eddy.training.pieces import END_ID, START_ID, UNKNOWN_ID, Pieces, Tokens, fit_pieces

SOURCE, TOKENS, LOGITS, ATTENTION = "source", "tokens", "logits", "attention"


@dataclass(frozen=True, slots=True)
class TranslationSource:
    """Message catalogues, and how they are cut.

    catalogues: paths of .po files, or wheel:NAME:PATTERN. licence: of all of them.
    """

    kind: ClassVar[str] = "translation"

    catalogues: tuple[str, ...]
    licence: str
    # Symbols of the vocabulary that both languages share; with few sentences, larger ones are seen too rarely.
    vocabulary_size: int = 800
    # Characters rarer than this in the training part become the unknown symbol.
    min_count: int = 4
    # Longer sentences are left out, in all parts; so are those of more symbols than `max_symbols`, source or target.
    max_characters: int = 160
    max_symbols: int = 64
    # Parts of training sentences that translate each other, up to so many words, are read too; 0: none.
    phrase_words: int = 0
    # So many phrases for each sentence of an epoch, drawn anew.
    phrase_share: float = 1.0
    # Attention is told in training which source words a word comes from, by their alignment.
    guided: bool = False
    # Share of symbols that training reads as unknown, on both sides: what is left must do.
    forget_share: float = 0.1
    seed: int = 1

    def __post_init__(self) -> None:
        require(len(self.catalogues) >= 1, "data.catalogues", self.catalogues, "at least one")
        for name in ("vocabulary_size", "min_count", "max_characters", "max_symbols"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "at least 1")
        require(self.phrase_words >= 0, "data.phrase_words", self.phrase_words, "0 or more")
        require(self.phrase_share >= 0, "data.phrase_share", self.phrase_share, "0 or more")
        require(0 <= self.forget_share < 1, "data.forget_share", self.forget_share, "a share in [0, 1)")
        require(self.seed >= 0, "data.seed", self.seed, "0 or more")

    @property
    def source(self) -> str:
        """All catalogues in one line."""
        return ", ".join(self.catalogues)


@dataclass(frozen=True, slots=True)
class TranslationExamples:
    """Training sentences, and as many phrases as the table says, drawn anew for every epoch from its number."""

    table: TranslationSource
    pairs: tuple[Example, ...]
    phrases: tuple[Example, ...]

    def epoch(self, number: int) -> Sequence[Example]:
        """The examples of an epoch."""
        rng = np.random.default_rng((self.table.seed, number))
        count = min(len(self.phrases), round(self.table.phrase_share * len(self.pairs)))
        drawn = [self.phrases[i] for i in rng.permutation(len(self.phrases))[:count]]
        return [self._forget(example, rng) for example in (*self.pairs, *drawn)]

    def _forget(self, example: Example, rng: np.random.Generator) -> Example:
        """The same with some of what is read put out; the start stays, and what is to be written."""
        inputs = {}
        for name, tokens in example.inputs.items():
            is_lost = (rng.random(len(tokens)) < self.table.forget_share) & (tokens != START_ID)
            inputs[name] = np.where(is_lost, UNKNOWN_ID, tokens)
        return Example(inputs, example.targets)


@dataclass(frozen=True, slots=True)
class TranslationData(SetData):
    """Sentence pairs as examples, and as they were. The vocabulary serves both languages."""

    pairs: Parts[Pair] = field(kw_only=True)

    @property
    def pieces(self) -> Pieces:
        """The vocabulary."""
        return Pieces(self.symbols)


def load_translation(table: TranslationSource) -> TranslationData:
    """Read, split and encode. Raises DataError."""
    found = load_pairs(table.catalogues, max_characters=table.max_characters)
    texts = [text for pair in found.train for text in (pair.source, pair.target)]
    pieces = fit_pieces(texts, table.vocabulary_size, table.min_count)
    pairs = Parts(*(_short(part, pieces, table) for part in (found.train, found.validation, found.test)))
    aligner = Aligner.fit(pairs.train) if table.phrase_words or table.guided else None
    phrases: list[Pair] = []
    if aligner and table.phrase_words:
        phrases = extract_phrases(pairs.train, aligner, table.phrase_words)
    validation, test = (tuple(encode_pair(pair, pieces) for pair in part) for part in (pairs.validation, pairs.test))
    train, drawn = (
        tuple(_hint(pair, encode_pair(pair, pieces), pieces, table, aligner) for pair in part)
        for part in (pairs.train, _short(phrases, pieces, table))
    )
    drawn = tuple(_without_end(example) for example in drawn)
    return TranslationData(
        TranslationExamples(table, train, drawn), validation, test, pieces.symbols, pieces.symbols, pairs=pairs
    )


def encode_pair(pair: Pair, pieces: Pieces) -> Example:
    """A pair as a model reads it: the source, and before each symbol of the target the one before that."""
    target: Tokens = pieces.encode(pair.target)
    return Example(
        {SOURCE: pieces.encode(pair.source), TOKENS: np.concatenate([[START_ID], target])},
        {LOGITS: np.concatenate([target, [END_ID]])},
    )


def _without_end(example: Example) -> Example:
    """A phrase: nothing is learned of where sentences end, which would be too early."""
    targets = example.targets[LOGITS].copy()
    targets[-1] = NO_TOKEN
    return Example(example.inputs, {**example.targets, LOGITS: targets})


def _hint(pair: Pair, example: Example, pieces: Pieces, table: TranslationSource, aligner: Aligner | None) -> Example:
    """The example with another target, where attention should look: int8 [T, max_symbols], 1 where words are linked.

    The end has no place.
    """
    if aligner is None or not table.guided:
        return example
    sources, targets = split_words(pair.source), split_words(pair.target)
    links = aligner.align([word.text for word in sources], [word.text for word in targets])
    one = _owners(pair.source, sources, example.inputs[SOURCE], pieces)
    other = _owners(pair.target, targets, example.targets[LOGITS][:-1], pieces)
    linked = np.zeros((len(sources), len(targets)), np.int64)
    for i, j in links:
        linked[i, j] = 1
    meant = np.zeros((len(other) + 1, table.max_symbols), np.int8)
    meant[:-1, : len(one)] = (other @ linked.T @ one.T) > 0
    return Example(example.inputs, {**example.targets, ATTENTION: meant})


def _owners(text: str, words: Sequence[Word], tokens: Array, pieces: Pieces) -> Tokens:
    """int64 [symbols, words]: 1 where a symbol has characters of a word or the space before it."""
    ends = np.cumsum([len(pieces.symbols[token]) for token in tokens.tolist()])
    starts = np.concatenate([[0], ends[:-1]])
    owned = np.zeros((len(ends), len(words)), np.int64)
    for i, word in enumerate(words):
        first = word.start - text[: word.start].endswith(" ")
        owned[:, i] = (starts < word.end) & (ends > first)
    return owned


def _short(pairs: Sequence[Pair], pieces: Pieces, table: TranslationSource) -> tuple[Pair, ...]:
    """Those whose sides have no more symbols than the table says. Raises DataError where none is left of some."""
    most = table.max_symbols
    kept = tuple(p for p in pairs if max(len(pieces.encode(p.source)), len(pieces.encode(p.target))) <= most)
    if pairs and not kept:
        raise DataError(f"{table.source}: no sentence of {len(pairs)} has at most {most} symbols")
    return kept
