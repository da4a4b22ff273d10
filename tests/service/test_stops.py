"""Stop strings and vocabularies."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eddy.service.errors import ClientError, Reason
from eddy.service.stops import StopMatcher
from eddy.service.vocabulary import Vocabulary
from eddy.v1 import contract_pb2

LETTERS = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


@given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 30), max_size=6))
def test_text_ends_before_the_first_stop_however_it_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    """All certain text is what stands before the earliest stop string, for any cutting into pieces."""
    matcher = StopMatcher(stops)
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    certain = ""
    for begin, end in pairwise(edges):
        certain += matcher.feed(text[begin:end])
        if matcher.found:
            break
        assert text.startswith(certain)
    certain += matcher.flush()
    place = min((text.find(stop) for stop in stops if stop in text), default=len(text))
    # A longer stop string that begins earlier may be found only after a shorter one behind it was complete.
    assert bool(matcher.found) == any(stop in text for stop in stops)
    assert certain == text[: len(certain)]
    assert len(certain) >= place
    if len(edges) <= 2:
        assert certain == text[:place]


@given(text=LETTERS, stop=st.text("ab\n", min_size=1, max_size=4))
def test_one_character_at_a_time(text: str, stop: str) -> None:
    """As tokens come: exactly the text before the stop string, and nothing is held back for longer than it must be."""
    matcher, certain = StopMatcher([stop]), ""
    for count, character in enumerate(text, 1):
        certain += matcher.feed(character)
        if matcher.found:
            break
        held = text[len(certain) : count]
        assert stop.startswith(held), "text is held back that cannot be the stop string"
    assert certain + matcher.flush() == text.partition(stop)[0]


def _vocabulary(symbols: str, unknown_id: int | None) -> Vocabulary:
    return Vocabulary(contract_pb2.Vocabulary(symbols=list(symbols), unknown_id=unknown_id, unit="character"))


def test_text_and_ids() -> None:
    """There and back; an unknown character becomes the unknown token where the contract has one."""
    vocabulary = _vocabulary("?aé", 0)
    assert vocabulary.encode("aéa☃".encode(), "text") == [1, 2, 1, 0]
    assert vocabulary.decode([1, 2, 1]) == "aéa"


@pytest.mark.parametrize(
    ("text", "reason", "received"),
    [
        (b"a\xffa", Reason.INVALID_TEXT, "byte 0xff at 1"),
        (b"a\xc3", Reason.INVALID_TEXT, "byte 0xc3 at 1"),
        ("a☃".encode(), Reason.UNKNOWN_SYMBOL, "'☃' at character 1"),
    ],
)
def test_text_that_cannot_be_encoded(text: bytes, reason: Reason, received: str) -> None:
    """Refused, with the place."""
    with pytest.raises(ClientError) as caught:
        _vocabulary("aé", None).encode(text, "text")
    assert (caught.value.reason, caught.value.detail.received) == (reason, received)


def test_a_model_without_characters_has_no_text() -> None:
    """Text is refused and decodes to nothing; ids are all there is."""
    for vocabulary in (Vocabulary(contract_pb2.Vocabulary()), Vocabulary(contract_pb2.Vocabulary(symbols=["the"]))):
        assert vocabulary.decode([0]) == ""
        with pytest.raises(ClientError, match="send token ids") as caught:
            vocabulary.encode(b"a", "text")
        assert caught.value.reason is Reason.WRONG_TASK
