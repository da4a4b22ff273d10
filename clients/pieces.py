"""What a generation tells: pieces of text with their tokens, how it began, why it ended.

Owns these records and their making from messages. Must not know calls or sessions.

Dimension key: T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from eddy.clients.origin import Origin
from eddy.clients.tensors import read_tensor
from eddy.v1 import generation_pb2


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have come instead; `log_probability` as in `Token`."""

    id: int
    log_probability: float


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    Attributes:
        log_probability: natural logarithm, in the model's own distribution; None unless it was asked for.
        alternatives: the most likely ones, as many as were asked for.
        outputs: the outputs that were asked for, [...] each by its name, of the step that the token was drawn from.
    """

    id: int
    log_probability: float | None
    alternatives: tuple[Alternative, ...]
    outputs: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some tokens, and the text that is certain by now: it may lag behind them, where a stop string could begin."""

    text: str
    tokens: tuple[Token, ...]

    @property
    def ids(self) -> list[int]:
        """The tokens' ids."""
        return [token.id for token in self.tokens]

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """The outputs that were asked for, [T, ...] each by its name: one of the tokens after the other."""
        return stacked(self.tokens)


@dataclass(frozen=True, slots=True)
class Started:
    """What the server says first.

    Attributes:
        seed: the one asked for, or the one that the server chose.
        position: of the prompt's first token in the session.
        resume_token: of a new session, what `Client.attach` asks for beside the id; otherwise empty.
    """

    session_id: bytes
    epoch: int
    model: str
    version: str
    seed: int
    num_prompt_tokens: int
    position: int
    resume_token: bytes = b""


class FinishReason(StrEnum):
    """Why a generation ended."""

    MAX_TOKENS = "max_tokens"
    STOP = "stop"
    # The model drew the symbol that ends its output, which is no part of the text.
    END = "end"
    # The server is shutting down.
    DRAINING = "draining"
    # One that this client does not know.
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One beam of a search.

    Attributes:
        log_probability: natural logarithm of the probability of all tokens, the end symbol included.
    """

    ids: tuple[int, ...]
    text: str
    log_probability: float


@dataclass(frozen=True, slots=True)
class Finished:
    """What the server says last.

    Attributes:
        hypotheses: of a beam search, all beams, best first.
        stop: the stop string that ended it, else empty.
        next_position: where the session stands.
        session_kept: the session is still open.
    """

    reason: FinishReason
    stop: str
    num_tokens: int
    next_position: int
    session_kept: bool
    hypotheses: tuple[Hypothesis, ...] = ()


@dataclass(frozen=True, slots=True)
class KeptSession:
    """A session that a generation left open: pass it to the next one.

    Attributes:
        id: whoever knows it can go on with the session; `Client.attach` steps it, `Client.close_session` ends it.
        position: where the next generation must begin; None when the last one was cut off: then the next
            one takes the session over, where it is.
        resume_token: what `Client.attach` asks for; with it a generation goes on by itself after a cut.
        origin: how the session came to stand there, where that is known.
    """

    id: bytes
    epoch: int
    position: int | None
    model: str
    version: str
    resume_token: bytes = b""
    origin: Origin | None = field(default=None, repr=False, compare=False)


def piece(message: generation_pb2.GeneratedTokens) -> Piece:
    """From the wire."""
    tokens = tuple(
        Token(
            token.id,
            token.log_probability if token.HasField("log_probability") else None,
            tuple(Alternative(other.id, other.log_probability) for other in token.alternatives),
            {tensor.name: read_tensor(tensor)[0, 0] for tensor in token.outputs},
        )
        for token in message.tokens
    )
    return Piece(message.text, tokens)


def stacked(tokens: Sequence[Token]) -> dict[str, np.ndarray]:
    """The outputs of tokens, [T, ...] each by its name."""
    names = tokens[0].outputs if tokens else ()
    return {name: np.stack([token.outputs[name] for token in tokens]) for name in names}


def started(message: generation_pb2.GenerationStarted) -> Started:
    """From the wire."""
    return Started(
        message.session_id,
        message.epoch,
        message.model,
        message.version,
        message.seed,
        message.num_prompt_tokens,
        message.position,
        message.resume_token,
    )


_REASONS = {
    generation_pb2.GenerationFinished.REASON_MAX_TOKENS: FinishReason.MAX_TOKENS,
    generation_pb2.GenerationFinished.REASON_STOP: FinishReason.STOP,
    generation_pb2.GenerationFinished.REASON_END: FinishReason.END,
    generation_pb2.GenerationFinished.REASON_DRAINING: FinishReason.DRAINING,
}


def finished(message: generation_pb2.GenerationFinished) -> Finished:
    """From the wire."""
    return Finished(
        _REASONS.get(message.reason, FinishReason.OTHER),
        message.stop,
        message.num_tokens,
        message.next_position,
        message.session_kept,
        tuple(Hypothesis(tuple(each.ids), each.text, each.log_probability) for each in message.hypotheses),
    )
