"""The encoder-decoder and its two graphs: padding changes nothing, attention stays inside the source."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eddy.training.errors import ContractError, RecipeError
from eddy.training.export import draw_model, write_example
from eddy.training.families.registry import all_examples, family_of
from eddy.training.families.translation.model import NOTHING, TranslationModel
from eddy.training.families.translation.spec import TranslationSpec
from eddy.training.runtime import Runtime, Tensors
from eddy.training.spec import FeatureInput, TokenHead, TokenInput
from eddy.v1 import contract_pb2 as pb

EXAMPLES = [name for name, spec in all_examples().items() if isinstance(spec, TranslationSpec)]
WITH_ATTENTION = [name for name in EXAMPLES if name != "translation-no-attention"]
# torch's kernels may order sums otherwise in batches of other shapes; the ONNX graphs are compared bit for bit.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
LENGTHS = np.array([1, 9, 4, 7], np.int64)


def draw(seed: int = 0) -> Tensors:
    """Four sources of different lengths, and 11 steps of targets."""
    rng = np.random.default_rng(seed)
    return {
        "source": rng.integers(0, 17, (4, 9)),
        "source_length": LENGTHS,
        "tokens": rng.integers(0, 17, (4, 11)),
    }


def model_of(name: str) -> TranslationModel:
    """An untrained model of an example."""
    model = draw_model(all_examples()[name], 3)
    assert isinstance(model, TranslationModel)
    return model


def graph_of(name: str, folder: Path) -> tuple[Runtime, pb.ModelContract]:
    """The same model's graphs, ready to run."""
    contract = write_example(name, folder, seed=3, is_verified=False)
    return Runtime(folder / "model.onnx", contract), contract


@pytest.mark.parametrize("name", EXAMPLES)
def test_rows_one_by_one_are_rows_of_a_batch(name: str) -> None:
    """In torch: a padded batch answers for each row as the row does alone, without its padding."""
    model, given = model_of(name), draw()
    with torch.no_grad():
        tokens, source = torch.from_numpy(given["tokens"]), torch.from_numpy(given["source"])
        logits, _ = model(source, torch.from_numpy(LENGTHS), tokens)
        for row, length in enumerate(LENGTHS):
            alone, _ = model(source[row : row + 1, :length], torch.tensor([length]), tokens[row : row + 1])
            torch.testing.assert_close(alone[0], logits[row], **CLOSE)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_stands_in_the_padding_changes_no_bit(name: str, tmp_path: Path) -> None:
    """In ONNX: other symbols and fewer or more places beyond a row's length, the same states and outputs."""
    runtime, _ = graph_of(name, tmp_path)
    given = draw()
    expected = runtime.run(given, 4)
    states = runtime.prime({key: given[key] for key in ("source", "source_length")})
    other = draw(seed=8) | {"tokens": given["tokens"]}
    inside = np.arange(9) < LENGTHS[:, None]
    other["source"] = np.where(inside, given["source"], other["source"])
    for key, value in runtime.prime({key: other[key] for key in ("source", "source_length")}).items():
        np.testing.assert_array_equal(value, states[key])
    for key, value in runtime.run(other, 4).items():
        np.testing.assert_array_equal(value, expected[key])
    short = {"source": given["source"][2:3, :4].repeat(2, 0), "source_length": np.array([4, 4])}
    for key, value in runtime.prime(short).items():
        np.testing.assert_array_equal(value, states[key][[2, 2]])


