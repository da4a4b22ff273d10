"""Inspection of modules that torch exported: states open and hidden, and what keeps a model from being streamed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.inspection.exporter import export, nn, torch
from tests.inspection.runtime import Walker, load, look

BATCH, STEPS, FEATURES, HIDDEN = 2, 6, 8, 16
X = torch.randn(BATCH, STEPS, FEATURES, generator=torch.Generator().manual_seed(1))
FREE = {"x": {0: "b", 1: "t"}, "y": {0: "b", 1: "t"}}


class Recurrent(nn.Module):
    """A recurrent layer, something over time, a linear layer."""

    def __init__(self, over_time: Callable[..., torch.Tensor] | None = None, cell: str = "LSTM", **options: object):
        super().__init__()
        torch.manual_seed(0)
        self.layer = getattr(nn, cell)(FEATURES, HIDDEN, **{"batch_first": True, **options})
        self.head = nn.Linear(HIDDEN * (2 if options.get("bidirectional") else 1), 5)
        self.over_time = over_time

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Scores, and the states where they were given."""
        before = None if not states else states[0] if len(states) == 1 else states
        y, after = self.layer(x, before)
        y = self.head(self.over_time(y) if self.over_time else y)
        if not states:
            return (y,)
        return (y, after) if len(states) == 1 else (y, *after)


def zeros(layers: int = 1, rows: int = BATCH) -> torch.Tensor:
    """A recurrent layer's state, [L, B, H]."""
    return torch.zeros(layers, rows, HIDDEN)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_a_hidden_state_is_lifted_and_the_steps_give_what_torch_gives(cell: str) -> None:
    """A module without states in its signature streams, in chunks, within rounding of torch's whole sequence."""
    module = Recurrent(cell=cell, num_layers=2)
    found = look(export(module, (X,), ["x"], ["y"], FREE))
    assert found.report.streamable, found.report.reason
    assert {state.origin.value for state in found.report.states} == {"lifted"}
    with torch.no_grad():
        [expected] = module(X)
    got = Walker(found, BATCH).steps({"x": X.numpy()}, [1, 3, 2])["y"]
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)  # torch's rounding is another


@pytest.mark.parametrize("named", [True, False])
def test_an_open_state_is_found_by_the_flow_of_data_whatever_it_is_called(named: bool) -> None:
    """H and c of an LSTM are told apart, with names or without, also where all sizes are declared fixed."""
    names = (["x", "first", "second"], ["y", "one", "two"], FREE) if named else (None, None, None)
    found = look(export(Recurrent(num_layers=2), (X, zeros(2), zeros(2)), *names))
    assert found.report.streamable, found.report.reason
    assert [state.shape for state in found.report.states] == [(2, HIDDEN)] * 2
    assert all("carries it" in state.how and state.batch_axis == 1 for state in found.report.states)
    assert found.report.inputs[0].shape == ("batch", "time", FEATURES)
    assert found.report.probes.chunk_max_difference == 0.0


def test_time_may_come_first() -> None:
    """[T, B, F] is found as such though nothing names the axes, and is served as [B, T, F]."""
    module = Recurrent(batch_first=False)
    found = look(export(module, (X, zeros(rows=STEPS), zeros(rows=STEPS)), ["x", "h0", "c0"], ["y", "hn", "cn"]))
    assert found.report.inputs[0].shape == ("time", "batch", FEATURES)
    with torch.no_grad():
        expected = module(X, zeros(rows=STEPS), zeros(rows=STEPS))[0].numpy().transpose(1, 0, 2)
    got = Walker(found, STEPS).steps({"x": X.numpy().transpose(1, 0, 2)}, [1, 1])["y"]
    np.testing.assert_allclose(got, expected, atol=1e-5)  # torch's rounding is another


