"""Inspection of modules whose states are no vectors: counts, flags and positions, one value a row."""

from __future__ import annotations

import numpy as np
import pytest

from eddy.inspection.inspect import Inspection
from eddy.inspection.settings import Settings
from tests.inspection.exporter import export, nn, torch
from tests.inspection.runtime import Walker, look

BATCH, STEPS, FEATURES, HIDDEN = 2, 6, 8, 16


class Placed(nn.Module):
    """A recurrent layer whose outputs know their absolute position, and whether a large value came before them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.places = nn.Embedding(64, HIDDEN)

    def forward(
        self, x: torch.Tensor, hidden: torch.Tensor, count: torch.Tensor, seen: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """[B, T, F], [1, B, H], int64 [B], bool [B] -> [B, T, H] and the states."""
        y, hidden = self.layer(x, hidden)
        places = count[:, None] + torch.arange(x.shape[1])[None]
        return y + self.places(places), hidden, count + x.shape[1], seen | (x.amax((1, 2)) > 2)


@pytest.mark.parametrize("names", [("count_in", "seen_in", "count_out", "seen_out"), ("n", "flag", "m", "raised")])
def test_counts_and_flags_are_states(names: tuple[str, str, str, str]) -> None:
    """A state of one number or one flag a row is found by its names, or because the chunk law proves it."""
    module, x = Placed().eval(), torch.randn(BATCH, STEPS, FEATURES, generator=torch.Generator().manual_seed(1))
    count, seen = torch.zeros(BATCH, dtype=torch.int64), torch.zeros(BATCH, dtype=torch.bool)
    count_in, seen_in, count_out, seen_out = names
    free = {"x": {0: "b", 1: "t"}, "h": {1: "b"}, count_in: {0: "b"}, seen_in: {0: "b"}}
    args = (x, torch.zeros(1, BATCH, HIDDEN), count, seen)
    found = look(export(module, args, ["x", "h", count_in, seen_in], ["y", "hn", count_out, seen_out], free))
    assert found.report.streamable, found.report.reason
    assert [(state.input, state.output, state.shape, state.dtype) for state in found.report.states] == [
        ("h", "hn", (1, HIDDEN), "float32"),
        (count_in, count_out, (), "int64"),
        (seen_in, seen_out, (), "bool"),
    ]
    walker = Walker(found, BATCH)
    with torch.no_grad():
        expected, _, _, raised = module(*args)
    got = walker.steps({"x": x.numpy()}, [1, 3, 2])["y"]
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)  # torch's rounding is another
    assert walker.states[count_in].tolist() == [STEPS] * BATCH
    assert walker.states[seen_in].tolist() == raised.tolist()


class Idle(nn.Module):
    """A recurrent layer, and a number that once meant something."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.factor = factor

    def forward(self, x: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        """[B, T, F], int64 [] -> [B, T, H]."""
        return self.layer(x)[0] + (rate * self.factor).to(x.dtype)


def _idle(factor: int, settings: Settings | None = None) -> Inspection:
    args = (torch.zeros(BATCH, STEPS, FEATURES), torch.tensor(16000))
    free = {"x": {0: "b", 1: "t"}, "y": {0: "b", 1: "t"}}
    return look(export(Idle(factor), args, ["x", "rate"], ["y"], free), settings)


def test_a_number_without_effect_is_not_asked_for() -> None:
    """Multiplied by zero it changes nothing: clients do not give it, and it keeps nobody from steps and batches."""
    found = _idle(0)
    assert found.report.streamable, found.report.reason
    assert [port.name for port in found.report.inputs] == ["x"]
    assert found.report.max_batch is None
    assert "'rate' changes nothing: clients do not give it" in found.report.notes


def test_a_number_with_an_effect_is_named() -> None:
    """It is one for all steps of a run, so that hidden states cannot be tried; the reason says what helps."""
    found = _idle(2)
    assert not found.report.streamable
    assert "input 'rate' has no time axis" in found.report.reason
    assert "`constants` in model.toml" in found.report.reason
    assert _idle(2, Settings(constants={"rate": np.array(3)})).report.streamable
