"""Translation: the same sentence in another language.

Owns: BLEU and chrF beside those of copying and of a dictionary, by sentence length, and what a card says of them. Must
not know torch.
"""

import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import ClassVar

from eddy.training.answers import Answers
from eddy.training.catalogues import MAX_PLACEHOLDERS, Pair
from eddy.training.chart import Level
from eddy.training.curve import Measure
from eddy.training.decoding import Translator
from eddy.training.figures import Figure
from eddy.training.lexicon import fit_lexicon
from eddy.training.packages import packages_of
from eddy.training.pieces import END_ID, START_ID, UNKNOWN_ID, Pieces
from eddy.training.scores import BLEU_SETTINGS, CHRF_SETTINGS, bleu, chrf
from eddy.training.spec import Head, Input, TokenHead, TokenInput
from eddy.training.tasks.translation_data import TranslationData, TranslationSource, load_translation
from eddy.v1 import contract_pb2 as pb

POINTS = "points"
# Beams of the figures that stand beside the baselines'.
BEAMS = 4
# Source words from, to; the last is open.
LENGTHS = ((1, 2), (3, 5), (6, 10), (11, 1000))
SAMPLE_PAIRS = 60
CARD_PAIRS = 12


class TranslationTask:
    """The task of translation; see `Task`."""

    table = TranslationSource
    baselines: ClassVar[Mapping[str, str]] = {"dictionary": "word by word", "copy": "copy"}

    def load(self, source: TranslationSource) -> TranslationData:
        """Read, split and encode."""
        return load_translation(source)

    def ports(self, data: TranslationData, source: TranslationSource) -> tuple[Input, tuple[Head, ...]]:
        """Symbols in, logits of the next one out; the source has the same symbols."""
        size = len(data.symbols)
        return TokenInput(size), (TokenHead(size),)

    def symbols(self, data: TranslationData) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """One vocabulary for both."""
        return data.symbols, data.source_symbols

    def sample(self, data: TranslationData, source: TranslationSource) -> str:
        """Test sentences, a line each: the source, a tab, the translation."""
        step = max(1, len(data.pairs.test) // SAMPLE_PAIRS)
        return "".join(f"{pair.source}\t{pair.target}\n" for pair in data.pairs.test[::step][:SAMPLE_PAIRS])

    def curve(self, data: TranslationData, source: TranslationSource) -> tuple[Measure, tuple[Level, ...]]:
        """Bits per symbol; copying and the dictionary have no such measure."""
        return Measure("bits per symbol", 1 / math.log(2)), ()

    def measure(self, answers: Answers, data: TranslationData, source: TranslationSource) -> list[Figure]:
        """BLEU and chrF by beam search, greedily, and by sentence length, beside the baselines."""
        pairs = data.pairs.test
        texts = [pair.source for pair in pairs]
        translator = Translator(answers.path, answers.contract, Pieces(data.source_symbols), data.pieces)
        lexicon = fit_lexicon(data.pairs.train)
        written = {
            "": [found.text for found in translator.translate(texts, beams=BEAMS)],
            "_greedy": [found.text for found in translator.translate(texts)],
            "_dictionary": [lexicon.translate(text) for text in texts],
            "_copy": texts,
        }
        figures = _score("", written, pairs, list(range(len(pairs))))
        for first, last in LENGTHS:
            rows = [i for i, text in enumerate(texts) if first <= len(text.split()) <= last]
            if rows:
                figures += _score(f"_{first}_words", written, pairs, rows)
        return figures

    def describe(
        self,
        contract: pb.ModelContract,
        source: TranslationSource,
        symbols: tuple[str, ...],
        source_symbols: tuple[str, ...],
    ) -> None:
        """Both vocabularies; only the target's has a start and an end."""
        for vocabulary, given in ((contract.vocabulary, symbols), (contract.source_vocabulary, source_symbols)):
            vocabulary.symbols.extend(given)
            vocabulary.unknown_id = UNKNOWN_ID
            vocabulary.unit = "piece"
        contract.vocabulary.start_id = START_ID
        contract.vocabulary.end_id = END_ID

    def show_figures(self, values: Mapping[str, float], source: TranslationSource) -> str:
        """Scores, all and by length."""
        rows = [
            f"| source | sentences | score | this model, {BEAMS} beams | greedy | word by word | copy |",
            "|---|---|---|---|---|---|---|",
        ]
        named = [("all", ""), *((f"{a} to {b} words", f"_{a}_words") for a, b in LENGTHS[:-1])]
        named.append((f"{LENGTHS[-1][0]} words or more", f"_{LENGTHS[-1][0]}_words"))
        for label, end in named:
            if f"sentences{end}" not in values:
                continue
            count = f"{values[f'sentences{end}']:.0f}"
            for score, name in (("BLEU", "bleu"), ("chrF", "chrf")):
                cells = " | ".join(
                    f"{values[f'{name}{end}{who}']:.1f}" for who in ("", "_greedy", "_dictionary", "_copy")
                )
                rows.append(f"| {label} | {count} | {score} | {cells} |")
        return (
            f"Of the test part, 0 to 100, higher is better ({BLEU_SETTINGS}; {CHRF_SETTINGS}; by sacrebleu):\n\n"
            + "\n".join(rows)
            + "\n\nWord by word: each word replaced by the one that it most probably becomes, by IBM model 1 over the "
            "training\npart; words that it never saw stay. Copy: the source as it is."
        )

    def show_data(self, source: TranslationSource, sample: str) -> str:
        """Cleaning, split and sample."""
        limits = f"{source.max_characters} characters or {source.max_symbols} symbols"
        first = (
            "split 80/10/10 by the digest of the source without case and punctuation, so that no sentence is on two "
            f"sides. Left out: what is longer than {limits}, markup, more than {MAX_PLACEHOLDERS} placeholders, what "
            "was not translated. Placeholders are numbered: `{1}`. The vocabulary, of both languages together, was "
            "learned from the training part."
        )
        sentences = [first]
        if source.phrase_words:
            sentences.append(
                "Training also reads parts of its sentences that translate each other, found by alignment of the "
                f"training part: up to {source.phrase_words} words, {source.phrase_share:g} for each sentence, drawn "
                "anew for every epoch."
            )
        if source.guided:
            sentences.append("Attention is shown in training which words belong together, by alignment.")
        if packages := packages_of(list(source.catalogues)):
            names = " ".join(package.name for package in packages)
            sentences.append(f"`eddy data fetch {names}` brings the catalogues.")
        sentences.append(f"`{sample}` holds sentences of the test part and their translations, with a tab between.")
        return "\n".join(fill(sentence, 118) for sentence in sentences)

    def show_answers(self, answers: Answers, sample: str) -> tuple[str, str]:
        """The sample's first sentences beside what the model makes of them."""
        pairs = [Pair(*line.split("\t")) for line in sample.splitlines()[:CARD_PAIRS]]
        contract = answers.contract
        pieces = [Pieces(tuple(v.symbols)) for v in (contract.source_vocabulary, contract.vocabulary)]
        found = Translator(answers.path, contract, *pieces).translate([pair.source for pair in pairs], beams=BEAMS)
        rows = ["| source | this model | a person |", "|---|---|---|"]
        rows += [
            f"| {_cell(p.source)} | {_cell(f.text)} | {_cell(p.target)} |" for p, f in zip(pairs, found, strict=True)
        ]
        return "What it writes", "\n".join(rows)


def _score(end: str, written: Mapping[str, Sequence[str]], pairs: Sequence[Pair], rows: Sequence[int]) -> list[Figure]:
    """Both scores of some sentences by everyone; `end` stands behind the figures' names."""
    references = [pairs[row].target for row in rows]
    figures = [Figure(f"sentences{end}", len(rows), "")]
    for name, score in (("bleu", bleu), ("chrf", chrf)):
        figures += [
            Figure(f"{name}{end}{who}", score([texts[row] for row in rows], references), POINTS)
            for who, texts in written.items()
        ]
    return figures


def _cell(text: str) -> str:
    """A text that no table's row breaks at."""
    return text.replace("|", "\\|")
