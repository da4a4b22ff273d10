"""The slots of one model's state arena: which are free, which are whose.

Owns slot numbers only. Must not know what a slot holds (the engine's buffers) or who asks. Deciding whether there is
room is the caller's: `allocate` raises when there is none and changes nothing.
"""

from __future__ import annotations

import numpy as np

from eddy.service.errors import CapacityError, Detail, Reason

# The initial state of every session, and where rows that nobody asked for are written: never handed out.
INITIAL_SLOT = 0
SCRATCH_SLOT = 1
NUM_RESERVED_SLOTS = 2


class SlotAllocator:
    """Hands out slots `first .. first + num_slots - 1`, most recently freed first (warm in cache)."""

    def __init__(self, first: int, num_slots: int) -> None:
        self.num_slots = num_slots
        # Changed only by `allocate` and `free`: a stack of free slots, the top at `_num_free - 1`.
        self._free = np.arange(first + num_slots - 1, first - 1, -1, dtype=np.int64)
        self._num_free = num_slots

    @property
    def num_free(self) -> int:
        """Slots that can be handed out now."""
        return self._num_free

    def allocate(self, count: int) -> np.ndarray:
        """Takes `count` slots, int64 [count], ascending.

        Raises:
            CapacityError: fewer are free.
        """
        if count > self._num_free:
            raise CapacityError(
                Reason.TOO_MANY_SESSIONS,
                f"{count} state slots asked for, {self._num_free} of {self.num_slots} are free",
                Detail("count", str(count), f"at most {self._num_free}"),
            )
        self._num_free -= count
        # In order: what lies together is read as one piece.
        return np.sort(self._free[self._num_free : self._num_free + count])

    def free(self, slots: np.ndarray) -> None:
        """Gives back `slots`, int64 [n], each allocated before."""
        count = len(slots)
        assert self._num_free + count <= self.num_slots, "more slots freed than were allocated"
        self._free[self._num_free : self._num_free + count] = slots
        self._num_free += count
