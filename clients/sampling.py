"""What to generate: source, prompt, sampling, limits, as a caller says them and as the wire wants them.

Owns the options and their checks on the client's side. What is in range is the server's to say; here only what the
message could not carry is refused. Must not know calls.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableSequence, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike

from eddy.clients.errors import InvalidInput, invalid
from eddy.clients.start import Prime, States
from eddy.v1 import generation_pb2

# Text, UTF-8 bytes, or token ids [T].
Prompt = str | bytes | ArrayLike


class GenerateOptions(TypedDict, total=False):
    """How to generate; each may be left out.

    Attributes:
        version: of the model; the latest that is ready by default.
        max_tokens: generated tokens at most; the server's limit by default.
        temperature: logits are divided by it; 0 for always the most likely token, as translators do by
            default; 1 by default for other models.
        top_k: only the k most likely tokens; all by default.
        top_p: only the most likely tokens that together reach this probability, in (0, 1]; 1 by default.
        seed: the same seed gives the same text; by default the server chooses one, and `started.seed` says which.
        stop: generation ends after the first of these strings, which is not part of the text. One or several.
        log_probabilities: whether to send each token's log-probability.
        num_alternatives: so many of the most likely alternatives of each token are sent, too; 0 by default.
        keep_session: whether a new session stays open for a next turn.
        idle_timeout_seconds: how long the server keeps a new session without a step; the server's default for 0.
        source: the text that a translator reads first, in its source vocabulary.
        prime: the same as numbers, as `Client.open` takes it, instead of `source`.
        initial_states: states that a new session begins with, as `Client.open` takes them.
        num_beams: beam search of so many beams instead of drawing tokens: the best beam comes at the end, all of them
            are in `finished.hypotheses`. In a new session, without sampling, stops and alternatives.
        length_penalty: a beam's log-probability is divided by its number of tokens to this power; 1 by default.
        outputs: further outputs of the model to send beside each token, by name: attention weights. One or several.
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
    source: str
    prime: Prime
    initial_states: States
    num_beams: int
    length_penalty: float
    outputs: str | Sequence[str]


# What only a new session has.
_OPENING = ("version", "idle_timeout_seconds", "source", "prime", "initial_states")


def generate_request(model: str, prompt: Prompt | None, options: GenerateOptions) -> generation_pb2.GenerateRequest:
    """The message, but for the session that it goes on with, if any, and for `prime` and `initial_states`.

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
    request = generation_pb2.GenerateRequest()
    for name in ("stop", "outputs"):
        value = given.get(name)
        if value is not None:
            _extend(getattr(request, name), name, [value] if isinstance(value, str) else value)
    for names, message in (
        (("max_tokens", "log_probabilities", "num_alternatives", "keep_session"), request),
        (("num_beams", "length_penalty"), request),
        (("temperature", "top_k", "top_p", "seed"), request.sampling),
    ):
        for name in names:
            if given.get(name) is not None:
                _set(message, name, given[name])
    if model:
        _set_opening(request.open, model, given)
    else:
        opening = [name for name in _OPENING if given.get(name) is not None]
        if opening:
            raise invalid("WRONG_TASK", ", ".join(opening), "an open session", "a model to open one of")
    _set_prompt(request, prompt)
    return request


def _set_opening(message: generation_pb2.NewSession, model: str, given: Mapping[str, object]) -> None:
    message.model = model
    for name in ("version", "idle_timeout_seconds"):
        if name in given:
            _set(message, name, given[name])
    source = given.get("source")
    if source is None:
        return
    if given.get("prime") is not None:
        raise invalid("MISSING_FIELD", "source, prime", "both", "one of them")
    if not isinstance(source, str):
        raise invalid("INVALID_TEXT", "source", type(source).__name__, "text")
    message.source_text = _utf8(source, "source")


def _extend(field: MutableSequence[str], name: str, values: object) -> None:
    """Adds strings to a field."""
    try:
        field.extend(values)  # type: ignore[arg-type]  # Protobuf says what is wrong with it.
    except (TypeError, ValueError) as error:
        raise invalid("OUT_OF_RANGE", name, repr(values), f"another value ({error})") from error


def _utf8(text: str, field: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # A lone surrogate.
        raise invalid("INVALID_TEXT", field, str(error), "text") from error


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
        request.text = _utf8(prompt, "prompt") if isinstance(prompt, str) else prompt
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
