"""The argument parser of every command: examples in the help, mistakes in one line with the nearest right word.

Owns the form of help and of refusals. Must not know any command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from eddy.clients.errors import EddyError

Commands = argparse._SubParsersAction  # noqa: SLF001  argparse has no public name for it

MISUSE = 2


class Parser(argparse.ArgumentParser):
    """An argument parser whose subparsers are of its own kind."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # The nearest flag is suggested, never guessed.
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*arguments, **options)

    def error(self, message: str) -> NoReturn:
        """One line on standard error, exit code 2."""
        self.exit(MISUSE, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def check_words(self, words: Sequence[str]) -> None:
        """Refuses misspelt commands and flags with the nearest right one, before argparse complains of what is missing.

        Args:
            words: the command line without the program's name.
        """
        parser: argparse.ArgumentParser = self
        waiting = iter(words)
        for word in waiting:
            name, equals, _ = word.partition("=")
            if word == "--":
                return
            if word.startswith("--") and " " not in name:
                known = flags(parser)
                if name not in known:
                    parser.error(f"unknown flag {name}{suggestion(name, known)}")
                if not equals:
                    _skip_values(waiting, known[name])
            elif (commands := subcommands(parser)) and not word.startswith("-"):
                if word not in commands:
                    parser.error(f"unknown command {word!r}{suggestion(word, commands)}")
                parser = commands[word]


def suggestion(word: str, known: Iterable[str]) -> str:
    """A ", did you mean …?" or nothing."""
    close = get_close_matches(word, list(known), 1)
    return f", did you mean {close[0]}?" if close else ""


def flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Flag -> its action, the long ones."""
    actions = parser._actions  # noqa: SLF001  argparse has no public list of them
    return {name: action for action in actions for name in action.option_strings if name.startswith("--")}


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Command -> its parser; empty where there are none."""
    for action in parser._actions:  # noqa: SLF001  argparse has no public list of them
        if isinstance(action, Commands):
            return dict(action.choices)
    return {}


def help_of(parser: argparse.ArgumentParser, command: str) -> str:
    """The line of a subcommand in the list of commands."""
    for action in parser._actions:  # noqa: SLF001  argparse has no public list of them
        if isinstance(action, Commands):
            for choice in action._get_subactions():  # noqa: SLF001  the same
                if choice.dest == command:
                    return choice.help or ""
    return ""


def walk(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every parser below and with this one, by the words that lead to it."""
    yield path, parser
    for name, child in subcommands(parser).items():
        yield from walk(child, (*path, name))


def fail(message: object, code: int = 1) -> int:
    """Prints one line on standard error; returns the exit code."""
    print(f"eddy: {message}", file=sys.stderr)
    return code


def fail_call(target: str, error: EddyError) -> int:
    """As `fail`, for a server that cannot be reached or refuses."""
    from eddy.clients.errors import Disconnected

    if isinstance(error, Disconnected):
        return fail(f"no answer from {target}: {error}; is `eddy serve` running there, and with TLS or not?")
    return fail(error)


def _skip_values(waiting: Iterator[str], action: argparse.Action) -> None:
    count = action.nargs if isinstance(action.nargs, int) else int(action.nargs is None)
    for _ in range(count):
        next(waiting, None)
