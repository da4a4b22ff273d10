"""The command that writes: `eddy client generate`.

Owns the prompt, the way from pieces to the terminal, and what is said of the session. Must not know the wire.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from eddy.clients.attention import draw_attention
from eddy.clients.blocking import SyncGeneration
from eddy.clients.display import write_json
from eddy.clients.pieces import Finished, KeptSession, Piece, Token
from eddy.clients.sampling import GenerateOptions
from eddy.clients.session import Session
from eddy.clients.source import STANDARD_INPUT, SourceError, opened
from eddy.clients.sync import SyncClient
from eddy.clients.vocabulary import Encoder

_ID_BYTES = 16
# The output that says where a symbol looked.
_ATTENTION = "attention"


def session_id(text: str) -> bytes:
    """A session's id, as the command line says it, with its resume token or without."""
    return session_key(text)[0]


def session_key(text: str) -> tuple[bytes, bytes]:
    """A session's id, and its resume token where the command line says it: `ID` or `ID:TOKEN`.

    Raises:
        SourceError: that is neither.
    """
    parts = text.split(":")
    try:
        found = [bytes.fromhex(part) for part in parts]
    except ValueError:
        found = []
    if len(found) not in (1, 2) or any(len(each) != _ID_BYTES for each in found):
        digits = 2 * _ID_BYTES
        raise SourceError(f"{text!r} is no session id: expected {digits} hexadecimal digits, or ID:TOKEN")
    return found[0], b"".join(found[1:])


def _key(session: KeptSession | Session) -> str:
    """As `session_key` reads it."""
    return ":".join([each.hex() for each in (session.id, session.resume_token) if each])


def generate(options: argparse.Namespace, client: SyncClient) -> int:
    """Shows text as it comes; the session is closed on every way out, unless it is to be kept."""
    if (options.log_probabilities or options.alternatives) and not options.json:
        raise SourceError("--log-probabilities and --alternatives are told in JSON lines only: add --json")
    if options.source == STANDARD_INPUT:
        options.source = _standard_input().strip()
    prompt = _prompt(options)
    settings = _settings(options)
    looked_at = _source_symbols(options, client) if options.attention else []
    source: KeptSession | bytes | None = None
    if options.session:
        source, token = session_key(options.session)
        found = client.find_session(source)
        if found.model != options.model:
            raise SourceError(f"--session: that session is of {found.model}, not of {options.model}")
        if token:  # Then it goes on by itself after a cut.
            source = KeptSession(source, found.epoch, found.next_position, found.model, found.version, token)
    elif not prompt and not options.source:
        raise SourceError('no prompt: give one, as in `eddy client generate MODEL "Once "`, or pipe one in')
    with client.generate(
        "" if source else options.model,
        prompt or None,
        session=source,
        timeout_seconds=options.timeout,
        **settings,
    ) as generation:
        try:
            tokens = _tell(options, generation, prompt)
        finally:
            _tell_end(options, generation)
    if looked_at and tokens and not options.json:
        symbols = client.contract(options.model, options.version).vocabulary.symbols
        weights = np.stack([token.outputs[_ATTENTION] for token in tokens])
        console = Console(highlight=False)
        console.print(draw_attention(looked_at, [symbols[token.id] for token in tokens], weights, console.width))
    return 0


def _source_symbols(options: argparse.Namespace, client: SyncClient) -> list[str]:
    """The source as the model reads it.

    Raises:
        SourceError: there is none, or the model does not say where it looks.
    """
    if options.source is None:
        raise SourceError("--attention: needs --source")
    contract = client.contract(options.model, options.version)
    if all(spec.name != _ATTENTION for spec in contract.outputs):
        raise SourceError(f"--attention: {options.model} has no output {_ATTENTION!r}")
    symbols = contract.source_vocabulary.symbols
    return [symbols[each] for each in Encoder(contract.source_vocabulary, "source").encode(options.source)]


def _prompt(options: argparse.Namespace) -> str:
    if options.prompt is not None and options.prompt != STANDARD_INPUT:
        return str(options.prompt)
    if options.prompt is None and (sys.stdin.isatty() or options.session or options.source is not None):
        return ""
    return _standard_input()


