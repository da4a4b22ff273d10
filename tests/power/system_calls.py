"""System calls on the files of one folder, as `shim.c` writes them down.

Owns the compiling of the shim, its environment and the format of its trace. Must not know what the files are.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_SOURCE = Path(__file__).with_name("shim.c")
_HEAD = struct.Struct("=cBQQ")
NEVER_KILLED = -1


class Call(StrEnum):
    """What was asked for, by its letter in the trace."""

    CREATE = "C"
    WRITE = "W"
    TRUNCATE = "T"
    SYNC = "S"
    UNLINK = "U"
    MARK = "M"


@dataclass(frozen=True, slots=True)
class Event:
    """A call that was carried out, or a mark.

    Attributes:
        name: of the file in the folder; "." is the folder itself.
        offset: of what was written; of `TRUNCATE` the file's length.
        data: what was written, or marked.
    """

    call: Call
    name: str
    offset: int = 0
    data: bytes = b""


def missing() -> str:
    """Why system calls cannot be traced here; empty where they can."""
    if sys.platform != "linux" or struct.calcsize("P") != 8:
        return "system calls are traced on 64-bit Linux only"
    return "" if _compiler() else "neither cc nor gcc is installed"


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


def build(folder: Path) -> Path:
    """The shim, compiled into `folder`."""
    compiler, shim = _compiler(), folder / "shim.so"
    assert compiler, missing()
    command = [compiler, "-Wall", "-O1", "-shared", "-fPIC", "-o", str(shim), str(_SOURCE), "-ldl"]
    subprocess.run(command, check=True)  # noqa: S603  our own command
    return shim


# All that can be counted.
ANY = "".join(call for call in Call if call is not Call.MARK)


def environment(shim: Path, folder: Path, trace: Path, kill_at: int, counted: str = ANY) -> dict[str, str]:
    """Of a process whose calls on the files in `folder` are added to `trace`.

    Args:
        kill_at: the process is killed before the call of that number, from 0, of those in `counted`.
    """
    names = {"LD_PRELOAD": shim, "POWER_FOLDER": folder.resolve(), "POWER_TRACE": trace, "POWER_KILL_AT": kill_at}
    names["POWER_COUNTED"] = counted
    return os.environ | {name: str(value) for name, value in names.items()}


def read_trace(path: Path) -> Iterator[Event]:
    """The events, in their order."""
    raw, at = path.read_bytes() if path.exists() else b"", 0
    while at < len(raw):
        letter, name_bytes, first, second = _HEAD.unpack_from(raw, at)
        name_end = at + _HEAD.size + name_bytes
        name, call = raw[at + _HEAD.size : name_end].decode(), Call(letter.decode())
        at = name_end + (second if call in (Call.WRITE, Call.MARK) else 0)
        yield Event(call, name, first, raw[name_end:at])
