"""Storage: files that are either as before or complete, whatever happens while they are written.

Owns: the order of a safe write: a neighbour file, its bytes on the disk, then the name. Must not know what is in them.
"""

import os
from pathlib import Path

from eddy.training.errors import StorageError


def make_folder(path: Path) -> None:
    """Create a folder and those above it where they are missing. Raises StorageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: got {_reason(error)!r}, expected a folder that can be written") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that its name always stands for a complete one, also after a crash or a full disk.

    Raises StorageError; what the name stood for before is untouched then, and no draft is left behind.
    """
    draft = path.with_name(path.name + ".part")
    try:
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        _settle(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path}: got {_reason(error)!r} while writing {len(content):,} bytes, expected room and permission; "
            "what was there before is unchanged"
        ) from error


def _settle(folder: Path) -> None:
    """Bring a folder's new name to the disk, where the system lets a folder be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
