"""Idle sessions: what 100,000 of them keep resident, beyond their states and the replies kept for repeats.

A repetition starts a server, steps some sessions as a warm-up (they stay open), reads the resident size, opens the
sessions and steps each once, so that all they will ever need is there, and reads it again. The states' bytes and the
growth of `eddy_kept_reply_bytes` are taken off.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.figure import Measurement, Note, figure
from benchmarks.plan import Plan
from benchmarks.server import EddyServer
from benchmarks.shape import LSTM_128
from benchmarks.worker import Worker

_ROWS = 1024
# Room for the sessions and the warm-up; slots are resident once used, so that more of them would not count.
_CONFIG = """\
[model]
arena_bytes = 268435456
max_slots = 131072
max_rows = 1024
"""


def measure(repository: Path, names: Sequence[str], plan: Plan) -> Measurement:
    """`idle_session_bytes`, the only figure here."""
    del names
    config = repository.parent / "memory.toml"
    config.write_text(_CONFIG)
    totals, opened, replies = [], [], []
    with Worker("benchmarks.load") as load:
        for _ in range(plan.memory_repetitions):
            with EddyServer(repository, config) as server:
                answer = load.ask(
                    "fill",
                    target=server.target,
                    pid=server.pid,
                    model=LSTM_128.name,
                    sessions=plan.idle_sessions,
                    rows=_ROWS,
                )
                kept = server.metric("eddy_kept_reply_bytes", LSTM_128.name)
                load.ask("release")
            share = plan.idle_sessions / (plan.idle_sessions + answer["warm_sessions"])
            replies.append(kept * share / plan.idle_sessions)
            growth = (answer["stepped_bytes"] - answer["before_bytes"]) / plan.idle_sessions
            totals.append(growth - LSTM_128.state_bytes - replies[-1])
            opened.append((answer["opened_bytes"] - answer["before_bytes"]) / plan.idle_sessions)
    note = (
        f"{plan.idle_sessions:,} sessions; {median(opened):.0f} bytes each once open and not yet stepped; taken off: "
        f"{LSTM_128.state_bytes} of state, {median(replies):.0f} of kept reply"
    )
    return Measurement((figure("idle_session_bytes", totals),), (Note("idle_session_bytes", note),))
