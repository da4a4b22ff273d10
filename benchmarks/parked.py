"""Parked sessions: throughput of a few active ones beside a million that have no slot, as a share of that without them.

Two servers with the same arena of 65,536 slots. On one, a million sessions are opened and step once, so that nearly all
have their states in the host's memory. Then 4 streams of 250 sessions each step on both, in turn: without, with,
without. Told besides: the resident bytes of a parked session, and what it takes to come back, by messages of 1,000
sessions and alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.figure import Measurement, Note, figure
from benchmarks.models import write_repository
from benchmarks.packed import throughput
from benchmarks.plan import Plan
from benchmarks.server import EddyServer
from benchmarks.shape import LSTM_128
from benchmarks.worker import Worker

_NUM_ROWS = 250
_ROWS = 1000
# Room for the parked sessions and the active ones; none of them ends meanwhile.
_CONFIG = """\
[session]
max_sessions = 1100000
idle_timeout_seconds = 86400

[model]
max_slots = 65536
max_rows = 1024
"""


def measure(repository: Path, names: Sequence[str], plan: Plan) -> Measurement:  # noqa: ARG001  (one figure)
    """`parked_throughput_ratio`."""
    model = LSTM_128.name
    repository = write_repository(repository.parent / "parked", [LSTM_128])
    config = repository / "parked.toml"
    config.write_text(_CONFIG)
    ratios, rates = [], []
    with (
        EddyServer(repository, config) as plain,
        EddyServer(repository, config) as crowded,
        Worker("benchmarks.load", str(repository)) as load,
    ):

        def run(server: EddyServer) -> float:
            return throughput(load, server, model, plan, plan.packed_seconds, rows=_NUM_ROWS)["steps_per_second"]

        filled = load.ask(
            "fill",
            target=crowded.target,
            pid=crowded.pid,
            model=model,
            warm_up_sessions=_ROWS,
            sessions=plan.parked_sessions,
            rows=_ROWS,
        )
        kept = crowded.metric("eddy_kept_reply_bytes", model)
        text = _memory(filled, kept, plan.parked_sessions)
        text += "; " + _page_ins(crowded, load, 0, _ROWS, 20) + ", " + _page_ins(crowded, load, 20 * _ROWS, 1, 200)
        run(plain)
        run(crowded)
        for _ in range(plan.repetitions):
            before = run(plain)
            rates.append(run(crowded))
            ratios.append(2 * rates[-1] / (before + run(plain)))
        load.ask("release")
    text = f"{median(rates):,.0f} steps/s beside {plan.parked_sessions:,} sessions; {text}"
    return Measurement((figure("parked_throughput_ratio", ratios),), (Note("parked_throughput_ratio", text),))


def _memory(filled: dict[str, float], kept_bytes: float, num_sessions: int) -> str:
    total = filled["stepped_bytes"] - filled["before_bytes"]
    return (
        f"{filled['stepped_bytes'] / 2**20:,.0f} MiB resident, {total / num_sessions:,.0f} bytes a session, of which "
        f"{LSTM_128.state_bytes} of state and {kept_bytes / num_sessions:.0f} of kept reply"
    )


def _page_ins(server: EddyServer, load: Worker, begin: int, rows: int, num_messages: int) -> str:
    """Sessions from `begin` on step again, parked and then not, `rows` a message."""
    before = _pages(server)
    durations = load.ask("revisit", begin=begin, rows=rows, messages=num_messages)
    seconds, count = (now - then for now, then in zip(_pages(server), before, strict=True))
    return (
        f"{count:,.0f} page-ins by {rows}: {seconds / max(count, 1) * 1e6:.1f} us of copying each (out and in), "
        f"a message answered in {durations['parked_seconds'] * 1e3:.2f} ms against "
        f"{durations['resident_seconds'] * 1e3:.2f} ms in a slot"
    )


def _pages(server: EddyServer) -> tuple[float, float]:
    names = ("eddy_page_move_seconds_sum", "eddy_page_ins_total")
    seconds, count = (server.metric(name, LSTM_128.name) for name in names)
    return seconds, count
