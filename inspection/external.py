"""External data: tensors of a model that lie in files beside it.

Owns the opening of files: plain ones, inside of the model's folder, of bounded size. Must not know graphs.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path

import onnx

from eddy.inspection.errors import InspectionError
from eddy.inspection.limits import Limits
from eddy.inspection.tensor_data import num_bytes

_KEYS = {"location", "offset", "length", "checksum", "basepath"}
# A drive's letter, a share, another separator, or what no file's name has.
_FOREIGN_PATH = re.compile(r"^[A-Za-z]:|^[/\\]|\\|[\0-\x1f]")


def read_plain_file(path: Path, max_bytes: int) -> bytes:
    """All of a regular file; never waits, whatever lies there.

    Raises:
        InspectionError: it cannot be opened, is no regular file, or is larger than `max_bytes`.
    """
    with open_plain_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise InspectionError(f"{path.name} has {size:,} bytes, expected at most {max_bytes:,}")
        # It may grow meanwhile.
        return file.read(max_bytes)


def open_plain_file(path: Path) -> BufferedReader:
    """A regular file, for reading.

    Raises:
        InspectionError: it cannot be opened, or is none.
    """
    try:
        # A pipe without a writer would be waited for.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise InspectionError(f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        what = "cannot be read: Is a directory" if stat.S_ISDIR(mode) else "is not a regular file"
        raise InspectionError(f"{path.name} {what}")
    return os.fdopen(number, "rb")


def bring_inside(tensors: Iterable[tuple[str, onnx.TensorProto]], folder: Path, max_bytes: int, limits: Limits) -> None:
    """Puts the data of every tensor that lies elsewhere into the message.

    Args:
        tensors: with what to call each in errors; changed. folder: the model's, nothing outside of it is read.
        max_bytes: of all of them together.

    Raises:
        InspectionError: a path that leads out of the folder, a file that is missing, too short or no plain file, or
            entries that contradict each other; nothing is read then that is not checked.
    """
    for where, tensor in tensors:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            if tensor.external_data:
                raise InspectionError(f"{where} names external data, but says that it has none")
            continue
        expected = num_bytes(tensor, where, limits)
        max_bytes -= expected
        if max_bytes < 0:
            raise InspectionError(
                f"{where}: the model and its external data have more than {limits.max_file_bytes:,} bytes, "
                "expected at most as many"
            )
        raw = _read(_entries(tensor, where), where, folder, expected)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = raw


def _entries(tensor: onnx.TensorProto, where: str) -> dict[str, str]:
    if tensor.HasField("raw_data"):
        raise InspectionError(f"{where} has its data twice, inside and in an external file")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data):
        raise InspectionError(f"{where}: an entry of its external data is given twice")
    if unknown := entries.keys() - _KEYS:
        raise InspectionError(f"{where}: unknown entry {sorted(unknown)[0]!r} of its external data")
    return entries


def _read(entries: dict[str, str], where: str, folder: Path, expected: int) -> bytes:
    """The data of one tensor, exactly `expected` bytes."""
    path = _inside(entries.get("location", ""), where, folder)
    offset = _count(entries, "offset", 0, where)
    length = _count(entries, "length", expected, where)
    if length != expected:
        raise InspectionError(f"{where}: its external data has the length {length:,}, expected {expected:,}")
    with open_plain_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if offset + length > size:
            raise InspectionError(
                f"{where}: its external data ends at byte {offset + length:,}, {path.name} has {size:,}"
            )
        file.seek(offset)
        raw = file.read(length)
    if len(raw) != length:
        raise InspectionError(f"{where}: {path.name} became shorter while it was read")
    return raw


def _inside(location: str, where: str, folder: Path) -> Path:
    """The file that `location` means, wherever links lead, within `folder`."""
    if not location or _FOREIGN_PATH.search(location) or ".." in location.split("/"):
        raise InspectionError(
            f"{where}: external data at {location[:200]!r}, expected a path inside of the model's folder"
        )
    root = folder.resolve()
    try:
        path = (root / location).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InspectionError(f"{where}: external data at {location[:200]!r} cannot be read: {why}") from error
    if not path.is_relative_to(root):
        raise InspectionError(
            f"{where}: external data at {location[:200]!r} is a link out of the model's folder, expected a file in it"
        )
    return path


def _count(entries: dict[str, str], key: str, default: int, where: str) -> int:
    text = entries.get(key, str(default))
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise InspectionError(f"{where}: external data with {key} {text[:50]!r}, expected a number of bytes")
    return int(text)
