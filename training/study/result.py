"""Results: what the runs of a study measured, one JSON file each.

Owns: the files below a study's folder and when a stored result still answers a job. Must not know torch, or what the
numbers mean.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eddy.training.errors import StudyError
from eddy.training.storage import make_folder, write_whole
from eddy.training.study.job import Job

RESULTS = "results"


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run found. values: single numbers; series: lists of them; texts: lists of words; all by name."""

    values: Mapping[str, float]
    series: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run. digest: the job's. seconds: of one processor core. machine: libraries and processor."""

    job: Job
    digest: str
    measured: Measured
    seconds: float
    machine: str


class Store:
    """The results in a study's folder. Reads and writes files; keeps nothing in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, job: Job) -> Path:
        """Where a job's result lies."""
        return self.folder / RESULTS / f"{job.name}.json"

    def read(self, job: Job) -> Result | None:
        """The result that answers this very job; None where there is none, or one of another recipe.

        Raises StudyError where the file is not one of ours.
        """
        path = self.path(job)
        if not path.exists():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["digest"] != job.digest():
                return None
            found = values["measured"]
            measured = Measured(
                values={name: float(value) for name, value in found["values"].items()},
                series={name: tuple(map(float, entries)) for name, entries in found["series"].items()},
                texts={name: tuple(map(str, words)) for name, words in found["texts"].items()},
            )
            return Result(job, values["digest"], measured, values["seconds"], values["machine"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StudyError(
                f"{path}: got {error!r}, expected a result of the study; remove it to run again"
            ) from error

    def write(self, result: Result) -> None:
        """Write a result's file whole. Raises StorageError."""
        path = self.path(result.job)
        make_folder(path.parent)
        values: dict[str, Any] = {
            "digest": result.digest,
            "job": asdict(result.job),
            "seconds": round(result.seconds, 1),
            "machine": result.machine,
            "measured": {
                "values": {name: _short(value) for name, value in result.measured.values.items()},
                "series": {name: [_short(v) for v in entries] for name, entries in result.measured.series.items()},
                "texts": {name: list(words) for name, words in result.measured.texts.items()},
            },
        }
        write_whole(path, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())

    def find(self, jobs: Iterable[Job]) -> "Results":
        """The results that answer these jobs, as far as they are there. Raises StudyError."""
        jobs = tuple(jobs)
        found = (self.read(job) for job in jobs)
        return Results(tuple(result for result in found if result is not None), len(jobs))


@dataclass(frozen=True, slots=True)
class Results:
    """Results of one section; planned: how many there will be."""

    found: tuple[Result, ...]
    planned: int

    def of(self, variant: str, *, alone: bool = False) -> tuple[Result, ...]:
        """A variant's results, a seed each, of its training or, alone, of its speed."""
        return tuple(r for r in self.found if r.job.variant == variant and r.job.is_alone == alone)

    def values(self, variant: str, name: str, *, alone: bool = False) -> tuple[float, ...]:
        """One named number of a variant, a seed each, where it was measured."""
        results = self.of(variant, alone=alone)
        return tuple(r.measured.values[name] for r in results if name in r.measured.values)

    def series(self, variant: str, name: str) -> tuple[tuple[float, ...], ...]:
        """One named list of numbers of a variant, a seed each."""
        return tuple(r.measured.series[name] for r in self.of(variant) if name in r.measured.series)


def _short(value: float) -> float:
    """Six digits: more say nothing, and files stay small."""
    return float(f"{value:.6g}")
