"""Pieces: the longest symbol at every place, there and back, and a vocabulary that depends on the texts alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eddy.training.errors import DataError
from eddy.training.pieces import END_ID, SPACE, SPECIAL, START_ID, UNKNOWN_ID, Pieces, fit_pieces

TEXTS = ["the river turns", "the rivers turn", "turn the river back", "the thing turns 10 times"] * 3
PIECES = fit_pieces(TEXTS, 40, 2)


def test_the_longest_symbol_wins() -> None:
    """At every place, whatever would have fitted later; spaces are U+2581."""
    pieces = Pieces((*SPECIAL, "a", "b", "ab", "abc", "bc", f"{SPACE}a"))
    found = [pieces.symbols[i] for i in pieces.encode("abcab abb")]
    assert found == ["abc", "ab", f"{SPACE}a", "b", "b"]
    assert pieces.encode("abcab abb").dtype == np.int64


def test_what_begins_no_symbol_is_unknown() -> None:
    """One unknown id for each such character; the special symbols are no text."""
    pieces = Pieces((*SPECIAL, "a"))
    assert pieces.encode("axa" + SPECIAL[1]).tolist() == [3, UNKNOWN_ID, 3, UNKNOWN_ID]
    assert pieces.decode(pieces.encode("xa")) == "\ufffda"
    assert pieces.encode("").tolist() == []


@given(st.text(alphabet=sorted(set("".join(TEXTS))), max_size=40))
def test_text_of_known_characters_survives(text: str) -> None:
    """Encoded and decoded, also in an order that was never learned."""
    ids = PIECES.encode(text)
    assert UNKNOWN_ID not in ids
    assert PIECES.decode(ids) == text


def test_decoding_ends_at_the_end() -> None:
    """The start is left out, what comes after the end too."""
    ids = PIECES.encode("turn").tolist()
    assert PIECES.decode([START_ID, *ids, END_ID, *ids]) == "turn"


def test_frequent_neighbours_are_merged_first() -> None:
    """A frequent word becomes one symbol with its space, before rarer ones; nothing joins two words."""
    assert PIECES.symbols[:3] == SPECIAL
    merged = [symbol for symbol in PIECES.symbols[3:] if len(symbol) > 1]
    assert f"{SPACE}river" in merged
    assert all(SPACE not in symbol[1:] for symbol in merged)
    assert f"{SPACE}1" in fit_pieces(TEXTS, 60, 2).symbols
    assert "10" not in fit_pieces(TEXTS, 60, 2).symbols


def test_the_vocabulary_depends_on_the_texts_alone() -> None:
    """Not on their order; a larger one begins with a smaller one."""
    assert fit_pieces(TEXTS[::-1], 40, 2) == PIECES
    assert fit_pieces(TEXTS, 30, 2).symbols == PIECES.symbols[:30]


def test_rare_characters_and_impossible_sizes() -> None:
    """A rare character is unknown; a size without room for characters is refused."""
    assert "q" not in fit_pieces([*TEXTS, "q"], 40, 2).symbols
    with pytest.raises(DataError, match="size: got 5, expected at least"):
        fit_pieces(TEXTS, 5, 2)
    with pytest.raises(DataError, match="each symbol once"):
        Pieces((*SPECIAL, "a", "a"))
