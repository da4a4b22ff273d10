"""Scores: how near translations are to the ones that people wrote.

Owns: BLEU (Papineni and others 2002) and chrF (Popovic 2015), by sacrebleu, whose numbers others can compare with.
Must not know models.
"""

from collections.abc import Sequence
from types import ModuleType

from eddy.training.errors import DataError

# sacrebleu's names of what is computed, for a card.
BLEU_SETTINGS = "BLEU: mixed case, 13a tokens, exponential smoothing"
CHRF_SETTINGS = "chrF: 6 characters, no words"


def bleu(translations: Sequence[str], references: Sequence[str]) -> float:
    """Of the whole corpus, 0 to 100."""
    return float(_metrics().BLEU().corpus_score(list(translations), [list(references)]).score)


def chrf(translations: Sequence[str], references: Sequence[str]) -> float:
    """Of the whole corpus, 0 to 100."""
    return float(_metrics().CHRF().corpus_score(list(translations), [list(references)]).score)


def _metrics() -> ModuleType:
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise DataError("sacrebleu: not installed, expected the extra `train`") from error
    return metrics
