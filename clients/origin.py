"""How a session came to stand where a generation begins: what it takes to begin again elsewhere.

Owns the beginning, a new session or a snapshot, and the tokens that were fed since. Must not know calls.
"""

from __future__ import annotations

from dataclasses import dataclass

from eddy.clients.vocabulary import Encoder
from eddy.v1 import contract_pb2, generation_pb2

# Token ids; or text, UTF-8, that the server has encoded. Nothing fed to a new session is its vocabulary's start symbol.
Part = bytes | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """A beginning.

    Attributes:
        opening: how the session was opened, where it began at 0; otherwise `snapshot` was taken at `position`.
        parts: what was fed since, in order.
    """

    opening: generation_pb2.NewSession | None
    snapshot: bytes
    position: int
    parts: tuple[Part, ...] = ()

    def then(self, *parts: Part) -> Origin:
        """The same, with more fed."""
        return Origin(self.opening, self.snapshot, self.position, (*self.parts, *parts))

    def tokens(self, vocabulary: contract_pb2.Vocabulary) -> list[int]:
        """All that was fed, as token ids."""
        found: list[int] = []
        for number, part in enumerate(self.parts):
            is_start = not number and self.opening is not None and not part
            if is_start and vocabulary.HasField("start_id"):
                found.append(vocabulary.start_id)
            elif part:
                found += Encoder(vocabulary, "prompt").encode(part.decode()) if isinstance(part, bytes) else part
        return found


def prompt_of(request: generation_pb2.GenerateRequest) -> Part:
    """A request's prompt."""
    return request.text if request.WhichOneof("prompt") == "text" else tuple(request.tokens.ids)
