"""Completion scripts, run by the shells that they are for."""

import shutil
import subprocess
from pathlib import Path

import pytest

from eddy.cli import build_parser
from eddy.commands.completion import bash_script, fish_script, zsh_script

# What stands before the cursor, the last word perhaps unfinished -> some of what must be offered, and what must not.
CASES = [
    ("eddy ", {"serve", "models", "completion", "--version"}, {"--grpc-port"}),
    ("eddy mo", {"models"}, {"serve"}),
    ("eddy serve --grp", {"--grpc-port"}, {"--http-port", "serve"}),
    ("eddy serve --grpc-port 1 --ht", {"--http-port"}, {"--grpc-port"}),
    ("eddy completion ", {"bash", "zsh", "fish"}, {"serve"}),
    ("eddy serve --set session.", {"session.max_sessions="}, {"server.host="}),
    ("eddy export --out", {"--output"}, {"--model"}),
    ("eddy train --device c", {"cpu", "cuda"}, {"--device"}),
]


def _words(line: str) -> list[str]:
    return line.split(" ")


def _run(shell: str, *arguments: str) -> set[str]:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    assert not done.returncode, done.stderr
    assert not done.stderr
    return {line.partition("\t")[0] for line in done.stdout.splitlines()}


@pytest.mark.parametrize(("line", "offered", "hidden"), CASES)
def test_bash(tmp_path: Path, line: str, offered: set[str], hidden: set[str]) -> None:
    """Bash fills COMPREPLY with the right words."""
    (tmp_path / "script").write_text(bash_script(build_parser()))
    call = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _eddy; printf "%s\\n" "${COMPREPLY[@]}"'
    found = _run("bash", "--norc", "-c", call, str(tmp_path / "script"), *_words(line))
    assert offered <= found
    assert not hidden & found


@pytest.mark.parametrize(("line", "offered", "hidden"), CASES)
def test_zsh(tmp_path: Path, line: str, offered: set[str], hidden: set[str]) -> None:
    """The script loads in zsh, whose bash completion calls the same function as a Bourne shell."""
    (tmp_path / "script").write_text(zsh_script(build_parser()))
    call = (
        'ZDOTDIR=$(dirname "$0"); source "$0" || exit 1; whence compopt >/dev/null || compopt() { :; }\n'
        'ask() { emulate -L sh; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _eddy; printf "%s\\n" "${COMPREPLY[@]}"; }\n'
        'ask "$@"'
    )
    words = _run("zsh", "-f", "-c", call, str(tmp_path / "script"), *_words(line))
    # Zsh's `compgen` gives all words; the shell itself keeps those that fit what is typed.
    found = {word for word in words if word.startswith(_words(line)[-1])}
    assert offered <= found
    assert not hidden & found


@pytest.mark.parametrize(("line", "offered", "hidden"), CASES)
def test_fish(tmp_path: Path, line: str, offered: set[str], hidden: set[str]) -> None:
    """Fish, asked what it would complete, offers the right words."""
    if line == "eddy ":
        offered = offered - {"--version"}  # Fish shows flags once a dash is typed.
    (tmp_path / "script").write_text(fish_script(build_parser()))
    path = str(tmp_path / "script")
    call = f"source {path}; complete -C '{line}'"
    found = _run("fish", "--no-config", "-c", call)
    assert offered <= found
    assert not hidden & found
