"""The slot allocator: never two owners of one slot, and all or nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eddy.service.arena import SlotAllocator
from eddy.service.errors import CapacityError, Reason


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=50))
def test_no_slot_has_two_owners(actions: list[tuple[bool, int]]) -> None:
    """Under any order of taking and giving back, slots are distinct, in range, and none is lost."""
    allocator = SlotAllocator(first=2, num_slots=20)
    held: list[int] = []
    for takes, count in actions:
        if takes and count <= allocator.num_free:
            slots = allocator.allocate(count).tolist()
            assert not set(slots) & set(held)
            held += slots
        elif takes:
            with pytest.raises(CapacityError):
                allocator.allocate(count)
        else:
            given_back, held = held[:count], held[count:]
            allocator.free(np.array(given_back, np.int64))
        assert allocator.num_free == 20 - len(held)
        assert all(2 <= slot < 22 for slot in held)
    assert sorted([*held, *allocator.allocate(allocator.num_free).tolist()]) == list(range(2, 22))


def test_a_full_arena_says_what_is_left() -> None:
    """The refusal names what came and what would fit, and takes nothing."""
    allocator = SlotAllocator(first=0, num_slots=4)
    allocator.allocate(3)
    with pytest.raises(CapacityError) as caught:
        allocator.allocate(2)
    detail = caught.value.detail
    assert (caught.value.reason, detail.field, detail.received) == (Reason.TOO_MANY_SESSIONS, "count", "2")
    assert detail.expected == "at most 1"
    assert allocator.num_free == 1


def test_giving_back_more_than_was_taken_is_a_bug() -> None:
    """The allocator's own invariant is asserted."""
    allocator = SlotAllocator(first=0, num_slots=4)
    with pytest.raises(AssertionError):
        allocator.free(np.array([1]))
