"""What to generate: prompt, sampling, limits, as a caller says them and as the wire wants them.

Owns the options and their checks on the client's side. What is in range is the server's to say; here only what the
message could not carry is refused. Must not know calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike

from eddy.clients.errors import InvalidInput, invalid
from eddy.v1 import generation_pb2

# Text, UTF-8 bytes, or token ids [T].
Prompt = str | bytes | ArrayLike


class GenerateOptions(TypedDict, total=False):
    """How to generate; each may be left out.

    Attributes:
        version: of the model; the latest that is ready by default.
        max_tokens: generated tokens at most; the server's limit by default.
        temperature: logits are divided by it; 1 by default, 0 for always the most likely token.
        top_k: only the k most likely tokens; all by default.
        top_p: only the most likely tokens that together reach this probability, in (0, 1]; 1 by default.
        seed: the same seed gives the same text; by default the server chooses one, and `started.seed` says which.
        stop: generation ends after the first of these strings, which is not part of the text. One or several.
        log_probabilities: whether to send each token's log-probability.
        num_alternatives: so many of the most likely alternatives of each token are sent, too; 0 by default.
        keep_session: whether a new session stays open for a next turn.
        idle_timeout_seconds: how long the server keeps a new session without a step; the server's default for 0.
    """

    version: str
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: str | Sequence[str]
    log_probabilities: bool
    num_alternatives: int
    keep_session: bool
    idle_timeout_seconds: float


def generate_request(model: str, prompt: Prompt | None, options: GenerateOptions) -> generation_pb2.GenerateRequest:
    """The message, but for the session that it goes on with, if any.

    Args:
        model: empty when the session is an existing one.

    Raises:
        InvalidInput: a value has the wrong type, or is outside what the message can hold.
        TypeError: there is no such option.
    """
    given = dict(options)
    strange = given.keys() - GenerateOptions.__annotations__.keys()
    if strange:
        raise TypeError(f"unexpected options {', '.join(sorted(strange))}")
    stop = given.pop("stop", ())
    request = generation_pb2.GenerateRequest(stop=[stop] if isinstance(stop, str) else list(stop))  # type: ignore[call-overload]
    for names, message in (
        (("max_tokens", "log_probabilities", "num_alternatives", "keep_session"), request),
        (("temperature", "top_k", "top_p", "seed"), request.sampling),
    ):
        for name in names:
            if given.get(name) is not None:
                _set(message, name, given[name])
    if model:
        request.open.model = model
        for name in ("version", "idle_timeout_seconds"):
            if name in given:
                _set(request.open, name, given[name])
    elif "version" in given or "idle_timeout_seconds" in given:
        raise invalid("WRONG_TASK", "version, idle_timeout_seconds", "an open session", "a model to open one of")
    _set_prompt(request, prompt)
    return request


def _set(message: object, name: str, value: object) -> None:
    """Sets a field; protobuf knows what fits."""
    try:
        setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise invalid("OUT_OF_RANGE", name, repr(value), f"another value ({error})") from error


def _set_prompt(request: generation_pb2.GenerateRequest, prompt: Prompt | None) -> None:
    if prompt is None:
        return
    if isinstance(prompt, str | bytes):
        try:
            request.text = prompt.encode() if isinstance(prompt, str) else prompt
        except UnicodeEncodeError as error:  # A lone surrogate.
            raise invalid("INVALID_TEXT", "prompt", str(error), "text") from error
        return
    request.tokens.ids.extend(_token_ids(prompt))
    request.tokens.SetInParent()


def _token_ids(prompt: ArrayLike) -> Sequence[int]:
    try:
        ids = np.asarray(prompt)
    except ValueError as error:  # Lists of different lengths.
        raise _wrong_prompt(f"ragged values ({error})") from error
    if ids.size == 0:
        return []
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise _wrong_prompt(f"{ids.dtype} {list(ids.shape)}")
    if ids.min() < 0 or ids.max() > np.iinfo(np.uint32).max:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise invalid("OUT_OF_RANGE", "prompt", wrong, "token ids, 0 or more")
    found: list[int] = ids.tolist()
    return found


def _wrong_prompt(received: str) -> InvalidInput:
    return invalid("INVALID_SHAPE", "prompt", received, "text, or token ids, int [T]")
