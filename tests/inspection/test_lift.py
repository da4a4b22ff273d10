"""Lifting hidden states: cut into pieces with the states carried, a model answers as it does in one call."""

import numpy as np
import pytest
from hidden import BATCH, FEATURES, STREAMABLE, streamable
from streams import CUTS, run_cut, run_whole

from eddy.inspection.lift import lift


def _feeds(name: str, *, wide: bool) -> dict[str, np.ndarray]:
    x = np.random.default_rng(len(name)).standard_normal((BATCH, CUTS[-1], FEATURES)).astype(np.float32)
    return {"x": x} | ({"wide": np.array(wide)} if "If (wide)" in STREAMABLE[name][0] else {})


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("name", STREAMABLE)
def test_pieces_answer_as_the_whole(name: str, *, wide: bool) -> None:
    """Bit for bit, in either branch, and nothing of the states is left inside."""
    if not wide and "If (wide)" not in STREAMABLE[name][0]:
        pytest.skip("no branches")
    model, feeds = streamable(name), _feeds(name, wide=wide)
    before = model.SerializeToString()
    found = lift(model)
    assert len(found.states) == STREAMABLE[name][1]
    assert not found.obstacles
    assert not found.given
    assert model.SerializeToString() == before, "the model itself stays as it was"
    outputs, _ = run_cut(found, feeds, "x", ["y"])
    np.testing.assert_array_equal(outputs["y"], run_whole(model, feeds)["y"])
