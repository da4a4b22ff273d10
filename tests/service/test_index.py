"""The index of session ids against a dictionary, with ids that collide."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eddy.service.index import IdIndex

NUM_ROWS = 3000


def _ids(generator: np.random.Generator, *, spread: int) -> np.ndarray:
    """A column of distinct ids whose hashes take `spread` values only, uint8 [N, 16]."""
    ids = generator.integers(0, 256, (NUM_ROWS, 16), np.uint8)
    ids[:, :8] = (generator.integers(0, spread, NUM_ROWS).astype("<u8")).view(np.uint8).reshape(-1, 8)
    ids[:, 8:12] = np.arange(NUM_ROWS, dtype="<u4").view(np.uint8).reshape(-1, 4)
    return ids


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.sampled_from(["add", "add", "remove"]), st.integers(1, 900)), max_size=20),
    st.sampled_from([3, 50, 1 << 62]),
)
def test_finds_what_a_dictionary_finds(actions: list[tuple[str, int]], spread: int) -> None:
    """Ids are found exactly while they are in, across growth, removal, reuse of rows and crowded cells."""
    generator = np.random.default_rng(1)
    ids = _ids(generator, spread=spread)
    index, rows_in = IdIndex(), set[int]()
    for action, count in actions:
        wanted = min(count, 60) if spread < 100 else count  # Crowded cells are slow by nature.
        if action == "add":
            free = [row for row in range(1, NUM_ROWS) if row not in rows_in]
            rows = np.array(free[:wanted], np.int64)
            fresh = generator.integers(0, 256, (len(rows), 4), np.uint8)  # A reused row has a new id.
            ids[rows, 12:] = fresh
            index.add(rows, ids)
            rows_in |= set(rows.tolist())
        else:
            rows = np.array(sorted(rows_in)[:wanted], np.int64)
            if len(rows):
                index.remove(rows, ids)
                rows_in -= set(rows.tolist())
        assert index.num_rows == len(rows_in)
        for row in generator.integers(1, NUM_ROWS, 50).tolist():
            assert index.find(ids[row].tobytes(), ids) == (row if row in rows_in else 0)


def test_ids_of_another_length_are_not_there() -> None:
    """Whatever a client sends as an id is looked up without harm."""
    index = IdIndex()
    ids = np.zeros((4, 16), np.uint8)
    index.add(np.array([2]), ids)
    for value in (b"", b"\x00", bytes(15), bytes(17), bytes(4000)):
        assert index.find(value, ids) == 0
    assert index.find(bytes(16), ids) == 2
