"""The record log: what is told after a crash, a torn end and damage, byte by byte."""

import errno
import fcntl
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from records import batch

from eddy.service import record_log
from eddy.service.alignment import PAGE_BYTES
from eddy.service.record_log import ENTRY, HEAD, LogDamaged, RecordLog

SALT, OTHER = bytes(range(16)), bytes(range(1, 17))
NUM_BATCHES = 4


def _entries(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Batch `number`: sessions 0 to 2, the last of which is deleted by every second one."""
    records = batch([bytes([row]) * 16 for row in range(3)], [number + 1] * 3, [0] * 3, seed=number)
    entries = np.zeros(3, ENTRY)
    entries["session_id"] = np.ascontiguousarray(records.session_ids).view("V16")[:, 0]
    entries["epoch"], entries["writer"], entries["expires_at"] = records.epochs, records.writer, records.expires_at
    entries["size"] = records.sizes
    if number % 2:
        entries["size"][2] = 0
    return entries, records.data[: int(entries["size"].sum())]


def _write(path: Path, salt: bytes = SALT) -> list[int]:
    """A log of `NUM_BATCHES`; where each of them ends."""
    log = RecordLog(path, salt)
    ends = []
    for number in range(NUM_BATCHES):
        log.append(*_entries(number))
        ends.append(log.num_bytes)
    log.close()
    return ends


def _places(number: int, begin: int) -> list[int]:
    """Of a batch that begins at `begin`: bytes that mean something, of records every fifth; the others fill pages."""
    entries, data = _entries(number)
    assert HEAD.itemsize + entries.nbytes < PAGE_BYTES
    records = begin + PAGE_BYTES
    table_end = begin + HEAD.itemsize + entries.nbytes
    return [*range(begin, table_end), *range(records, records + len(data), 5), records + len(data) - 1]


def _replay(path: Path, salt: bytes = SALT) -> int:
    """How many batches are there, each of which must be as it was written."""
    log = RecordLog(path, salt)
    num_batches = 0
    try:
        for number, (entries, offsets) in enumerate(log.replay()):
            wanted, data = _entries(number)
            records = [log.read(*place) for place in zip(offsets.tolist(), entries["size"].tolist(), strict=True)]
            assert b"".join(records) == data.tobytes()
            for name in ("session_id", "epoch", "writer", "expires_at", "size"):
                assert (entries[name] == wanted[name]).all()
            num_batches += 1
    finally:
        log.close()
    return num_batches


def test_all_that_was_appended_is_there_again(tmp_path: Path) -> None:
    """And what is appended after a replay comes behind it."""
    path = tmp_path / "log"
    ends = _write(path)
    assert _replay(path) == NUM_BATCHES
    log = RecordLog(path, SALT)
    assert len(list(log.replay())) == NUM_BATCHES
    assert log.num_bytes == ends[-1]
    log.append(*_entries(NUM_BATCHES))
    log.close()
    assert _replay(path) == NUM_BATCHES + 1


def test_a_file_system_that_wants_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses to write past it: the log is the same byte by byte. Any other refusal is an error."""
    opened, reason = os.open, errno.EINVAL

    def refuse(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(reason, "no")
        return opened(path, flags, *mode)

    direct, buffered = tmp_path / "direct", tmp_path / "buffered"
    ends = _write(direct)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert _write(buffered) == ends
        assert _replay(buffered) == NUM_BATCHES
        reason = errno.EACCES
        with pytest.raises(OSError, match="no"):
            RecordLog(buffered, SALT)
    assert buffered.read_bytes() == direct.read_bytes()


def test_a_file_system_that_opens_and_does_not_write_past_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written by the page cache then; what it refuses there, too, is an error."""
    wrote, always = os.pwritev, False

    def refuse(file: int, parts: list[memoryview], at: int) -> int:
        if always or fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")
        return wrote(file, parts, at)

    ends = _write(tmp_path / "direct")
    monkeypatch.setattr(os, "pwritev", refuse)
    assert _write(tmp_path / "buffered") == ends
    assert _replay(tmp_path / "buffered") == NUM_BATCHES
    assert (tmp_path / "buffered").read_bytes() == (tmp_path / "direct").read_bytes()
    always = True
    with pytest.raises(OSError, match="no"):
        _write(tmp_path / "never")


@pytest.mark.parametrize("first", [0, 1])
def test_records_that_begin_at_no_page_are_the_same(tmp_path: Path, first: int) -> None:
    """Whether they are written from where they lie, or from a copy of them."""
    room = np.random.default_rng(3).integers(0, 256, 4 * PAGE_BYTES, np.uint8)
    begin = -room.ctypes.data % PAGE_BYTES + first
    data = room[begin : begin + 2 * PAGE_BYTES + 100]
    entries = np.zeros(1, ENTRY)
    entries["size"] = len(data)
    log = RecordLog(tmp_path / "log", SALT)
    (offset,) = log.append(entries, data)
    assert log.read(int(offset), len(data)) == data.tobytes()
    assert log.num_bytes == 4 * PAGE_BYTES == (tmp_path / "log").stat().st_size
    log.close()


def test_what_was_appended_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is synchronised when it is written, and the folder when the file is there."""
    done: list[str] = []
    write, sync, sync_folder = os.pwritev, record_log._sync, os.fsync  # noqa: SLF001  # no power is lost at a test's wish

    def note_folder(file: int) -> None:
        assert (tmp_path / "log").exists()
        done.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "file")
        sync_folder(file)

    monkeypatch.setattr(os, "pwritev", lambda *args: (done.append("write"), write(*args))[1])
    monkeypatch.setattr(record_log, "_sync", lambda file: (done.append("sync"), sync(file))[1])
    monkeypatch.setattr(os, "fsync", note_folder)
    log = RecordLog(tmp_path / "log", SALT)
    assert done == ["folder"]
    for number in range(2):
        done.clear()
        log.append(*_entries(number))
        assert done == ["write", "sync"]
    log.close()


def test_what_could_not_be_synchronised_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell whether it is on the disk: the next batch takes its place."""
    path = tmp_path / "log"
    ends = _write(path)
    log = RecordLog(path, SALT)
    assert len(list(log.replay())) == NUM_BATCHES

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(record_log, "_sync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            log.append(*_entries(NUM_BATCHES + 2))
    assert log.num_bytes == ends[-1]
    log.append(*_entries(NUM_BATCHES))
    log.close()
    assert _replay(path) == NUM_BATCHES + 1


def test_each_batch_is_told_once_and_in_its_turn(tmp_path: Path) -> None:
    """One that lies there again is not of the log; one that is missing before another is damage."""
    path = tmp_path / "log"
    ends = _write(path)
    raw = path.read_bytes()
    path.write_bytes(raw[: ends[0]] + raw[: ends[0]])
    assert _replay(path) == 1
    path.write_bytes(raw[: ends[0]] + raw[ends[1] :])
    with pytest.raises(LogDamaged, match=f"damaged at byte {ends[0]}, a later batch lies at byte {ends[0]}"):
        _replay(path)


def test_a_torn_end_is_left_out(tmp_path: Path) -> None:
    """Wherever the file was cut, or the disk left zeros or old bytes: the batches before are there."""
    path, whole = tmp_path / "log", tmp_path / "whole"
    ends = _write(whole)
    raw = whole.read_bytes()
    places = _places(NUM_BATCHES - 1, ends[-2])
    path.write_bytes(raw[: places[-1] + 1])
    # The disk may have the last page in part.
    assert _replay(path) == NUM_BATCHES
    for cut in places:
        path.write_bytes(raw[:cut])
        assert _replay(path) == NUM_BATCHES - 1, cut
        path.write_bytes(raw[:cut] + bytes(ends[-1] - cut))
        # The last bytes may have been zeros all along.
        assert _replay(path) == (NUM_BATCHES - 1 if any(raw[cut:]) else NUM_BATCHES), cut


def test_records_of_an_earlier_batch_are_none_of_a_later_one(tmp_path: Path) -> None:
    """The head of the last batch came to the disk, its records did not: older ones lie there, each of them whole."""
    path = tmp_path / "log"
    entries, data = _entries(0)
    log = RecordLog(path, SALT)
    log.append(entries, data)
    middle = log.num_bytes
    newer = batch([bytes([row]) * 16 for row in range(3)], [2] * 3, [1] * 3, seed=0)
    assert len(newer.data) == len(data)
    log.append(entries, newer.data)
    log.close()
    raw = path.read_bytes()
    path.write_bytes(raw[: middle + PAGE_BYTES] + data.tobytes())
    log = RecordLog(path, SALT)
    assert len(list(log.replay())) == 1
    assert log.num_bytes == middle
    log.close()


@pytest.mark.parametrize("number", range(NUM_BATCHES))
def test_damage_is_told_from_a_torn_end(tmp_path: Path, number: int) -> None:
    """Any byte changed: before another whole batch it is an error, in the last one nobody can tell."""
    path, whole = tmp_path / "log", tmp_path / "whole"
    ends = _write(whole)
    raw = bytearray(whole.read_bytes())
    for at in _places(number, ends[number - 1] if number else 0):
        raw[at] ^= 0x11
        path.write_bytes(raw)
        raw[at] ^= 0x11
        if number == NUM_BATCHES - 1:
            assert _replay(path) == number, at
        else:
            with pytest.raises(LogDamaged, match=rf"damaged at byte {ends[number - 1] if number else 0}, "):
                _replay(path)


def test_what_lies_behind_the_end_is_found_wherever_it_lies(tmp_path: Path) -> None:
    """At any page, also across the borders of what is read at once."""
    path = tmp_path / "log"
    ends = _write(path)
    raw = path.read_bytes()
    for gap in (PAGE_BYTES, (1 << 20) - PAGE_BYTES, 1 << 20, 3 << 20):
        path.write_bytes(raw[: ends[1]] + bytes(gap) + raw[ends[2] :])
        with pytest.raises(LogDamaged, match=f"a later batch lies at byte {ends[1] + gap}"):
            _replay(path)


def test_another_salt_is_another_log(tmp_path: Path) -> None:
    """Nothing of an earlier one is in it, however much of it still lies in the file."""
    path = tmp_path / "log"
    _write(path)
    size = path.stat().st_size
    assert _replay(path, OTHER) == 0
    log = RecordLog(path, SALT)
    assert len(list(log.replay())) == NUM_BATCHES
    log.restart(OTHER)
    assert log.num_bytes == 0
    log.append(*_entries(0))
    log.close()
    assert path.stat().st_size == size
    assert _replay(path, OTHER) == 1


def test_a_write_that_failed_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it on the disk: the next one takes its place, and all are there."""
    path = tmp_path / "log"
    ends = _write(path)
    log = RecordLog(path, SALT)
    assert len(list(log.replay())) == NUM_BATCHES
    wrote = os.pwritev

    def write_half(file: int, parts: list[memoryview], at: int) -> int:
        if at > ends[-1]:
            raise OSError(28, "No space left on device")
        return wrote(file, parts[:1], at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", write_half)
        with pytest.raises(OSError, match="No space left"):
            log.append(*_entries(NUM_BATCHES))
    assert log.num_bytes == ends[-1]
    log.append(*_entries(NUM_BATCHES))
    log.close()
    assert _replay(path) == NUM_BATCHES + 1


def test_a_write_in_parts_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system may take a few bytes at a time, or pages where it writes past its cache."""
    wrote = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda file, parts, at: wrote(file, [parts[0][:PAGE_BYTES]], at))
    _write(tmp_path / "direct")
    assert _replay(tmp_path / "direct") == NUM_BATCHES
    monkeypatch.setattr(record_log, "_DIRECT", 0)
    monkeypatch.setattr(os, "pwritev", lambda file, parts, at: wrote(file, [b"".join(parts)[:7]], at))
    _write(tmp_path / "log")
    assert _replay(tmp_path / "log") == NUM_BATCHES


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    """A file that somebody has cut is no end of what was asked for."""
    _write(tmp_path / "log")
    log = RecordLog(tmp_path / "log", SALT)
    with pytest.raises(OSError, match="ends before byte"):
        log.read((tmp_path / "log").stat().st_size - 5, 10)
    log.close()


def test_a_log_that_is_needed_no_more_is_removed(tmp_path: Path) -> None:
    """And one that is only let go of stays."""
    _write(tmp_path / "log")
    assert (tmp_path / "log").exists()
    RecordLog(tmp_path / "log", SALT).remove()
    assert not (tmp_path / "log").exists()
