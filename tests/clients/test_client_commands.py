"""`eddy client` against a real server: what each command prints, its exit codes, pipes, terminals, Ctrl-C."""

import csv
import json
import re
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from terminal import PATIENCE_SECONDS, Terminal, piped, run

from eddy import SyncClient
from eddy.cli import main
from examples.server import MODELS, ServerProcess

SERIES = MODELS / "forecast-gru" / "1" / "sample.csv"
TEXT = MODELS / "text-lstm" / "1" / "sample.txt"
# Log-probabilities are computed in another order of additions here.
LOG_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server of the shipped models."""
    with ServerProcess() as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[SyncClient]:
    """A client of it."""
    with SyncClient(server.target) as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_is_left(server: ServerProcess) -> Iterator[None]:
    """After each test its sessions are gone: at once, or as soon as the server has heard of a call's end."""
    with SyncClient(server.target) as observer:
        before = {session.fingerprint for session in observer.sessions()}
        yield
        due = time.monotonic() + PATIENCE_SECONDS
        while left := {session.fingerprint for session in observer.sessions()} - before:
            assert time.monotonic() < due, f"sessions are left: {left}"


def test_a_growing_series(server: ServerProcess, client: SyncClient) -> None:
    """Each value is answered before the next one is there; the end of the input ends the command and its session."""
    with piped(server, "stream", "forecast-gru") as process, client.session("forecast-gru") as session:
        assert process.stdin is not None
        assert process.stdout is not None
        for position, value in enumerate((110, 114, 121.5)):
            process.stdin.write(f"{value}\n")
            process.stdin.flush()
            if position == 0:
                header = process.stdout.readline().split("\t")
                assert header[:3] == ["position", "glucose", "+5 min"]
            cells = process.stdout.readline().split("\t")
            expected = session.step([value])[:, 1]
            assert cells[:2] == [str(position), f"{value:g}"]
            assert [float(cell) for cell in cells[2:]] == [float(f"{median:.4g}") for median in expected]
        process.stdin.close()
        assert process.wait() == 0