@pytest.mark.parametrize("name", EXAMPLES)
def test_prime_and_steps_are_teacher_forcing(name: str, tmp_path: Path) -> None:
    """The prime graph, then the step graph symbol by symbol, answer as torch does to source and target at once."""
    runtime, _ = graph_of(name, tmp_path)
    given, model = draw(), model_of(name)
    found = runtime.run(given, 1)
    with torch.no_grad():
        logits, weights = model(*(torch.from_numpy(given[key]) for key in ("source", "source_length", "tokens")))
    np.testing.assert_allclose(found["logits"], logits.numpy(), **CLOSE)
    if weights is not None:
        np.testing.assert_allclose(found["attention"], weights.numpy(), **CLOSE)


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_attention_stays_inside_the_source(name: str, tmp_path: Path) -> None:
    """Weights sum to 1 over the source's symbols and are exactly 0 beyond; so are the memory's places."""
    runtime, _ = graph_of(name, tmp_path)
    given = draw()
    attention = runtime.run(given, 5)["attention"]
    states = runtime.prime({key: given[key] for key in ("source", "source_length")})
    beyond = np.arange(9) >= LENGTHS[:, None]
    np.testing.assert_allclose(attention.sum(-1), 1.0, atol=1e-6)
    assert not attention[np.repeat(beyond[:, None], 11, 1)].any()
    assert (attention[np.repeat(~beyond[:, None], 11, 1)] > 0).all()
    assert not states["memory"][beyond].any()
    assert (states["words"][beyond] == 17).all()
    np.testing.assert_array_equal(states["mask"], np.where(beyond, np.float32(NOTHING), np.float32(0)))


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_source_reaches_the_answer(name: str, tmp_path: Path) -> None:
    """Another source gives another answer, from the first step on; none at all gives the initial states' answer."""
    runtime, _ = graph_of(name, tmp_path)
    given, other = draw(), draw(seed=5)
    first = runtime.run(given, 11)["logits"]
    assert not np.isclose(first, runtime.run(given | {"source": other["source"]}, 11)["logits"])[:, 0].all()
    without = {"tokens": given["tokens"]}
    expected = family_of(all_examples()[name]).reference(model_of(name), without)
    for key, value in runtime.run(without, 3).items():
        np.testing.assert_allclose(value, expected[key], **CLOSE)


def test_the_contract_tells_prime_states_and_attention(tmp_path: Path) -> None:
    """What a service needs to know: which states are read only, the source's port and its length's, places."""
    _, contract = graph_of("translation-lstm", tmp_path)
    assert contract.task == pb.TASK_TRANSLATION
    assert contract.graphs.prime == "prime.onnx"
    assert (tmp_path / "prime.onnx").is_file()
    assert contract.ports.prime_length == "source_length"
    assert [port.name for port in contract.prime_inputs] == ["source"]
    assert contract.max_prime_steps == 9
    assert [(s.name, s.next_name, s.immutable, list(s.shape)) for s in contract.states] == [
        ("memory", "", True, [9, 12]),
        ("words", "", True, [9]),
        ("mask", "", True, [9]),
        ("h", "h_next", False, [1, 12]),
        ("c", "c_next", False, [1, 12]),
    ]
    assert [(port.name, list(port.shape)) for port in contract.outputs] == [("logits", [17]), ("attention", [9])]


def test_without_attention_the_decoder_has_its_own_state_alone(tmp_path: Path) -> None:
    """No memory, no attention: the encoder's last state is everything."""
    _, contract = graph_of("translation-no-attention", tmp_path)
    assert [state.name for state in contract.states] == ["h"]
    assert [port.name for port in contract.outputs] == ["logits"]


def test_impossible_shapes_and_other_inputs_are_refused() -> None:
    """By field, with what came and what was expected."""
    tokens, symbols = TokenInput(17, 6), (TokenHead(17),)
    with pytest.raises(RecipeError, match="hidden: got 13, expected an even number"):
        TranslationSpec("gru", 13, tokens, symbols)
    with pytest.raises(RecipeError, match="cell: got 'rnn_tanh', expected one of gru, lstm"):
        TranslationSpec("rnn_tanh", 12, tokens, symbols)
    with pytest.raises(RecipeError, match=r"input: got .*, expected tokens"):
        TranslationSpec("gru", 12, FeatureInput((0.0,), (1.0,)), symbols)
    with pytest.raises(RecipeError, match=r"heads: got .*18.*, expected .*17"):
        TranslationSpec("gru", 12, tokens, (TokenHead(18),))
    name = "translation-gru"
    with pytest.raises(ContractError, match=r"reads \['source', 'tokens'\], the checkpoint"):
        family_of(all_examples()[name]).reference(model_of(name), {key: draw()[key] for key in ("source", "tokens")})
