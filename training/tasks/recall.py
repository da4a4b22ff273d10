"""Recall: name the symbol that was shown at the start, after a number of other symbols.

Owns: the sequences, drawn from a seed, and accuracy by distance beside the majority class's. Must not know torch.

A sequence is one of the symbols to remember, then `distance` distractors, then a question mark; the answer counts at
the question mark alone. Nothing but a state that lasts `distance` steps can hold it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from eddy.training.answers import Answers
from eddy.training.chart import Level
from eddy.training.contract import describe_characters
from eddy.training.curve import Measure
from eddy.training.data import NO_TOKEN, Example, SetData, Tokens
from eddy.training.fields import require
from eddy.training.figures import SHARE, Figure, share_cells
from eddy.training.spec import ClassHead, Head, Input, TokenInput
from eddy.v1 import contract_pb2 as pb

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
QUESTION = "?"
UNKNOWN = "\ufffd"
# Seeds of the three parts; those of training's epochs follow the last.
_VALIDATION, _TEST, _TRAIN = 1, 2, 3


@dataclass(frozen=True, slots=True)
class RecallSource:
    """Which sequences are drawn. source, licence: always ours.

    distances: distractors between the symbol and the question, equally often each.
    """

    kind: ClassVar[str] = "recall"

    distances: tuple[int, ...]
    source: str = "drawn from a seed"
    licence: str = "CC0-1.0"
    # Symbols to remember; guessing is right once in so many times.
    symbols: int = 8
    # Symbols in between, none of which is to be remembered.
    distractors: int = 8
    # Sequences of a training epoch, drawn anew for each, and of the validation and test parts, of each distance.
    train_sequences: int = 100
    test_sequences: int = 100
    seed: int = 1

    def __post_init__(self) -> None:
        rising = list(self.distances) == sorted(set(self.distances))
        require(len(self.distances) >= 1 and rising, "data.distances", self.distances, "at least one, rising")
        require(min(self.distances, default=0) >= 0, "data.distances", self.distances, "0 or more")
        require(2 <= self.symbols <= len(LETTERS), "data.symbols", self.symbols, f"2 to {len(LETTERS)}")
        require(1 <= self.distractors <= len(DIGITS), "data.distractors", self.distractors, f"1 to {len(DIGITS)}")
        for name in ("train_sequences", "test_sequences"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "at least 1")
        require(self.seed >= 0, "data.seed", self.seed, "0 or more")


@dataclass(frozen=True, slots=True)
class RecallExamples:
    """Training sequences, drawn anew for every epoch from its number."""

    source: RecallSource

    def epoch(self, number: int) -> Sequence[Example]:
        """The sequences of an epoch."""
        return draw_sequences(self.source, self.source.train_sequences, _TRAIN + number)


def draw_sequences(source: RecallSource, count: int, part: int) -> tuple[Example, ...]:
    """`count` sequences of every distance. tokens int64 [T]; the target is the symbol's number, at the last step."""
    rng = np.random.default_rng((source.seed, part))
    found = []
    for distance in source.distances:
        for _ in range(count):
            answer = int(rng.integers(source.symbols))
            between = 1 + source.symbols + rng.integers(source.distractors, size=distance)
            tokens = np.concatenate([[1 + answer], between, [1 + source.symbols + source.distractors]])
            targets = np.full(len(tokens), NO_TOKEN)
            targets[-1] = answer
            found.append(Example({"tokens": tokens.astype(np.int64)}, {"symbol": targets.astype(np.int64)}))
    return tuple(found)


class RecallTask:
    """The task of recall; see `Task`."""

    table = RecallSource
    baselines: ClassVar[Mapping[str, str]] = {"majority": "majority class"}

    def load(self, source: RecallSource) -> SetData:
        """Draw validation and test; training is drawn epoch by epoch."""
        symbols = (
            UNKNOWN,
            *LETTERS[: source.symbols],
            *DIGITS[: source.distractors],
            QUESTION,
        )
        validation, test = (draw_sequences(source, source.test_sequences, part) for part in (_VALIDATION, _TEST))
        return SetData(RecallExamples(source), validation, test, symbols)

    def ports(self, data: SetData, source: RecallSource) -> tuple[Input, tuple[Head, ...]]:
        """Symbols in, logits of the symbols to remember out."""
        return TokenInput(len(data.symbols)), (ClassHead("symbol", tuple(LETTERS[: source.symbols])),)

    def symbols(self, data: SetData) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """One vocabulary."""
        return data.symbols, ()

    def sample(self, data: SetData, source: RecallSource) -> str:
        """One test sequence of every distance, a line each."""
        picked = data.test[:: source.test_sequences]
        return "".join("".join(data.symbols[t] for t in e.inputs["tokens"].tolist()) + "\n" for e in picked)

    def curve(self, data: SetData, source: RecallSource) -> tuple[Measure, tuple[Level, ...]]:
        """Bits of the answer; who guesses pays for all of it."""
        return Measure("bits of the answer", 1 / float(np.log(2))), (Level("guessing", float(np.log2(source.symbols))),)

    def measure(self, answers: Answers, data: SetData, source: RecallSource) -> list[Figure]:
        """Accuracy, over all sequences and by distance; the majority class is the test part's own commonest."""
        found = answers([example.inputs for example in data.test])
        right = np.array(
            [
                int(np.argmax(said["symbol"][-1])) == int(example.targets["symbol"][-1])
                for said, example in zip(found, data.test, strict=True)
            ]
        )
        wanted = np.array([int(example.targets["symbol"][-1]) for example in data.test])
        distances = np.array([example.steps - 2 for example in data.test])
        figures = _accuracy("accuracy", right, wanted)
        for distance in source.distances:
            rows = distances == distance
            figures += _accuracy(f"accuracy_{distance}", right[rows], wanted[rows])
        return figures

    def describe(
        self,
        contract: pb.ModelContract,
        source: RecallSource,
        symbols: tuple[str, ...],
        source_symbols: tuple[str, ...],
    ) -> None:
        """The vocabulary and what the answer is."""
        describe_characters(contract, symbols)
        contract.outputs[0].meaning = "logits of the symbol that began the sequence; they count at the question mark"

    def show_figures(self, values: Mapping[str, float], source: RecallSource) -> str:
        """Accuracy by distance."""
        rows = ["| distance | this model | majority class |", "|---|---|---|"]
        rows += [
            f"| {distance} | {share_cells(values, f'accuracy_{distance}', ('', '_majority'))} |"
            for distance in source.distances
        ]
        rows.append(f"| all | {share_cells(values, 'accuracy', ('', '_majority'))} |")
        return (
            f"Share of {source.test_sequences} test sequences of each distance whose first symbol, one of "
            f"{source.symbols}, is named at the end:\n\n" + "\n".join(rows)
        )

    def show_data(self, source: RecallSource, sample: str) -> str:
        """How sequences are made."""
        return (
            "no two parts from the same seed.\n"
            f"A sequence is one of {source.symbols} letters, then as many of {source.distractors} digits as the "
            "distance says, then a question mark.\n"
            f"Training draws {source.train_sequences} of each distance anew for every epoch. `{sample}` holds one test "
            "sequence of each distance."
        )

    def show_answers(self, answers: Answers, sample: str) -> tuple[str, str]:
        """None: the figures say it."""
        return "", ""


def _accuracy(name: str, right: npt.NDArray[np.bool_], wanted: Tokens) -> list[Figure]:
    majority = float(np.bincount(wanted).max() / len(wanted))
    return [Figure(name, float(right.mean()), SHARE), Figure(f"{name}_majority", majority, SHARE)]