@pytest.mark.parametrize(
    ("over_time", "node", "says"),
    [
        (lambda y: y[:, 0], "Gather", "one step"),
        (lambda y: y.mean(1), "ReduceMean", "pools over time"),
        (lambda y: y.max(1)[0], "ReduceMax", "pools over time"),
        (lambda y: torch.softmax(y, 1), "Softmax", "normalises over time"),
        (lambda y: y.flip(1), "Slice", "turns time round"),
        (lambda y: y - y.mean(1, keepdim=True), "ReduceMean", "pools over time"),
        (lambda y: torch.softmax(y @ y.transpose(1, 2), -1) @ y, "MatMul", "mixes steps"),
        (lambda y: y + torch.arange(y.shape[1])[None, :, None], "Add", "number of the step"),
        (lambda y: torch.cumsum(y, 1), "CumSum", "sums up over time"),
        (lambda y: nn.functional.avg_pool1d(y, 3, 1, 1), None, None),
    ],
)
def test_what_needs_the_whole_sequence_is_named(
    over_time: Callable[[torch.Tensor], torch.Tensor], node: str | None, says: str | None
) -> None:
    """A model that pools, normalises, compares or counts steps is served whole, with the node in the reason."""
    module = Recurrent(over_time)
    found = look(export(module, (X,), ["x"], ["y"], {"x": {0: "b", 1: "t"}}))
    if node is None:
        assert found.report.streamable, "pooling over features is nothing that needs the sequence"
        return
    assert not found.report.streamable
    assert node in found.report.reason and str(says) in found.report.reason
    assert found.contract.streaming.reason == found.report.reason
    assert found.step is None and found.whole is not None
    with torch.no_grad():
        [expected] = module(X)
    [got] = load(found.whole).run(["y"], {"x": X.numpy()})
    expected = expected if expected.ndim == 3 else expected[:, None]
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)  # torch's rounding is another


def test_a_layer_that_looks_both_ways_is_served_whole() -> None:
    """The bidirectional node is named."""
    found = look(export(Recurrent(bidirectional=True), (X,), ["x"], ["y"], FREE))
    assert not found.report.streamable
    assert "LSTM '/layer/LSTM' looks both ways" in found.report.reason


class Convolved(nn.Module):
    """A convolution over time before a recurrent layer; its last inputs may be carried."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv1d(FEATURES, FEATURES, 3, padding=padding)
        self.layer = nn.LSTM(FEATURES, HIDDEN, batch_first=True)

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Hidden values, and the states where they were given."""
        frames = x.transpose(1, 2)
        if not states:
            return (self.layer(self.convolution(frames).transpose(1, 2))[0],)
        cache, h, c = states
        frames = torch.cat([cache, frames], 2)
        y, (h, c) = self.layer(self.convolution(frames).transpose(1, 2), (h, c))
        return y, frames[:, :, -2:], h, c


@pytest.mark.parametrize("padding", [0, 1])
def test_a_convolution_over_time_without_its_cache_is_named(padding: int) -> None:
    """With padding or without, the convolution wants its neighbours."""
    found = look(export(Convolved(padding), (X,), ["x"], ["y"], FREE))
    assert not found.report.streamable
    assert "Conv '/convolution/Conv'" in found.report.reason


@pytest.mark.parametrize("named", [True, False])
def test_a_convolution_with_its_cache_streams(named: bool) -> None:
    """The cache is a state: by its name, or, without one, because the chunk law proves it."""
    states = (torch.zeros(BATCH, FEATURES, 2), zeros(), zeros())
    inputs, outputs = ["x", "cache_in", "h_in", "c_in"], ["y", "cache_out", "h_out", "c_out"]
    names = (inputs, outputs, FREE) if named else (None, None, None)
    found = look(export(Convolved(0), (X, *states), *names))
    assert found.report.streamable, found.report.reason
    [cache] = [state for state in found.report.states if state.shape == (FEATURES, 2)]
    assert ("proved by trying" in cache.how) != named
    # A dense convolution's rounding depends on the length.
    assert 0 < found.contract.numerics.tolerance < 1e-5


