"""Catalogues: sentence pairs out of message catalogues (.po), cleaned and split.

Owns: which entries count, how their text is cleaned, and the split. Must not know vocabularies, torch or models.

A catalogue (GNU gettext's PO format) holds the messages of a program and their translations: labels, sentences of help,
errors. polib parses it. The same message in several catalogues is one pair.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from eddy.training.errors import DataError
from eddy.training.packages import is_packaged, list_packaged, read_packaged

# An entry with more placeholders than this, or with markup, says more of a program than of a language.
MAX_PLACEHOLDERS = 2
# The least share of letters among what is not a space.
MIN_LETTERS = 0.5

_MARKUP = re.compile(r"<[a-zA-Z/!][^>]*>|&[a-z]+;|https?://|``|\*\*")
_PLACEHOLDER = re.compile(r"%\([^)]*\)[a-z]|%[a-z]\b|\$?\{[^}]*\}")
_SPACES = re.compile(r"\s+")
_QUOTES = str.maketrans({"\u2019": "'", "\u2026": "...", "\u200b": None, "\u00ad": None})
# Tenths of the groups of sentences that go to training and validation; the last tenth is the test part.
_TRAIN, _VALIDATION = 8, 9

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence and its translation."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Parts(Generic[T]):
    """The three parts of a set of things, in order of first appearance."""

    train: tuple[T, ...]
    validation: tuple[T, ...]
    test: tuple[T, ...]


def load_pairs(sources: Sequence[str], *, max_characters: int) -> Parts[Pair]:
    """Pairs of the catalogues that `sources` name (files, or `wheel:NAME:PATTERN`), split 80/10/10.

    Left out: obsolete, fuzzy and empty entries; sides longer than `max_characters` or with fewer letters than
    MIN_LETTERS; entries with markup, with more than MAX_PLACEHOLDERS placeholders or with others in the translation;
    entries of several words that were left as they are. Of several translations of one sentence the first stays.
    Sentences that differ in case or punctuation only are on the same side of the split. Raises DataError.
    """
    pairs: dict[str, Pair] = {}
    for pair in _read_all(sources):
        if _is_usable(pair, max_characters):
            pairs.setdefault(pair.source, pair)
    return split_by_key(pairs.values(), lambda pair: pair.source, ", ".join(sources))


def load_sentences(sources: Sequence[str], *, max_characters: int) -> Parts[str]:
    """The translations alone, each sentence once, by the same rules as `load_pairs`. Raises DataError.

    Sentences that differ in case, accents or punctuation only are on the same side of the split.
    """
    sentences = dict.fromkeys(pair.target for pair in _read_all(sources) if _is_usable(pair, max_characters))
    return split_by_key(sentences, lambda sentence: sentence, ", ".join(sources))


def read_catalogue(content: str, name: str) -> list[Pair]:
    """The translated entries of one catalogue, cleaned, in its order. Raises DataError.

    An entry with a plural gives two pairs: the singular, and the plural with the last of its forms.
    """
    try:
        from polib import pofile
    except ImportError as error:  # Serving and verifying do without.
        raise DataError(f"{name}: polib is not installed, expected the extra `train`") from error
    try:
        catalogue = pofile(content)
    except (OSError, UnicodeDecodeError) as error:  # polib raises OSError for a line that it cannot parse.
        raise DataError(f"{name}: not readable as a catalogue: {error}") from error
    found: list[Pair] = []
    for entry in catalogue:
        if entry.obsolete or entry.fuzzy:
            continue
        forms = [(entry.msgid, entry.msgstr)]
        if entry.msgid_plural:
            texts = [text for _, text in sorted(entry.msgstr_plural.items())] or [""]
            forms = [(entry.msgid, texts[0]), (entry.msgid_plural, texts[-1])]
        found += [_number_placeholders(clean(source), clean(target)) for source, target in forms if target]
    return [pair for pair in found if pair.source and pair.target]


def clean(text: str) -> str:
    """Text in composed form (NFC), every run of white space one space, typographic apostrophes and ellipses plain."""
    return _SPACES.sub(" ", unicodedata.normalize("NFC", text).translate(_QUOTES)).strip()


def split_by_key(things: Iterable[T], sentence: Callable[[T], str], name: str) -> Parts[T]:
    """Things by the digest of their folded sentence: eight tenths, one, one. The split depends on nothing else.

    Raises DataError where a part stays empty.
    """
    parts: tuple[list[T], list[T], list[T]] = ([], [], [])
    for thing in things:
        tenth = int.from_bytes(hashlib.sha256(fold(sentence(thing)).encode()).digest()[:8]) % 10
        parts[(tenth >= _TRAIN) + (tenth >= _VALIDATION)].append(thing)
    if not all(parts):
        sizes = ", ".join(str(len(part)) for part in parts)
        raise DataError(f"{name}: {sizes} sentences for training, validation and test, expected some in each")
    return Parts(*(tuple(part) for part in parts))


def fold(sentence: str) -> str:
    """A sentence without case, accents, punctuation and spaces; where nothing is left, as it is."""
    letters = unicodedata.normalize("NFKD", sentence.casefold())
    return "".join(c for c in letters if c.isalnum()) or sentence


def _number_placeholders(source: str, target: str) -> Pair:
    """`%(page)s of %d` -> `{1} of {2}`, on both sides by the order of the source; the names are the program's.

    One that only the translation has keeps its form.
    """
    numbers = {name: f"{{{i}}}" for i, name in enumerate(dict.fromkeys(_PLACEHOLDER.findall(source)), start=1)}

    def number(text: str) -> str:
        return _PLACEHOLDER.sub(lambda match: numbers.get(match.group(), match.group()), text)

    return Pair(number(source), number(target))


def _is_usable(pair: Pair, max_characters: int) -> bool:
    sides = (pair.source, pair.target)
    first, second = ({*_PLACEHOLDER.findall(side)} for side in sides)
    untranslated = pair.source == pair.target and " " in pair.source
    return (
        all(len(side) <= max_characters and _share_of_letters(side) >= MIN_LETTERS for side in sides)
        and not any(_MARKUP.search(side) for side in sides)
        and second <= first
        and len(first) <= MAX_PLACEHOLDERS
        and not untranslated
    )


def _share_of_letters(text: str) -> float:
    seen = [c.isalpha() for c in text if not c.isspace()]
    return sum(seen) / len(seen)


def _read_all(sources: Sequence[str]) -> Iterable[Pair]:
    for source in sources:
        for name in list_packaged(source) if is_packaged(source) else [source]:
            yield from read_catalogue(_read_text(name), name)


def _read_text(name: str) -> str:
    try:
        content = read_packaged(name) if is_packaged(name) else Path(name).read_bytes()
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: not readable as UTF-8 text: {error}") from error
