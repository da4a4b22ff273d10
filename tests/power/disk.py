"""A disk under a page cache: what was written, what of it was synchronised, and what is left when power is lost.

Owns what the kernel and a disk are free to do. Must not know who writes, or what. After a loss of power the disk has
all that was synchronised. Of what was not it has anything: of each page, or sector, what it held after any of the
writes to it; of each file its length, with zeros where data is missing; and files as they were created and unlinked
after the folder was last synchronised, or not yet.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from system_calls import Call, Event

_SECTOR_BYTES, _PAGE_BYTES = 512, 4096
# How many of the pages that were not synchronised are on the disk, nearly none to nearly all.
_SHARES = (0.2, 0.5, 0.8, 0.97)
_NOTHING_SHARE, _ALL_SHARE = 0.1, 0.15
# Of files that have grown and have their new length before their data.
_LENGTH_SHARE = 0.3


@dataclass(slots=True)
class _File:
    """One file: what is on the disk for certain, and the calls since then."""

    synced: bytearray = field(default_factory=bytearray)
    pending: list[Event] = field(default_factory=list)

    def sync(self) -> None:
        for event in self.pending:
            _carry_out(self.synced, event)
        self.pending.clear()

    def cached(self) -> bytes:
        """As processes see it."""
        data = bytearray(self.synced)
        for event in self.pending:
            _carry_out(data, event)
        return bytes(data)

    def survivor(self, dice: random.Random) -> bytes:
        """As it may be after a loss of power."""
        choice = dice.random()
        if choice < _NOTHING_SHARE:
            return bytes(self.synced)
        if choice < _NOTHING_SHARE + _ALL_SHARE:
            return self.cached()
        unit_bytes, share = dice.choice((_SECTOR_BYTES, _PAGE_BYTES, _PAGE_BYTES)), dice.choice(_SHARES)
        pieces = [piece for event in self.pending for piece in _pieces(event, unit_bytes)]
        counts = Counter(_unit(piece, unit_bytes) for piece in pieces)
        left = {unit: count if dice.random() < share else dice.randint(0, count) for unit, count in counts.items()}
        data = bytearray(self.synced)
        for piece in pieces:
            unit = _unit(piece, unit_bytes)
            if left[unit]:
                left[unit] -= 1
                _carry_out(data, piece)
        if dice.random() < _LENGTH_SHARE:
            data.extend(bytes(max(0, len(self.cached()) - len(data))))
        return bytes(data)


@dataclass(slots=True)
class Disk:
    """The files of one folder."""

    # Both are changed by `carry_out` alone: files as processes see them, and what each name had since the folder was
    # last synchronised, the oldest first; None: it was not there.
    _files: dict[str, _File] = field(default_factory=dict)
    _earlier: dict[str, list[_File | None]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def holding(cls, files: dict[str, bytes]) -> Disk:
        """A disk that has these files for certain."""
        return cls({name: _File(bytearray(data)) for name, data in files.items()})

    def carry_out(self, event: Event) -> None:
        """One call of a process."""
        if event.call is Call.CREATE:
            self._earlier[event.name].append(None)
            self._files[event.name] = _File()
        elif event.call is Call.UNLINK:
            self._earlier[event.name].append(self._files.pop(event.name))
        elif event.call is Call.SYNC and event.name == ".":
            self._earlier.clear()
        elif event.call is Call.SYNC:
            self._files[event.name].sync()
        else:
            self._files[event.name].pending.append(event)

    def cached(self) -> dict[str, bytes]:
        """The files as processes see them."""
        return {name: file.cached() for name, file in self._files.items()}

    def lose_power(self, dice: random.Random) -> dict[str, bytes]:
        """The files as they may be after a loss of power."""
        found = {}
        for name in sorted(self._files.keys() | self._earlier.keys()):
            file = dice.choice([*self._earlier.get(name, ()), *[self._files.get(name)] * 2])
            if file is not None:
                found[name] = file.survivor(dice)
        return found


def _carry_out(data: bytearray, event: Event) -> None:
    """A write or a cut, in memory; gaps are zeros."""
    data.extend(bytes(max(0, event.offset - len(data))))
    if event.call is Call.WRITE:
        data[event.offset : event.offset + len(event.data)] = event.data
    else:
        del data[event.offset :]


def _pieces(event: Event, unit_bytes: int) -> Iterator[Event]:
    """`event` in pieces that lie within one page or sector each."""
    begin, data = event.offset, event.data
    if event.call is not Call.WRITE:
        yield event
    while data:
        num_bytes = min(len(data), unit_bytes - begin % unit_bytes)
        yield Event(Call.WRITE, event.name, begin, data[:num_bytes])
        begin, data = begin + num_bytes, data[num_bytes:]


def _unit(piece: Event, unit_bytes: int) -> int:
    """What is written at once: a page or sector, or the length, which has none."""
    return piece.offset // unit_bytes if piece.call is Call.WRITE else -1
