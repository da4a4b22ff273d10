"""`python -m tests.power`: the SQLite store after losses of power. Ends with 1 where a store is not as it must be."""

import argparse
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE)]

from power_loss import Run, folder_in_memory, run  # noqa: E402  after the path
from system_calls import missing  # noqa: E402


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.power", description="Takes power from a store's disk.")
    parser.add_argument("--histories", type=int, default=300)
    parser.add_argument("--points", type=int, default=40, help="losses of power of each history")
    parser.add_argument("--seed", type=int, default=1, help="of the first history; the next one has the next")
    options = parser.parse_args()
    if why := missing():
        print(why, file=sys.stderr)
        return 1
    wanted = Run(options.seed, options.histories, options.points)
    with tempfile.TemporaryDirectory(dir=folder_in_memory()) as name:
        report = run(wanted, Path(name), lambda line: print(line, flush=True))
    print(report, flush=True)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(_main())
