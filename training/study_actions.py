"""Actions of the study: what `eddy study` does with its arguments.

Owns: folders that it writes by itself, worker processes, and the message at the end. Errors go up as they are.
"""

import argparse
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from eddy.training.errors import OptionError
from eddy.training.stop import SIGNALS, Stop
from eddy.training.study.job import QUICK, SMALL
from eddy.training.study.page import check_folder, write_page
from eddy.training.study.plan import SECTIONS, find_sections, plan_jobs
from eddy.training.study.result import Store

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

            stop = Stop()
            # Fresh processes: what torch and ONNX Runtime start in one does not survive a fork.
            executor = ProcessPoolExecutor(arguments.workers, get_context("spawn"), _ignore_signals)
            with stop.on_signals(), executor:
                pool = Pool(Store(folder), executor, arguments.workers, perform, stop)
                pool.run(plan_jobs(sections, size), Console(stderr=True))
    finally:
        # All sections: a page of some would lose the others.
        print(write_page(folder, SECTIONS, size))


def _ignore_signals() -> None:
    """In a worker: the parent decides what a signal means, and lets runs under way end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
