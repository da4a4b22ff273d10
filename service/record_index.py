"""The index of the record log: where the newest record of each session in it lies, and how it stands.

Owns the bookkeeping in memory. Must not know files, databases or what is done with what it tells.

Dimension key: B sessions of a call, N in the index.
"""

from __future__ import annotations

from itertools import repeat

import numpy as np

_FEWEST = 1024
# Runs of sessions that are shorter are not worth looking for.
_SHORT_RUN = 32
PLACE = np.dtype(
    [
        ("session_id", "V16"),
        ("writer", "<u8"),
        ("expires_at", "<f8"),
        ("offset", "<i8"),
        ("size", "<i8"),
        ("epoch", "<u4"),
        # The base has a record of the session, this or an older one.
        ("is_in_base", "?"),
        # The base has the session as it stands here.
        ("is_folded", "?"),
    ]
)


class RecordIndex:
    """Sessions in the log, N of them; one that was deleted stays, with size 0."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets all."""
        self._numbers: dict[bytes, int] = {}
        self._places = np.empty(_FEWEST, PLACE)

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def places(self) -> np.ndarray:
        """All sessions, `PLACE` [N], a view."""
        return self._places[: len(self._numbers)]

    def find(self, session_ids: np.ndarray) -> np.ndarray:
        """The numbers in `places` of V16 [B], int64 [B]; -1 for those that are not there."""
        # Sessions that came together are asked for together: what comes behind one is looked at before it is searched.
        numbers, at = np.full(len(session_ids), -1), 0
        while at < len(session_ids):
            num_alike = self._alike(session_ids[at:], numbers[at:])
            at += num_alike
            if num_alike < _SHORT_RUN:
                left = session_ids[at:].tolist()
                numbers[at:] = np.fromiter(map(self._numbers.get, left, repeat(-1)), np.int64, len(left))
                break
        return numbers

    def _alike(self, session_ids: np.ndarray, numbers: np.ndarray) -> int:
        """Numbers as many of `session_ids` as lie in `places` one behind the other, from the first one; how many."""
        first = self._numbers.get(session_ids[0].tobytes(), -1)
        if first < 0:
            return 0
        there = self.places["session_id"][first : first + len(session_ids)]
        is_alike = (_words(there) == _words(session_ids[: len(there)])).all(axis=1)
        num_alike = len(there) if is_alike.all() else int(is_alike.argmin())
        numbers[:num_alike] = np.arange(first, first + num_alike)
        return num_alike

    def put(self, numbers: np.ndarray, places: np.ndarray) -> None:
        """Puts B sessions in as `PLACE` [B], over what was there; `numbers`: what `find` gave."""
        numbers = numbers.copy()
        first = len(self._numbers)
        new = np.flatnonzero(numbers < 0)
        for row, session_id in zip(new.tolist(), places["session_id"][new].tolist(), strict=True):
            numbers[row] = self._numbers.setdefault(session_id, len(self._numbers))
        if len(self._numbers) > len(self._places):
            grown = np.empty(2 * len(self._numbers), PLACE)
            grown[:first] = self._places[:first]
            self._places = grown
        self._places[numbers] = places

    def unfolded(self, limit: int) -> np.ndarray:
        """Numbers of sessions that the base does not have as they stand, at most `limit`, int64, by offset."""
        numbers = np.flatnonzero(~self.places["is_folded"])
        return numbers[np.argsort(self.places["offset"][numbers], kind="stable")[:limit]]

    def fold(self, numbers: np.ndarray) -> None:
        """The base has these sessions as they stand."""
        self.places["is_folded"][numbers] = True
        self.places["is_in_base"][numbers] = self.places["size"][numbers] > 0


def _words(session_ids: np.ndarray) -> np.ndarray:
    """V16 [n] as uint64 [n, 2]."""
    return np.ascontiguousarray(session_ids).view("<u8").reshape(-1, 2)
