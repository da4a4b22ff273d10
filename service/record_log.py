"""The record log: batches of records one behind the other in a file, each on the disk when it has been appended.

Owns the file, its format (docs/state.md has it byte by byte) and the telling of a torn end from damage. Must not know
what a session is, what becomes of the log's contents, or epochs. Whoever has the log keeps its salt, and begins it anew
by another one: what was appended under an earlier salt is no longer in it, and is written over.

Batches are written past the page cache (`O_DIRECT`), where the file system can: what is written every second and hardly
ever read takes neither a copy nor memory there. So they and their records begin at pages.

Dimension key: B entries of a batch.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from zlib_ng.zlib_ng import crc32

from eddy.service import alignment
from eddy.service.alignment import PAGE_BYTES
from eddy.service.record_format import CHECKSUM_BYTES

SALT_BYTES = 16
# Before each batch; `checksum` is of this head, with 0 in its place, and of the entries behind it.
HEAD = np.dtype(
    [("salt", f"V{SALT_BYTES}"), ("number", "<u8"), ("num_bytes", "<u8"), ("num_entries", "<u4"), ("checksum", "<u4")]
)
# One record of a batch, or none any more (`size` 0); `checksum` is the one in the record's last bytes.
ENTRY = np.dtype(
    [
        ("session_id", "V16"),
        ("writer", "<u8"),
        ("expires_at", "<f8"),
        ("size", "<u8"),
        ("epoch", "<u4"),
        ("checksum", "<u4"),
    ]
)
# Darwin has neither.
_sync = getattr(os, "fdatasync", os.fsync)
_DIRECT = getattr(os, "O_DIRECT", 0)


class LogDamaged(Exception):
    """A batch that was on the disk is not whole any more; the message says where."""


class LoggedBatch(NamedTuple):
    """A batch in the log.

    Attributes:
        entries: `ENTRY` [B]; offsets: int64 [B], in the file, of their records.
    """

    entries: np.ndarray
    offsets: np.ndarray


class RecordLog:
    """The log in the file at `path`, which need not be there, under `salt`, 16 random bytes.

    Args:
        mode: who may read and write the file.

    Raises:
        OSError: it cannot be opened or created.
    """

    def __init__(self, path: Path, salt: bytes, mode: int = 0o600) -> None:
        self._path = path
        self._salt = salt
        # Of the batch that was read last, and of all.
        self._last = self._end = 0
        self._next_number = 0
        self._is_open = True
        # Read by the page cache, in whatever pieces; written by another number.
        self._file = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._out = -1
        try:
            self._out = _open_direct(path)
            if os.fstat(self._file).st_mode & 0o777 != mode:
                os.fchmod(self._file, mode)
            sync_folder(path.parent)
        except BaseException:
            self.close()
            raise

    @property
    def num_bytes(self) -> int:
        """Of what has been appended under this salt."""
        return self._end

    def replay(self) -> Iterator[LoggedBatch]:
        """All batches that were appended under the salt, oldest first; what is appended from then on comes behind them.

        A batch at the end that was not written out is left out: nobody was told that it is there. One that is there may
        be in memory only, where whoever wrote it was killed before it was on the disk: at the end it is on the disk.

        Raises:
            LogDamaged: a batch that is not whole comes before one that is.
            OSError: the file cannot be read or written.
        """
        while (batch := self._read_batch()) is not None:
            yield batch
        self._look_behind_end()
        if self._end:
            # Written again, because a page that could not be written counts as written when that has been told once.
            end = min(self._end, os.fstat(self._file).st_size)
            again = np.frombuffer(self.read(self._last, end - self._last), np.uint8)
            self._write(_whole_pages(again), self._last)
            _sync(self._out)

    def append(self, entries: np.ndarray, data: np.ndarray) -> np.ndarray:
        """Writes a batch to the disk; the offsets of its records, int64 [B].

        Args:
            entries: `ENTRY` [B], without checksums; data: uint8, their records, one behind the other.

        Raises:
            OSError: the batch may be there, or not; the log goes on where it was.
        """
        ends = np.cumsum(entries["size"], dtype=np.int64)
        assert ends[-1] == len(data), "a batch has the bytes of its records"
        is_there = entries["size"] > 0
        places = ends[is_there, None] + np.arange(-CHECKSUM_BYTES, 0)
        entries["checksum"][is_there] = data[places].view("<u4")[:, 0]
        head = np.zeros(1, HEAD)
        head["salt"], head["number"] = np.void(self._salt), self._next_number
        head["num_bytes"], head["num_entries"] = len(data), len(entries)
        table = entries.view(np.uint8)
        head["checksum"] = crc32(table.data, crc32(head.tobytes()))
        front = _whole_pages(np.concatenate((head.view(np.uint8), table)))
        self._write((*front, *_whole_pages(data)), self._end)
        _sync(self._out)
        start = self._end + _table_bytes(len(entries))
        self._end = start + alignment.padded(len(data))
        self._next_number += 1
        return start + ends - entries["size"].astype(np.int64)

    def _write(self, parts: tuple[np.ndarray, ...], at: int) -> None:
        """Writes all of `parts`, whole pages, one behind the other."""
        left = [part.data for part in parts]
        while left:
            try:
                num_bytes = os.pwritev(self._out, left, at)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._leave_direct():
                    raise
                continue
            at += num_bytes
            while left and num_bytes >= len(left[0]):
                num_bytes -= len(left.pop(0))
            if left:
                left[0] = left[0][num_bytes:]

    def _leave_direct(self) -> bool:
        """Writes by the page cache from now on; False where that is how it writes.

        Some file systems open what they do not write past it: of larger pages, or up to a limit within one.
        """
        flags = fcntl.fcntl(self._out, fcntl.F_GETFL)
        fcntl.fcntl(self._out, fcntl.F_SETFL, flags & ~_DIRECT)
        return bool(flags & _DIRECT)

    def read(self, offset: int, size: int) -> bytes:
        """So many bytes from an offset.

        Raises:
            OSError: the file cannot be read, or has fewer.
        """
        parts = []
        while size:
            part = os.pread(self._file, size, offset)
            if not part:
                raise OSError(f"the log ends before byte {offset}")
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def restart(self, salt: bytes) -> None:
        """Begins anew: nothing is in it, and its file keeps its length."""
        self._salt = salt
        self._end = self._next_number = 0

    def _read_batch(self) -> LoggedBatch | None:
        """The batch at the end, which then is behind it; None where there is no whole one."""
        length = os.fstat(self._file).st_size
        head = self._read_head(self._end, length)
        if head is None or head["salt"].tobytes() != self._salt or int(head["number"]) != self._next_number:
            return None
        num_bytes, num_entries = int(head["num_bytes"]), int(head["num_entries"])
        start = self._end + _table_bytes(num_entries)
        if start + num_bytes > length:
            return None
        entries = np.frombuffer(self.read(self._end + HEAD.itemsize, num_entries * ENTRY.itemsize), ENTRY)
        sizes = entries["size"].astype(np.int64)
        ends = np.cumsum(sizes)
        if (ends[-1] if len(ends) else 0) != num_bytes or not _are_whole(entries, self.read(start, num_bytes)):
            return None
        self._last, self._end = self._end, start + alignment.padded(num_bytes)
        self._next_number += 1
        return LoggedBatch(entries, start + ends - sizes)

    def _read_head(self, at: int, length: int) -> np.void | None:
        """The head of the batch at `at` in a file of `length` bytes; None where it and its entries are not whole."""
        first = at + HEAD.itemsize
        if first > length:
            return None
        head: np.void = np.frombuffer(self.read(at, HEAD.itemsize), HEAD)[0]
        table_bytes = int(head["num_entries"]) * ENTRY.itemsize
        if first + table_bytes > length:
            return None
        plain = head.copy()
        plain["checksum"] = 0
        checksum = crc32(self.read(first, table_bytes), crc32(plain.tobytes()))
        return head if checksum == int(head["checksum"]) else None

    def _look_behind_end(self) -> None:
        """Batches were written one after the other: where one lies behind the end, what is before it is damaged."""
        length = os.fstat(self._file).st_size
        for at in range(self._end, length, _LOOK_BYTES):
            piece = self.read(at, min(_LOOK_BYTES, length - at))
            for page in range(0, len(piece), PAGE_BYTES):
                # Most are none, which is told without reading on.
                if not piece.startswith(self._salt, page):
                    continue
                head = self._read_head(at + page, length)
                if head is not None and int(head["number"]) > self._next_number:
                    raise LogDamaged(f"damaged at byte {self._end}, a later batch lies at byte {at + page}")

    def remove(self) -> None:
        """Lets go of the file and removes it: nothing in it is needed any more."""
        self.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets go of the file, which stays; again, it is nothing: the number may be another file's by then."""
        if self._is_open:
            self._is_open = False
            os.close(self._file)
            if self._out >= 0:
                os.close(self._out)


