"""`eddy client` with models that look ahead and models that translate: pipes, JSON, terminals."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from terminal import Terminal, piped, run
from toys import LOOK_AHEAD, write_ahead, write_restorer, write_translator

from eddy import SyncClient
from eddy.clients.attention import draw_attention
from eddy.clients.pictures import RestoredPicture
from eddy.clients.reading import Restorations
from eddy.clients.source import Alphabet
from eddy.v1 import contract_pb2
from examples.server import ServerProcess

TEXT = "a bed, deceased\nbee"
RESTORED = TEXT.replace("e", "é")
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of `ahead`, `restorer` and `translator`; no session of theirs is left at the end."""
    root = tmp_path_factory.mktemp("watched")
    write_ahead(root)
    write_restorer(root)
    write_translator(root)
    with ServerProcess(root) as process:
        yield process
        with SyncClient(process.target) as client:
            assert client.sessions() == []


def test_a_text_is_restored(server: ServerProcess, tmp_path: Path) -> None:
    """The restored text comes out, the end of the input gives its last characters; other characters stay."""
    done = run(server, "stream", "restorer", given=TEXT.encode())
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{RESTORED}\n", "")
    path = tmp_path / "text"
    path.write_text("bed\n")
    assert run(server, "stream", "restorer", str(path)).stdout == "béd\n"
    assert run(server, "stream", "restorer", given=b"").stdout == ""


def test_a_restored_text_comes_with_its_delay(server: ServerProcess) -> None:
    """Each character is there as soon as those behind it are, and not before."""
    with piped(server, "stream", "restorer", "--json") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("bed ")
        process.stdin.flush()
        first = json.loads(process.stdout.readline())
        assert first == {"position": 0, "symbol": "b", "restored": "b", "delay": LOOK_AHEAD}
        process.stdin.write("e")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["restored"] == "é"
        process.stdin.close()
        rest = [json.loads(line) for line in process.stdout]
        assert [(each["restored"], each["delay"]) for each in rest] == [("d", 2), (" ", 1), ("é", 0)]
        assert process.wait() == 0


def test_numbers_that_come_later(server: ServerProcess) -> None:
    """A model of numbers that looks ahead answers each value, in its place, once."""
    done = run(server, "stream", "ahead", "--json", given=b"1\n2\n3\n4\n")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["outputs"]["y"] for record in records] == [1, 12, 123, 1234]
    assert [record["values"] for record in records] == [[1], [2], [3], [4]]
    assert [record["delay"] for record in records] == [3, 2, 1, 0]
    lines = run(server, "stream", "ahead", given=b"1\n2\n").stdout.splitlines()
    assert lines == ["position\tvalues\ty", "0\t1\t1", "1\t2\t12"]


def test_restoring_on_a_terminal(server: ServerProcess, tmp_path: Path) -> None:
    """The picture ends with the restored text, and says how many characters were changed."""
    path = tmp_path / "text"
    path.write_text(TEXT)
    with Terminal(server, "stream", "restorer", str(path), "--rate", "0") as shown:
        assert shown.end() == 0
        text = COLOURS.sub("", shown.text)
    assert "a béd, décéaséd" in text
    assert f"{RESTORED.count('é')} changed" in text


def test_what_waits_is_shown_behind_the_text() -> None:
    """Characters without an answer stand behind those that have one."""
    picture = RestoredPicture(Console(width=80, height=30), "restorer")
    for character in "bed":
        picture.read(character)
    picture.show({"symbol": "b", "restored": "b", "delay": 2})
    picture.show({"symbol": "e", "restored": "é", "delay": 2})
    console = Console(width=80)
    with console.capture() as captured:
        console.print(picture.draw())
    lines = captured.get().splitlines()
    assert lines[0] == "béd"
    assert "1 changed" in lines[-1]
    assert "2 characters later" in lines[-1]


