"""The command `eddy`.

Owns the list of commands and their order. Each command imports what it needs when it runs, so that `eddy serve` starts
without torch and `eddy --help` without ONNX Runtime.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from eddy.commands import config, serve
from eddy.commands.parser import Commands, Parser


def _add_client(commands: Commands[Any]) -> None:
    from eddy.clients import commands as client

    client.add_parsers(commands)


# Commands that are up sooner without the parsers of all others.
_QUICK = {"serve": serve.add_parser, "config": config.add_parser, "client": _add_client}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = build_parser(only=given[0] if given else None)
    parser.check_words(given)
    options = parser.parse_args(given)
    try:
        code = int(options.func(options))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # The reader of a pipe has seen enough; nothing more can be said on it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def build_parser(only: str | None = None) -> Parser:
    """The parser of the whole command line, or of no more than the command `only` needs."""
    parser = Parser(
        prog="eddy",
        description="Streaming inference for recurrent models.",
        epilog="examples:\n  eddy serve --model-repository models\n  eddy models\n  eddy serve --help\n",
    )
    parser.add_argument("--version", action=_Version, help="print the version and end")
    commands: Commands[Any] = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    if only in _QUICK:
        _QUICK[only](commands)
        return parser
    serve.add_parser(commands)
    _add_training(commands)
    _add_others(commands)
    return parser


def _add_training(commands: Commands[argparse.ArgumentParser]) -> None:
    from eddy.training import commands as training

    training.add_parsers(commands)


def _add_others(commands: Commands[argparse.ArgumentParser]) -> None:
    from eddy.commands import bench, completion, inspect, models, snapshot

    models.add_parser(commands)
    inspect.add_parser(commands)
    snapshot.add_parser(commands)
    _add_client(commands)
    bench.add_parser(commands)
    config.add_parser(commands)
    completion.add_parser(commands, build_parser)


class _Version(argparse.Action):
    """Prints the version; it is looked up only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"eddy {version('eddy-serve')}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
