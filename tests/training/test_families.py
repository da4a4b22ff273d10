"""The registry of families: every variant is read back, exported and proven by the same laws."""

import re
import tomllib
from pathlib import Path

import pytest

from eddy.training.comparison import compare
from eddy.training.drawing import draw_inputs
from eddy.training.errors import RecipeError
from eddy.training.export import draw_model, write_example
from eddy.training.families.recurrent.spec import RecurrentArchitecture, RecurrentSpec
from eddy.training.families.registry import all_examples, family_of
from eddy.training.families.shapes import parse_architecture, spec_from_dict
from eddy.training.runtime import Runtime
from eddy.training.spec import TokenHead, TokenInput

# The parity law's bound; untrained models answer with values of size 1.
PARITY = 1e-5
EXAMPLES = all_examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_survives_plain_values(name: str) -> None:
    """A specification turned into plain values and back is equal, and has its family."""
    spec = EXAMPLES[name]
    assert spec_from_dict(spec.to_dict()) == spec
    assert family_of(spec).kind == spec.kind


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_keeps_the_laws(name: str, tmp_path: Path) -> None:
    """Chunks and batches agree bit for bit over all schedules, and the contract says so."""
    assert write_example(name, tmp_path).numerics.bitwise


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_equals_torch(name: str, tmp_path: Path) -> None:
    """The exported graph, fed in chunks, answers as the torch model does to the whole."""
    contract = write_example(name, tmp_path, seed=3, is_verified=False)
    inputs = draw_inputs(contract, 4, 13)
    expected = family_of(EXAMPLES[name]).reference(draw_model(EXAMPLES[name], 3), inputs)
    found = Runtime(tmp_path / "model.onnx", contract).run(inputs, 3)
    assert compare(found, expected, name).largest <= PARITY


def test_what_was_written_before_there_were_families_is_recurrent() -> None:
    """A checkpoint's specification with one `head` and no family, and a recipe's table without one."""
    before = {
        "cell": "gru",
        "layers": 2,
        "hidden": 8,
        "dropout": 0.1,
        "input": {"kind": "tokens", "vocabulary_size": 11, "embedding": 5},
        "head": {"kind": "next_token", "vocabulary_size": 11},
    }
    expected = RecurrentSpec("gru", 2, 8, TokenInput(11, 5), (TokenHead(11),), 0.1)
    assert spec_from_dict(before) == expected
    table = {"cell": "gru", "layers": 2, "hidden": 8, "dropout": 0.1, "embedding": 5}
    assert parse_architecture(table).spec(TokenInput(11), (TokenHead(11),)) == expected


def test_unknown_families_are_refused_by_name() -> None:
    """In a recipe and in a checkpoint."""
    with pytest.raises(
        RecipeError, match=r"model.family: got 'transformer', expected one of recurrent, bidirectional, translation"
    ):
        parse_architecture({"family": "transformer"})
    with pytest.raises(
        RecipeError, match=r"family: got 'transformer', expected one of recurrent, bidirectional, translation"
    ):
        spec_from_dict({"family": "transformer"})


def test_architectures_in_the_documentation_are_accepted() -> None:
    """Every [model] table of the training page is one that a recipe may have; one of them has every part."""
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    tables = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL)]
    found = [parse_architecture(table["model"]) for table in tables if "model" in table]
    assert len(found) >= 3
    assert any(isinstance(part, RecurrentArchitecture) and part.attention and part.convolutions for part in found)
