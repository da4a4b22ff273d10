"""What a record is: the fixed part of its bytes, sessions about to be written, and one that was read.

Owns the format's constants and the values that go in and out (docs/state.md has it byte by byte). Must not know how it
is written or read, stores, the session table or the wire.

Dimension key: B sessions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddy.service.kept import KeptColumns, StoredReply
from eddy.service.record_model import Model

MAGIC = b"EDDYSESS"
VERSION = 1
SESSION_ID_BYTES = 16
# The magic, `version`, `size`, `epoch`, `writer` and `next_position` are here in every version of the format, the
# checksum at the end.
HEAD = np.dtype(
    [
        ("magic", "V8"),
        ("version", "<u2"),
        ("flags", "<u2"),
        ("size", "<u4"),
        ("epoch", "<u4"),
        ("max_in_flight", "<u4"),
        ("writer", "<u8"),
        ("session_id", "V16"),
        ("resume_token", "V16"),
        ("next_position", "<i8"),
        ("idle_timeout_seconds", "<f8"),
        ("expires_at", "<f8"),
        ("written_at", "<f8"),
        ("holder", "<u8"),
        ("model_bytes", "<u4"),
        ("state_bytes", "<u4"),
        ("num_replies", "<u4"),
        ("reserved", "<u4"),
    ]
)
# One kept reply; `num_bytes` 0: forgotten.
REPLY = np.dtype([("position", "<i8"), ("num_steps", "<u4"), ("num_bytes", "<u4")])
CHECKSUM_BYTES = 4
MAX_BYTES = (1 << 32) - 1
# Of `flags`.
HAS_OWN_START = 1
IS_INITIAL = 2


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """B sessions of one model at one moment.

    Attributes:
        session_ids, resume_tokens: uint8 [B, 16]; zeros in a snapshot.
        writer: random, not 0, of the server process; 0 in a snapshot, as are the epochs. A store takes a record that it
            has already from the same writer under the same epoch, so that a write whose answer was lost is repeated.
        epochs: uint32 [B], under which they are written; expected_epochs: uint32 [B], those that the store must have,
            0: it must have none.
        next_positions: int64 [B]; max_in_flight: uint32 [B].
        idle_timeout_seconds, expires_at: float64 [B], the latter in unix seconds; written_at: unix seconds.
        holders: uint64 [B], see `SessionTable.attach`; 0 in a snapshot.
        has_own_start: bool [B], they began with states of their own.
        is_initial: bool [B], they have the model's initial states: none are stored.
        states: one array a state, [B, ...], in the contract's order; what is initial may hold anything.
        replies: kept ones.
    """

    model: Model
    session_ids: np.ndarray
    resume_tokens: np.ndarray
    writer: int
    epochs: np.ndarray
    expected_epochs: np.ndarray
    next_positions: np.ndarray
    max_in_flight: np.ndarray
    idle_timeout_seconds: np.ndarray
    expires_at: np.ndarray
    written_at: float
    holders: np.ndarray
    has_own_start: np.ndarray
    is_initial: np.ndarray
    states: tuple[np.ndarray, ...]
    replies: KeptColumns


@dataclass(frozen=True, slots=True)
class Batch:
    """B records, one behind the other.

    Attributes:
        session_ids: uint8 [B, 16], all different; epochs, expected_epochs: uint32 [B]; writer: see `Checkpoint`.
        expires_at: float64 [B], unix seconds.
        data: uint8 [all bytes]; offsets, sizes: int64 [B], record b is `data[offsets[b]:][:sizes[b]]`.
    """

    session_ids: np.ndarray
    epochs: np.ndarray
    expected_epochs: np.ndarray
    writer: int
    expires_at: np.ndarray
    data: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    def record(self, index: int) -> bytes:
        """The bytes of one record."""
        start = self.offsets.item(index)
        return self.data[start : start + self.sizes.item(index)].tobytes()


@dataclass(frozen=True, slots=True)
class Record:
    """One session, read. See `Checkpoint` for what the fields mean.

    Attributes:
        states: one array a state, shaped as the record's layout says; empty where `is_initial`.
        replies: kept ones, by position.
    """

    model: Model
    session_id: bytes
    resume_token: bytes
    writer: int
    epoch: int
    next_position: int
    max_in_flight: int
    idle_timeout_seconds: float
    expires_at: float
    written_at: float
    holder: int
    has_own_start: bool
    is_initial: bool
    states: tuple[np.ndarray, ...]
    replies: tuple[StoredReply, ...]
