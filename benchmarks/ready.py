"""Start: from `eddy serve` to a good answer on /readyz with the shipped models, and where the time goes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import grpc

from benchmarks.figure import Measurement, Note, figure
from benchmarks.plan import Plan
from benchmarks.server import EddyServer
from benchmarks.worker import ROOT
from eddy.v1 import models_pb2, models_pb2_grpc

_IMPORTS = "import eddy.cli, eddy.service.main, uvloop"


def measure(repository: Path, names: Sequence[str], plan: Plan) -> Measurement:
    """`ready_seconds`, the only figure here; of the shipped models, not of those in `repository`."""
    del repository, names
    seconds, python, imports = [], [], []
    loads: dict[str, list[float]] = {}
    for _ in range(plan.ready_repetitions):
        python.append(_run("pass"))
        imports.append(_run(_IMPORTS))
        with EddyServer(ROOT / "models") as server:
            seconds.append(server.ready_seconds)
            for status in _models(server.target):
                loads.setdefault(f"{status.name}/{status.version}", []).append(status.load_seconds)
    each = {name: median(values) for name, values in loads.items()}
    rest = median(seconds) - median(imports) - sum(each.values())
    parts = [
        f"Python {median(python):.2f} s",
        f"imports {median(imports) - median(python):.2f} s",
        *(f"{name} {value:.2f} s" for name, value in each.items()),
        f"the rest {rest:.2f} s",
    ]
    return Measurement((figure("ready_seconds", seconds),), (Note("ready_seconds", ", ".join(parts)),))


def _run(code: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)  # noqa: S603  (our own interpreter)
    return time.perf_counter() - begin


def _models(target: str) -> list[models_pb2.ModelStatus]:
    with grpc.insecure_channel(target) as channel:
        stub = models_pb2_grpc.ModelServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        return list(stub.ListModels(models_pb2.ListModelsRequest(), timeout=10.0).models)
