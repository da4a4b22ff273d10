"""Generation: what a character model writes on its own, from a model file and from a checkpoint."""

from pathlib import Path

import numpy as np
import pytest

from eddy.training.contract import read_contract
from eddy.training.data import UNKNOWN, Tokens, Vocabulary
from eddy.training.errors import CheckpointError, ContractError, OptionError
from eddy.training.generation import Logits, OnnxStream, Sampling, continue_text
from eddy.training.reference import TorchStream

MODELS = Path(__file__).parents[2] / "models"
VOCABULARY = Vocabulary((UNKNOWN, *"abcd"))


class Fixed:
    """A model whose logits are always the same; the unknown symbol is by far the likeliest, then a, b, c, d."""

    def read(self, tokens: Tokens) -> Logits:
        """The logits, once for every token."""
        return np.tile(np.array([50.0, 4.0, 3.0, 2.0, 1.0]), (len(tokens), 1))


def write(**options: float) -> str:
    """What the fixed model writes with these options."""
    return "".join(continue_text(Fixed(), VOCABULARY, "a", Sampling(length=200, **options)))  # type: ignore[arg-type]


def test_generated_text_follows_the_seed(text_checkpoint: Path) -> None:
    """The asked-for length, only known symbols, the same text for the same seed and another for another."""
    texts = []
    for seed in (1, 1, 2):
        stream = TorchStream(text_checkpoint)
        sampling = Sampling(length=60, seed=seed)
        texts.append("".join(continue_text(stream, stream.vocabulary, "the river", sampling)))
    assert len(texts[0]) == 60
    assert UNKNOWN not in texts[0]
    assert texts[0] == texts[1] != texts[2]


def test_a_stream_keeps_its_state_between_reads() -> None:
    """Tokens read one by one are answered as when they are read at once, and another way than from a fresh state."""
    path = MODELS / "text-gru" / "1" / "model.onnx"
    tokens = OnnxStream(path).vocabulary.encode("def f(x):")
    whole = OnnxStream(path).read(tokens)
    stream = OnnxStream(path)
    pieces = np.concatenate([stream.read(tokens[i : i + 1]) for i in range(len(tokens))])
    # One row alone, cut in other ways than verification does.
    assert np.allclose(pieces, whole, atol=1e-4)
    assert not np.allclose(OnnxStream(path).read(tokens[-1:]), whole[-1:], atol=0.1)


def test_temperature_and_top_k_narrow_the_choice() -> None:
    """Temperature 0 writes the likeliest only, top 2 the likeliest two; a high temperature all, but never unknown."""
    assert set(write(temperature=0)) == {"a"}
    assert set(write(top_k=1, temperature=5)) == {"a"}
    assert set(write(top_k=2, temperature=5)) == {"a", "b"}
    assert set(write(temperature=50)) == set("abcd")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("length", 0, "length: got 0, expected at least 1"),
        ("temperature", -0.5, "temperature: got -0.5, expected 0 or more"),
        ("temperature", float("nan"), "temperature: got nan"),
        ("top_k", 0, "top_k: got 0, expected at least 1"),
        ("seed", -1, "seed: got -1, expected 0 or more"),
    ],
)
def test_impossible_options_are_refused(option: str, value: float, message: str) -> None:
    """The message names the option, what came and what was expected."""
    with pytest.raises(OptionError, match=message):
        Sampling(**{option: value})  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="prompt: got nothing"):
        next(continue_text(Fixed(), VOCABULARY, "", Sampling()))


def test_forecasters_do_not_write(series_checkpoint: Path) -> None:
    """A model without characters is refused by name, as file and as checkpoint."""
    path = MODELS / "forecast-gru" / "1" / "model.onnx"
    assert not read_contract(path).vocabulary.symbols
    with pytest.raises(ContractError, match="vocabulary: got none, expected a model of characters"):
        OnnxStream(path)
    with pytest.raises(CheckpointError, match="symbols: got none, expected a model of characters"):
        TorchStream(series_checkpoint)
