"""Bidirectional models: the grid's definition, the step graph however it is fed, and what the end of a stream does."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eddy.training.contract import read_contract, write_contract
from eddy.training.drawing import draw_inputs
from eddy.training.errors import ContractError, OptionError, RecipeError, VerificationError
from eddy.training.export import draw_model, export_graphs
from eddy.training.families.bidirectional.latency import run_latency_controlled
from eddy.training.families.bidirectional.model import BidirectionalModel
from eddy.training.families.bidirectional.spec import BidirectionalArchitecture, BidirectionalSpec
from eddy.training.families.registry import all_examples, build_contract
from eddy.training.families.shapes import on_grid
from eddy.training.runtime import Runtime
from eddy.training.spec import FeatureInput, LinearHead, QuantileHead, TokenHead, TokenInput
from eddy.training.verify import verify

# ONNX Runtime against PyTorch, outputs of size 1.
PARITY = 1e-6
# Sequences padded into one batch against one by one, in PyTorch: its matrix products add in another order.
PADDING = 1e-6

TOKENS = TokenInput(11, 6)
VALUES = FeatureInput((1.0, -2.0, 0.0), (2.0, 0.5, 1.0))
# Cell, layers, input, block, look-ahead: blocks longer and shorter than the look-ahead, of one step, and without any.
GRIDS = [
    ("lstm", 1, TOKENS, 4, 6),
    ("gru", 2, VALUES, 5, 2),
    ("lstm", 3, VALUES, 1, 3),
    ("gru", 1, TOKENS, 3, 0),
    ("lstm", 2, TOKENS, 8, 16),
]


def spec_of(
    cell: str, layers: int, given_input: TokenInput | FeatureInput, block: int, ahead: int, *, is_learned: bool = False
) -> BidirectionalSpec:
    """A small specification with a plain head."""
    heads = (LinearHead(3),)
    return BidirectionalSpec(cell, layers, 9, given_input, heads, 0.0, block, ahead, learned_state=is_learned)


def model_of(spec: BidirectionalSpec) -> BidirectionalModel:
    """Its model, untrained."""
    model = draw_model(spec, 4)
    assert isinstance(model, BidirectionalModel)
    return model


def write(spec: BidirectionalSpec, directory: Path) -> Runtime:
    """Export a model of that shape; returns it ready to run."""
    model = model_of(spec)
    directory.mkdir(exist_ok=True)
    export_graphs(model, directory, build_contract(model, "m"))
    path = directory / "model.onnx"
    return Runtime(path, read_contract(path))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> list[Runtime]:
    """One model per grid."""
    folder = tmp_path_factory.mktemp("grids")
    return [write(spec_of(*grid), folder / str(number)) for number, grid in enumerate(GRIDS)]


def exact(model: BidirectionalModel, x: np.ndarray) -> np.ndarray:
    """Torch's exact answer to whole sequences."""
    with torch.no_grad():
        return model(torch.from_numpy(x))["y"].numpy()


