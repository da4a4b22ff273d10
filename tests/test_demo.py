"""The demo, as a newcomer runs it: in a process of its own, without a terminal."""

import os
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
        "3 · Many sessions at once",
        "the same, bit for bit",
        "4 · Sent again, applied once",
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
    for name in ("__init__", "demo", "server", "screen", "model", "text", "forecast", "crowd", "retry"):
        target = tmp_path / "copy" / "examples" / f"{name}.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8"), encoding="utf-8")
    run = subprocess.run(  # noqa: S603  # our own command
        COMMAND, cwd=tmp_path / "copy", capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert run.returncode == 1
    assert "model repository" in run.stderr
    assert "make setup" in run.stderr
