"""Text: the next character of a text.

Owns: reading texts, their vocabulary, bits per character beside those of counting, and what a card says of them.
Must not know torch or models.

Order matters: split first, then fit the vocabulary on the training part only, so that nothing of the validation and
test parts leaks into the model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from eddy.training.answers import Answers
from eddy.training.chart import Level
from eddy.training.contract import describe_characters
from eddy.training.curve import Measure
from eddy.training.data import NO_TOKEN, Part, Tokens, Vocabulary, split_points
from eddy.training.errors import DataError
from eddy.training.fields import require
from eddy.training.figures import Figure, cells
from eddy.training.generation import continue_sample
from eddy.training.spec import Head, Input, TokenHead, TokenInput
from eddy.training.tasks.text_baselines import bigram_bits, ngram_bits, unigram_bits
from eddy.v1 import contract_pb2 as pb

SAMPLE_CHARACTERS = 2000
# Pieces of a part that are measured side by side: enough rows to be quick, few enough that the lost context at the
# start of each does not show.
EVALUATION_STREAMS = 16


@dataclass(frozen=True, slots=True)
class TextSource:
    """A text whose characters are the tokens.

    source: "pydoc_data.topics" (Python's own language reference) or the path of a UTF-8 text file.
    """

    kind: ClassVar[str] = "text"

    source: str
    licence: str
    # Symbols rarer than this in the training part become the unknown symbol, which so gets trained too.
    min_count: int = 3
    # The text ends after so many characters; left out, all of it is used.
    max_characters: int | None = None

    def __post_init__(self) -> None:
        require(self.source != "", "data.source", self.source, "a text's name or path")
        require(self.min_count >= 1, "data.min_count", self.min_count, "at least 1")
        most = self.max_characters
        require(most is None or most >= 1, "data.max_characters", most, "at least 1, or none")


@dataclass(frozen=True, slots=True)
class TextData:
    """A text as tokens. Each part stands alone: its inputs are its own characters."""

    vocabulary: Vocabulary
    train: Part
    validation: Part
    test: Part

    @property
    def checked(self) -> Part:
        """The validation part: it begins without context, as a session does."""
        return self.validation

    @property
    def evaluation_streams(self) -> int:
        """Several pieces side by side."""
        return EVALUATION_STREAMS


def load_text(source: TextSource) -> TextData:
    """Read, split and encode a text. Raises DataError."""
    text = read_text(source.source)[: source.max_characters]
    first, second = split_points(len(text))
    if first < 2 or len(text) - second < 2:
        raise DataError(f"{source.source}: {len(text)} characters are too few to split, expected at least 20")
    vocabulary = Vocabulary.fit(text[:first], source.min_count)
    train, validation, test = (
        _next_token_part(vocabulary.encode(piece)) for piece in (text[:first], text[first:second], text[second:])
    )
    return TextData(vocabulary, train, validation, test)


def read_text(source: str) -> str:
    """The text behind a source name or path, line ends as line feeds. Raises DataError."""
    if source == "pydoc_data.topics":
        from pydoc_data.topics import topics

        return "\n".join(topics[name] for name in sorted(topics))
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: not readable as UTF-8 text: {error}") from error
    if not text:
        raise DataError(f"{source}: the file is empty, expected text")
    return text


def _next_token_part(tokens: Tokens) -> Part:
    """Each token's target is the one after it; the last has none."""
    return Part(tokens, np.append(tokens[1:], NO_TOKEN))


def text_figures(nats: float, data: TextData) -> list[Figure]:
    """Bits per character on the test part, the model's (from its mean loss in nats) and three counting baselines."""
    bits = text_baselines(data, data.test)
    return [
        Figure("bits_per_character", nats / math.log(2), "bit"),
        *(Figure(f"bits_per_character_{name}", value, "bit") for name, value in bits.items()),
    ]


def text_baselines(data: TextData, part: Part) -> dict[str, float]:
    """Bits per character of a part by baseline."""
    size = len(data.vocabulary.symbols)
    train, validation, judged = (_tokens(p.inputs) for p in (data.train, data.validation, part))
    return {
        "unigram": unigram_bits(train, judged, size),
        "bigram": bigram_bits(train, judged, size),
        "4gram": ngram_bits(train, validation, judged, size),
    }


def token_nats(logits: npt.NDArray[np.generic], targets: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Cross-entropy of every token that counts: logits [..., V], targets int64 [...]; float64, flat, in nats."""
    flat = logits.astype(np.float64).reshape(-1, logits.shape[-1])
    wanted = targets.astype(np.int64).reshape(-1)
    kept = wanted != NO_TOKEN
    flat, wanted = flat[kept], wanted[kept]
    top = flat.max(axis=1)
    nats: npt.NDArray[np.float64] = (
        top + np.log(np.exp(flat - top[:, None]).sum(axis=1)) - flat[np.arange(len(wanted)), wanted]
    )
    return nats


class TextTask:
    """The task of texts; see `Task`."""

    table = TextSource
    baselines: ClassVar[Mapping[str, str]] = {"4gram": "4-grams", "bigram": "pairs", "unigram": "single characters"}

    def load(self, source: TextSource) -> TextData:
        """Read, split and encode."""
        return load_text(source)

    def ports(self, data: TextData, source: TextSource) -> tuple[Input, tuple[Head, ...]]:
        """Tokens in, logits of the next one out."""
        size = len(data.vocabulary.symbols)
        return TokenInput(size), (TokenHead(size),)

    def symbols(self, data: TextData) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """One vocabulary."""
        return data.vocabulary.symbols, ()

    def sample(self, data: TextData, source: TextSource) -> str:
        """The test part's beginning."""
        return data.vocabulary.decode(data.test.inputs[:SAMPLE_CHARACTERS].tolist())

    def curve(self, data: TextData, source: TextSource) -> tuple[Measure, tuple[Level, ...]]:
        """Bits per character."""
        bits = text_baselines(data, data.validation)
        levels = tuple(Level(label, bits[name]) for name, label in self.baselines.items())
        return Measure("bits per character", 1 / math.log(2)), levels

    def measure(self, answers: Answers, data: TextData, source: TextSource) -> list[Figure]:
        """Bits per character; the pieces are read side by side, each from its initial state."""
        length = len(data.test.inputs) // EVALUATION_STREAMS
        x, targets = (
            a[: length * EVALUATION_STREAMS].reshape(EVALUATION_STREAMS, length)
            for a in (data.test.inputs, data.test.targets)
        )
        (given, said) = answers.contract.inputs[0].name, answers.contract.outputs[0].name
        found = answers([{given: row} for row in x])
        nats = np.concatenate([token_nats(one[said], wanted) for one, wanted in zip(found, targets, strict=True)])
        return text_figures(float(nats.mean()), data)

    def describe(
        self,
        contract: pb.ModelContract,
        source: TextSource,
        symbols: tuple[str, ...],
        source_symbols: tuple[str, ...],
    ) -> None:
        """The vocabulary."""
        describe_characters(contract, symbols)

    def show_figures(self, values: Mapping[str, float], source: TextSource) -> str:
        """Bits per character beside the baselines'."""
        names = ("", *(f"_{name}" for name in self.baselines))
        return (
            "Bits per character on the test part (the last tenth of the text), lower is better:\n\n"
            f"| this model | {' | '.join(self.baselines.values())} |\n|{'---|' * len(names)}\n"
            f"| {cells(values, 'bits_per_character', names)} |\n\n"
            "The baselines count in the training part, without any model. 4-grams: each character by the three before "
            "it,\nmixed with shorter contexts (Jelinek and Mercer) by weights that were fitted on the validation part. "
            "Pairs:\neach by the one before it."
        )

    def show_data(self, source: TextSource, sample: str) -> str:
        """Split, vocabulary and sample."""
        return (
            "split 80/10/10 in time order.\n"
            "The vocabulary was fitted on the training part; its symbol 0 stands for any other character.\n"
            f"`{sample}` holds the beginning of the test part."
        )

    def show_answers(self, answers: Answers, sample: str) -> tuple[str, str]:
        """Generated text in a code block, indented so that nothing in it can end the block."""
        lines = continue_sample(answers.path, sample).splitlines()
        written = "After the first lines of the test part:\n\n" + "\n".join(f"    {line}" for line in lines)
        return "What it writes", written


def _tokens(values: npt.NDArray[np.generic]) -> Tokens:
    return values.astype(np.int64, copy=False)
