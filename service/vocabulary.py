"""Text as token ids and back, by the contract's vocabulary.

Owns the two tables. Must not know requests or models beyond the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

from eddy.service.errors import ClientError, Detail, Reason, invalid
from eddy.v1 import contract_pb2

_CHARACTER = "character"


class Vocabulary:
    """One model's vocabulary.

    Args:
        message: the contract's; without symbols, text is refused and token ids are all there is.
    """

    def __init__(self, message: contract_pb2.Vocabulary) -> None:
        self.symbols = tuple(message.symbols)
        self.unknown_id = message.unknown_id if message.HasField("unknown_id") else None
        self.unit = message.unit
        self._ids = {symbol: number for number, symbol in enumerate(self.symbols)}

    @property
    def has_text(self) -> bool:
        """Text can be turned into tokens and back."""
        return bool(self.symbols) and self.unit == _CHARACTER

    def check_text(self, field: str) -> None:
        """Raises ClientError WRONG_TASK when the model has no text."""
        if not self.has_text:
            raise ClientError(
                Reason.WRONG_TASK,
                f"{field}: the model has no vocabulary of characters; send token ids",
                Detail(field, "text", "token ids"),
            )

    def encode(self, text: bytes, field: str) -> list[int]:
        """Token ids of UTF-8 `text`.

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
        ids = [self._ids.get(character, self.unknown_id) for character in characters]
        if None in ids:
            place = ids.index(None)
            raise invalid(
                Reason.UNKNOWN_SYMBOL,
                field,
                f"{characters[place]!r} at character {place}",
                f"the model's {len(self.symbols)} characters",
            )
        return ids  # type: ignore[return-value]  # None was just excluded

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; empty for a model without text."""
        return "".join([self.symbols[number] for number in ids]) if self.has_text else ""
