"""What a state store is: records of sessions by id, guarded by epochs.

Owns the interface and its errors. Must not know which stores there are, what is in a record, or when it is written.
A store's methods block; one thread at a time calls them. Stores for which nothing tells processes apart are safe
between several servers by the epochs alone: whoever begins a new epoch writes it before it acts in it.

Dimension key: B records of a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

import numpy as np

from eddy.service.errors import CapacityError, Detail, Reason
from eddy.service.record_format import Batch


class StoreError(CapacityError):
    """The store did not do it, or nobody can tell whether it did: away, slow, full or damaged. The message says which.

    Every call may be repeated: a record that this process has already written under the epoch is written again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(Reason.STORE_UNAVAILABLE, message, Detail("state.store", message, "a store that works"))


class Outcome(IntEnum):
    """What became of a record."""

    WRITTEN = 0
    # The store has the session under an epoch that was not expected, or from another writer who has gone on with it.
    # Nothing is changed.
    FENCED = 1
    # The store was expected to have the session, and has not: it has expired or was deleted, or the store lost its
    # contents. Nothing is changed; to write it all the same, expect epoch 0.
    MISSING = 2


class StateStore(Protocol):
    """Records by session id. Any method raises `StoreError`."""

    def write(self, batch: Batch) -> np.ndarray:
        """Writes each record where the store's epoch is the expected one; `Outcome`s, int8 [B].

        Each record is written as a whole or not at all; a batch may be written in part when the call fails. Where a
        call may be carried out after a later one, a record of the epoch and writer that the store has leaves it as it
        is when that stands at a later position: WRITTEN, too. Where several servers may write, a record of another
        writer is replaced only by one of the same position, which has been read from it: otherwise FENCED.
        """

    def read(self, session_ids: Sequence[bytes]) -> list[bytes | None]:
        """The records of B sessions; None for those that are not there or have expired."""

    def delete(self, session_ids: Sequence[bytes], epochs: np.ndarray, writer: int = 0) -> int:
        """Deletes the records whose epoch is the one given, `epochs` uint32 [B]; how many there were.

        Those that `writer` wrote, 0: nobody, go under whatever epoch: it may not know of the last one.
        """

    def purge(self, now: float) -> int:
        """Deletes what has expired by `now`, unix seconds, where the store does not by itself; how many there were."""

    def generation(self) -> str:
        """Another one than before: the store was restarted since, and may have less than was written; never empty."""

    def count(self) -> int:
        """Sessions in the store; those of all servers, where it is shared."""

    def size_bytes(self) -> int:
        """Bytes that the store takes, on disk or in its server's memory."""

    def close(self) -> None:
        """Lets go of files and connections."""