def test_whole_texts_need_a_whole_graph(server: ServerProcess) -> None:
    """`infer` of a model that looks ahead and has no whole graph is refused, and says why."""
    done = run(server, "infer", "restorer", "-", given=b"bed")
    assert done.returncode == 1
    assert "whole graph" in done.stderr


# Translation


def test_a_translation(server: ServerProcess) -> None:
    """The text of `complete`, from a source that is an argument or piped in; in JSON with where each symbol looked."""
    options = ["--temperature", "0", "--max-tokens", "8"]
    with SyncClient(server.target) as client:
        wanted = client.complete("translator", source="abc c", temperature=0, max_tokens=8, outputs="attention")
    done = run(server, "generate", "translator", "--source", "abc c", *options)
    assert (done.returncode, done.stdout.rstrip("\n")) == (0, wanted.text.rstrip("\n"))
    piped_in = run(server, "generate", "translator", "--source", "-", *options, given=b"abc c\n")
    assert piped_in.stdout == done.stdout
    done = run(server, "generate", "translator", "--source", "abc c", *options, "--attention", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    tokens = [token for event in events if event["event"] == "tokens" for token in event["tokens"]]
    looks = np.array([token["outputs"]["attention"] for token in tokens])
    np.testing.assert_allclose(looks, wanted.outputs["attention"], rtol=1e-6)


def test_beams_in_json(server: ServerProcess) -> None:
    """All beams are told at the end, best first, and the text is the best one's."""
    options = ["--beams", "3", "--length-penalty", "0.5", "--max-tokens", "6", "--json"]
    done = run(server, "generate", "translator", "--source", "fed cba", *options)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    beams = events[-1]["hypotheses"]
    assert len(beams) >= 3
    assert "".join(event["text"] for event in events if event["event"] == "tokens") == beams[0]["text"]


def test_an_attention_map(server: ServerProcess) -> None:
    """Below the text: the source's symbols, and a row of shades for each that was written."""
    options = ["--temperature", "0", "--max-tokens", "4", "--attention"]
    done = run(server, "generate", "translator", "--source", "abc c", *options)
    lines = done.stdout.splitlines()
    header = next(number for number, line in enumerate(lines) if line.split() == ["abc", "·c"])
    assert len(lines) - header - 1 == 4
    assert any(set(line) & set("░▒▓█") for line in lines[header + 1 :])


def test_shades_and_blocks() -> None:
    """A weight's shade is as wide as its symbol; columns that do not fit go below."""
    weights = np.array([[0.0, 1.0, 0.5], [0.25, 0.0, 0.75]])
    drawn = draw_attention(["\u2581ab", "c", "\n"], ["x", "yz"], weights, 80).plain
    assert drawn.splitlines() == ["   ·ab c ⏎", " x     █ ▒", "yz ░░░   ▓"]
    narrow = draw_attention(["\u2581ab", "c", "\n"], ["x", "yz"], weights, 9).plain
    assert narrow.splitlines() == ["   ·ab c", " x     █", "yz ░░░  ", "", "   ⏎", " x ▒", "yz ▓"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--attention"], 2, "--source"),
        (["--source", "a", "--attention", "--beams", "99"], 1, "OUT_OF_RANGE"),
        (["--source", ""], 2, "no prompt"),
        ([], 2, "no prompt"),
    ],
)
def test_mistakes(server: ServerProcess, arguments: list[str], code: int, message: str) -> None:
    """Wrong arguments are one line on standard error."""
    done = run(server, "generate", "translator", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_character_that_the_model_does_not_know_stays() -> None:
    """Whatever the model says of the unknown symbol: it cannot know what stands there."""
    vocabulary = contract_pb2.Vocabulary(symbols=["\ufffd", "e", "é"], unknown_id=0, unit="character")
    restorations = Restorations(Alphabet(vocabulary), "characters")
    says = {"characters": np.array([0.0, 0.0, 5.0])}
    assert [restorations.record(0, given, says)["restored"] for given in ("e", "\n", "é")] == ["é", "\n", "é"]
