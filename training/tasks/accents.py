"""Accents: give a sentence that was stripped of its accents each of them back.

Owns: errors of characters and words beside those of two baselines, and what a card says of them. Must not know torch
or models.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from eddy.training.answers import Answers
from eddy.training.chart import Level
from eddy.training.contract import describe_characters
from eddy.training.curve import Measure
from eddy.training.data import Array, Tokens, Vocabulary
from eddy.training.figures import SHARE, Figure
from eddy.training.spec import ClassHead, Head, Input, TokenInput
from eddy.training.tasks.accents_data import CHARACTERS, TOKENS, AccentsData, AccentsSource, load_accents, strip
from eddy.v1 import contract_pb2 as pb

WORD = re.compile(r"[^\W\d_]+")
# Steps of look-ahead that streams are measured with.
LOOK_AHEADS = (0, 2, 4, 8, 16)
SAMPLE_SENTENCES = 40
CARD_SENTENCES = 12
MEASURES = {
    "character_errors": "of all characters",
    "accent_errors": "of characters that may carry an accent",
    "word_errors": "of words",
}


class Forms:
    """The most frequent form of every stripped word of a text, words that differ in case apart."""

    def __init__(self, sentences: Iterable[str]) -> None:
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for sentence in sentences:
            for word in WORD.findall(sentence):
                counts[strip(word)][word] += 1
        # Of equally frequent forms the first one read.
        self._best = {stripped: forms.most_common(1)[0][0] for stripped, forms in counts.items()}

    def restore(self, text: str) -> str:
        """A stripped text with every known word in its form; others stay as they are."""
        return WORD.sub(lambda found: self._best.get(found[0], found[0]), text)


def restore(
    answer: Callable[[list[dict[str, Tokens]]], list[dict[str, Array]]],
    vocabulary: Vocabulary,
    sentences: Sequence[str],
) -> list[str]:
    """Stripped sentences as the model would write them; where it says the unknown symbol, the character stays.

    answer: the model, exact or streamed.
    """
    found = answer([{TOKENS: vocabulary.encode(sentence)} for sentence in sentences])
    written = []
    for sentence, said in zip(sentences, found, strict=True):
        ids = np.argmax(said[CHARACTERS], axis=-1).tolist()
        written.append("".join(vocabulary.symbols[i] if i else c for i, c in zip(ids, sentence, strict=True)))
    return written


def count_errors(written: Sequence[str], wanted: Sequence[str], carriers: frozenset[str]) -> dict[str, float]:
    """Shares of wrong characters, of wrong ones among those that may carry an accent, and of words with any wrong."""
    wrong, places, may, words, bad = 0, 0, 0, 0, 0
    wrong_may = 0
    for one, other in zip(written, wanted, strict=True):
        flags = [a != b for a, b in zip(one, other, strict=True)]
        carrying = [strip(character) in carriers for character in other]
        wrong, places = wrong + sum(flags), places + len(flags)
        wrong_may, may = wrong_may + sum(f and c for f, c in zip(flags, carrying, strict=True)), may + sum(carrying)
        for word in WORD.finditer(other):
            words, bad = words + 1, bad + any(flags[word.start() : word.end()])
    return dict(zip(MEASURES, (wrong / places, wrong_may / may, bad / words), strict=True))


class AccentsTask:
    """The task of accents; see `Task`."""

    table = AccentsSource
    baselines: ClassVar[Mapping[str, str]] = {"most_frequent": "most frequent form", "copy": "copy"}

    def load(self, source: AccentsSource) -> AccentsData:
        """Read, split and encode."""
        return load_accents(source)

    def ports(self, data: AccentsData, source: AccentsSource) -> tuple[Input, tuple[Head, ...]]:
        """Stripped characters in, logits of what they were out."""
        return TokenInput(len(data.symbols)), (ClassHead(CHARACTERS, data.symbols, "tagging"),)

    def symbols(self, data: AccentsData) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """One vocabulary for both."""
        return data.symbols, ()

    def sample(self, data: AccentsData, source: AccentsSource) -> str:
        """Test sentences, a line each: stripped, a tab, as it is written."""
        step = max(1, len(data.sentences.test) // SAMPLE_SENTENCES)
        return "".join(f"{strip(s)}\t{s}\n" for s in data.sentences.test[::step][:SAMPLE_SENTENCES])

    def curve(self, data: AccentsData, source: AccentsSource) -> tuple[Measure, tuple[Level, ...]]:
        """Bits per character; the baselines say no probabilities."""
        return Measure("bits per character", 1 / math.log(2)), ()

    def measure(self, answers: Answers, data: AccentsData, source: AccentsSource) -> list[Figure]:
        """Errors of the exact model, of the baselines, and of streams on the model's own grid."""
        wanted, forms, vocabulary = data.sentences.test, Forms(data.sentences.train), Vocabulary(data.symbols)
        stripped = [strip(sentence) for sentence in wanted]
        carriers = frozenset(strip(symbol) for symbol in data.symbols if strip(symbol) != symbol)
        written = {
            "": restore(answers, vocabulary, stripped),
            "_most_frequent": [forms.restore(sentence) for sentence in stripped],
            "_copy": stripped,
        }
        written |= {
            f"_look_ahead_{steps}": restore(on_grid.stream, vocabulary, stripped)
            for steps, on_grid in _grids(answers).items()
        }
        errors = {end: count_errors(texts, wanted, carriers) for end, texts in written.items()}
        return [Figure(f"{name}{end}", errors[end][name], SHARE) for name in MEASURES for end in errors]

    def describe(
        self,
        contract: pb.ModelContract,
        source: AccentsSource,
        symbols: tuple[str, ...],
        source_symbols: tuple[str, ...],
    ) -> None:
        """The vocabulary, which input and output share."""
        describe_characters(contract, symbols)
        given, said = contract.inputs[0], contract.outputs[0]
        given.meaning = "character without its accent, an index into the vocabulary's symbols"
        said.meaning = "logits of the character with its accent, by the vocabulary's symbols; 0: leave it as it is"
        del said.axes[:]  # The vocabulary names them already.

    def show_figures(self, values: Mapping[str, float], source: AccentsSource) -> str:
        """Errors beside the baselines'."""
        ends = ("", "_most_frequent", "_copy")
        rows = [f"| {label} | {_cells(values, name, ends)} |" for name, label in MEASURES.items()]
        marks = [f"_look_ahead_{steps}" for steps in _look_aheads(values)]
        streamed = [
            f"| {mark.rpartition('_')[2]} | " + " | ".join(f"{values[name + mark]:.2%}" for name in MEASURES) + " |"
            for mark in [*marks, ""]
        ]
        streamed[-1] = streamed[-1].replace("|  |", "| whole sentence |")
        return (
            "Errors on the test part (a tenth of the sentences), lower is better; the model reads whole sentences:\n\n"
            "| wrong | this model | most frequent form | copy |\n|---|---|---|---|\n"
            + "\n".join(rows)
            + "\n\nMost frequent form: every word as it is written most often in the training part, words that are "
            "not in it left\nwithout accents. Copy: no accents at all.\n\n"
            "Streamed on the grid of blocks, with so many characters of look-ahead:\n\n"
            f"| look-ahead | wrong {' | '.join(MEASURES.values())} |\n|{'---|' * (1 + len(MEASURES))}\n"
            + "\n".join(streamed)
        )

    def show_data(self, source: AccentsSource, sample: str) -> str:
        """Split, vocabulary and sample."""
        return (
            "translations of user interfaces and their help,\n"
            f"each sentence of up to {source.max_characters} characters once, split 80/10/10 by a digest of the "
            "sentence; sentences that differ in\ncase, accents or punctuation only are in the same part.\n"
            "The vocabulary was fitted on the training part; its symbol 0 stands for any other character.\n"
            f"`{sample}` holds sentences of the test part, a line each: without accents, a tab, as they are written."
        )

    def show_answers(self, answers: Answers, sample: str) -> tuple[str, str]:
        """Sentences of the sample as the model restores them, in a code block, wrong characters marked below."""
        pairs = [line.split("\t") for line in sample.splitlines()[:CARD_SENTENCES]]
        vocabulary = Vocabulary(tuple(answers.contract.vocabulary.symbols))
        lines = []
        for written, (_, wanted) in zip(restore(answers, vocabulary, [s for s, _ in pairs]), pairs, strict=True):
            marks = "".join(" " if a == b else "^" for a, b in zip(written, wanted, strict=True)).rstrip()
            lines += [f"    {written}", *([f"    {marks}"] if marks else [])]
        return "What it restores", "From the test part; what is wrong is marked:\n\n" + "\n".join(lines)


def _grids(answers: Answers) -> dict[int, Answers]:
    """Answers by look-ahead: on the model's own grid, and on others of the same blocks where there are the weights."""
    own, block = answers.contract.streaming.look_ahead_steps, answers.contract.streaming.block_steps
    others = [] if answers.grid is None else [steps for steps in LOOK_AHEADS if steps != own]
    found = {steps: answers.grid(block, steps) for steps in others if answers.grid is not None} | {own: answers}
    return dict(sorted(found.items()))


def _look_aheads(values: Mapping[str, float]) -> list[int]:
    """The look-aheads that figures are there for, rising."""
    begin = f"{next(iter(MEASURES))}_look_ahead_"
    return sorted(int(name.removeprefix(begin)) for name in values if name.startswith(begin))


def _cells(values: Mapping[str, float], name: str, ends: Sequence[str]) -> str:
    """A row's cells as shares."""
    return " | ".join(f"{values[name + end]:.2%}" for end in ends)
