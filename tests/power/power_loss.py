"""Losses of power: a store's processes are traced, and what a disk may hold afterwards is opened again.

Owns the order of a history, and the judgement: a store has exactly what it has acknowledged, or that and what was under
way. A seed fixes what the processes do, where they are killed, when power is lost and what the disk keeps then.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from disk import Disk
from operations import SESSION_IDS, Kind, Operation, State, epochs, living, read
from store_process import TICK_SECONDS, Fault, Spec
from system_calls import ANY, NEVER_KILLED, Call, Event, build, environment, read_trace

from eddy.service.sqlite_store import SqliteStore

_PROCESS = Path(__file__).with_name("store_process.py")
_STORE = "state.db"
_BEGIN_SECONDS = 1000
_PATIENCE_SECONDS = 120.0
_KILLED = -9
_KILLED_SHARE, _CLOSED_SHARE = 0.8, 0.5
# Of processes that begin with what a loss of power has left; the others find what is in memory, too.
_LOST_SHARE = 0.4
_MAX_PROCESSES, _MAX_KILL_AT, _MAX_KILL_AT_SYNC = 4, 90, 40
_EARLY_OPERATIONS, _EARLY_DRAWS = 2, 4
_TOLD_HISTORIES = 10
# A history takes a few MiB.
_MEMORY = Path("/dev/shm")  # noqa: S108  only as the parent of a temporary folder
_MEMORY_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Run:
    """What is asked for.

    Attributes:
        seed: of the first history; the next one has the next.
        num_points: losses of power of a history.
    """

    seed: int
    num_histories: int
    num_points: int


@dataclass(slots=True)
class Report:
    """What a run was.

    Attributes:
        findings: where, and what was wrong.
    """

    num_histories: int = 0
    num_points: int = 0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{self.num_histories} histories, {self.num_points} losses of power, {self.seconds:.0f} s"
        return f"{counts}: {len(self.findings)} bad"


@dataclass(frozen=True, slots=True)
class Restart:
    """The machine starts again after a loss of power, which has left these files."""

    files: dict[str, bytes]


class Expectation:
    """What a store must have, by the marks of its processes."""

    def __init__(self) -> None:
        # Changed by `mark` alone; the time is that of the last operation that began.
        self.now = _BEGIN_SECONDS
        self._state: State = {}
        self._under_way: Operation | None = None

    def mark(self, data: bytes) -> str:
        """An operation begins, or the one under way has ended; what is wrong about what it found, empty: nothing."""
        if not data:
            assert self._under_way is not None, "what ends has begun"
            self._state, self._under_way = self._under_way.after(self._state), None
            return ""
        operation = Operation.decode(data)
        self.now = operation.now
        finding = self.judge(operation.versions) if operation.kind is Kind.OPEN else ""
        self._under_way = operation
        return finding

    def judge(self, found: State) -> str:
        """What is wrong about a store that has these sessions; empty where nothing is."""
        allowed = [living(self._state, self.now)]
        if self._under_way is not None:
            allowed.append(living(self._under_way.after(self._state), self.now))
        if found in allowed:
            return ""
        strange = [sum(found.get(number) != state.get(number) for number in found | state) for state in allowed]
        return f"{min(strange)} sessions of {len(allowed[0])} are not as they must be"

    def __str__(self) -> str:
        return f"during {self._under_way.kind}" if self._under_way else "between two operations"


class History:
    """Processes one after the other on one store, by `seed`; power is lost between some of them."""

    def __init__(self, seed: int, folder: Path, shim: Path, fault: Fault = Fault.NONE) -> None:
        self._dice = random.Random(f"history/{seed}")
        self._seed = seed
        self._folder = folder
        self._store = folder / "store"
        self._shim = shim
        self._fault = fault
        # Changed by `live` alone.
        self._events: list[Event | Restart] = []
        self._disk = Disk()
        self._now = _BEGIN_SECONDS

    def live(self) -> str:
        """All processes; what one of them did not end well by, empty: all did."""
        dice = self._dice
        self._store.mkdir(parents=True)
        limits = {
            "max_log_sessions": dice.choice((1, 4, 12, 1000)),
            "max_log_bytes": dice.choice((30_000, 1 << 28)),
            "piece_rows": dice.choice((2, 5, 4096)),
            "database_log_pages": dice.choice((4, 20, 8192)),
        }
        for number in range(dice.randint(1, _MAX_PROCESSES)):
            if number and dice.random() < _LOST_SHARE:
                self._lose_power()
            spec = Spec(
                store=str(self._store / _STORE),
                seed=f"process/{self._seed}/{number}",
                now=self._now,
                num_operations=dice.randint(5, 40),
                is_closed=dice.random() < _CLOSED_SHARE,
                fault=self._fault,
                **limits,
            )
            trace = self._folder / f"trace-{number}"
            if finding := self._one(spec, trace, environment(self._shim, self._store, trace, *self._draw_kill())):
                return finding
        return ""

    def _draw_kill(self) -> tuple[int, str]:
        """Before which call a process is killed, and which ones are counted."""
        dice = self._dice
        if dice.random() >= _KILLED_SHARE:
            return NEVER_KILLED, ANY
        # What was written and is in memory only is what the next process must not rely on.
        return dice.choice(((dice.randint(0, _MAX_KILL_AT), ANY), (dice.randint(0, _MAX_KILL_AT_SYNC), Call.SYNC)))

    def _one(self, spec: Spec, trace: Path, env: dict[str, str]) -> str:
        process = subprocess.run(  # noqa: S603  our own command
            [sys.executable, str(_PROCESS), json.dumps(asdict(spec))],
            env=env,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
        for event in read_trace(trace):
            self._events.append(event)
            if event.call is not Call.MARK:
                self._disk.carry_out(event)
            elif event.data:
                self._now = Operation.decode(event.data).now
        self._now += TICK_SECONDS
        files = {path.name: path.read_bytes() for path in self._store.iterdir()}
        assert self._disk.cached() == files, "the trace has all that was done to the files"
        return "" if process.returncode in (0, _KILLED) else f"a process ended: {process.stderr[-2000:]}"

    def _lose_power(self) -> None:
        files = self._disk.lose_power(self._dice)
        _replace(self._store, files)
        self._disk = Disk.holding(files)
        self._events.append(Restart(files))

    def judge(self, num_points: int, num_draws: int = 1) -> tuple[int, list[str]]:
        """Losses of power at so many points, and early in each process: how many, and what was found.

        Args:
            num_draws: times that it is drawn what the disk keeps at a point.
        """
        num_events, again = len(self._events), self._folder / "again"
        picks = random.Random(f"points/{self._seed}").sample(range(num_events + 1), min(num_points, num_events + 1))
        # Nothing must be built on what the process before has left in memory only.
        early = _early_points(self._events)
        points, findings = Counter(picks * num_draws + early * _EARLY_DRAWS), []
        disk, expectation = Disk(), Expectation()
        for point, event in enumerate([*self._events, None]):
            for draw in range(points[point]):
                files = disk.lose_power(random.Random(f"disk/{self._seed}/{point}/{draw}"))
                findings.append((point, _reopen(again, files, expectation)))
            if event is None:
                break
            if isinstance(event, Restart):
                disk = Disk.holding(event.files)
            elif event.call is Call.MARK:
                findings.append((point, expectation.mark(event.data)))
            else:
                disk.carry_out(event)
        told = [f"seed {self._seed}, point {point} of {num_events}: {why}" for point, why in findings if why]
        return points.total(), told


def _early_points(events: list[Event | Restart]) -> list[int]:
    """The points behind each opening, and behind the operation after it."""
    points, num_left = [], 0
    for point, event in enumerate(events):
        if isinstance(event, Restart) or event.call is not Call.MARK:
            continue
        if event.data and Operation.decode(event.data).kind is Kind.OPEN:
            num_left = _EARLY_OPERATIONS
        elif not event.data and num_left:
            points.append(point + 1)
            num_left -= 1
    return points


def _reopen(folder: Path, files: dict[str, bytes], expectation: Expectation) -> str:
    """What is wrong about the store in `files`; empty where nothing is."""
    _replace(folder, files)
    try:
        with closing(SqliteStore(folder / _STORE, lambda: float(expectation.now))) as store:
            found = read(store)
            finding = expectation.judge(found)
            # It goes on, too, and has each session under its epoch.
            num_deleted = store.delete([SESSION_IDS[number] for number in found], epochs(found.values()))
            if not finding and (num_deleted != len(found) or read(store)):
                finding = f"{num_deleted} of {len(found)} sessions could be deleted"
    except Exception as error:  # noqa: BLE001  whatever a store raises then is a finding
        finding = f"{type(error).__name__}: {error}"
    return f"{expectation}: {finding}" if finding else ""


def _replace(folder: Path, files: dict[str, bytes]) -> None:
    """Has `folder` hold these files alone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def folder_in_memory() -> Path | None:
    """Where the files of a run cost no disk, which they do not need; None where there is no such place."""
    has_room = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _MEMORY_BYTES
    return _MEMORY if has_room else None


def run(wanted: Run, folder: Path, tell: Callable[[str], None]) -> Report:
    """All histories of `wanted` in `folder`; tells findings and how far it is."""
    report, begin = Report(), time.monotonic()
    shim = build(folder)
    for seed in range(wanted.seed, wanted.seed + wanted.num_histories):
        history = History(seed, folder / str(seed), shim)
        finding = history.live()
        findings = [f"seed {seed}: {finding}"] if finding else []
        if not findings:
            num_points, findings = history.judge(wanted.num_points)
            report.num_points += num_points
        shutil.rmtree(folder / str(seed))
        report.num_histories += 1
        report.seconds = time.monotonic() - begin
        report.findings += findings
        for line in findings:
            tell(line)
        if findings:
            tell(f"again: make power SEED={seed} HISTORIES=1 POINTS={wanted.num_points}")
        if report.num_histories % _TOLD_HISTORIES == 0:
            tell(str(report))
    return report
