"""The command line of the client: the commands below `eddy client`.

Owns arguments, messages and exit codes: 0 done; 1 refused or failed, for a stated reason; 2 wrong arguments or input;
3 nobody answers; 143 SIGTERM. Ctrl-C and a reader of the output that has gone are left to `eddy.cli`. Sessions are
closed on every way out. gRPC and rich are imported only when a command runs.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eddy.clients.flags import add_tls, tls_of

if TYPE_CHECKING:
    from eddy.clients.sync import SyncClient

DEFAULT_TARGET = "127.0.0.1:8500"

_EXIT_REFUSED, _EXIT_INPUT, _EXIT_NO_SERVER, _EXIT_TERMINATED = 1, 2, 3, 143


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `client`; each of its commands sets `func`, which takes the parsed arguments and returns an exit code."""
    client = subparsers.add_parser(
        "client",
        help="stream, generate and infer from the terminal",
        description="Talks to a running server (eddy serve).",
        epilog=(
            "examples:\n"
            "  eddy client stream forecast-gru readings.csv --column glucose\n"
            "  eddy client generate text-lstm 'The class ' --max-tokens 200\n"
            "  eddy client sessions\n\n"
            "Each command's --help shows more."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = client.add_subparsers(title="commands", metavar="COMMAND", dest="client_command", required=True)
    _add_stream(commands)
    _add_generate(commands)
    _add_infer(commands)
    _add_listings(commands)
    _add_moves(commands)


def _add(commands: Any, name: str, run: Callable[..., int], *, help_text: str, **texts: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, formatter_class=argparse.RawDescriptionHelpFormatter, **texts
    )
    parser.add_argument(
        "--target",
        default=DEFAULT_TARGET,
        metavar="HOST:PORT",
        help=f"the server's gRPC address (default: {DEFAULT_TARGET})",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
    add_tls(parser)
    parser.set_defaults(func=_guarded(run))
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="as `eddy models --target HOST:PORT` lists it")
    parser.add_argument("--version", default="", metavar="V", help="of the model (default: the latest)")


def _add_column(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--column",
        metavar="NAME[,NAME...]",
        type=lambda text: [name.strip() for name in text.split(",")],
        help="columns that the model reads, by name or by number from 1 on (default: those it was trained on)",
    )


def _add_stream(commands: Any) -> None:
    stream = _add(
        commands,
        "stream",
        _stream,
        help_text="stream a CSV column or a text through a session, and watch",
        description=(
            "Streams values, or characters, one step each, through one session.\n"
            "On a terminal the answers are drawn as they come; elsewhere each is a line, and restored text is text."
        ),
        epilog=(
            "examples:\n"
            "  eddy client stream forecast-gru models/forecast-gru/1/sample.csv --column glucose\n"
            "  tail -f readings.csv | eddy client stream forecast-gru --column 2\n"
            "  eddy client stream text-lstm README.md --rate 40\n"
            "  eddy client stream forecast-gru sample.csv --json | head -n 3"
        ),
    )
    _add_model(stream)
    stream.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="CSV, or text for a text model; - or nothing: stdin"
    )
    _add_column(stream)
    stream.add_argument(
        "--rate",
        type=float,
        metavar="N",
        help="steps a second, 0 for no limit (default: 20 for a file on a terminal, else no limit)",
    )


def _add_generate(commands: Any) -> None:
    generate = _add(
        commands,
        "generate",
        _generate,
        help_text="text from a text model, as it comes",
        description="The server samples and feeds back; the text appears as it comes. Ctrl-C stops it at once.",
        epilog=(
            "examples:\n"
            '  eddy client generate text-lstm "The class " --temperature 0.6 --max-tokens 300\n'
            "  eddy client generate text-lstm \"def \" --stop $'\\n\\n' --seed 1\n"
            "  head -c 200 README.md | eddy client generate text-lstm-2layer\n"
            '  eddy client generate text-lstm "The " --keep        # says the session\'s ID:TOKEN\n'
            "  eddy client generate text-lstm --session ID:TOKEN   # goes on where it was\n"
            '  eddy client generate MODEL --source "Open the file" --beams 4 --attention    # a translator'
        ),
    )
    _add_model(generate)
    generate.add_argument("prompt", metavar="PROMPT", nargs="?", help="- or nothing: stdin, if that is no terminal")
    generate.add_argument("--max-tokens", type=int, default=200, metavar="N", help="at most (default: 200)")
    generate.add_argument("--temperature", type=float, metavar="X", help="0: always the most likely (default: 1)")
    generate.add_argument("--top-k", type=int, metavar="K", help="only the K most likely tokens")
    generate.add_argument("--top-p", type=float, metavar="P", help="only the likeliest that together reach P")
    generate.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    generate.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before it; may be repeated")
    generate.add_argument("--source", metavar="TEXT", help="what a translator reads first; - for stdin")
    generate.add_argument("--beams", type=int, metavar="N", help="beam search of so many, for translators")
    generate.add_argument("--length-penalty", type=float, metavar="X", help="of beams (default: 1)")
    generate.add_argument("--attention", action="store_true", help="show where each symbol looked in the source")
    generate.add_argument("--log-probabilities", action="store_true", help="of each token, in the lines of --json")
    generate.add_argument("--alternatives", type=int, default=0, metavar="N", help="of each token, likewise")
    generate.add_argument("--keep", action="store_true", help="leave the session open and say its ID:TOKEN")
    generate.add_argument("--session", metavar="ID:TOKEN", help="go on with a session that was kept; it stays open")
    generate.add_argument("--timeout", type=float, metavar="SECONDS", help="for the whole text")


def _add_infer(commands: Any) -> None:
    infer = _add(
        commands,
        "infer",
        _infer,
        help_text="whole files, each from the model's initial state",
        description=(
            "Answers for whole files in one call: CSV files for a model of numbers (the answer is CSV, a row a step),\n"
            "texts for a text model (the answer is each file's bits per character)."
        ),
        epilog=(
            "examples:\n"
            "  eddy client infer forecast-gru monday.csv tuesday.csv --column glucose > forecasts.csv\n"
            "  eddy client infer text-lstm README.md CHANGELOG.md"
        ),
    )
    _add_model(infer)
    infer.add_argument("files", metavar="FILE", nargs="+", help="- for stdin")
    _add_column(infer)
    infer.add_argument("--timeout", type=float, metavar="SECONDS", help="for all files")


def _add_listings(commands: Any) -> None:
    sessions = _add(
        commands,
        "sessions",
        _sessions,
        help_text="every open session",
        description="Every open session. Ids are not told: who knows an id can use the session.",
        epilog="example: eddy client sessions text-lstm",
    )
    sessions.add_argument("model", metavar="MODEL", nargs="?", default="", help="only this model's")
    close = _add(
        commands,
        "close",
        _close,
        help_text="end a session",
        description="Ends a session by its id, whoever has it.",
        epilog="example: eddy client close 5f0c1d9be2a84f7793ab01c2d3e4f506",
    )
    close.add_argument("session", metavar="ID", help="as `generate --keep` said it; :TOKEN may follow")


def _add_moves(commands: Any) -> None:
    fork = _add(
        commands,
        "fork",
        _fork,
        help_text="a new session that stands where another stands",
        description="Opens a session that stands where another one stands, and says its id and its resume token.",
        epilog="example: eddy client fork 5f0c1d9be2a84f7793ab01c2d3e4f506",
    )
    snapshot = _add(
        commands,
        "snapshot",
        _snapshot,
        help_text="all that a session is, as a file",
        description="Writes a session's snapshot to standard output; `eddy snapshot FILE` shows what is in it.",
        epilog="example: eddy client snapshot 5f0c1d9be2a84f7793ab01c2d3e4f506 > session.eddy",
    )
    reset = _add(
        commands,
        "reset",
        _reset,
        help_text="a session back to its beginning",
        description="Sets a session back to position 0, with its model's initial states or others.",
        epilog="example: eddy client reset 5f0c1d9be2a84f7793ab01c2d3e4f506 --states states.npz",
    )
    for parser in (fork, snapshot, reset):
        parser.add_argument("session", metavar="ID", help="as `generate --keep` said it; :TOKEN may follow")
    reset.add_argument("--states", metavar="FILE", help="states to begin again with, by name: numpy's .npz")
    restore = _add(
        commands,
        "restore",
        _restore,
        help_text="a new session from a snapshot",
        description="Opens a session that stands where a snapshot was taken, and says its id and its resume token.",
        epilog="example: eddy client restore session.eddy",
    )
    restore.add_argument("file", metavar="FILE", help="- for stdin")
    restore.add_argument("--model", default="", metavar="NAME", help="of the model (default: the snapshot's)")
    restore.add_argument(
        "--version", default="", metavar="V", help="of the model (default: one that takes the snapshot)"
    )


def _guarded(command: Callable[[argparse.Namespace, SyncClient], int]) -> Callable[[argparse.Namespace], int]:
    """The command with a client, and its errors as one line on standard error and an exit code."""

    def run(options: argparse.Namespace) -> int:
        # Unwinds, so that sessions are closed.
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(_EXIT_TERMINATED))
        try:
            return _run(command, options)
        finally:
            signal.signal(signal.SIGTERM, before)

    return run