def controlled(model: BidirectionalModel, x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Torch's latency-controlled answer to sequences that end."""
    outputs, emitted, _ = run_latency_controlled(model, torch.from_numpy(x), torch.from_numpy(lengths), is_end=True)
    assert emitted.tolist() == lengths.tolist()
    return outputs["y"].numpy()


@settings(deadline=None, max_examples=60)
@given(
    number=st.integers(0, len(GRIDS) - 1),
    given_lengths=st.lists(st.integers(0, 30), min_size=2, max_size=5),
    widest=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_step_graph_equals_torch_however_calls_are_cut(
    exported: list[Runtime], number: int, given_lengths: list[int], widest: int, seed: int
) -> None:
    """Rows of other lengths, cuts and ends share every call; first calls shorter than the look-ahead among them.

    What lies behind a row's length in a call is not even a token that exists.
    """
    rng, lengths = np.random.default_rng(seed), np.array(given_lengths)
    runtime, spec = exported[number], spec_of(*GRIDS[number])
    x = draw_inputs(runtime.contract, len(lengths), 30)[spec.input.name]
    expected = controlled(model_of(spec), x, lengths)
    states, found = runtime.start(len(lengths)), [[] for _ in lengths]
    read, is_over = np.zeros_like(lengths), np.zeros(len(lengths), np.bool_)
    while not is_over.all():
        width = int(rng.integers(1, widest, endpoint=True))
        taken = np.minimum(rng.integers(0, width, len(lengths), endpoint=True), lengths - read)
        call = np.full((len(lengths), width, *x.shape[2:]), 999, x.dtype)
        for row, count in enumerate(taken):
            call[row, :count] = x[row, read[row] : read[row] + count]
        read += taken
        ends = (read == lengths) & ~is_over & (rng.random(len(lengths)) < 0.5)
        outputs, states = runtime.advance({spec.input.name: call}, states, lengths=taken, ends=ends)
        assert outputs["y"].shape[1] == width + spec.pending_steps
        for row, count in enumerate(outputs["emitted"]):
            assert not (is_over[row] and count)
            assert not outputs["y"][row, count:].any()
            found[row].append(outputs["y"][row, :count])
        is_over |= ends
    for row, length in enumerate(lengths):
        answer = np.concatenate(found[row])
        assert len(answer) == length
        assert np.abs(answer - expected[row, :length]).max(initial=0) <= PARITY
    begun = runtime.start(len(lengths))
    assert all(np.array_equal(states[name], begun[name]) for name in begun)


@pytest.mark.parametrize("number", range(len(GRIDS)))
def test_a_row_does_not_depend_on_its_neighbours(exported: list[Runtime], number: int) -> None:
    """Bit for bit the same in a batch whose rows stand elsewhere on the grid as beside a copy of itself."""
    runtime, spec = exported[number], spec_of(*GRIDS[number])
    x = draw_inputs(runtime.contract, 6, 40)[spec.input.name]
    before = runtime.start(6)
    # Rows come to the call under test with 0 to 5 steps behind them.
    _, before = runtime.advance({spec.input.name: x[:, :5]}, before, lengths=np.arange(6))
    ends = np.array([False, True, False, False, True, False])
    lengths = np.array([30, 35, 0, 3, 0, 17])
    together, after = runtime.advance({spec.input.name: x[:, 5:]}, before, lengths=lengths, ends=ends)
    for row in range(6):
        pair = {name: value[[row, row]] for name, value in before.items()}
        alone, state = runtime.advance(
            {spec.input.name: x[[row, row], 5 : 5 + max(1, lengths[row])]},
            pair,
            lengths=lengths[[row, row]],
            ends=ends[[row, row]],
        )
        count = alone["emitted"][0]
        assert together["emitted"][row] == count
        assert np.array_equal(together["y"][row, :count], alone["y"][0, :count])
        assert all(np.array_equal(after[name][row], state[name][0]) for name in after)


def test_a_stream_ends_once(exported: list[Runtime]) -> None:
    """A flush emits what is left and begins a new stream; a second one emits nothing; the next is as the first."""
    runtime, spec = exported[4], spec_of(*GRIDS[4])
    x = draw_inputs(runtime.contract, 2, 13)[spec.input.name]
    fresh = runtime.start(2)
    outputs, states = runtime.advance({spec.input.name: x}, fresh)
    assert outputs["emitted"].tolist() == [0, 0]
    assert states["count"].tolist() == [13, 13]
    none, ends = np.zeros(2, np.int64), np.ones(2, np.bool_)
    first, states = runtime.advance({spec.input.name: x[:, :1]}, states, lengths=none, ends=ends)
    assert first["emitted"].tolist() == [13, 13]
    assert all(np.array_equal(states[name], fresh[name]) for name in fresh)
    nothing, states = runtime.advance({spec.input.name: x[:, :1]}, states, lengths=none, ends=ends)
    assert nothing["emitted"].tolist() == [0, 0]
    again, _ = runtime.advance({spec.input.name: x}, states, ends=ends)
    assert np.array_equal(again["y"][:, :13], first["y"][:, :13])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_one_layer_by_its_definition(cell: str) -> None:
    """Forward outputs are the whole sequence's, backward ones those of the window alone, for every position."""
    spec = spec_of(cell, 1, VALUES, 4, 3)
    model, steps = model_of(spec), 18
    x = np.random.default_rng(0).standard_normal((1, steps, 3)).astype(np.float32)
    with torch.no_grad():
        features = model.features(torch.from_numpy(x))
        expected = torch.zeros(1, steps, 18)
        expected[:, :, :9] = model.forwards[0](features)[0]
        for first in range(0, steps, 4):
            window = model.backwards[0](features[:, first : first + 7].flip(1))[0].flip(1)
            expected[:, first : first + 4, 9:] = window[:, :4]
        wanted = model.project(expected)["y"].numpy()
    assert np.abs(controlled(model, x, np.array([steps])) - wanted).max() <= PARITY


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_more_look_ahead_converges_to_the_exact_result(cell: str, layers: int) -> None:
    """Errors fall with the look-ahead, from plainly visible to none once the first window covers the sequence."""
    steps, block = 37, 5
    spec = spec_of(cell, layers, VALUES, block, 0)
    x = np.random.default_rng(1).standard_normal((3, steps, 3)).astype(np.float32)
    whole = exact(model_of(spec), x)
    errors = []
    for ahead in (0, 2, 4, 8, 16, steps - block):
        answer = controlled(model_of(spec.on_grid(block, ahead)), x, np.full(3, steps))
        errors.append(float(np.abs(answer - whole).max()))
    assert errors[0] > 1e-2
    assert all(later < max(earlier, PARITY) for earlier, later in pairwise(errors))
    assert errors[-1] <= PARITY


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_exported_look_ahead_that_covers_the_sequence_is_exact(cell: str, tmp_path: Path) -> None:
    """A stream on the grid, fed step by step, ends with the whole graph's and torch's exact outputs."""
    spec = spec_of(cell, 2, TOKENS, 4, 12)
    runtime = write(spec, tmp_path)
    inputs = draw_inputs(runtime.contract, 3, 16)
    streamed, whole = runtime.run(inputs, 1)["y"], runtime.run_whole(inputs)["y"]
    assert np.abs(streamed - whole).max() <= PARITY
    assert np.abs(whole - exact(model_of(spec), inputs["tokens"])).max() <= PARITY


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_learned_states_stand_at_both_ends(cell: str, tmp_path: Path) -> None:
    """They change the answers, streams begin with them and go back to them, and they are trained."""
    spec = spec_of(cell, 2, TOKENS, 3, 8, is_learned=True)
    runtime, model = write(spec, tmp_path), model_of(spec)
    begun = runtime.start(1)
    for name in spec.hidden_names:
        assert np.array_equal(begun[name][0], model.get_parameter(f"initial_{name}")[0].detach().numpy())
    inputs = draw_inputs(runtime.contract, 3, 20)
    x, lengths = inputs["tokens"], np.full(3, 20)
    assert np.abs(runtime.run(inputs, 2)["y"] - controlled(model, x, lengths)).max() <= PARITY
    whole = exact(model, x)
    assert np.abs(runtime.run_whole(inputs)["y"] - whole).max() <= PARITY
    model(torch.from_numpy(x))["y"].square().sum().backward()
    for name in spec.hidden_names:
        gradient = model.get_parameter(f"initial_{name}").grad
        assert gradient is not None
        # In every layer, forwards and backwards.
        assert (gradient.abs().amax(-1) > 0).all()
        with torch.no_grad():
            model.get_parameter(f"initial_{name}").zero_()
    assert np.abs(exact(model, x)[:, [0, -1]] - whole[:, [0, -1]]).min(axis=-1).max() > 1e-3


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_padding_never_changes_a_result(cell: str) -> None:
    """Sequences of other lengths in one padded batch, against each one alone: outputs, and gradients of the weights."""
    spec = spec_of(cell, 2, VALUES, 4, 4)
    model, lengths = model_of(spec), [1, 9, 4, 17]
    rng = np.random.default_rng(2)
    alone = [torch.from_numpy(rng.standard_normal((1, n, 3)).astype(np.float32)) for n in lengths]
    padded = torch.full((4, 20, 3), 1e3)
    for row, x in enumerate(alone):
        padded[row, : lengths[row]] = x[0]
    together = model(padded, torch.tensor(lengths))["y"]
    kept = [together[row, :n] for row, n in enumerate(lengths)]
    singles = [model(x)["y"][0] for x in alone]
    for one, other in zip(kept, singles, strict=True):
        assert float((one - other).detach().abs().max()) <= PADDING
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(sum(y.square().sum() for y in ys), parameters) for ys in (kept, singles)]
    for one, other in zip(*gradients, strict=True):
        assert float((one - other).abs().max()) <= PADDING * max(1.0, float(other.abs().max()))


def test_the_contract_says_how_it_streams(exported: list[Runtime]) -> None:
    """Ports, grid, graphs and states of a token model."""
    contract = exported[4].contract
    assert (contract.ports.length, contract.ports.flush, contract.ports.emitted) == ("length", "flush", "emitted")
    assert (contract.streaming.block_steps, contract.streaming.look_ahead_steps) == (8, 16)
    assert (contract.graphs.step, contract.graphs.whole) == ("model.onnx", "whole.onnx")
    states = {state.name: list(state.shape) for state in contract.states}
    assert states == {"pending": [23], "count": [], "h": [2, 9], "c": [2, 9]}


def test_a_grid_is_chosen_after_training() -> None:
    """The weights do not depend on it; models without a grid refuse one."""
    spec = spec_of("lstm", 1, TOKENS, 8, 16)
    other = on_grid(spec, 4, None)
    assert (other.block_steps, other.look_ahead_steps) == (4, 16)  # type: ignore[attr-defined]  # it is a BidirectionalSpec
    assert on_grid(spec, None, None) is spec
    with pytest.raises(OptionError, match="got a recurrent model, expected a bidirectional one"):
        on_grid(all_examples()["lstm"], 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "rnn_tanh"}, "cell: got 'rnn_tanh', expected one of lstm, gru"),
        ({"block_steps": 0}, "block_steps: got 0, expected at least 1"),
        ({"look_ahead_steps": -1}, "look_ahead_steps: got -1, expected 0 or more"),
        ({"block_steps": 1, "look_ahead_steps": 0}, "look_ahead_steps: got 0, expected at least 1 with blocks of 1"),
        ({"heads": (QuantileHead((1,), (0.5,)),)}, "heads: got QuantileHead"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, object], message: str) -> None:
    """Each by its field, with what came and what was expected."""
    fields: dict[str, object] = {"cell": "lstm", "layers": 1, "hidden": 4, "input": VALUES, "heads": (TokenHead(4),)}
    with pytest.raises(RecipeError, match=message):
        BidirectionalSpec(**(fields | change))  # type: ignore[arg-type]  # wrong on purpose


