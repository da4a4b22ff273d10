"""Idle sessions: what 100,000 of them keep resident, beyond their states and the replies kept for repeats.

A repetition starts a server, opens and steps some sessions as a warm-up (they stay open), reads the resident size,
opens the sessions and steps each once, so that all they will ever need is there, and reads it again. The states' bytes
and these sessions' share of `eddy_kept_reply_bytes` are taken off.

The server loads this one small model only, and the warm-up is thousands of sessions: the memory that an allocator
holds free after loading tens of megabytes would take in the sessions, and they would seem to cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.figure import Measurement, Note, figure
from benchmarks.models import write_repository
from benchmarks.plan import Plan
from benchmarks.server import EddyServer
from benchmarks.shape import LSTM_128
from benchmarks.worker import Worker

_ROWS = 1024
_WARM_UP_SESSIONS = 8 * _ROWS
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
    repository = write_repository(repository.parent / "memory", [LSTM_128])
    config = repository / "memory.toml"
    config.write_text(_CONFIG)
    totals, opened, replies = [], [], []
    with Worker("benchmarks.load", str(repository)) as load:
        for _ in range(plan.memory_repetitions):
            with EddyServer(repository, config) as server:
                answer = load.ask(
                    "fill",
                    target=server.target,
                    pid=server.pid,
                    model=LSTM_128.name,
                    warm_up_sessions=_WARM_UP_SESSIONS,
                    sessions=plan.idle_sessions,
                    rows=_ROWS,
                )
                kept = server.metric("eddy_kept_reply_bytes", LSTM_128.name)
                load.ask("release")
            replies.append(kept / (plan.idle_sessions + _WARM_UP_SESSIONS))
            growth = (answer["stepped_bytes"] - answer["before_bytes"]) / plan.idle_sessions
            totals.append(growth - LSTM_128.state_bytes - replies[-1])
            opened.append((answer["opened_bytes"] - answer["before_bytes"]) / plan.idle_sessions)
    note = (
        f"{plan.idle_sessions:,} sessions; {median(opened):.0f} bytes each once open and not yet stepped; taken off: "
        f"{LSTM_128.state_bytes} of state, {median(replies):.0f} of kept reply"
    )
    return Measurement((figure("idle_session_bytes", totals),), (Note("idle_session_bytes", note),))
