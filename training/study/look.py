"""Looks: where a translator's attention lies while it writes one sentence.

Owns: which sentence is shown. Must not know how models are trained.
"""

from eddy.training.answers import Answers
from eddy.training.decoding import Translator
from eddy.training.pieces import Pieces
from eddy.training.scores import chrf
from eddy.training.tasks.translation_data import TranslationData

# Source words of a sentence whose map can be read.
SHORTEST, LONGEST = 4, 9


def measure_look(
    answers: Answers, data: TranslationData
) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[str, ...]]]:
    """The greedy translation nearest to a person's, by chrF, among test sentences of SHORTEST to LONGEST words.

    Returns the series `attention`, shares of all source symbols for each written one, row by row, and the texts
    `source` and `written` (symbols) and `reference` (one text). Nothing for a model without attention.
    """
    pairs = [pair for pair in data.pairs.test if SHORTEST <= len(pair.source.split()) <= LONGEST]
    pieces = Pieces(data.source_symbols)
    translator = Translator(answers.path, answers.contract, pieces, data.pieces)
    found = translator.translate([pair.source for pair in pairs])
    shown = [(t, p) for t, p in zip(found, pairs, strict=True) if t.attention is not None]
    if not shown:
        return {}, {}
    best, pair = max(shown, key=lambda one: chrf([one[0].text], [one[1].target]))
    assert best.attention is not None
    symbols = data.pieces.symbols
    texts = {
        "source": tuple(pieces.symbols[token] for token in pieces.encode(pair.source)),
        "written": tuple(symbols[token] for token in best.tokens),
        "reference": (pair.target,),
    }
    return {"attention": tuple(float(share) for share in best.attention.ravel())}, texts
