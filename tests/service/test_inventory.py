"""What lies in the repository: which files count, what is a change, and what cannot be looked at."""

import os
from pathlib import Path

import pytest

from eddy.service.inventory import Found, digest_of, look_at, take_inventory


def _version(root: Path, *names: str) -> Path:
    folder = root / "m" / "1"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def _look(root: Path) -> Found:
    [found] = look_at(root / "m")
    return found


def test_files_that_count(tmp_path: Path) -> None:
    """All files of the version and of folders in it, but for those whose names begin with a dot."""
    _version(tmp_path, "model.onnx", "data/weights", "model.toml", ".model.onnx.aX3", ".git/HEAD")
    (tmp_path / ".hidden" / "1").mkdir(parents=True)
    (tmp_path / "m" / ".2").mkdir()
    found = take_inventory(tmp_path).found
    assert list(found) == [("m", "1")]
    assert [file.path for file in found["m", "1"].files] == ["data/weights", "model.onnx", "model.toml"]
    assert found["m", "1"].has_graph


@pytest.mark.parametrize("how", ["longer", "same size and time", "moved here", "added", "removed", "linked"])
def test_what_is_a_change(tmp_path: Path, how: str) -> None:
    """Anything that may change contents changes the stamps, also where size and time are set back."""
    folder = _version(tmp_path, "model.onnx", "other")
    path, before = folder / "model.onnx", _look(tmp_path)
    assert _look(tmp_path) == before
    status, digest = path.stat(), digest_of(before)
    if how == "longer":
        path.write_bytes(b"model.onnx and more")
    elif how == "same size and time":
        path.write_bytes(b"MODEL.ONNX")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif how == "moved here":
        (folder / ".new").write_bytes(b"model.onnx")
        os.utime(folder / ".new", ns=(status.st_atime_ns, status.st_mtime_ns))
        (folder / ".new").rename(path)
    elif how == "added":
        (folder / "prime.onnx").write_bytes(b"")
    elif how == "removed":
        (folder / "other").unlink()
    else:
        path.unlink()
        path.symlink_to(folder / "other")
    after = _look(tmp_path)
    assert after.files != before.files
    assert (digest_of(after) == digest) == (how == "moved here")


def test_a_digest_knows_names_from_contents(tmp_path: Path) -> None:
    """Contents that are shared out among files in another way are other contents."""
    first = _version(tmp_path / "a", "model.onnx", "x")
    second = _version(tmp_path / "b", "model.onnx", "x")
    assert digest_of(_look(tmp_path / "a")) == digest_of(_look(tmp_path / "b"))
    (second / "x").rename(second / "y")
    assert digest_of(_look(tmp_path / "a")) != digest_of(_look(tmp_path / "b"))
    (second / "y").rename(second / "x")
    content = (first / "x").read_bytes()
    (second / "x").write_bytes(content + b"model.onnx")
    (second / "model.onnx").write_bytes(b"")
    assert digest_of(_look(tmp_path / "a")) != digest_of(_look(tmp_path / "b"))


def test_a_lone_file_and_its_settings(tmp_path: Path) -> None:
    """A file of the repository's top is version 1; only what bears its name counts."""
    (tmp_path / "m.onnx").write_bytes(b"graph")
    (tmp_path / "n.onnx").write_bytes(b"graph")
    (tmp_path / "m.toml").write_text("")
    found = take_inventory(tmp_path).found
    assert list(found) == [("m", "1"), ("n", "1")]
    assert [file.path for file in found["m", "1"].files] == ["m.onnx", "m.toml"]
    assert [file.path for file in found["n", "1"].files] == ["n.onnx"]
    assert found["m", "1"].has_graph


def test_what_cannot_be_looked_at(tmp_path: Path) -> None:
    """A repository that is gone or empty and a circle of links are told; a pipe is not waited for."""
    assert "No such file" in take_inventory(tmp_path / "nowhere").problem
    assert "holds no models" in take_inventory(tmp_path).problem
    folder = _version(tmp_path, "model.onnx")
    (folder / "loop").symlink_to(folder / "loop")
    found = take_inventory(tmp_path).found["m", "1"]
    assert (found.is_unreadable, found.files) == (True, ())
    assert "cannot be read" in found.problem
    (folder / "loop").unlink()
    os.mkfifo(folder / "pipe")
    found = _look(tmp_path)
    assert [file.is_regular for file in found.files] == [True, False]
    assert len(digest_of(found)) == 64