def _standard_input() -> str:
    with opened(STANDARD_INPUT) as file:
        try:
            return file.read()
        except UnicodeDecodeError as error:
            raise SourceError(f"stdin: not UTF-8 ({error.reason})") from error


def _settings(options: argparse.Namespace) -> GenerateOptions:
    """The options that were given."""
    settings = GenerateOptions(
        max_tokens=options.max_tokens,
        stop=options.stop,
        log_probabilities=options.log_probabilities,
        num_alternatives=options.alternatives,
    )
    if options.temperature is not None:
        settings["temperature"] = options.temperature
    if options.top_k is not None:
        settings["top_k"] = options.top_k
    if options.top_p is not None:
        settings["top_p"] = options.top_p
    if options.seed is not None:
        settings["seed"] = options.seed
    if options.source is not None:
        settings["source"] = options.source
    if options.beams is not None:
        settings["num_beams"] = options.beams
    if options.length_penalty is not None:
        settings["length_penalty"] = options.length_penalty
    if options.attention:
        settings["outputs"] = _ATTENTION
    if not options.session:
        settings["keep_session"] = options.keep
        settings["version"] = options.version
    return settings


def _tell(options: argparse.Namespace, generation: SyncGeneration, prompt: str) -> list[Token]:
    """Prompt and pieces, as they come; returns their tokens."""
    tokens: list[Token] = []
    if options.json:
        started = generation.started
        told = {"event": "started", "model": started.model, "version": started.version, "seed": started.seed}
        write_json({**told, "num_prompt_tokens": started.num_prompt_tokens, "position": started.position})
        for piece in generation:
            write_json({"event": "tokens", "text": piece.text, "tokens": _tokens(options, piece)})
            tokens += piece.tokens
        return tokens
    is_watched = sys.stdout.isatty()
    if is_watched and prompt:
        Console(highlight=False).print(Text(prompt, "dim"), end="", soft_wrap=True)
    last = ""
    try:
        for piece in generation:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
            last = piece.text or last
            tokens += piece.tokens
    finally:
        if is_watched or not last.endswith("\n"):
            print(flush=True)
    return tokens


def _tokens(options: argparse.Namespace, piece: Piece) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    for token in piece.tokens:
        one: dict[str, Any] = {"id": token.id}
        if token.log_probability is not None:
            one["log_probability"] = token.log_probability
        if options.alternatives:
            one["alternatives"] = [
                {"id": other.id, "log_probability": other.log_probability} for other in token.alternatives
            ]
        if token.outputs:
            one["outputs"] = {name: values.tolist() for name, values in token.outputs.items()}
        told.append(one)
    return told


def _tell_end(options: argparse.Namespace, generation: SyncGeneration) -> None:
    """Why it ended, and the id of a session that stays; also after Ctrl-C."""
    finished = generation.finished
    is_kept = bool(options.session) or (options.keep if finished is None else finished.session_kept)
    kept = generation.session if is_kept else None
    if options.json:
        told: dict[str, str | None] = {"session_id": None, "resume_token": None}
        if kept is not None:
            told = {"session_id": kept.id.hex(), "resume_token": kept.resume_token.hex() or None}
        write_json({"event": "finished", **_end(finished), **told})
        return
    if sys.stderr.isatty():
        console = Console(stderr=True, highlight=False)
        console.print(Text(f"[{_summary(generation)}]", "dim"))
    if kept is not None:
        where = "" if finished is None else f" at position {finished.next_position}"
        command = f"eddy client generate {options.model} --session {_key(kept)} --target {options.target}"
        print(f"the session stays open{where}; go on with: {command}", file=sys.stderr)


def _end(finished: Finished | None) -> dict[str, Any]:
    if finished is None:
        return {"reason": "cancelled"}
    return {
        "reason": str(finished.reason),
        "stop": finished.stop,
        "num_tokens": finished.num_tokens,
        "next_position": finished.next_position,
        **({"hypotheses": [asdict(each) for each in finished.hypotheses]} if finished.hypotheses else {}),
    }


def _summary(generation: SyncGeneration) -> str:
    finished = generation.finished
    seed = f"seed {generation.started.seed}"
    if finished is None:
        return f"stopped, {seed}"
    reason = f"stop string {finished.stop!r}" if finished.stop else str(finished.reason).replace("_", " ")
    return f"{finished.num_tokens} tokens, {seed}, ended by {reason}"
