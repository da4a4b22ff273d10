"""Mutations: what becomes of a valid message before it is thrown at the server.

Owns the damage: to bytes, to fields, to numbers. Must not know the server, connections or what an answer should be. All
randomness comes from the generator that is handed in, so that a seed repeats a run's messages.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from google.protobuf.message import Message

_INTEGERS = (0, 1, 2, 3, 127, 128, 255, 256, 1 << 14, 1 << 21, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 62, 1 << 63)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-320, 5e-324, 1e308, float("inf"), float("-inf"), float("nan"), 0.5)
_TEXTS = (
    "",
    "x",
    "history",
    "text-rnn",
    "\0",
    "\n",
    "é",
    "😀" * 300,
    "a" * 5000,
    "../..",
    "%s%n",
    "1",
    "-1",
    "9" * 4500,
)


def extreme(random: Random, bits: int, *, is_signed: bool = False) -> int:
    """An integer of so many bits, mostly near a power of two."""
    value = random.choice((*_INTEGERS, (1 << bits) - 1, random.getrandbits(bits)))
    value = (value + random.choice((0, 0, 0, 1, -1))) % (1 << bits)
    return value - (1 << bits) if is_signed and value >= 1 << (bits - 1) else value


def varint(value: int, length: int = 0) -> bytes:
    """Protobuf's base-128 encoding, padded to `length` bytes where that is longer."""
    encoded = bytearray()
    while True:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
        if not value and len(encoded) >= length:
            break
    encoded[-1] &= 0x7F
    return bytes(encoded)


