"""The record index: a dictionary of places."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eddy.service.record_index import PLACE, RecordIndex

# Enough for runs that are looked at as such, and for the index to grow.
NUM_IDS = 3000
IDS = np.random.default_rng(0).integers(0, 256, (NUM_IDS, 16)).astype(np.uint8).view("V16")[:, 0]


def _spans() -> st.SearchStrategy[list[int]]:
    """Sessions of one call: runs in the order of `IDS` or against it, each at most once."""
    run = st.tuples(st.integers(0, NUM_IDS - 1), st.integers(1, 1500), st.booleans())

    def joined(runs: list[tuple[int, int, bool]]) -> list[int]:
        rows = [range(first, min(first + num, NUM_IDS))[:: -1 if is_back else 1] for first, num, is_back in runs]
        return list(dict.fromkeys(row for each in rows for row in each))

    return st.lists(run, max_size=4).map(joined)


@given(st.lists(_spans(), max_size=6), _spans())
@settings(max_examples=100)
def test_it_is_a_dictionary(calls: list[list[int]], asked: list[int]) -> None:
    """What was put last of each session is found, in whatever order it is asked for; of others nothing."""
    index, expected = RecordIndex(), dict[int, int]()
    for offset, rows in enumerate(calls):
        places = np.zeros(len(rows), PLACE)
        places["session_id"], places["offset"] = IDS[rows], offset
        index.put(index.find(IDS[rows]), places)
        expected |= dict.fromkeys(rows, offset)
    assert len(index) == len(expected) == len(index.places)
    numbers = index.find(IDS[asked])
    assert (numbers >= 0).tolist() == [row in expected for row in asked]
    found = index.places[numbers[numbers >= 0]]
    assert (found["session_id"] == IDS[[row for row in asked if row in expected]]).all()
    assert found["offset"].tolist() == [expected[row] for row in asked if row in expected]
    index.clear()
    assert not len(index) and (index.find(IDS[asked]) == -1).all()
