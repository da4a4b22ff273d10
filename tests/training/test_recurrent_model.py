"""The model definition: explicit state, and what the quantile head promises."""

import pytest
import torch

from eddy.training.errors import RecipeError
from eddy.training.families.projection import quantile_ladder
from eddy.training.families.recurrent.model import RecurrentModel
from eddy.training.families.recurrent.spec import RecurrentSpec
from eddy.training.families.shapes import spec_from_dict
from eddy.training.spec import (
    CELLS,
    FeatureInput,
    Head,
    Input,
    LinearHead,
    QuantileHead,
    TokenHead,
    TokenInput,
)

# torch picks other kernels for other lengths and batches; float32 sums then differ in the last bits.
TOLERANCE = 1e-6

TOKENS = TokenInput(vocabulary_size=11, embedding=5), TokenHead(vocabulary_size=11)
VALUES = (
    FeatureInput(mean=(3.0, -1.0), scale=(2.0, 0.5)),
    QuantileHead(horizons=(1, 4), quantiles=(0.1, 0.5, 0.9), target=1),
)


def build(cell: str, layers: int, ports: tuple[Input, Head], dropout: float = 0.0) -> RecurrentModel:
    """A model with weights from a fixed seed, in evaluation mode."""
    torch.manual_seed(3)
    return RecurrentModel(RecurrentSpec(cell, layers, 7, ports[0], (ports[1],), dropout)).eval()


def draw(model: RecurrentModel, batch: int, steps: int) -> torch.Tensor:
    """Random input of the kind the model reads."""
    if isinstance(model.spec.input, TokenInput):
        return torch.randint(11, (batch, steps))
    return torch.randn(batch, steps, model.spec.input.width)


@pytest.mark.parametrize("ports", [TOKENS, VALUES], ids=["tokens", "values"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_chunks_with_carried_state_equal_the_whole(cell: str, layers: int, ports: tuple[Input, Head]) -> None:
    """However a sequence is cut, outputs and final state are those of one call."""
    model = build(cell, layers, ports)
    x = draw(model, 3, 12)
    with torch.no_grad():
        outputs, final = model(x, model.initial_state(3))
        whole = outputs[model.spec.head.name]
        for cuts in ([1] * 12, [5, 7], [2, 9, 1]):
            state, pieces = model.initial_state(3), []
            for piece in torch.split(x, cuts, dim=1):
                outputs, state = model(piece, state)
                pieces.append(outputs[model.spec.head.name])
            torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=TOLERANCE, rtol=TOLERANCE)
            torch.testing.assert_close(state, final, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("cell", CELLS)
def test_a_row_does_not_depend_on_its_batch(cell: str) -> None:
    """Packed rows answer as each row alone, from states of their own."""
    model = build(cell, 2, VALUES)
    x, name = draw(model, 5, 4), model.spec.head.name
    with torch.no_grad():
        state = tuple(torch.rand_like(s) for s in model.initial_state(5))
        packed, after = model(x, state)
        for row in range(5):
            alone, alone_after = model(x[row : row + 1], tuple(s[row : row + 1] for s in state))
            torch.testing.assert_close(alone[name][0], packed[name][row], atol=TOLERANCE, rtol=TOLERANCE)
            for one, many in zip(alone_after, after, strict=True):
                torch.testing.assert_close(one[0], many[row], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(("cell", "names"), [("lstm", ("h", "c")), ("gru", ("h",)), ("rnn_relu", ("h",))])
def test_state_is_batch_first_and_starts_at_zero(cell: str, names: tuple[str, ...]) -> None:
    """One float32 [B, L, H] of zeros per state name."""
    model = build(cell, 2, TOKENS)
    assert model.spec.state_names == names
    state = model.initial_state(4)
    assert [tuple(s.shape) for s in state] == [(4, 2, 7)] * len(names)
    assert all(s.dtype == torch.float32 and not s.any() for s in state)


def test_output_shapes_follow_the_head() -> None:
    """Logits [B, T, V], quantiles [B, T, K, Q], plain outputs [B, T, outputs]."""
    plain = FeatureInput(mean=(0.0,), scale=(1.0,)), LinearHead(outputs=4)
    for ports, shape in ((TOKENS, (2, 3, 11)), (VALUES, (2, 3, 2, 3)), (plain, (2, 3, 4))):
        model = build("gru", 1, ports)
        assert model(draw(model, 2, 3), model.initial_state(2))[0][model.spec.head.name].shape == shape


def test_quantiles_never_cross_whatever_the_weights() -> None:
    """With weights blown up a hundredfold the quantiles still rise."""
    model = build("lstm", 1, VALUES)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(100)
        outputs, _ = model(draw(model, 8, 20), model.initial_state(8))
    assert bool((outputs["quantiles"].diff(dim=-1) >= 0).all())


def test_quantiles_start_from_the_present_value() -> None:
    """With a head of zeros every quantile is the target feature's present value, in its own units."""
    model = build("gru", 1, VALUES)
    for weight in model.get_submodule("head").parameters():
        torch.nn.init.zeros_(weight)
    x = draw(model, 2, 5)
    y = model(x, model.initial_state(2))[0]["quantiles"]
    assert torch.equal(y, x[:, :, 1, None, None].expand_as(y))


def test_quantile_ladder_measures_from_the_middle() -> None:
    """Gaps below the middle are subtracted from all below them, gaps above are added to all above them."""
    assert quantile_ladder(5).tolist() == [[-1, 0, 0, 0, 0], [-1, -1, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]


def test_dropout_acts_only_while_training() -> None:
    """Two passes in training mode differ, two in evaluation mode do not."""
    model = build("lstm", 1, TOKENS, dropout=0.5)
    x, state = draw(model, 2, 6), model.initial_state(2)
    assert torch.equal(model(x, state)[0]["logits"], model(x, state)[0]["logits"])
    model.train()
    assert not torch.equal(model(x, state)[0]["logits"], model(x, state)[0]["logits"])


@pytest.mark.parametrize("ports", [TOKENS, VALUES], ids=["tokens", "values"])
def test_specification_survives_plain_values(ports: tuple[Input, Head]) -> None:
    """A specification turned into plain values and back is equal."""
    spec = RecurrentSpec("gru", 2, 8, ports[0], (ports[1],), 0.1)
    assert spec_from_dict(spec.to_dict()) == spec


def test_impossible_specifications_are_refused_by_name() -> None:
    """The message names the field, what came and what was expected."""
    with pytest.raises(RecipeError, match=r"cell: got 'lstn', expected one of rnn_tanh, rnn_relu, lstm, gru"):
        RecurrentSpec("lstn", 1, 8, TOKENS[0], (TOKENS[1],))
    with pytest.raises(RecipeError, match=r"target: got 2, expected one of the 2 input features"):
        RecurrentSpec("gru", 1, 8, VALUES[0], (QuantileHead((1,), (0.5,), target=2),))
    with pytest.raises(RecipeError, match=r"quantiles: got \(0.9, 0.1\), expected at least one, rising"):
        QuantileHead((1,), (0.9, 0.1))
    with pytest.raises(RecipeError, match="model specification"):
        spec_from_dict({"cell": "gru"})