class Mutator:
    """Damages messages.

    Args:
        random: where all choices come from.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        # Of messages thrown before: material for splices.
        self._pool: list[bytes] = [b"\x08\x01"]

    def damage(self, message: Message) -> bytes:
        """A message as it is, with other values in its fields, with other bytes, or both."""
        random = self._random
        changed = type(message)()
        changed.CopyFrom(message)
        kind = random.random()
        if kind < 0.5:
            for _ in range(random.choice((1, 1, 1, 2, 4))):
                self._change_field(changed)
        data = changed.SerializeToString()
        if kind > 0.4:
            for _ in range(random.choice((1, 1, 1, 2, 5))):
                data = self.bytes(data)
        self._remember(data)
        return data

    def retag(self, data: bytes) -> bytes:
        """The same request behind another tag: of any encoded length, padded ones and those over ten bytes included."""
        random = self._random
        bits = random.choice((0, 1, 7, 8, 14, 15, 21, 28, 32, 35, 56, 57, 63, 64))
        return b"\x08" + varint(random.getrandbits(bits) if bits else 0, random.choice((0, 0, 0, 2, 5, 10, 11))) + data

    def bytes(self, data: bytes) -> bytes:
        """Bytes flipped, cut, doubled, inserted, or mixed with those of another message."""
        random = self._random
        actions: tuple[Callable[[bytearray], None], ...] = (
            self._flip,
            self._flip,
            self._set,
            self._cut,
            self._truncate,
            self._double,
            self._insert,
            self._splice,
            self._append_field,
        )
        changed = bytearray(data)
        random.choice(actions)(changed)
        return bytes(changed)

    # Bytes

    def _place(self, data: bytearray) -> int:
        return self._random.randrange(len(data) + 1)

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)

    def _set(self, data: bytearray) -> None:
        if data:
            data[self._random.randrange(len(data))] = self._random.choice((0, 1, 0x7F, 0x80, 0xFF))

    def _cut(self, data: bytearray) -> None:
        begin = self._place(data)
        del data[begin : begin + self._random.choice((1, 1, 2, 4, 8, 9, 64))]

    def _truncate(self, data: bytearray) -> None:
        del data[self._place(data) :]

    def _double(self, data: bytearray) -> None:
        begin = self._place(data)
        part = data[begin : begin + self._random.choice((1, 2, 8, 16, 64, 4096))]
        data[begin:begin] = part * self._random.choice((1, 1, 2, 9))

    def _insert(self, data: bytearray) -> None:
        place = self._place(data)
        data[place:place] = self._random.choice(
            (
                self._random.randbytes(self._random.choice((1, 2, 8, 40))),
                varint(extreme(self._random, 64)),
                b"\x22\0" * 9,
            )
        )

    def _splice(self, data: bytearray) -> None:
        other = self._random.choice(self._pool)
        begin = self._place(data)
        data[begin:] = other[self._random.randrange(len(other) + 1) :]

    def _append_field(self, data: bytearray) -> None:
        """A whole message's fields again behind these: the later one wins, or is merged."""
        data += self._random.choice(self._pool)

    def _remember(self, data: bytes) -> None:
        if len(data) > 4096:
            return
        if len(self._pool) < 200:
            self._pool.append(data)
        else:
            self._pool[self._random.randrange(len(self._pool))] = data

    # Fields

    def _change_field(self, message: Message) -> None:
        """One field of the message, or of one within it, gets another value."""
        random = self._random
        fields = list(message.DESCRIPTOR.fields)
        if not fields:
            return
        field = random.choice(fields)
        present = [each for each, _ in message.ListFields()]
        if present and random.random() < 0.8:
            field = random.choice(present)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._change_map(getattr(message, field.name))
        elif field.is_repeated:
            self._change_repeated(message, field)
        elif field.message_type is not None:
            if random.random() < 0.1:
                message.ClearField(field.name)
            else:
                inner: Message = getattr(message, field.name)
                inner.SetInParent()
                self._change_field(inner)
        else:
            setattr(message, field.name, self._value(field, getattr(message, field.name)))

    def _change_map(self, values: Any) -> None:
        """An entry of a map from text to messages goes, changes, or is new."""
        random = self._random
        keys = sorted(values)
        if keys and random.random() < 0.2:
            del values[random.choice(keys)]
        else:
            self._change_field(values[random.choice((*keys, *keys, *keys, *_TEXTS))])

    def _change_repeated(self, message: Message, field: Any) -> None:
        random = self._random
        values = getattr(message, field.name)
        kind = random.random()
        if kind < 0.2 and len(values):
            del values[random.randrange(len(values)) :]
        elif field.message_type is not None:
            if kind < 0.4 or not len(values):
                for _ in range(random.choice((1, 1, 2, 300))):
                    added = values.add()
                    if len(values) > 1:
                        added.CopyFrom(values[0])
            else:
                self._change_field(random.choice(values))
        elif kind < 0.6 and len(values):
            values[random.randrange(len(values))] = self._value(field, values[0])
        else:
            values.extend(self._value(field, None) for _ in range(random.choice((1, 1, 3, 3000))))

    def _value(self, field: Any, old: Any) -> Any:
        random = self._random
        kind = field.cpp_type
        if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
            return random.choice(_FLOATS)
        if kind == field.CPPTYPE_BOOL:
            return random.random() < 0.5
        if kind == field.CPPTYPE_ENUM:
            return random.choice((0, 1, 2, 3, 99, -1, (1 << 31) - 1))
        if kind == field.CPPTYPE_STRING:
            return self._content(old) if field.type == field.TYPE_BYTES else random.choice(_TEXTS)
        bits = 32 if kind in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
        near = isinstance(old, int) and random.random() < 0.4
        is_signed = kind in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)
        if not near:
            return extreme(random, bits, is_signed=is_signed)
        low = -(1 << (bits - 1)) if is_signed else 0
        return min(max(low, int(old) + random.choice((-1, 1, 2))), low + (1 << bits) - 1)

    def _content(self, old: Any) -> bytes:
        """Other raw bytes: damaged, of another length, or of numbers that are none."""
        random = self._random
        data = bytes(old or b"")
        kind = random.random()
        if kind < 0.4:
            return self.bytes(data)
        if kind < 0.6:
            return data * random.choice((2, 3, 100)) if len(data) < 2000 else data[:-1]
        if kind < 0.8:
            return random.choice((b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\xff" * 4, b"\xff" * 8)) * max(1, len(data) // 4)
        return random.randbytes(random.choice((0, 1, 4, 8, 16, 100, len(data))))
