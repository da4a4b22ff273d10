"""Losses of power in short, and proof that stores which do not survive them are found; the long run is `make power`."""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from disk import Disk
from operations import Kind, Operation, Version
from power_loss import Expectation, History, Run, folder_in_memory, run
from store_process import Fault
from system_calls import Call, Event, build, missing

from eddy.service import record_log

# Short histories, in which processes are killed, close their store or just end, and power is lost between some.
SEEDS = (15, 14, 18)
FAULTY_SEED = 20
# One process that is killed soon.
SHORT_SEED = 17
POINTS = 60
# More than these have.
ALL_POINTS = 10_000
DRAWS = 200
OLD, NEW, OTHER = Version(1, 5, 9000), Version(2, 100, 9000), Version(3, 5, 9000)
traced = pytest.mark.skipif(bool(missing()), reason=missing() or "system calls can be traced")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where the files of all histories lie."""
    with tempfile.TemporaryDirectory(dir=folder_in_memory()) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def shim(folder: Path) -> Path:
    """What traces system calls."""
    return build(folder)


@pytest.fixture(scope="module")
def histories(folder: Path, shim: Path) -> list[History]:
    """Histories of a store as it is."""
    lived = [History(seed, folder / str(seed), shim) for seed in SEEDS]
    assert [history.live() for history in lived] == [""] * len(SEEDS)
    return lived


@traced
def test_power_that_is_lost_at_any_point_loses_nothing(histories: list[History]) -> None:
    """Whatever of the rest is on the disk: the store has all that it has acknowledged, and no part of an operation."""
    for history in histories:
        num_points, findings = history.judge(ALL_POINTS)
        assert num_points > 0
        assert findings == []


@traced
def test_a_run_says_what_it_was(folder: Path) -> None:
    """How many histories and losses of power, of which some come early in each process."""
    told: list[str] = []
    report = run(Run(100, 2, 5), folder, told.append)
    assert (report.num_histories, report.findings, told) == (2, [], [])
    assert report.num_points > 2 * 5
    assert str(report).startswith(f"2 histories, {report.num_points} losses of power, ")
    assert str(report).endswith(": 0 bad")


@traced
@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.NONE])
def test_a_store_that_does_not_synchronise_is_found(folder: Path, shim: Path, fault: Fault) -> None:
    """Its log, the folder of the log, or the database: each is needed."""
    history = History(FAULTY_SEED, folder / fault.name, shim, fault)
    assert history.live() or history.judge(POINTS)[1]


@traced
def test_a_store_that_compares_no_checksums_is_found(histories: list[History], monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is there in part is told from a whole one by the records' checksums alone."""
    monkeypatch.setattr(record_log, "_are_whole", lambda *_: True)
    assert any(history.judge(ALL_POINTS, num_draws=3)[1] for history in histories)


def _expectation(*, is_ended: bool) -> Expectation:
    """Of a store that has sessions 0 to 2, and then session 0 written anew and session 1 deleted."""
    expectation = Expectation()
    expectation.mark(Operation(Kind.WRITE, 1000, {0: OLD, 1: OLD, 2: OTHER}).encode())
    expectation.mark(b"")
    expectation.mark(Operation(Kind.WRITE, 1010, {0: NEW}, (1,)).encode())
    if is_ended:
        expectation.mark(b"")
    return expectation


@pytest.mark.parametrize("is_ended", [False, True])
def test_what_a_store_may_have(is_ended: bool) -> None:
    """What was acknowledged; while an operation is under way with or without all of it, and never in part."""
    expectation = _expectation(is_ended=is_ended)
    assert not expectation.judge({0: NEW, 2: OTHER})
    assert bool(expectation.judge({0: OLD, 1: OLD, 2: OTHER})) == is_ended
    for wrong in ({0: NEW, 1: OLD, 2: OTHER}, {0: OLD, 2: OTHER}, {0: NEW}, {0: NEW, 2: OTHER, 3: OTHER}, {}):
        assert expectation.judge(wrong)


def test_what_a_process_finds_is_judged() -> None:
    """A process that opens the store after another one was killed must find what is there, but what has expired."""
    expectation = _expectation(is_ended=False)
    assert expectation.mark(Operation(Kind.OPEN, 1020, {0: OLD, 2: OTHER}).encode())
    assert not _expectation(is_ended=True).mark(Operation(Kind.OPEN, 9000, {}).encode())


def test_the_disk_keeps_what_was_synchronised() -> None:
    """A file, once it and its folder were, whatever comes behind: its bytes and its name."""
    disk = Disk()
    disk.carry_out(Event(Call.CREATE, "a"))
    disk.carry_out(Event(Call.WRITE, "a", 0, b"x" * 10_000))
    disk.carry_out(Event(Call.SYNC, "a"))
    disk.carry_out(Event(Call.SYNC, "."))
    disk.carry_out(Event(Call.WRITE, "a", 8192, b"y" * 8192))
    disk.carry_out(Event(Call.CREATE, "b"))
    for draw in range(DRAWS):
        assert disk.lose_power(random.Random(draw))["a"][:8192] == b"x" * 8192


def test_the_disk_keeps_any_part_of_the_rest() -> None:
    """Pages in any order and torn at sectors, the length by itself, names or not; processes see all of it."""
    disk = Disk()
    disk.carry_out(Event(Call.CREATE, "old"))
    disk.carry_out(Event(Call.SYNC, "."))
    disk.carry_out(Event(Call.UNLINK, "old"))
    disk.carry_out(Event(Call.CREATE, "a"))
    disk.carry_out(Event(Call.WRITE, "a", 0, b"x" * 8192))
    disk.carry_out(Event(Call.WRITE, "a", 0, b"y" * 8192))
    assert disk.cached() == {"a": b"y" * 8192}
    found = [disk.lose_power(random.Random(draw)) for draw in range(DRAWS)]
    assert {tuple(files) for files in found} == {(), ("a",), ("a", "old"), ("old",)}
    contents = {files["a"] for files in found if "a" in files}
    pages = [bytes(4096), b"x" * 4096, b"y" * 4096]
    assert contents >= {first + second for first in pages for second in pages[1:]} | {b"", b"x" * 4096, b"y" * 4096}
    assert any(len(set(data[:4096])) > 1 for data in contents), "a page is torn"
