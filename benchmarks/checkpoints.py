"""The cost of checkpoints: packed throughput with a state store, as a share of what it is without.

Two servers: one keeps sessions in memory, the other in a SQLite file, a checkpoint a second. 4 streams of 2,500
sessions each, all of them active: ten messages of 250 rows take turns. Order of a repetition: without, with, without.
The server that is not under load has nothing to write.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.figure import Measurement, Note, figure
from benchmarks.packed import throughput
from benchmarks.plan import Plan
from benchmarks.server import EddyServer
from benchmarks.shape import LSTM_128
from benchmarks.worker import Worker

_NUM_ROWS = 250
_NUM_TURNS = 10


def measure(repository: Path, names: Sequence[str], plan: Plan) -> Measurement:  # noqa: ARG001  (one figure)
    """`checkpoint_cost`."""
    model = LSTM_128.name
    costs, rates, written = [], [], []
    with (
        tempfile.TemporaryDirectory(prefix="eddy-store-") as folder,
        EddyServer(repository) as plain,
        EddyServer(repository, arguments=("--state-store", f"sqlite:{folder}/sessions")) as durable,
        Worker("benchmarks.load", str(repository)) as load,
    ):

        def run(server: EddyServer) -> float:
            answer = throughput(load, server, model, plan, plan.checkpoint_seconds, rows=_NUM_ROWS, turns=_NUM_TURNS)
            return answer["steps_per_second"]

        run(plain)
        for _ in range(plan.repetitions):
            before, stored = run(plain), durable.total("eddy_stored_sessions_total")
            rates.append(run(durable))
            written.append(durable.total("eddy_stored_sessions_total") - stored)
            costs.append(1 - 2 * rates[-1] / (before + run(plain)))
    text = f"{median(rates):,.0f} steps/s with checkpoints; {median(written):,.0f} sessions written a run"
    return Measurement((figure("checkpoint_cost", costs),), (Note("checkpoint_cost", text),))
