"""The command line as a whole: help by example, mistakes in one line, the version, and what starting imports."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from eddy.cli import build_parser, main
from eddy.commands.parser import subcommands, walk

COMMANDS = sorted(subcommands(build_parser()))


def _examples(text: str) -> list[list[str]]:
    """The `eddy` commands of a help's examples, as words."""
    found = re.findall(r"^  eddy (.*)$", text.partition("examples:")[2], re.MULTILINE)
    return [shlex.split(re.split(r" [|>#] ?", line)[0]) for line in found]


def _refusal(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a wrong command line says; it must be one line, with exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.count("\n") == 1
    return said.err


def test_the_commands() -> None:
    """The commands that the documents promise are there."""
    assert {"serve", "train", "export", "verify", "models", "bench", "config", "completion"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command's help ends with examples, and each of them is a command line that is accepted."""
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert not caught.value.code
    examples = _examples(capsys.readouterr().out)
    # A shell's own words around the command are no business of the parser.
    if command != "completion":
        assert examples
    for words in examples:
        assert words[0] == command
        build_parser().check_words(words)
        assert build_parser().parse_args(words).command == command


def test_the_help_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    """`eddy --help` lists every command with a line, and gives examples."""
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^    {command}\s+\S", text, re.MULTILINE), command
    assert _examples(text)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("", "required: COMMAND"),
        ("serv", "unknown command 'serv', did you mean serve?"),
        ("modles --json", "unknown command 'modles', did you mean models?"),
        ("qqq", "unknown command 'qqq' (see eddy --help)"),
        ("--versoin", "unknown flag --versoin, did you mean --version?"),
        ("serve --grpc-prot 1", "eddy serve: unknown flag --grpc-prot, did you mean --grpc-port?"),
        ("serve --grpc 1", "unknown flag --grpc"),
        ("serve --grpc-port", "--grpc-port: expected one argument"),
        ("serve --set foo", "--set: got 'foo', expected section.key=value"),
        ("serve extra", "unrecognized arguments: extra"),
        ("bench --modle x", "eddy bench: unknown flag --modle, did you mean --model?"),
        ("bench --model x --sessions 0", "--sessions: got 0, expected a positive number"),
        ("bench --model x --seconds nan", "--seconds: got nan, expected a positive number"),
        ("completion tcsh", "invalid choice: 'tcsh'"),
        ("config --json --default", "not allowed with"),
    ],
)
def test_mistakes(words: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt command or flag is told with the nearest right one, and where the help is."""
    said = _refusal(*words.split(), capsys=capsys)
    assert complaint in said
    assert "--help)" in said


def test_a_value_is_not_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Values after flags, with and without "=", are not taken for commands or flags."""
    parser = build_parser()
    parser.check_words(["serve", "--host", "serv", "--config=--x", "--set", "server.host=y", "--allow-plaintext"])
    parser.check_words(["train", "--", "--no-flag"])
    assert not capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`eddy --version` prints the installed version and nothing else."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert not caught.value.code
    assert re.fullmatch(r"eddy \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_the_flags_of_serve_set_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flag of a key sets that key; of two for one key the later wins; providers add up."""
    from eddy.commands.settings import load

    monkeypatch.setattr(os, "environ", {})
    words = (
        "serve --model-repository m --host 0.0.0.0 --grpc-port 1 --http-port 2 --tls-certificate c --tls-key k "
        "--tls-client-ca a --log-level DEBUG --provider A --provider B --allow-plaintext "
        "--set server.grpc_port=3 --set model.max_rows=4 --http-port 5"
    )
    loaded = load(build_parser().parse_args(words.split()))
    server = loaded.config.server
    assert (server.model_repository, server.host, server.grpc_port, server.http_port) == ("m", "0.0.0.0", 3, 5)  # noqa: S104
    assert (server.tls_certificate, server.tls_key, server.tls_client_ca) == ("c", "k", "a")
    assert (server.log_level, server.providers, server.allow_plaintext) == ("DEBUG", ("A", "B"), True)
    assert loaded.config.model.max_rows == 4
    assert loaded.origins["server.grpc_port"] == "--set server.grpc_port"
    assert loaded.origins["server.http_port"] == "--http-port"


@pytest.mark.parametrize("words", ["serve --help", "config", "models", "completion bash"])
def test_light_commands_load_no_runtime(words: str) -> None:
    """Neither torch nor ONNX Runtime nor gRPC is imported by commands that need none of them."""
    code = (
        "import sys, eddy.cli\n"
        f"try: eddy.cli.main({words.split()!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnxruntime', 'grpc'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)  # noqa: S603
    assert not done.returncode, done.stderr


def test_a_reader_that_has_seen_enough() -> None:
    """A pipe that is closed early ends a command without a word, as it ends other programs."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "eddy.cli", "config", "--markdown"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_every_parser_is_of_one_kind() -> None:
    """Subcommands refuse abbreviations and say mistakes in one line, whoever added them."""
    for path, parser in walk(build_parser()):
        assert type(parser).__name__ == "Parser", path
        assert not parser.allow_abbrev
