"""`python -m tests.chaos`: the crash test. Ends with 1 where anything was lost, doubled or different."""

import argparse
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent)]

from chaos import Run, run  # noqa: E402  after the path
from redis_server import find_redis  # noqa: E402


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Kills servers under load.")
    parser.add_argument("--store", choices=("memory", "sqlite", "redis", "both"), default="both")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="keep logs and journals in this folder")
    options = parser.parse_args()
    stores = ("sqlite", "redis") if options.store == "both" else (options.store,)
    is_good = True
    for store in stores:
        if store == "redis" and find_redis() is None:
            print("redis: neither redis-server nor valkey-server is installed", file=sys.stderr)
            is_good = False
            continue
        kills = 0 if store == "memory" else options.kills
        wanted = Run(store, options.seed, kills, options.steps, options.clients)
        with tempfile.TemporaryDirectory() as name:
            folder = (options.keep or Path(name)) / store
            report = run(wanted, folder, lambda line: print(line, flush=True))
        print(report, flush=True)
        is_good = is_good and report.is_good
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(_main())
