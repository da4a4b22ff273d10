"""`python -m tests.fuzz`: a longer campaign. Prints what it threw; the first finding ends it with 1."""

import argparse
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent)]

from campaign import run  # noqa: E402  after the path

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Throws requests at a real server.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(run(Path(name), 60 * arguments.minutes, arguments.seed, lambda line: print(line, flush=True)))
