"""Data: what every task's data is made of: parts of long sequences, sets of separate ones, vocabularies, the split.

Owns: the marks of targets that do not count, and the 80/10/10 split. Must not know torch, models or tasks.
"""

import hashlib
import importlib.metadata
import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from eddy.training.errors import DataError
from eddy.training.packages import find_package, is_packaged

UNKNOWN = "\ufffd"
# Marks a target that does not count, in the two dtypes that targets have.
NO_TOKEN = -100
NO_VALUE = math.nan

Array = npt.NDArray[np.generic]
Tensors = Mapping[str, Array]
Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """One of the three parts of one long sequence.

    inputs: int64 [N] tokens or float32 [N, F] values. targets: int64 [N] next tokens (NO_TOKEN where none) or
    float32 [N, K] future values of the target feature (NaN where none).
    """

    inputs: Array
    targets: Array

    def digest(self) -> str:
        """SHA-256 of everything in it."""
        return hashlib.sha256(self.inputs.tobytes() + self.targets.tobytes()).hexdigest()


class StreamData(Protocol):
    """A task's data as one long sequence, read in order with the state carried along."""

    @property
    def train(self) -> Part:
        """The first four fifths."""

    @property
    def checked(self) -> Part:
        """What the validation loss reads: the validation part, with what a state must have seen before it."""

    @property
    def evaluation_streams(self) -> int:
        """Equal pieces that a part is read in, side by side, where it is measured."""


@dataclass(frozen=True, slots=True)
class Example:
    """One separate sequence: what a model reads from its initial state on, and what it should say.

    inputs: by the graph's input names, [T, ...]; an input of the prime graph has its own length. targets: by output
    names, [T, ...], NO_TOKEN or NaN where none.
    """

    inputs: Tensors
    targets: Tensors

    @property
    def steps(self) -> int:
        """The length of its longest input, which is what a batch is padded to."""
        return max(len(value) for value in self.inputs.values())


class Examples(Protocol):
    """The separate sequences that training reads, the same in every epoch or drawn anew."""

    def epoch(self, number: int) -> Sequence[Example]:
        """The examples of an epoch, from 1 on; the same number gives the same ones."""


@dataclass(frozen=True, slots=True)
class FixedExamples:
    """The same examples in every epoch."""

    examples: tuple[Example, ...]

    def epoch(self, number: int) -> Sequence[Example]:
        """All of them."""
        return self.examples


@dataclass(frozen=True, slots=True)
class SetData:
    """A task's data as separate sequences. symbols, source_symbols: vocabularies of token inputs, else empty."""

    train: Examples
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    symbols: tuple[str, ...] = ()
    source_symbols: tuple[str, ...] = ()


def digest_examples(examples: Sequence[Example]) -> str:
    """SHA-256 of all inputs and targets, in order."""
    found = hashlib.sha256()
    for example in examples:
        for tensors in (example.inputs, example.targets):
            for name in sorted(tensors):
                found.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
                found.update(tensors[name].tobytes())
    return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The symbols of a token model; a token id is an index into them. Symbol 0 stands for anything unknown."""

    symbols: tuple[str, ...]

    @staticmethod
    def fit(text: str, min_count: int) -> "Vocabulary":
        """The unknown symbol, then every character that occurs at least `min_count` times, in code point order."""
        counts = Counter(text)
        kept = sorted(c for c, n in counts.items() if n >= min_count and c != UNKNOWN)
        if not kept:
            raise DataError(f"text: no character occurs {min_count} times in its {len(text)} characters")
        return Vocabulary((UNKNOWN, *kept))

    def encode(self, text: str) -> Tokens:
        """Characters to ids, int64 [N]; what the vocabulary lacks becomes id 0."""
        ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        return np.fromiter((ids.get(c, 0) for c in text), dtype=np.int64, count=len(text))

    def decode(self, tokens: Sequence[int]) -> str:
        """Ids to characters."""
        return "".join(self.symbols[t] for t in tokens)


def split_points(length: int) -> tuple[int, int]:
    """Where validation and test begin among that many steps or sequences: 80 %, 10 %, 10 %, in order."""
    return length * 8 // 10, length * 9 // 10


def describe_origin(source: str) -> str:
    """A source with the version of what brought it, since other versions hold other data."""
    if source == "pydoc_data.topics":
        return f"{source} of Python {platform.python_version()}"
    if is_packaged(source):
        parts = [one.split(":", 2) for one in source.split(", ")]
        return ", ".join(
            f"{_file_name(path)} of {find_package(name).requirement.replace('==', ' ')}" for _, name, path in parts
        )
    package, colon, name = source.partition(":")
    return f"{name} of {package} {importlib.metadata.version(package)}" if colon else source


def _file_name(path: str) -> str:
    """The last part of a path; what a pattern means in words."""
    name = path.rpartition("/")[2]
    return f"{name.removeprefix('*')} files" if name.startswith("*.") else name
