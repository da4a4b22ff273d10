"""What of a generation its caller has, over several calls: tokens and text once, and stop strings over the cuts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eddy.clients.errors import DivergedError
from eddy.clients.pieces import Piece, Token
from eddy.clients.tape import Tape
from eddy.service.stops import StopMatcher
from eddy.v1 import contract_pb2

# Symbols of several characters: text is held back within them.
SYMBOLS = ("a", "b", "ab", "ba", "aab", "</s>")
END = 5
VOCABULARY = contract_pb2.Vocabulary(symbols=SYMBOLS, unit="character", end_id=END)


def serve(ids: list[int], begin: int, max_tokens: int, stops: list[str], flush_at: int) -> list[Piece]:
    """What the server tells of a call that begins at `begin`; at token `flush_at` it is going."""
    matcher, told = StopMatcher(stops), []
    for place in range(begin, min(len(ids), begin + max_tokens)):
        text = matcher.feed(SYMBOLS[ids[place]])
        is_last = bool(matcher.found) or place + 1 in (begin + max_tokens, len(ids), flush_at)
        told.append(Piece(text + (matcher.flush() if is_last else ""), (Token(ids[place], None, ()),)))
        if is_last:
            break
    return told


@settings(max_examples=300)
@given(
    ids=st.lists(st.integers(0, 4), min_size=1, max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=2),
    cuts=st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=8),
    is_whole=st.booleans(),
)
def test_cuts_do_not_show(ids: list[int], stops: list[str], cuts: list[tuple[int, bool]], is_whole: bool) -> None:
    """However often a call is cut, also behind a flush of a server that goes: tokens and text are those of one call."""
    wanted = serve(ids, 0, len(ids), stops, -1)
    tape = Tape(stops, len(ids), is_whole=is_whole)
    tokens: list[int] = []
    text = ""
    begin, max_tokens = 0, len(ids)
    for number, (count, is_going) in enumerate([*cuts, (len(ids), False)]):
        told = serve(ids, begin, max_tokens, stops, begin + count if is_going else -1)[:count]
        for piece in told:
            new = tape.take(piece)
            tokens += new.ids
            text += new.text
        if number < len(cuts):
            rest = tape.rewind(VOCABULARY)
            assert list(rest.fed) == ids[: len(rest.fed)]
            assert rest.max_tokens >= 1
            begin, max_tokens = len(rest.fed), rest.max_tokens
            assert begin + max_tokens == len(ids)
    text += tape.flush().text
    assert tokens == [token for piece in wanted for token in piece.ids]
    assert text == "".join(piece.text for piece in wanted)


def test_other_tokens_are_refused() -> None:
    """A token that is drawn again and is another one is an error, not text of two kinds."""
    tape = Tape(["ba"], 10, is_whole=False)
    assert tape.take(Piece("a", (Token(0, None, ()),))).text == "a"
    assert tape.take(Piece("", (Token(1, None, ()),))).text == ""
    rest = tape.rewind(VOCABULARY)
    assert rest.fed == (0,)
    with pytest.raises(DivergedError, match="token 1 was drawn again"):
        tape.take(Piece("", (Token(2, None, ()),)))