def test_a_recipe_gives_a_specification() -> None:
    """The table's embedding and grid arrive; input and head follow from the data."""
    table = BidirectionalArchitecture("gru", 16, 2, 5, 0.1, 4, 9)
    expected = BidirectionalSpec("gru", 2, 16, TokenInput(11, 5), (TokenHead(11),), 0.1, 4, 9)
    assert table.spec(TokenInput(11), (TokenHead(11),)) == expected


def rewrite(path: Path, output: str, other: str, operator: str = "Identity") -> None:
    """Let a graph's output be made of another tensor of it; what the output was is called `<output>_unused`."""
    model = onnx.load(path)
    for node in model.graph.node:
        if output in node.output:
            node.output[list(node.output).index(output)] = f"{output}_unused"
    model.graph.node.add(op_type=operator, input=[other], output=[output])
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("output", "other", "operator", "message"),
    [
        ("h_next", "h_after", "Identity", "state 'h' after a flush: got another than the initial value"),
        ("y", "y_unused", "Exp", "holds values beyond the"),
        ("emitted", "consumed", "Identity", "state 'count' after a flush: got another than the initial value"),
    ],
)
def test_a_broken_step_graph_is_found(output: str, other: str, operator: str, message: str, tmp_path: Path) -> None:
    """A flush that keeps the state, outputs that are not emitted, and counts that are wrong: without a checkpoint."""
    write(spec_of("gru", 1, VALUES, 4, 3), tmp_path)
    rewrite(tmp_path / "model.onnx", output, other, operator)
    with pytest.raises((ContractError, VerificationError), match=message):
        verify(tmp_path / "model.onnx")


def test_a_whole_graph_of_other_weights_is_found(tmp_path: Path) -> None:
    """Step and whole graph must agree where the look-ahead covers the sequence."""
    spec = spec_of("gru", 1, VALUES, 4, 3)
    write(spec, tmp_path)
    write(spec_of("gru", 2, VALUES, 4, 3), tmp_path / "other")
    (tmp_path / "other" / "whole.onnx").replace(tmp_path / "whole.onnx")
    with pytest.raises(VerificationError, match="differs from its whole graph"):
        verify(tmp_path / "model.onnx")


def test_a_file_on_another_grid_than_it_says_is_found(tmp_path: Path) -> None:
    """The contract's look-ahead changed by hand: the file is refused, and stays as it was."""
    runtime = write(spec_of("gru", 1, VALUES, 4, 3), tmp_path)
    runtime.contract.streaming.look_ahead_steps = 8
    write_contract(tmp_path / "model.onnx", runtime.contract)
    with pytest.raises((ContractError, VerificationError)):
        verify(tmp_path / "model.onnx")