def test_a_series_as_json(server: ServerProcess, client: SyncClient, tmp_path: Path) -> None:
    """Columns by name or number, a header or none; one object a line with every quantile."""
    rows = [[str(number), f"{100 + number}", "note"] for number in range(5)]
    plain, named = tmp_path / "plain.csv", tmp_path / "named.csv"
    plain.write_text("\n".join(",".join(row[:2]) for row in rows) + "\n\n")
    named.write_text("time,glucose,note\n" + "\n".join(",".join(row) for row in rows))
    with client.session("forecast-gru") as session:
        expected = session.step([[float(row[1])] for row in rows])
    for arguments in (
        [str(plain), "--column", "2"],
        [str(named)],
        [str(named), "--column", "glucose"],
        [str(named), "--column", "2", "--rate", "200"],
    ):
        done = run(server, "stream", "forecast-gru", *arguments, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        records = [json.loads(line) for line in done.stdout.splitlines()]
        assert [record["values"] for record in records] == [[float(row[1])] for row in rows]
        assert list(records[0]["forecast"]) == ["1", "3", "6", "9", "12"]
        found = [[list(levels.values()) for levels in record["forecast"].values()] for record in records]
        assert np.allclose(found, expected, rtol=1e-6)


def test_a_text_as_lines_and_json(server: ServerProcess, client: SyncClient) -> None:
    """Bits are what the model gave each character, and the best guesses come with it; unknown characters are read."""
    text = "The class é\n"
    done = run(server, "stream", "text-lstm", "--json", given=text.encode())
    assert (done.returncode, done.stderr) == (0, "")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    vocabulary = client.contract("text-lstm").vocabulary
    ids = [max(0, list(vocabulary.symbols).index(each) if each in vocabulary.symbols else 0) for each in text]
    with client.session("text-lstm") as session:
        scores = session.step(ids).astype(np.float64)
    logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    bits = -logs[np.arange(len(ids) - 1), ids[1:]] / np.log(2)
    assert records[0]["bits"] is None
    assert np.allclose([record["bits"] for record in records[1:]], bits, atol=LOG_TOLERANCE)
    for record, row in zip(records, logs, strict=True):
        assert record["expected"][0]["symbol"] == vocabulary.symbols[int(row.argmax())]
        shares = [guess["probability"] for guess in record["expected"]]
        assert shares == sorted(shares, reverse=True)
    plain = run(server, "stream", "text-lstm", given=text.encode()).stdout.splitlines()
    assert len(plain) == 1 + len(text)
    assert plain[2].startswith(f"1\t'h'\t{bits[0]:.2f}\t'")


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        (["stream", "forecast-gru"], b"1\n2\nabc\n", "stdin, line 3: 'abc' is not a number"),
        (["stream", "forecast-gru"], b"time,value\n1,2\n", "choose with --column time"),
        (["stream", "forecast-gru", "--column", "x"], b"time,value\n1,2\n", "no column 'x', there are time, value"),
        (["stream", "forecast-gru", "--column", "1,2"], b"1,2\n", "--column: got 2"),
        (["stream", "forecast-gru", "--column", "2"], b"1,2\n3\n", "line 2: 1 columns"),
        (["stream", "forecast-gru"], b"\xff\n", "stdin: not UTF-8"),
        (["stream", "text-lstm"], b"ab\xff", "stdin: not UTF-8"),
        (["stream", "text-lstm", "--column", "1"], b"x", "--column: the model reads text"),
        (["stream", "forecast-gru", "no-such.csv"], b"", "no-such.csv: No such file"),
        (["infer", "forecast-gru", "-"], b"", "there is nothing in it"),
        (["generate", "text-lstm"], b"", "no prompt"),
        (["generate", "text-lstm"], b"\xff", "stdin: not UTF-8"),
        (["generate", "text-lstm", "x", "--alternatives", "2"], b"", "add --json"),
        (["generate", "text-lstm", "--session", "12"], b"", "'12' is no session id"),
        (["close", "xyz"], b"", "'xyz' is no session id"),
    ],
)
def test_input_that_does_not_fit(server: ServerProcess, arguments: list[str], given: bytes, message: str) -> None:
    """One line on standard error that names the place and the fix, exit code 2, no session left."""
    done = run(server, *arguments, given=given)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith(f"eddy client {arguments[0]}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stream", "no-such-model"], "UNKNOWN_MODEL"),
        (["generate", "forecast-gru", "x"], "WRONG_TASK"),
        (["generate", "text-lstm", "x", "--temperature", "-1"], "OUT_OF_RANGE"),
        (["generate", "text-lstm", "x", "--max-tokens", "60000", "--timeout", "0.05"], "DEADLINE_EXCEEDED"),
        (["generate", "text-lstm", "--session", "00" * 16], "UNKNOWN_SESSION"),
        (["close", "00" * 16], "UNKNOWN_SESSION"),
        (["sessions", "no-such-model"], "UNKNOWN_MODEL"),
    ],
)
def test_refusals(server: ServerProcess, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """What the server refuses is one line with the reason, exit code 1."""
    assert main(["client", *arguments, "--target", server.target]) == 1
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_no_server(capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 3, and how to start one."""
    assert main(["client", "sessions", "--target", "127.0.0.1:1"]) == 3
    error = capfd.readouterr().err
    assert "no server answers at 127.0.0.1:1: start one (`eddy serve" in error


def test_infer_files(server: ServerProcess, client: SyncClient, tmp_path: Path) -> None:
    """CSV in, CSV out, a row a step; texts are rated in bits; both as JSON, too."""
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    first.write_text("glucose\n110\n114\n")
    second.write_text("glucose\n120\n")
    expected = client.infer("forecast-gru", [[[110.0], [114.0]], [[120.0]]])
    done = run(server, "infer", "forecast-gru", str(first), str(second))
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [(row["file"], row["position"]) for row in rows] == [
        (str(first), "0"),
        (str(first), "1"),
        (str(second), "0"),
    ]
    assert np.isclose(float(rows[1]["+12 q0.9"]), expected[0][1, 4, 2], rtol=1e-5)
    lines = run(server, "infer", "forecast-gru", str(first), str(second), "--json").stdout.splitlines()
    assert [json.loads(line)["file"] for line in lines] == [str(first), str(first), str(second)]
    done = run(server, "infer", "text-lstm", str(TEXT), "-", "--json", given=b"The class")
    sample, prompt = (json.loads(line) for line in done.stdout.splitlines())
    assert (sample["characters"], prompt["characters"]) == (len(TEXT.read_text(encoding="utf-8")), 9)
    assert 1.0 < sample["bits_per_character"] < 3.0
    plain = run(server, "infer", "text-lstm", str(TEXT)).stdout.splitlines()
    assert plain[1].split("\t")[2] == f"{sample['bits_per_character']:.3f}"


def test_generate_to_a_pipe(server: ServerProcess, client: SyncClient) -> None:
    """The text alone, from an argument or standard input; the options reach the server."""
    whole = client.complete("text-lstm", "The class ", max_tokens=50, seed=1, temperature=0.5)
    options = ["--max-tokens", "50", "--seed", "1", "--temperature", "0.5"]
    for prompt, given in ((["The class "], b""), (["-"], b"The class "), ([], b"The class ")):
        done = run(server, "generate", "text-lstm", *prompt, *options, given=given)
        assert (done.returncode, done.stdout, done.stderr) == (0, whole.text + "\n", "")
    stop = whole.text[10:13]
    done = run(server, "generate", "text-lstm", "The class ", *options, "--stop", stop)
    assert done.stdout == whole.text[: whole.text.index(stop)] + "\n"
    likely = client.complete("text-lstm", "The class ", max_tokens=50, temperature=0.0)
    done = run(server, "generate", "text-lstm", "The class ", "--max-tokens", "50", "--top-k", "1")
    assert done.stdout == likely.text + "\n"
    done = run(server, "generate", "text-lstm", "The class ", "--max-tokens", "50", "--top-p", "0.000001")
    assert done.stdout == likely.text + "\n"


def test_generate_in_turns(server: ServerProcess, client: SyncClient) -> None:
    """A session that is kept is named, goes on, and is closed by name; another model's is refused."""
    whole = client.complete("text-lstm", "The class ", max_tokens=40, seed=1)
    options = ["--seed", "1", "--max-tokens"]
    first = run(
        server, "generate", "text-lstm", "The class ", "--keep", *options, "30", "--json", "--alternatives", "2"
    )
    events = [json.loads(line) for line in first.stdout.splitlines()]
    assert events[0]["event"] == "started"
    assert events[0]["seed"] == 1
    assert {event["event"] for event in events[1:-1]} == {"tokens"}
    assert all(len(token["alternatives"]) == 2 for event in events[1:-1] for token in event["tokens"])
    text = "".join(event["text"] for event in events[1:-1])
    assert (events[-1]["reason"], events[-1]["next_position"]) == ("max_tokens", 40)
    session = events[-1]["session_id"] + ":" + events[-1]["resume_token"]
    second = run(server, "generate", "text-lstm", "--session", session, *options, "6")
    assert f"--session {session} --target {server.target}" in second.stderr
    only_id = session.partition(":")[0]
    third = run(server, "generate", "text-lstm", "--session", only_id, *options, "4")
    assert text + second.stdout.removesuffix("\n") + third.stdout == whole.text + "\n"
    assert f"--session {only_id} --target {server.target}" in third.stderr
    assert run(server, "generate", "text-lstm", "--session", session + ":00").returncode == 2
    assert run(server, "generate", "text-rnn", "--session", session).returncode == 2
    listed = [json.loads(line) for line in run(server, "sessions", "--json").stdout.splitlines()]
    assert [(row["model"], row["position"]) for row in listed] == [("text-lstm", 50)]
    assert run(server, "sessions", "text-rnn").stdout.count("\n") == 1
    closed = run(server, "close", session)
    assert (closed.returncode, closed.stdout, closed.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["stream", "forecast-gru", str(SERIES)],
        ["stream", "text-lstm", str(TEXT), "--json"],
        ["generate", "text-lstm", "The ", "--max-tokens", "60000"],
        ["generate", "text-lstm", "The ", "--max-tokens", "60000", "--json"],
    ],
)
def test_a_reader_that_has_enough(server: ServerProcess, arguments: list[str]) -> None:
    """When the pipe is closed the command ends without a word, and so does its session."""
    with piped(server, *arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    "arguments", [["stream", "forecast-gru"], ["generate", "text-lstm", "The ", "--max-tokens", "60000"]]
)
def test_signals(server: ServerProcess, arguments: Sequence[str], number: int, code: int) -> None:
    """Ctrl-C and SIGTERM end the command without a traceback, and its session with it."""
    with piped(server, *arguments) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("1\n")
        process.stdin.flush()
        assert process.stdout.read(5)
        process.send_signal(number)
        _, error = process.communicate()
        assert (process.returncode, error) == (code, "")


def test_stopping_keeps_what_is_to_be_kept(server: ServerProcess, client: SyncClient) -> None:
    """With --keep the session stays after Ctrl-C; its id is said, and it goes on."""
    with piped(server, "generate", "text-lstm", "The ", "--max-tokens", "60000", "--keep") as process:
        assert process.stdout is not None
        assert process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
        assert process.returncode == 130
    found = re.search(r"--session (\w{32})", error)
    assert found is not None
    done = run(server, "generate", "text-lstm", "--session", found[1], "--max-tokens", "5")
    # Five characters; a line's end behind them, unless the last of them is one.
    assert done.returncode == 0 and done.stdout.endswith("\n") and len(done.stdout) in (5, 6)
    client.close_session(bytes.fromhex(found[1]))


def test_a_series_on_a_terminal(server: ServerProcess) -> None:
    """A chart with the forecast and running errors, drawn again and again; Ctrl-C is exit code 130."""
    with Terminal(server, "stream", "forecast-gru", str(SERIES), "--rate", "60") as terminal:
        terminal.read_until(r"value \d\d is")
        assert all(
            part in terminal.text for part in ("┼", "░", "◆", "forecast 30 min before", "mean abs. error, mg/dL")
        )
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
        assert "\x1b[?25h" in terminal.text.rpartition("value")[2], "the cursor is shown again"
        assert "Traceback" not in terminal.text


def test_a_typed_text_on_a_terminal(server: ServerProcess) -> None:
    """What is typed is drawn with the guesses for what comes next, until Ctrl-D."""
    with Terminal(server, "stream", "text-lstm") as terminal:
        terminal.read_until("waiting for text")
        terminal.write("The class\n")
        terminal.read_until("character 10 ")
        terminal.write("\x04")
        assert terminal.end() == 0
        assert "█" in terminal.text
        assert "bits a character on average" in terminal.text


def test_listings_and_text_on_a_terminal(server: ServerProcess, client: SyncClient) -> None:
    """A table, and a text behind its prompt with a line that says how it ended."""
    with client.session("text-rnn"), Terminal(server, "sessions", "text-rnn") as sessions:
        assert sessions.end() == 0
        assert re.search(r"text-rnn +1 +0 .* yes", sessions.text)
    with Terminal(server, "sessions", "text-rnn") as sessions:
        assert sessions.end() == 0
        assert "none" in sessions.text
    with Terminal(server, "generate", "text-lstm", "The class ", "--max-tokens", "5", "--seed", "1") as text:
        assert text.end() == 0
        assert "\x1b[2mThe class \x1b[0m" in text.text
        assert "5 tokens, seed 1, ended by max tokens" in text.text


def test_help_teaches_by_example(capfd: pytest.CaptureFixture[str]) -> None:
    """Each command's help has an example of itself."""
    for command in ("stream", "generate", "infer", "sessions", "close"):
        with pytest.raises(SystemExit) as caught:
            main(["client", command, "--help"])
        assert caught.value.code == 0
        assert f"eddy client {command} " in capfd.readouterr().out.partition("example")[2]
