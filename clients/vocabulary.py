"""Text as token ids and back, by the vocabulary in a model's contract.

Owns encoding and decoding, which are the service's own. Must not know models beyond the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from eddy.clients.errors import invalid
from eddy.v1 import contract_pb2

_SPACE = "\u2581"


class Encoder:
    """One vocabulary.

    Args:
        vocabulary: the contract's; field: what is encoded, for errors.

    Raises:
        InvalidInput: it has no symbols, or is of a unit that is not known here.
    """

    def __init__(self, vocabulary: contract_pb2.Vocabulary, field: str) -> None:
        special = {
            getattr(vocabulary, name) for name in ("start_id", "end_id", "unknown_id") if vocabulary.HasField(name)
        }
        # No text contains the special ones.
        self._ids = {symbol: number for number, symbol in enumerate(vocabulary.symbols) if number not in special}
        self._longest = max(map(len, self._ids), default=1)
        self._unknown = vocabulary.unknown_id if vocabulary.HasField("unknown_id") else None
        self._field = field
        cuts: dict[str, Callable[[str], Iterator[str]]] = {
            "character": iter,
            "piece": self._pieces,
        }
        if not vocabulary.symbols or vocabulary.unit not in cuts:
            received = "text, for a model that reads no text"
            if vocabulary.symbols:
                received = f"text, for a model whose symbols are of unit {vocabulary.unit!r}"
            raise invalid("WRONG_TASK", field, received, "token ids")
        self._cut = cuts[vocabulary.unit]

    def encode(self, text: str) -> list[int]:
        """Token ids; what is no symbol is the unknown token.

        Raises:
            InvalidInput: it is no symbol, and there is no unknown token.
        """
        ids = []
        for part in self._cut(text):
            found = self._ids.get(part, self._unknown)
            if found is None:
                raise invalid("UNKNOWN_SYMBOL", self._field, repr(part), f"the model's {len(self._ids)} symbols")
            ids.append(found)
        return ids

    def _pieces(self, text: str) -> Iterator[str]:
        """At every place the longest symbol, else one character."""
        rest, at = text.replace(" ", _SPACE), 0
        while at < len(rest):
            ends = range(min(at + self._longest, len(rest)), at, -1)
            part = next((rest[at:end] for end in ends if rest[at:end] in self._ids), rest[at])
            yield part
            at += len(part)


def text_of(vocabulary: contract_pb2.Vocabulary, ids: Sequence[int]) -> str:
    """The text of token ids, as the service tells it; empty for a model without text."""
    if vocabulary.unit not in ("character", "piece") or not vocabulary.symbols:
        return ""
    silent = {getattr(vocabulary, name) for name in ("start_id", "end_id") if vocabulary.HasField(name)}
    text = "".join([vocabulary.symbols[number] for number in ids if number not in silent])
    return text.replace(_SPACE, " ") if vocabulary.unit == "piece" else text
