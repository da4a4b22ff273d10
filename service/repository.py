"""The model repository: a folder of <name>/<version>/model.onnx.

Owns where files lie and the order of versions. Must not know what is in the files.
"""

from __future__ import annotations

from pathlib import Path

STEP_GRAPH = "model.onnx"
_LAYOUT = f"a folder of <name>/<version>/{STEP_GRAPH}"


class RepositoryError(Exception):
    """The repository folder itself is missing, empty or not readable."""


def model_folders(root: Path) -> list[Path]:
    """The models' folders, by name.

    Raises:
        RepositoryError: there is none, or `root` is not a folder that can be read.
    """
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise RepositoryError(
            f"model repository {str(root)!r}: {error.strerror or error}; "
            f"expected {_LAYOUT}, choose it with --model-repository (server.model_repository)"
        ) from error
    if not folders:
        raise RepositoryError(
            f"model repository {str(root)!r}: the folder holds no models; expected {_LAYOUT}, "
            "put models into it or choose another with --model-repository (server.model_repository)"
        )
    return folders


def version_folders(folder: Path) -> list[Path]:
    """A model's versions, the latest last: numbers by value, after other names.

    Raises:
        OSError: the folder cannot be read.
    """
    folders = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(folders, key=lambda path: version_key(path.name))


def version_key(version: str) -> tuple[int, int, str]:
    """Sorts versions."""
    is_number = version.isdecimal()
    return (int(is_number), int(version) if is_number else 0, version)
