"""The model repository: a folder of <name>/<version>/model.onnx, and of <name>.onnx, which is version 1 of <name>.

Owns where files lie and the order of versions. Must not know what is in the files.

A version's **place** is its folder, or the one file.
"""

from __future__ import annotations

from pathlib import Path

STEP_GRAPH = "model.onnx"
SETTINGS = "model.toml"
_SUFFIX = ".onnx"
_LONE_VERSION = "1"
_LAYOUT = f"a folder of <name>/<version>/{STEP_GRAPH} or <name>{_SUFFIX}"


class RepositoryError(Exception):
    """The repository folder itself is missing, empty or not readable."""


def model_folders(root: Path) -> list[Path]:
    """The models' folders, and the files of those that have none, by name.

    Raises:
        RepositoryError: there is none, or `root` is not a folder that can be read.
    """
    try:
        visible = [path for path in root.iterdir() if not path.name.startswith(".")]
        folders = {path.name: path for path in visible if path.is_dir()}
        lone = {path.stem: path for path in visible if _is_lone(path)}
    except OSError as error:
        raise RepositoryError(
            f"model repository {str(root)!r}: {error.strerror or error}; "
            f"expected {_LAYOUT}, choose it with --model-repository (server.model_repository)"
        ) from error
    # A model with both has its file among its versions.
    found = lone | folders
    if not found:
        raise RepositoryError(
            f"model repository {str(root)!r}: the folder holds no models; expected {_LAYOUT}, "
            "put models into it or choose another with --model-repository (server.model_repository)"
        )
    return [found[name] for name in sorted(found)]


def version_folders(folder: Path) -> list[Path]:
    """The places of a model's versions, the latest last: numbers by value, after other names.

    Args:
        folder: of `model_folders`.

    Raises:
        OSError: the folder cannot be read.
    """
    if _is_lone(folder):
        return [folder]
    places = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    lone = folder.with_name(folder.name + _SUFFIX)
    if _is_lone(lone):
        places.append(lone)
    return sorted(places, key=lambda place: version_key(version_name(place)))


def model_name(folder: Path) -> str:
    """The name of a model by its folder or its only file."""
    return folder.stem if _is_lone(folder) else folder.name


def version_name(place: Path) -> str:
    """The name of a version by its place. A file beside a folder with a version 1 is called as it is, see `clash`."""
    if not _is_lone(place):
        return place.name
    return place.name if clash(place) else _LONE_VERSION


def clash(place: Path) -> str:
    """Why a lone file cannot be version 1; empty where it can."""
    folder = place.with_suffix("") / _LONE_VERSION
    if _is_lone(place) and folder.is_dir():
        return f"version {_LONE_VERSION} is there twice, as {place.name} and as {place.stem}/{_LONE_VERSION}"
    return ""


def graph_file(place: Path) -> Path:
    """The file of a version's step graph."""
    return place if _is_lone(place) else place / STEP_GRAPH


def settings_file(place: Path) -> Path:
    """Where the settings of a version are, if it has any: beside its graph."""
    return place.with_suffix(".toml") if _is_lone(place) else place / SETTINGS


def _is_lone(path: Path) -> bool:
    """A model that is one file; anything that is no folder, so that a pipe is refused by name."""
    return path.suffix == _SUFFIX and not path.is_dir() and (path.exists() or path.is_symlink())


def version_key(version: str) -> tuple[int, int, str]:
    """Sorts versions."""
    is_number = version.isdecimal()
    return (int(is_number), int(version) if is_number else 0, version)
