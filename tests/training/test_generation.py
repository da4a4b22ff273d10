"""Generation: what a character model writes on its own."""

from pathlib import Path

from eddy.training.checkpoint import load_checkpoint
from eddy.training.data import UNKNOWN, Vocabulary
from eddy.training.generation import continue_text


def test_generated_text_follows_the_seed(text_checkpoint: Path) -> None:
    """The asked-for length, only known symbols, the same text for the same seed and another for another."""
    source = load_checkpoint(text_checkpoint)
    model, vocabulary = source.build(), Vocabulary(source.symbols)
    first = continue_text(model, vocabulary, "the river", seed=1, length=60)
    assert len(first) == 60
    assert UNKNOWN not in first
    assert continue_text(model, vocabulary, "the river", seed=1, length=60) == first
    assert continue_text(model, vocabulary, "the river", seed=2, length=60) != first
