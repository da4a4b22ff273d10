"""Which outputs and states are taken for numbers."""

from __future__ import annotations

import numpy as np
import pytest

from eddy.service.finite import Outputs, blanked, finite_rows
from eddy.service.ports import Port

_BAD = (np.nan, np.inf, -np.inf)
_DTYPES = ("<f2", "<f4", "<f8")


def _port(dtype: str, shape: tuple[int, ...] = (3,), *, extra_steps: int = 0) -> Port:
    kind = np.dtype(dtype)
    return Port("y", kind, 1, shape, kind.itemsize * int(np.prod(shape)), extra_steps=extra_steps)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("bad", _BAD)
@pytest.mark.parametrize("num_rows", [1, 2, 300])
def test_every_place_of_a_block_is_looked_at(dtype: str, bad: float, num_rows: int) -> None:
    """One value that is not finite, wherever it stands, is found in its row and in no other."""
    check = Outputs([_port(dtype)])
    values = np.zeros((num_rows, 2, 3), dtype)
    assert check.are_finite([values.tobytes()])
    for place in {0, values.size // 2, values.size - 1}:
        values.flat[place] = bad
        block = values.tobytes()
        assert not check.are_finite([block])
        assert np.flatnonzero(check.bad_rows([block], num_rows)).tolist() == [place // 6]
        values.flat[place] = 0


@pytest.mark.parametrize("dtype", _DTYPES)
def test_infinities_of_both_signs_do_not_cancel(dtype: str) -> None:
    """A sum of opposite infinities is no number either."""
    check = Outputs([_port(dtype)])
    assert not check.are_finite([np.array([[[np.inf, -np.inf, 0]]], dtype).tobytes()])


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("num_rows", [1, 40])
def test_finite_values_whose_sum_overflows_are_fine(dtype: str, num_rows: int) -> None:
    """Whatever the quick look says of the largest numbers, no row of them is bad."""
    check = Outputs([_port(dtype)])
    block = np.full((num_rows, 2, 3), np.finfo(dtype).max, dtype).tobytes()
    assert not check.bad_rows([block], num_rows).any()


def test_what_is_not_emitted_is_of_no_account() -> None:
    """Only the steps that a row has emitted count."""
    counts = Port("n", np.dtype("<i8"), 1, (), 8, is_per_row=True)
    check = Outputs([_port("<f4", extra_steps=1), counts], emits=True)
    values = np.zeros((2, 3, 3), "<f4")
    values[:, 2] = np.nan
    emitted = np.array([2, 3], "<i8").tobytes()
    assert check.bad_rows([values.tobytes(), emitted], 2).tolist() == [False, True]


def test_integers_and_named_outputs_are_not_checked() -> None:
    """An output that may be anything is left alone, and so are integers."""
    check = Outputs([_port("<f4"), _port("<i8")], unchecked=("y",))
    blocks = [np.full((1, 1, 3), np.nan, "<f4").tobytes(), np.zeros((1, 1, 3), "<i8").tobytes()]
    assert check.are_finite(blocks)
    assert not check.bad_rows(blocks, 1).any()
    assert Outputs([_port("<f4"), _port("<i8")]).bad_names(blocks, 1) == {"y"}


def test_states_are_checked_row_by_row() -> None:
    """A row is good if all of its states are."""
    h, c, count = np.zeros((4, 2, 3), "<f4"), np.zeros((4, 5), "<f2"), np.zeros((4,), "<i8")
    h[1, 1, 2], c[3, 0] = np.nan, np.inf
    assert finite_rows([h, c, count]).tolist() == [True, False, True, False]


def test_bad_rows_are_blanked() -> None:
    """Zeros stand where a value was not finite, the other rows are as they were."""
    values = np.array([[1, np.nan], [3, 4]], "<f4")
    left = np.frombuffer(blanked(values.tobytes(), np.array([True, False])), "<f4").reshape(2, 2)
    assert left.tolist() == [[0, 0], [3, 4]]
