"""The inspecting process: however it ends, its starter gets an answer or a reason, and nothing is left behind."""

import os
import select
import sys
from pathlib import Path

import pytest

from eddy.inspection.errors import InspectionError
from eddy.service.config import InspectionConfig
from eddy.service.isolation import inspect_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds a process's memory")

BOUNDS = InspectionConfig(max_memory_bytes=1 << 30)
SHORT = InspectionConfig(max_seconds=2.0)


@pytest.fixture(autouse=True)
def _hostile_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process imports `hostile` from the folder of the tests."""
    folder = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH")))))


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("eats memory", "MemoryError"),
        ("crashes", "ended with SIGSEGV: it makes the runtime crash, or it may need more than 1,073,741,824 bytes"),
        ("aborts", "ended with SIGABRT: it may need more than 1,073,741,824 bytes of memory"),
        ("fills the disk", "File too large"),
        ("says much", "ended with exit code 3: the last words"),
        ("says nothing", "ended with exit code 0: nothing said"),
        ("writes half", "ended with exit code 0: nothing said"),
    ],
)
def test_every_end_has_a_reason(what: str, complaint: str, tmp_path: Path) -> None:
    """Memory, crashes, time, disk, half an answer: refused with what is known."""
    with pytest.raises(InspectionError) as caught:
        inspect_file(tmp_path / "model.onnx", None, what, BOUNDS, module="hostile")
    assert complaint in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_what_never_ends_is_ended(tmp_path: Path) -> None:
    """After the time that it may take."""
    with pytest.raises(InspectionError, match=r"took more than 2 s \(inspection\.max_seconds\)"):
        inspect_file(tmp_path / "model.onnx", None, "never ends", SHORT, module="hostile")


def test_no_process_is_left(tmp_path: Path) -> None:
    """What the process started ends with it."""
    note = tmp_path / "model.onnx"
    bounds = InspectionConfig(max_seconds=10.0)  # Enough to start, on a busy machine.
    with pytest.raises(InspectionError, match="took more than 10 s"):
        inspect_file(note, None, "leaves a child", bounds, module="hostile")
    try:
        process = os.pidfd_open(int(note.read_text(encoding="ascii")))
    except ProcessLookupError:
        return
    with os.fdopen(process) as ended:  # Readable once it has ended.
        assert select.select([ended], [], [], 30.0)[0]


def test_a_refusal_comes_back(tmp_path: Path) -> None:
    """The real process, on a file that is none."""
    (tmp_path / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(InspectionError, match=r"model\.onnx is not an ONNX file"):
        inspect_file(tmp_path / "model.onnx", None, "garbage", InspectionConfig())


def test_settings_are_read_in_the_process(tmp_path: Path) -> None:
    """A wrong `model.toml` is refused by name, before the model is looked at."""
    (tmp_path / "model.toml").write_text("[stats]", encoding="ascii")
    with pytest.raises(InspectionError, match=r"model\.toml: unknown key 'stats', did you mean states\?"):
        inspect_file(tmp_path / "model.onnx", tmp_path / "model.toml", "x", InspectionConfig())
