"""`eddy completion`: a script that teaches a shell the commands, their flags and the configuration's keys.

Owns the three shells' forms. The script is made from the parsers, so it knows what this version knows, and runs nothing
of Eddy when a key is pressed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from eddy.commands.parser import flags, help_of, subcommands, walk

if TYPE_CHECKING:
    from eddy.commands.parser import Commands

_EXAMPLES = """\
examples:
  source <(eddy completion bash)             # in ~/.bashrc
  source <(eddy completion zsh)              # in ~/.zshrc
  eddy completion fish | source              # in ~/.config/fish/config.fish
"""


def add_parser(commands: Commands[argparse.ArgumentParser], build: Callable[[], argparse.ArgumentParser]) -> None:
    """Adds the command; `build` makes the parser of the whole command line."""
    parser = commands.add_parser(
        "completion",
        help="print a shell's completion script",
        description="Prints a script that completes commands, flags and configuration keys.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(func=lambda options: _run(options.shell, build()))


def _run(shell: str, parser: argparse.ArgumentParser) -> int:
    print({"bash": bash_script, "zsh": zsh_script, "fish": fish_script}[shell](parser), end="")
    return 0


def bash_script(parser: argparse.ArgumentParser) -> str:
    """The words before the cursor lead to a command; what it takes is completed, and files where that is nothing."""
    paths = [" ".join(("eddy", *path)) for path, _ in walk(parser)]
    descend = "|".join(f'"{path}"' for path in paths[1:])
    lines = [
        "_eddy() {",
        '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" path=eddy words="" i',
        "    for ((i = 1; i < COMP_CWORD; i++)); do",
        f'        case "$path ${{COMP_WORDS[i]}}" in {descend}) path="$path ${{COMP_WORDS[i]}}" ;; esac',
        "    done",
        "    COMPREPLY=()",
        '    case "$path $before" in',
        *_bash_values(parser),
        "    esac",
        '    case "$path" in',
        *(
            f'        "{path}") words="{_words(child)}" ;;'
            for path, (_, child) in zip(paths, walk(parser), strict=True)
        ),
        "    esac",
        '    COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        "complete -o default -F _eddy eddy",
    ]
    return "\n".join(lines) + "\n"


def _bash_values(parser: argparse.ArgumentParser) -> Iterator[str]:
    """What follows a flag: its choices, a configuration key and "=", or whatever the shell offers."""
    for path, child in walk(parser):
        for flag, action in flags(child).items():
            where = f'        "{" ".join(("eddy", *path, flag))}")'
            nospace = "compopt -o nospace 2>/dev/null; " if flag == "--set" else ""
            if values := " ".join(_key_words()) if flag == "--set" else _choices(action):
                yield f'{where} {nospace}COMPREPLY=($(compgen -W "{values}" -- "$word")); return ;;'
            elif action.nargs != 0:
                yield f"{where} return ;;"


def zsh_script(parser: argparse.ArgumentParser) -> str:
    """The same function, by zsh's own support of bash completions."""
    return "autoload -Uz compinit bashcompinit\n(( $+functions[compdef] )) || compinit\nbashcompinit\n" + bash_script(
        parser
    )


def fish_script(parser: argparse.ArgumentParser) -> str:
    """One line a command, a flag and a choice."""
    lines = ["complete -c eddy -e"]
    for path, child in walk(parser):
        seen = [f"__fish_seen_subcommand_from {word}" for word in path]
        here = "; and ".join(seen)
        below = subcommands(child)
        for name in below:
            alone = "; and ".join([*seen, f"not __fish_seen_subcommand_from {' '.join(below)}"])
            lines.append(f"complete -c eddy -f -n {_quoted(alone)} -a {name} -d {_quoted(help_of(child, name))}")
        for flag, action in flags(child).items():
            condition = f" -n {_quoted(here)}" if here else f" -n {_quoted('__fish_use_subcommand')}"
            values = " ".join(_key_words()) if flag == "--set" else _choices(action)
            takes = " -r" if action.nargs != 0 else ""
            offers = f" -f -a {_quoted(values)}" if values else ""
            lines.append(f"complete -c eddy{condition} -l {flag[2:]}{takes}{offers} -d {_quoted(action.help or '')}")
        if positional := _positional_choices(child):
            lines.append(f"complete -c eddy -f -n {_quoted(here)} -a {_quoted(' '.join(positional))}")
    return "\n".join(lines) + "\n"


def _words(parser: argparse.ArgumentParser) -> str:
    return " ".join([*subcommands(parser), *_positional_choices(parser), *flags(parser)])


def _positional_choices(parser: argparse.ArgumentParser) -> list[str]:
    if subcommands(parser):
        return []
    actions = parser._actions  # noqa: SLF001  argparse has no public list of them
    return [str(choice) for action in actions if not action.option_strings for choice in action.choices or ()]


def _choices(action: argparse.Action) -> str:
    return " ".join(str(choice) for choice in action.choices or ())


def _key_words() -> list[str]:
    from eddy.service.config import KEYS

    return [f"{name}=" for name in KEYS]


def _quoted(text: str) -> str:
    """A single word of fish."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
