"""Alignment: words that belong together, and the phrases that follow."""

from eddy.training.alignment import NOTHING, Aligner, extract_phrases, fit_chances, split_words
from eddy.training.catalogues import Pair

PAIRS = [
    Pair("red river", "rivière rouge"),
    Pair("red bank", "rive rouge"),
    Pair("old river", "vieille rivière"),
    Pair("old bank", "vieille rive"),
    Pair("river", "rivière"),
    Pair("the old red river", "la vieille rivière rouge"),
    Pair("the bank", "la rive"),
]
ALIGNER = Aligner.fit(PAIRS)


def test_words_numbers_marks_and_placeholders_come_apart() -> None:
    """In lower case, with their places."""
    words = split_words("The {1}'s x10, no_1")
    assert [word.text for word in words] == ["the", "{1}", "'", "s", "x", "1", "0", ",", "no", "_", "1"]
    assert words[1].start == 4
    assert words[1].end == 7


def test_chances_are_shares() -> None:
    """What a word becomes sums to 1, and the right word has nearly all of it."""
    chances = fit_chances([(pair.source.split(), pair.target.split()) for pair in PAIRS])
    for table in chances.values():
        assert abs(sum(table.values()) - 1) < 1e-6
    assert max(chances["bank"], key=lambda word: chances["bank"][word]) == "rive"
    assert chances["red"]["rouge"] > 0.9
    assert NOTHING in chances


def test_words_are_aligned_across_their_order() -> None:
    """The adjective stands behind in one language."""
    sources, targets = ["the", "old", "red", "river"], ["la", "vieille", "rivière", "rouge"]
    assert ALIGNER.align(sources, targets) == {(0, 0), (1, 1), (2, 3), (3, 2)}


def test_phrases_hold_together() -> None:
    """A part counts only where nothing in it is linked with anything outside; whole sources are left out."""
    found = {phrase.source: phrase.target for phrase in extract_phrases(PAIRS, ALIGNER, 3)}
    assert found["old red river"] == "vieille rivière rouge"
    assert found["the old"] == "la vieille"
    assert found["bank"] == "rive"
    assert "old red" not in found  # Its words enclose the river's.
    assert "red river" not in found  # A whole sentence.
    assert not any(len(source.split()) > 3 for source in found)


def test_unknown_words_are_not_aligned() -> None:
    """A sentence that was not learned from keeps what is known."""
    assert ALIGNER.align(["blue", "river"], ["rivière", "bleue"]) == {(1, 0)}
