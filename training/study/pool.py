"""The pool: all jobs that have no result yet, some at a time, with progress, until they are done or a stop is due.

Owns: the order of jobs and when a result is written: as soon as it is there. Decides nothing about what a job is.
Order: jobs that may run side by side first, then those that must be alone, one by one.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from eddy.training.errors import Stopped, StudyError
from eddy.training.stop import Stop
from eddy.training.study.job import Job
from eddy.training.study.result import Result, Store

# How often a wish to stop is looked for while runs are under way.
POLL_SECONDS = 0.5

Perform = Callable[[Job], Result]


class Pool:
    """Runs jobs in an executor that the caller owns, at most `workers` at a time."""

    def __init__(self, store: Store, executor: Executor, workers: int, perform: Perform, stop: Stop) -> None:
        self._store, self._executor, self._workers = store, executor, workers
        self._perform, self._stop = perform, stop
        # Changes in `run` and what it calls.
        self._under_way: dict[Future[Result], Job] = {}

    def run(self, jobs: Iterable[Job], console: Console) -> int:
        """Run those without a result and write theirs; returns how many were run.

        Raises Stopped once those under way have ended, when a stop is due; StudyError where a run fails: what other
        runs found until then is kept.
        """
        jobs = tuple(jobs)
        assert len({job.name for job in jobs}) == len(jobs), "every job has a file of its own"
        missing = [job for job in jobs if self._store.read(job) is None]
        queue = sorted(missing, key=lambda job: job.is_alone)  # Stable: else in the plan's order.
        with _bar(console) as bar:
            task = bar.add_task("study", total=len(jobs), completed=len(jobs) - len(missing))
            while queue or self._under_way:
                while queue and self._may_begin(queue[0]):
                    job = queue.pop(0)
                    self._under_way[self._executor.submit(self._perform, job)] = job
                for result in self._finished():
                    bar.advance(task)
                    bar.console.print(f"{result.job.name}: {result.seconds:.0f} s", highlight=False)
                if self._stop.is_due and not self._under_way:
                    break
        if queue:
            raise Stopped(
                f"stopped {self._stop.reason}, {len(missing) - len(queue)} of {len(missing)} runs done; the same "
                "command goes on",
                self._stop.exit_code,
            )
        return len(missing)

    def _may_begin(self, job: Job) -> bool:
        """Whether there is room for it now."""
        if self._stop.is_due or len(self._under_way) >= self._workers:
            return False
        is_crowded = job.is_alone or any(other.is_alone for other in self._under_way.values())
        return not (is_crowded and self._under_way)

    def _finished(self) -> list[Result]:
        """Wait a moment for runs to end, and keep what they found."""
        done, _ = wait(self._under_way, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        results = []
        for future in done:
            job = self._under_way.pop(future)
            error = future.exception()
            if error is not None:
                raise StudyError(f"{job.name}: the run failed: {type(error).__name__}: {error}") from error
            results.append(future.result())
            self._store.write(results[-1])
            self._stop.count_step()
        return results


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
