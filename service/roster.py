"""The roster: the models that are in memory, by the number that the session table knows each by.

Owns the numbers: a number is taken while a model loads, and may be another model's once it was given back. Must not
know entries or files. Changed on the event loop; any thread may walk over it.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from eddy.service.errors import CapacityError, Reason
from eddy.service.model import ServedModel
from eddy.service.sessions import MODEL_MASK


class Roster:
    """Models by number: those that are served, and those that are retired and still have sessions."""

    def __init__(self) -> None:
        # Changed only by the methods below. Numbers that were given back, and the first that was never taken.
        self._models: dict[int, ServedModel] = {}
        self._free: list[int] = []
        self._next = 0

    def __getitem__(self, index: int) -> ServedModel:
        """The model of a number, which is some open session's."""
        return self._models[index]

    def __iter__(self) -> Iterator[ServedModel]:
        return iter([*self._models.values()])

    def __len__(self) -> int:
        return len(self._models)

    @property
    def num_indices(self) -> int:
        """All numbers are below this."""
        return self._next

    def reserve(self) -> int:
        """Takes a number, the smallest that is free.

        Raises:
            CapacityError: QUEUE_FULL, all are taken.
        """
        if self._free:
            return heappop(self._free)
        # The largest is what the owner column's -1 would read as.
        if self._next >= MODEL_MASK:
            raise CapacityError(Reason.QUEUE_FULL, f"{MODEL_MASK} models are in memory, no more can be")
        self._next += 1
        return self._next - 1

    def put(self, model: ServedModel) -> None:
        """The model of a number that was taken."""
        assert model.index not in self._models, "a number is one model's"
        self._models[model.index] = model

    def give_back(self, index: int) -> None:
        """Nothing refers to the number any more."""
        self._models.pop(index, None)
        heappush(self._free, index)