def test_token_inputs_get_the_range_of_their_table() -> None:
    """[T, B] tokens, and scores in one axis of both: the language model of torch's examples."""

    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer, self.head = nn.Embedding(37, 8), nn.GRU(8, HIDDEN), nn.Linear(HIDDEN, 37)

        def forward(self, tokens: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y, hidden = self.layer(self.table(tokens), hidden)
            return self.head(y).view(-1, 37), hidden

    module, tokens = Language(), torch.randint(37, (STEPS, BATCH))
    free = {"input": {0: "seq", 1: "batch"}, "hidden": {1: "batch"}}
    found = look(export(module, (tokens, zeros()), ["input", "hidden"], ["decoded", "hidden_out"], free))
    assert found.report.streamable, found.report.reason
    [spec] = found.contract.inputs
    assert (spec.range.minimum, spec.range.maximum) == (0, 36)
    with torch.no_grad():
        expected = module(tokens, zeros())[0].view(STEPS, BATCH, 37).transpose(0, 1).numpy()
    got = Walker(found, BATCH).steps({"input": tokens.numpy().T.copy()}, [2, 1, 3])["decoded"]
    np.testing.assert_allclose(got, expected, atol=1e-5)  # torch's rounding is another


def test_one_step_a_call() -> None:
    """A cell without a time axis is one step a call; states of equal shape need names, or stay inputs with a hint."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(FEATURES, HIDDEN)

        def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
            h, c = self.cell(x, (h, c))
            return h * 2, h, c

    args = (X[:, 0], torch.zeros(BATCH, HIDDEN), torch.zeros(BATCH, HIDDEN))
    named = look(export(Cell(), args, ["x", "prev_h", "prev_c"], ["y", "new_h", "new_c"], {"x": {0: "b"}}))
    assert [(s.input, s.output) for s in named.report.states] == [("prev_h", "new_h"), ("prev_c", "new_c")]
    assert named.contract.streaming.max_run_steps == 1
    assert named.contract.inputs[0].no_time_axis
    nameless = look(export(Cell(), args))
    assert not nameless.report.states
    assert any("look like states" in note for note in nameless.report.notes)


def test_a_module_without_memory_is_no_state_machine() -> None:
    """An autoencoder of `x_in` and `x_out` has no state; with a time axis or without it its steps are by themselves."""
    for example, axes in ((X, {0: "b", 1: "t"}), (X[:, 0], {0: "b"})):
        found = look(export(nn.Linear(FEATURES, FEATURES), (example,), ["x_in"], ["x_out"], {"x_in": axes}))
        assert found.report.streamable and not found.report.states


def test_a_batch_that_was_written_down_is_counted_instead() -> None:
    """Reshapes to a batch of one are rewritten; the result is that of the rows by themselves."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.GRU(FEATURES, HIDDEN, batch_first=True)

        def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y, h = self.layer(x.reshape(1, -1, 4, 2).reshape(1, -1, FEATURES), h)
            return torch.relu(y.reshape(1, -1, 4, 4)), h

    module = Fixed()
    found = look(export(module, (X[:1], zeros(rows=1)), ["x", "h"], ["y", "hn"], {"x": {1: "t"}}))
    assert found.report.streamable, found.report.reason
    assert found.report.max_batch is None, found.report.warnings
    assert any("Reshape" in note for note in found.report.notes)
    with torch.no_grad():
        expected = np.concatenate([module(X[row : row + 1], zeros(rows=1))[0].numpy() for row in range(BATCH)])
    got = Walker(found, BATCH).steps({"x": X.numpy()}, [4, 2])["y"]
    np.testing.assert_allclose(got, expected, atol=1e-5)  # torch's rounding is another


def test_a_graph_for_one_row_alone_says_which_node_is_why() -> None:
    """A batch axis that is squeezed away cannot be had back: row by row, with a warning that names the node."""

    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(FEATURES, HIDDEN)

        def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y, h = self.layer(x.squeeze(0), h)
            return y[None], h

    found = look(export(Squeezed(), (X[:1], zeros()[:, 0]), ["x", "h"], ["y", "hn"], {"x": {1: "t"}}))
    assert found.report.streamable, found.report.reason
    assert found.report.max_batch == found.contract.streaming.run_rows == 1
    [warning] = found.report.warnings
    assert "row by row" in warning


def test_random_numbers_are_refused() -> None:
    """A model that answers otherwise each time cannot be served exactly once."""
    from eddy.inspection.errors import InspectionError

    model = export(Recurrent(lambda y: y + torch.randn_like(y)), (X,), ["x"], ["y"], FREE)
    with pytest.raises(InspectionError, match=r"RandomNormalLike '/RandomNormalLike'.* draws random numbers"):
        look(model)
