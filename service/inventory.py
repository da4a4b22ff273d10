"""The inventory: what lies in the repository folder at one moment.

Owns the look at files: their names, sizes and times, and a digest of what is in them. Must not know models, nor what
was there before. May take long where the folder is on a network: never called on the event loop.

Links are followed, so a link that is set to another file or folder is a change. Files whose names begin with a dot do
not count: programs that copy write such ones first.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from eddy.service.repository import (
    RepositoryError,
    graph_file,
    model_folders,
    model_name,
    settings_file,
    version_folders,
    version_name,
)

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    """One file, as the file system describes it: when this is the same, the file is taken to be.

    Attributes:
        path: within the version's folder, with slashes.
        changed_ns: when the file, its name or its rights changed last; no program sets this one.
    """

    path: str
    num_bytes: int
    modified_ns: int
    changed_ns: int
    number: int
    is_regular: bool


@dataclass(frozen=True, slots=True)
class Found:
    """One version's place; or, with an empty version, a model's folder that gives no versions.

    Attributes:
        files: all of them, by path; problem: why there is nothing to load, empty where there may be.
        is_unreadable: what is there cannot be seen; it may be what was there before.
        has_graph: the step graph's file is among them.
    """

    name: str
    version: str
    place: Path
    files: tuple[Stamp, ...] = ()
    problem: str = ""
    is_unreadable: bool = False
    has_graph: bool = False


@dataclass(frozen=True, slots=True)
class Inventory:
    """The repository folder.

    Attributes:
        found: by name and version, versions of a model in their order.
        problem: why the folder cannot be looked at, or that it is empty; then nothing was found.
    """

    found: Mapping[tuple[str, str], Found] = field(default_factory=dict)
    problem: str = ""


def take_inventory(root: Path) -> Inventory:
    """What lies in the repository folder `root`."""
    try:
        folders = model_folders(root)
    except RepositoryError as error:
        return Inventory(problem=str(error))
    return Inventory({(found.name, found.version): found for folder in folders for found in look_at(folder)})


def look_at(folder: Path) -> list[Found]:
    """What lies in one model's folder."""
    name = model_name(folder)
    try:
        versions = version_folders(folder)
    except OSError as error:
        problem = f"the folder cannot be read: {error.strerror or error}"
        return [Found(name, "", folder, problem=problem, is_unreadable=True)]
    if not versions:
        return [Found(name, "", folder, problem="the folder holds no version, expected 1/model.onnx")]
    return [_look_at_version(name, version) for version in versions]


def _look_at_version(name: str, place: Path) -> Found:
    version = version_name(place)
    try:
        files, graph = stamps_of(place), graph_file(place).name
        return Found(name, version, place, files, has_graph=any(file.path == graph for file in files))
    except OSError as error:
        problem = f"{place.name} cannot be read: {error.strerror or error}"
        return Found(name, version, place, problem=problem, is_unreadable=True)


def stamps_of(place: Path) -> tuple[Stamp, ...]:
    """The files of a version, by path: of its folder and of the folders in it, or the lone file and its settings.

    Raises:
        OSError: something cannot be read, or vanished meanwhile.
    """
    if _is_lone(place):
        settings = settings_file(place)
        paths = [place, settings] if settings.exists() else [place]
    else:
        paths = []
        for parent, folders, names in os.walk(place, onerror=_raise):
            folders[:] = [each for each in folders if not each.startswith(".")]
            paths.extend(Path(parent, name) for name in names if not name.startswith("."))
    return tuple(sorted(_stamp(path, _base(place)) for path in paths))


def _is_lone(place: Path) -> bool:
    return graph_file(place) == place


def _base(place: Path) -> Path:
    return place.parent if _is_lone(place) else place


def _stamp(path: Path, base: Path) -> Stamp:
    status = path.stat()
    return Stamp(
        path.relative_to(base).as_posix(),
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        stat.S_ISREG(status.st_mode),
    )


def _raise(error: OSError) -> None:
    raise error


def digest_of(found: Found) -> str:
    """SHA-256 over the names and contents of all files of a version, hexadecimal.

    What is no regular file (a pipe would be read for ever) counts by its name.

    Raises:
        OSError: one cannot be read.
    """
    whole = hashlib.sha256()
    for file in found.files:
        content = hashlib.sha256()
        if file.is_regular:
            with (_base(found.place) / file.path).open("rb") as stream:
                while block := stream.read(_BLOCK_BYTES):
                    content.update(block)
        whole.update(f"{len(file.path.encode())} {file.path}".encode())
        whole.update(content.digest())
    return whole.hexdigest()