def _run(command: Callable[[argparse.Namespace, SyncClient], int], options: argparse.Namespace) -> int:
    from eddy.clients.errors import Disconnected, EddyError
    from eddy.clients.source import SourceError

    try:
        with connect(options) as client:
            return command(options, client)
    except SourceError as error:
        return _say(options, str(error), _EXIT_INPUT)
    except Disconnected as error:
        if error.reason != "UNAVAILABLE":
            return _say(options, f"the connection broke: {error}", _EXIT_NO_SERVER)
        fix = (
            "start one (`eddy serve --model-repository models`), name another (--target), or ask with or without --tls"
        )
        return _say(options, f"no server answers at {options.target}: {fix}", _EXIT_NO_SERVER)
    except EddyError as error:
        return _say(options, f"{error} ({error.reason})", _EXIT_REFUSED)


def _say(options: argparse.Namespace, message: str, code: int) -> int:
    print(f"eddy client {options.client_command}: {message}", file=sys.stderr)
    return code


def connect(options: argparse.Namespace) -> SyncClient:
    """The client that the arguments ask for."""
    from eddy.clients.sync import SyncClient

    return SyncClient(options.target, tls=tls_of(options))


def _stream(options: argparse.Namespace, client: SyncClient) -> int:
    from eddy.clients.player import stream

    return stream(options, client)


def _generate(options: argparse.Namespace, client: SyncClient) -> int:
    from eddy.clients.writer import generate

    return generate(options, client)


def _infer(options: argparse.Namespace, client: SyncClient) -> int:
    from eddy.clients.player import infer

    return infer(options, client)


def _sessions(options: argparse.Namespace, client: SyncClient) -> int:
    from eddy.clients.listing import show_sessions

    return show_sessions(options, client)


def _close(options: argparse.Namespace, client: SyncClient) -> int:
    from eddy.clients.writer import session_id

    client.close_session(session_id(options.session))
    return 0


def _fork(options: argparse.Namespace, client: SyncClient) -> int:
    from eddy.clients.moving import fork

    return fork(options, client)


def _snapshot(options: argparse.Namespace, client: SyncClient) -> int:
    from eddy.clients.moving import snapshot

    return snapshot(options, client)


def _restore(options: argparse.Namespace, client: SyncClient) -> int:
    from eddy.clients.moving import restore

    return restore(options, client)


def _reset(options: argparse.Namespace, client: SyncClient) -> int:
    from eddy.clients.moving import reset

    return reset(options, client)
