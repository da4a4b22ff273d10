"""The part of a record that says which model its session is of, and where that ran.

Owns its bytes, and when a session of one model can go on with another. Must not know sessions, stores or the wire.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NoReturn

import numpy as np

from eddy.service.contract import Contract, dtype_of
from eddy.service.errors import ModelError, Reason, invalid
from eddy.service.ports import Port, State

_PORTS_BYTES = 16
_TEXTS = ("name", "version", "digest", "runtime", "instruction_set")


class Damaged(Exception):
    """Bytes that are no part of a record; the message says why."""


@dataclass(frozen=True, slots=True)
class Model:
    """Which model sessions are of, and where they ran.

    Attributes:
        digest: the step graph's SHA-256, hexadecimal.
        runtime: ONNX Runtime's version; instruction_set: the CPU's. Bits hold only there.
        layout: of the states, see `layout_of`.
        ports: a digest of the inputs' and outputs' names, dtypes and shapes: whose replies can be kept on.
    """

    name: str
    version: str
    digest: str
    runtime: str
    instruction_set: str
    layout: bytes
    ports: bytes

    def pack(self) -> bytes:
        """As the record has it."""
        texts = [getattr(self, name).encode() for name in _TEXTS]
        head = b"".join(struct.pack(f"<H{len(text)}s", len(text), text) for text in texts)
        return head + self.ports + self.layout

    @property
    def states(self) -> tuple[StateLayout, ...]:
        """What the layout says."""
        return _read_layout(Reader(self.layout))


@dataclass(frozen=True, slots=True)
class StateLayout:
    """One state tensor of a session, `shape`; it is `num_bytes` long."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.name} {self.dtype.name} {list(self.shape)}"


class Reader:
    """Takes values off the front of bytes, and never more than there are."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        # How many bytes are taken; changed by `take`.
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            Damaged: so many are not left.
        """
        piece = self._data[self._at : self._at + count]
        if len(piece) != count:
            raise Damaged(f"it ends within its model part, {count - len(piece)} bytes short")
        self._at += count
        return piece

    def unpack(self, form: str) -> tuple[int, ...]:
        """The next values by a form of `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def text(self, num_bytes: int) -> str:
        """The next bytes as text."""
        try:
            return self.take(num_bytes).decode()
        except UnicodeDecodeError as error:
            raise Damaged("a name in it is not UTF-8") from error

    @property
    def rest(self) -> bytes:
        """What is not taken."""
        return self._data[self._at :]


def model_of(name: str, version: str, digest: str, contract: Contract, runtime: str, instruction_set: str) -> Model:
    """The model of a contract, as records name it."""
    ports = (*contract.feeds, *contract.results)
    return Model(name, version, digest, runtime, instruction_set, layout_of(contract.states), ports_of(ports))


def layout_of(states: Sequence[State]) -> bytes:
    """States as a record names them: how many, and for each its dtype's number, rank, name and shape (int64)."""
    parts = [struct.pack("<H", len(states))]
    for state in states:
        name = state.name.encode()
        parts.append(struct.pack(f"<BBH{len(name)}s", state.wire_dtype, len(state.shape), len(name), name))
        parts.append(struct.pack(f"<{len(state.shape)}q", *state.shape))
    return b"".join(parts)


def ports_of(ports: Sequence[Port]) -> bytes:
    """A digest of the names, dtypes and shapes of what a tick takes and gives, 16 bytes."""
    told = [(port.name, port.wire_dtype, port.shape, port.extra_steps, port.is_per_row) for port in ports]
    return hashlib.sha256(repr(told).encode()).digest()[:_PORTS_BYTES]


def read_model(data: bytes) -> Model:
    """The model part of a record.

    Raises:
        Damaged: it is none.
    """
    reader = Reader(data)
    texts = [reader.text(*reader.unpack("<H")) for _ in _TEXTS]
    ports, layout = reader.take(_PORTS_BYTES), reader.rest
    _read_layout(Reader(layout))
    name, version, digest, runtime, instruction_set = texts
    return Model(name, version, digest, runtime, instruction_set, layout, ports)


def _read_layout(reader: Reader) -> tuple[StateLayout, ...]:
    (count,) = reader.unpack("<H")
    states = []
    for _ in range(count):
        number, rank, name_bytes = reader.unpack("<BBH")
        name, shape = reader.text(name_bytes), reader.unpack(f"<{rank}q")
        try:
            dtype = dtype_of(number, name)
        except ModelError as error:
            raise Damaged(error.message) from error
        if any(size < 0 for size in shape):
            raise Damaged(f"the shape of the state {name!r} is {list(shape)}")
        states.append(StateLayout(name, dtype, shape, dtype.itemsize * prod(shape)))
    if reader.rest:
        raise Damaged(f"its model part has {len(reader.rest)} bytes too many")
    return tuple(states)


def check_fits(theirs: Model, mine: Model, *, is_adopted: bool = False, field: str = "snapshot") -> None:
    """That a session of the model `theirs` can go on with `mine`.

    Args:
        is_adopted: `mine` takes over sessions of that version: the files may differ, the states not.
        field: for the error.

    Raises:
        ClientError: SNAPSHOT_MISMATCH, with what differs.
    """
    if theirs.name != mine.name:
        _mismatch(field, f"a session of the model {theirs.name!r}", f"one of {mine.name!r}")
    if theirs.digest != mine.digest and not is_adopted:
        _mismatch(
            field,
            f"a session of {theirs.name!r} version {theirs.version}, whose file has the digest {theirs.digest}",
            f"version {mine.version}, digest {mine.digest}",
        )
    if theirs.layout != mine.layout:
        _mismatch(field, f"the states {_told(theirs)}", f"the states {_told(mine)}")


def _told(model: Model) -> str:
    return ", ".join(map(str, model.states)) or "none"


def _mismatch(field: str, received: str, expected: str) -> NoReturn:
    raise invalid(Reason.SNAPSHOT_MISMATCH, field, received, expected)
