"""Data packages: what is pinned is what is read, by a real pip from a folder of wheels."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from eddy.training.__main__ import main
from eddy.training.errors import PackageError
from eddy.training.packages import (
    PACKAGES,
    Package,
    fetch_package,
    is_fetched,
    is_packaged,
    list_packaged,
    package_path,
    packages_of,
    read_packaged,
)

FILE = "creek-1.0-py3-none-any.whl"


@pytest.fixture
def creek(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A wheel in a folder that pip is told to look in, pinned under the name `creek`; nothing is fetched yet."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / FILE, "w") as wheel:
        wheel.writestr("creek/data/b.txt", "second")
        wheel.writestr("creek/data/deep/a.txt", "first")
        wheel.writestr("creek-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: creek\nVersion: 1.0\n")
        wheel.writestr("creek-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("creek-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256((shelf / FILE).read_bytes()).hexdigest()
    package = Package("creek", "creek==1.0", FILE, digest, "CC0-1.0", "https://example.org", "two lines")
    monkeypatch.setitem(PACKAGES, "creek", package)
    monkeypatch.setenv("EDDY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return package


def test_a_wheel_is_fetched_once_and_read(creek: Package) -> None:
    """Pip brings it, then the folder has it: a second fetch does not touch it."""
    assert not is_fetched(creek)
    path = fetch_package(creek)
    assert path == package_path(creek)
    assert is_fetched(creek)
    assert [child.name for child in path.parent.iterdir()] == [FILE]
    before = path.stat().st_mtime_ns
    assert fetch_package(creek).stat().st_mtime_ns == before
    assert read_packaged("wheel:creek:creek/data/b.txt") == b"second"


def test_a_pattern_lists_files_in_order_of_paths(creek: Package) -> None:
    """`*` reaches into folders; what is listed can be read."""
    fetch_package(creek)
    found = list_packaged("wheel:creek:creek/*.txt")
    assert found == ["wheel:creek:creek/data/b.txt", "wheel:creek:creek/data/deep/a.txt"]
    assert [read_packaged(source) for source in found] == [b"second", b"first"]
    with pytest.raises(PackageError, match=r"no file of creek-1.0.* matches"):
        list_packaged("wheel:creek:*.csv")


def test_another_wheel_under_the_name_is_refused(creek: Package) -> None:
    """A wheel that pip brings is kept only with the pinned digest."""
    other = Package(creek.name, creek.requirement, creek.file, "0" * 64, creek.licence, creek.origin, creek.holds)
    with pytest.raises(PackageError, match=f"expected {FILE} of 000"):
        fetch_package(other)
    assert not package_path(creek).exists()
    assert list(package_path(creek).parent.iterdir()) == []


def test_a_damaged_wheel_is_not_read_and_is_fetched_again(creek: Package) -> None:
    """A byte that changed in the folder is found before anything is read."""
    path = fetch_package(creek)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(PackageError, match=r"its SHA-256 is .*, expected"):
        read_packaged("wheel:creek:creek/data/b.txt")
    fetch_package(creek)
    assert read_packaged("wheel:creek:creek/data/b.txt") == b"second"


def test_what_is_missing_is_named(creek: Package) -> None:
    """A wheel that was not fetched, a file that is not in it, a name that nobody pinned, a form that is none."""
    with pytest.raises(PackageError, match="`eddy data fetch creek`"):
        read_packaged("wheel:creek:creek/data/b.txt")
    fetch_package(creek)
    with pytest.raises(PackageError, match="no such file"):
        read_packaged("wheel:creek:creek/data/c.txt")
    with pytest.raises(PackageError, match="'brook', expected one of django"):
        read_packaged("wheel:brook:a.txt")
    with pytest.raises(PackageError, match="expected wheel:NAME:PATH"):
        read_packaged("wheel:creek")


def test_a_version_that_pip_does_not_find(creek: Package) -> None:
    """Pip's own last line stands in the error."""
    other = Package("creek", "creek==2.0", FILE, creek.sha256, creek.licence, creek.origin, creek.holds)
    with pytest.raises(PackageError, match=r"creek==2.0: pip ended with 1: ERROR: No matching distribution"):
        fetch_package(other)


def test_sources_name_their_packages(creek: Package) -> None:
    """Each package once, files elsewhere none."""
    assert is_packaged("wheel:creek:a")
    assert not is_packaged("data/wheel.csv")
    assert packages_of(["wheel:creek:a", "notes.txt", "wheel:aeon:b", "wheel:creek:c"]) == [creek, PACKAGES["aeon"]]


def test_commands(creek: Package, capsys: pytest.CaptureFixture[str]) -> None:
    """`eddy data list` says what is here, `eddy data fetch` brings it; a wrong name fails with exit code 1."""
    assert main(["data", "fetch", "creek"]) == 0
    assert capsys.readouterr().out == f"creek: {package_path(creek)}\n"
    assert main(["data", "list"]) == 0
    assert "creek==1.0" in capsys.readouterr().out
    assert main(["data", "fetch", "brook"]) == 1
    assert "eddy data fetch: PackageError" in capsys.readouterr().err
