"""The lexicon: words are learned from sentences they share, and replaced where they stand."""

from eddy.training.catalogues import Pair
from eddy.training.lexicon import fit_lexicon

PAIRS = [
    Pair("the river", "la rivière"),
    Pair("the bank", "la rive"),
    Pair("river bank", "rive rivière"),
    Pair("the old river", "la vieille rivière"),
    Pair("old", "vieille"),
]


def test_words_that_go_together_are_found() -> None:
    """By expectation maximisation each source word gets its own word, not the one that it is merely seen with."""
    lexicon = fit_lexicon(PAIRS)
    assert lexicon.words == {"the": "la", "river": "rivière", "bank": "rive", "old": "vieille"}


def test_a_text_is_translated_word_by_word() -> None:
    """Order, marks and unknown words stay; a first letter is as large as it was."""
    lexicon = fit_lexicon(PAIRS)
    assert lexicon.translate("The old bank, {1} Creek!") == "La vieille rive, {1} Creek!"
