"""What came of a generation, over all the calls that it took.

Owns the tokens and the text that its caller has, and which of them the next call must draw again. Must not know calls.

Ordering rules: a call that goes on begins where the caller's text ends, so that a stop string is found that began
before the cut: the tokens of text that was held back are drawn again, which gives the same ones, and are not told
twice. Text that may be the beginning of a stop string is told once it is certain, also where a server that is going
tells it at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eddy.clients.errors import DivergedError
from eddy.clients.pieces import Piece, Token
from eddy.clients.vocabulary import text_of
from eddy.v1 import contract_pb2


@dataclass(frozen=True, slots=True)
class Rest:
    """What the next call is asked for.

    Attributes:
        fed: token ids that follow the prompt; max_tokens: as `GenerateRequest` has it.
    """

    fed: tuple[int, ...]
    max_tokens: int


class Tape:
    """One generation's.

    Args:
        stops: its stop strings; max_tokens: as asked for, 0 for the server's limit.
        is_whole: no token stands alone, as of a beam search: the next call begins at the beginning.
    """

    def __init__(self, stops: Sequence[str], max_tokens: int, *, is_whole: bool) -> None:
        self._stops = tuple(stops)
        self._max_tokens = max_tokens
        # What the server allows counts from a call's beginning.
        self._is_whole = is_whole or not max_tokens
        # Changed only by the methods below. `num_fed`: of `ids`, those that this call was given.
        self.ids: list[int] = []
        self.num_fed = 0
        self._num_drawn = 0
        self._num_characters = 0
        self._num_to_skip = 0
        self._held = ""

    def take(self, piece: Piece) -> Piece:
        """What of `piece` is new.

        Raises:
            DivergedError: tokens that were drawn again are others.
        """
        fresh: list[Token] = []
        for token in piece.tokens:
            place = self.num_fed + self._num_drawn
            self._num_drawn += 1
            if place < len(self.ids):
                if self.ids[place] != token.id:
                    raise _diverged(place, self.ids[place], token.id)
            else:
                self.ids.append(token.id)
                fresh.append(token)
        num_skipped = min(self._num_to_skip, len(piece.text))
        self._num_to_skip -= num_skipped
        text = self._held + piece.text[num_skipped:]
        certain = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[certain:]
        self._num_characters += certain
        return Piece(text[:certain], tuple(fresh))

    def flush(self) -> Piece:
        """The text held back, when nothing follows."""
        text, self._held = self._held, ""
        self._num_characters += len(text)
        return Piece(text, ())

    def rewind(self, vocabulary: contract_pb2.Vocabulary) -> Rest:
        """A new call begins: what it is asked for."""
        self._held = ""
        self._num_drawn = 0
        self.num_fed, self._num_to_skip = 0, self._num_characters
        if self._is_whole:
            return Rest((), self._max_tokens)
        # A call has to draw one token at least.
        most = min(len(self.ids), self._max_tokens - 1)
        for number in range(most):
            length = len(text_of(vocabulary, self.ids[number : number + 1]))
            if length > self._num_to_skip:
                break
            self._num_to_skip -= length
            self.num_fed += 1
        return Rest(tuple(self.ids[: self.num_fed]), self._max_tokens - self.num_fed)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop`, not all of it, that `text` ends with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


def _diverged(place: int, before: int, now: int) -> DivergedError:
    return DivergedError(
        f"token {place} was drawn again after a cut and is {now}, not {before} as before: the server's model, CPU or"
        " runtime is another",
        "DIVERGED",
    )
