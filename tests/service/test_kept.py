"""Kept replies: gathered at once as they would be one by one."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eddy.service.kept import FORGOTTEN, KeptColumns
from eddy.service.ports import Port

# By the step, by the step, and by the chunk; one of them may have no bytes.
PORTS = (
    Port("x", np.dtype("<f4"), 1, (3,), 12),
    Port("nothing", np.dtype("<f4"), 1, (0,), 0),
    Port("y", np.dtype("u1"), 1, (5,), 5),
)
NUM_ROWS = 12


@given(
    # Of each block T; of each reply its block and row, which in most messages rise by one.
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(FORGOTTEN, 2), st.integers(0, NUM_ROWS - 1), st.integers(1, 12)), max_size=6),
)
# As long as if they rose by one.
@example([1], [(0, 0, 1), (0, 2, 1), (0, 1, 1), (0, 3, 1), (0, 4, 1)])
@settings(max_examples=100)
def test_all_replies_are_gathered(steps: list[int], runs: list[tuple[int, int, int]]) -> None:
    """Blocks of any T, in any order, rows that rise by one and rows that do not, forgotten ones between."""
    draw = np.random.default_rng(0)
    parts = tuple(tuple(draw.bytes(NUM_ROWS * port.row_bytes(num)) for port in PORTS) for num in steps)
    places = [
        (min(block, len(steps) - 1), row % NUM_ROWS) for block, first, num in runs for row in range(first, first + num)
    ]
    blocks, rows = (np.array(column, np.int64) for column in (zip(*places, strict=True) if places else ((), ())))
    expected = [
        b"".join(
            part[row * port.row_bytes(steps[block]) :][: port.row_bytes(steps[block])]
            for part, port in zip(parts[block], PORTS, strict=True)
        )
        if block != FORGOTTEN
        else b""
        for block, row in places
    ]
    columns = KeptColumns(
        counts=np.ones(len(places), np.int64),
        positions=np.zeros(len(places), np.int64),
        num_steps=np.array([steps[block] if block != FORGOTTEN else 1 for block, _ in places], np.int64),
        num_bytes=np.array([len(each) for each in expected], np.int64),
        blocks=blocks,
        rows=rows,
        parts=parts,
        ports=PORTS,
    )
    assert columns.gather().tobytes() == b"".join(expected)
