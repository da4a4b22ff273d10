"""Actions of the study: what `eddy study` does with its arguments.

Owns: folders that it writes by itself, worker processes, and the message at the end. Errors go up as they are.
"""

import argparse
import signal
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from eddy.training.errors import OptionError
from eddy.training.stop import SIGNALS, Stop
from eddy.training.study.job import QUICK, SMALL, Job
from eddy.training.study.page import check_folder, write_page
from eddy.training.study.plan import SECTIONS, find_sections, plan_jobs
from eddy.training.study.result import Store
from eddy.training.tasks.registry import find_task

FULL_OUTPUT, QUICK_OUTPUT = Path("docs/study"), Path("runs/study-quick")


def study(arguments: argparse.Namespace) -> None:
    """`eddy study`: the runs that are missing, then the page."""
    if arguments.workers < 1:
        raise OptionError(f"--workers: got {arguments.workers}, expected at least 1")
    size = QUICK if arguments.quick else SMALL
    folder = arguments.output or (QUICK_OUTPUT if arguments.quick else FULL_OUTPUT)
    sections = find_sections(arguments.section)
    check_folder(folder, size)
    try:
        if not arguments.page:
            from eddy.training.study.pool import Pool
            from eddy.training.study.trial import perform

            store, jobs = Store(folder), plan_jobs(sections, size)
            _check_data(job for job in jobs if store.read(job) is None)
            stop = Stop()
            # Fresh processes: what torch and ONNX Runtime start in one does not survive a fork.
            executor = ProcessPoolExecutor(arguments.workers, get_context("spawn"), _ignore_signals)
            with stop.on_signals(), executor:
                Pool(store, executor, arguments.workers, perform, stop).run(jobs, Console(stderr=True))
    finally:
        # All sections: a page of some would lose the others.
        print(write_page(folder, SECTIONS, size))


def _check_data(jobs: Iterable[Job]) -> None:
    """Load all data once before the first run: what is missing shows at once, not after an hour."""
    for source in dict.fromkeys(job.recipe().data for job in jobs):
        find_task(source).load(source)


def _ignore_signals() -> None:
    """In a worker: the parent decides what a signal means, and lets runs under way end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
