"""Checkpoints and batches to write, of a model that is not there.

Dimension key: B sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from eddy.service.kept import KeptColumns
from eddy.service.ports import Port, State
from eddy.service.record import Batch, Checkpoint, encode
from eddy.service.record_model import Model, layout_of, ports_of
from eddy.service.replies import ReplyStore

INPUTS = (Port("x", np.dtype("<f4"), 1, (3,), 12),)
OUTPUTS = (Port("y", np.dtype("<i8"), 5, (2,), 16), Port("last", np.dtype("u1"), 6, (5,), 5, is_per_row=True))
STATES = (
    State("h", "h_next", np.dtype("<f4"), 1, (2, 4), np.zeros((2, 4), np.float32), 32),
    State("count", "count_next", np.dtype("<i8"), 5, (), np.zeros((), np.int64), 8),
)
MODEL = Model("lstm", "3", "ab" * 32, "1.32.0", "x86_64 avx2", layout_of(STATES), ports_of((*INPUTS, *OUTPUTS)))
# Far enough, for stores that have a real clock.
NEVER = 4e9
WRITER = 77


def checkpoint(num_sessions: int, seed: int = 0, replies: KeptColumns | None = None) -> Checkpoint:
    """B sessions with values drawn from `seed`; every third is initial."""
    draw = np.random.default_rng(seed)
    return Checkpoint(
        model=MODEL,
        session_ids=draw.integers(0, 256, (num_sessions, 16)).astype(np.uint8),
        resume_tokens=draw.integers(0, 256, (num_sessions, 16)).astype(np.uint8),
        writer=WRITER,
        epochs=draw.integers(1, 1 << 32, num_sessions).astype(np.uint32),
        expected_epochs=np.zeros(num_sessions, np.uint32),
        next_positions=draw.integers(1 << 20, 1 << 62, num_sessions),
        max_in_flight=draw.integers(1, 1 << 20, num_sessions).astype(np.uint32),
        idle_timeout_seconds=draw.random(num_sessions) * 1e5,
        expires_at=NEVER + draw.random(num_sessions),
        written_at=1.5e9,
        holders=draw.integers(0, 1 << 62, num_sessions).astype(np.uint64),
        has_own_start=draw.random(num_sessions) < 0.5,
        is_initial=np.arange(num_sessions) % 3 == 2,
        states=(
            draw.standard_normal((num_sessions, 2, 4)).astype(np.float32),
            draw.integers(-(1 << 62), 1 << 62, num_sessions),
        ),
        replies=KeptColumns.none(num_sessions) if replies is None else replies,
    )


def batch(
    session_ids: Sequence[bytes],
    epochs: Sequence[int],
    expected: Sequence[int],
    *,
    seed: int = 0,
    writer: int = WRITER,
    expires_at: float = NEVER,
    position: int = 7,
) -> Batch:
    """Records of sessions with these ids, of various sizes, their contents drawn from `seed`, all at `position`."""
    rings = ReplyStore(INPUTS, OUTPUTS, 1 << 20)
    sizes = np.full(len(session_ids), 2)
    starts = rings.open_rings(len(session_ids), 2)
    for index, start in enumerate(starts.tolist()):
        steps = 1 + (seed + index) % 4
        if steps > 1:
            parts = tuple(bytes([seed % 256]) * port.row_bytes(steps) for port in (*INPUTS, *OUTPUTS))
            rings.keep_one(start, seed, parts, steps)
    drawn = checkpoint(len(session_ids), seed, rings.export_rings(starts, sizes))
    return encode(
        replace(
            drawn,
            session_ids=np.frombuffer(b"".join(session_ids), np.uint8).reshape(-1, 16),
            epochs=np.array(epochs, np.uint32),
            expected_epochs=np.array(expected, np.uint32),
            writer=writer,
            next_positions=np.full(len(session_ids), position),
            expires_at=np.full(len(session_ids), expires_at),
        )
    )
