"""Operations on a state store, and which sessions it must have after them.

Owns what a record is made of and the store's contents as a model of them. Must not know processes, disks or faults.
Times are whole seconds of a clock that moves with each operation.
"""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

import numpy as np

from eddy.service.record_format import CHECKSUM_BYTES, Batch
from eddy.service.store import StateStore

NUM_SESSIONS = 25
SESSION_IDS = tuple(bytes([number]) * 16 for number in range(NUM_SESSIONS))
WRITER = 7
_HEAD = struct.Struct("<IIQ")


@dataclass(frozen=True, slots=True)
class Version:
    """What a session's record says, from which all of its bytes follow.

    Attributes:
        body_bytes: of the record, beside its head and its checksum.
        expires_at: seconds.
    """

    epoch: int
    body_bytes: int
    expires_at: int

    def record(self) -> bytes:
        """The record."""
        head = _HEAD.pack(self.epoch, self.body_bytes, self.expires_at)
        body = head + random.Random(self.epoch).randbytes(self.body_bytes)
        return body + zlib.crc32(body).to_bytes(CHECKSUM_BYTES, "little")


# The sessions of a store, by their numbers.
State = dict[int, Version]


def living(state: State, now: int) -> State:
    """Those that have not expired."""
    return {number: version for number, version in state.items() if version.expires_at > now}


class Kind(StrEnum):
    """What is done to a store."""

    OPEN = "open"  # and all of it read
    WRITE = "write"
    DELETE = "delete"
    PURGE = "purge"


@dataclass(frozen=True, slots=True)
class Operation:
    """One call.

    Attributes:
        now: the time, as the store is told.
        versions: what is written; of `OPEN`, what was found.
        gone: numbers of the sessions that are deleted.
    """

    kind: Kind
    now: int
    versions: State
    gone: tuple[int, ...] = ()

    def after(self, state: State) -> State:
        """The sessions of a store that had those of `state`."""
        if self.kind is Kind.OPEN:
            return self.versions
        return {number: each for number, each in state.items() if number not in self.gone} | self.versions

    def encode(self) -> bytes:
        """As a line of JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, text: bytes) -> Operation:
        """What `encode` gave."""
        told = json.loads(text)
        versions = {int(number): Version(**version) for number, version in told["versions"].items()}
        return cls(Kind(told["kind"]), told["now"], versions, tuple(told["gone"]))


class Foreign(Exception):
    """A store gives a record that was never written."""


def read(store: StateStore) -> State:
    """All that a store gives.

    Raises:
        Foreign: by any bit.
    """
    state = {}
    for number, record in enumerate(store.read(SESSION_IDS)):
        if record is not None:
            version = Version(*_HEAD.unpack_from(record))
            if version.body_bytes > len(record) or version.record() != record:
                raise Foreign(f"session {number} has a record that was never written: {record[:16].hex()}")
            state[number] = version
    return state


def epochs(versions: Iterable[Version]) -> np.ndarray:
    """Their epochs, uint32 [B]."""
    return np.array([version.epoch for version in versions], np.uint32)


def batch(versions: State, before: State) -> Batch:
    """The batch that writes `versions` over what a store has, the sessions of `before`."""
    records = [version.record() for version in versions.values()]
    sizes = np.array([len(record) for record in records])
    return Batch(
        session_ids=np.frombuffer(b"".join(SESSION_IDS[number] for number in versions), np.uint8).reshape(-1, 16),
        epochs=epochs(versions.values()),
        expected_epochs=np.array([before[number].epoch if number in before else 0 for number in versions], np.uint32),
        writer=WRITER,
        expires_at=np.array([float(version.expires_at) for version in versions.values()]),
        data=np.frombuffer(b"".join(records), np.uint8),
        offsets=np.cumsum(sizes) - sizes,
        sizes=sizes,
    )
