"""The demo, as a newcomer runs it: in a process of its own, without a terminal."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from psutil import NoSuchProcess, Process

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "examples.demo", "--quick"]
# Far beyond what it takes: a demo that hangs fails instead.
PATIENCE_SECONDS = 60.0


def start(**environment: str) -> subprocess.Popen[str]:
    """Starts a quick demo with its output in pipes."""
    return subprocess.Popen(  # noqa: S603  # our own command
        COMMAND,
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def test_quick_demo_shows_everything_and_needs_no_torch(tmp_path: Path) -> None:
    """All scenes in plain text, exit code 0, nothing on standard error, and no process of it imports torch."""
    touched = tmp_path / "torch-was-imported"
    (tmp_path / "torch.py").write_text(f"open({str(touched)!r}, 'w').close()\nraise ImportError('no torch here')\n")
    process = start(PYTHONPATH=str(tmp_path), PYTHONWARNINGS="error", COLUMNS="80")
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
    assert not err
    assert not touched.exists()
    assert "\x1b" not in out, "escape sequences in a pipe"
    # Wide characters aside, nothing is wider than 80 columns.
    assert max(map(len, out.splitlines())) <= 80
    for said in (
        "1 · Text, token by token",
        "bits per character",
        "2 · A time series, value by value",
        "now",
        "last value",
        "3 · A smartwatch, reading by reading",
        "right so far",
        "4 · Accents restored, a little later",
        "all answered",
        "characters behind",
        "5 · Film, frame by frame",
        "direction",
        "All answers again, the film in one call of Infer: the same",
        "6 · Translation, token by token",
        "by a beam search of 4",
        "7 · Many sessions at once",
        "the same, bit for bit",
        "8 · Sent again, applied once",
        "replayed: true",
        "REPEAT_MISMATCH",
        "equal an unbroken run's",
        "drained, exit code 0",
    ):
        assert said in " ".join(out.split()), said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_demo_ends_its_server(number: signal.Signals, code: int) -> None:
    """Ctrl-C and SIGTERM in the middle of the scenes end the demo with the usual code, and no server stays behind."""
    process = start()
    assert process.stdout is not None
    while "1 · Text" not in (line := process.stdout.readline()):
        assert line, "the demo ended before its first scene"
    [server] = Process(process.pid).children()
    process.send_signal(number)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == code
    with pytest.raises(NoSuchProcess):
        server.status()


def test_missing_models_are_said(tmp_path: Path) -> None:
    """A copy of the examples without models beside it: the demo says what is missing, and ends with code 1."""
    shutil.copytree(ROOT / "examples", tmp_path / "copy" / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    run = subprocess.run(  # noqa: S603  # our own command
        COMMAND, cwd=tmp_path / "copy", capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert run.returncode == 1
    assert "model repository" in run.stderr
    assert "make setup" in run.stderr


def test_a_missing_model_is_an_error(tmp_path: Path) -> None:
    """Where a scene has no model the demo says which before the first scene, and ends with code 1."""
    shutil.copytree(ROOT / "models" / "text-rnn", tmp_path / "models" / "text-rnn")
    run = subprocess.run(  # noqa: S603  # our own command
        [*COMMAND, "--models", str(tmp_path / "models")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert run.returncode == 1
    assert "has no forecaster that is ready" in run.stderr
    assert "1 · Text" not in run.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_demo_moves_on_a_terminal() -> None:
    """On a terminal pictures are drawn over each other, in colours, and the demo ends by itself with exit code 0."""
    import pty

    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    with subprocess.Popen(  # noqa: S603  # our own command
        COMMAND, cwd=ROOT, env=environment, stdin=follower, stdout=follower, stderr=follower
    ) as process:
        os.close(follower)
        shown = b""
        while chunk := _read(leader):
            shown += chunk
        assert process.wait(PATIENCE_SECONDS) == 0
    os.close(leader)
    text = shown.decode("utf-8", "replace")
    assert "\x1b[2K\x1b[1A" in text, "nothing was drawn over"
    assert "\x1b[48;" in text, "frames of films without colours"
    assert "What was shown" in text


def _read(terminal: int) -> bytes:
    """What the demo has drawn since; nothing once it has ended, which Linux tells by an error."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
