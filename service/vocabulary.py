"""Text as token ids and back, by the contract's vocabulary.

Owns the two tables. Must not know requests or models beyond the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

from eddy.service.errors import ClientError, Detail, Reason, invalid
from eddy.v1 import contract_pb2

_CHARACTER, _PIECE = "character", "piece"
# In pieces it stands for a space.
_SPACE = "\u2581"


class Vocabulary:
    """One model's vocabulary.

    Args:
        message: the contract's; without symbols, text is refused and token ids are all there is.

    Attributes:
        unknown_id, start_id, end_id: symbols that stand for no text, None where there are none.
    """

    def __init__(self, message: contract_pb2.Vocabulary) -> None:
        self.symbols = tuple(message.symbols)
        self.unknown_id = message.unknown_id if message.HasField("unknown_id") else None
        self.start_id = message.start_id if message.HasField("start_id") else None
        self.end_id = message.end_id if message.HasField("end_id") else None
        self.unit = message.unit
        self._ids = {symbol: number for number, symbol in enumerate(self.symbols)}
        special = (self.start_id, self.end_id) if self.unit == _CHARACTER else self.special_ids
        for number in special:
            if number is not None and self.symbols:
                self._ids.pop(self.symbols[number], None)
        # By first character: the lengths of the symbols that begin with it, longest first.
        lengths: dict[str, set[int]] = {}
        for symbol in self._ids:
            if symbol:
                lengths.setdefault(symbol[0], set()).add(len(symbol))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Symbols that stand for no text."""
        return tuple(each for each in (self.unknown_id, self.start_id, self.end_id) if each is not None)

    @property
    def has_text(self) -> bool:
        """Text can be turned into tokens and back."""
        return bool(self.symbols) and self.unit in (_CHARACTER, _PIECE)

    def check_text(self, field: str) -> None:
        """Raises ClientError WRONG_TASK when the model has no text."""
        if not self.has_text:
            raise ClientError(
                Reason.WRONG_TASK,
                f"{field}: the model has no vocabulary of characters or pieces; send token ids",
                Detail(field, "text", "token ids"),
            )

    def encode(self, text: bytes, field: str) -> list[int]:
        """Token ids of UTF-8 `text`: at every place the longest symbol that it goes on with.

        Raises:
            ClientError: WRONG_TASK; INVALID_TEXT, at which byte; UNKNOWN_SYMBOL, which and where, when the contract
                gives no unknown token.
        """
        self.check_text(field)
        try:
            characters = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise invalid(
                Reason.INVALID_TEXT, field, f"byte {text[error.start]:#04x} at {error.start}", "UTF-8"
            ) from error
        if self.unit == _PIECE:
            ids = self._encode_pieces(characters.replace(" ", _SPACE))
        else:
            ids = [self._ids.get(character, self.unknown_id) for character in characters]
        if None in ids:
            place = ids.index(None)
            if self.unit == _PIECE:  # Of symbols of several characters.
                place = sum(len(self.symbols[number]) for number in ids[:place] if number is not None)
            raise invalid(
                Reason.UNKNOWN_SYMBOL,
                field,
                f"{characters[place]!r} at character {place}",
                f"the model's {len(self.symbols)} symbols",
            )
        return ids  # type: ignore[return-value]  # None was just excluded

    def _encode_pieces(self, text: str) -> list[int | None]:
        ids: list[int | None] = []
        place = 0
        while place < len(text):
            for length in self._lengths.get(text[place], ()):
                number = self._ids.get(text[place : place + length])
                if number is not None:
                    ids.append(number)
                    place += length
                    break
            else:
                ids.append(self.unknown_id)
                place += 1
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; empty for a model without text. Start and end have none."""
        if not self.has_text:
            return ""
        text = "".join([self.symbols[number] for number in ids if number not in (self.start_id, self.end_id)])
        return text.replace(_SPACE, " ") if self.unit == _PIECE else text