_LOOK_BYTES = 1 << 20


def _open_direct(path: Path) -> int:
    """The file for writing, past the page cache where its file system can."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC | _DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL or not _DIRECT:
            raise
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)


def _table_bytes(num_entries: int) -> int:
    """From a batch's begin to its records."""
    return alignment.padded(HEAD.itemsize + num_entries * ENTRY.itemsize)


def _whole_pages(data: np.ndarray) -> tuple[np.ndarray, ...]:
    """`data`, uint8, and zeros up to the next page, in pieces that begin at pages; copied only where they do not."""
    num_whole = len(data) // PAGE_BYTES * PAGE_BYTES if alignment.begins_at_page(data) else 0
    rest = alignment.empty(alignment.padded(len(data) - num_whole))
    rest[: len(data) - num_whole] = data[num_whole:]
    rest[len(data) - num_whole :] = 0
    return tuple(part for part in (data[:num_whole], rest) if len(part))


def _are_whole(entries: np.ndarray, data: bytes) -> bool:
    """The records of a batch are those that it was written with."""
    view, end = memoryview(data), 0
    for size, checksum in zip(entries["size"].tolist(), entries["checksum"].tolist(), strict=True):
        begin, end = end, end + size
        body = view[begin : end - CHECKSUM_BYTES]
        if size and (crc32(body) != checksum or view[end - CHECKSUM_BYTES : end] != checksum.to_bytes(4, "little")):
            return False
    return True


def sync_folder(folder: Path) -> None:
    """Has a file that was created in `folder` be there after a loss of power."""
    file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
