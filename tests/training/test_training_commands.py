"""The commands, end to end: recipe file to verified model, and failures as messages with exit code 1."""

from pathlib import Path

import pytest

from eddy.training.__main__ import main
from eddy.training.contract import read_contract

RECIPE = """
name = "river"
description = "A tiny character model"

[data]
kind = "text"
source = "{source}"
licence = "CC0-1.0"

[model]
cell = "rnn_tanh"
hidden = 12
layers = 2
embedding = 6

[training]
epochs = 2
streams = 4
steps = 16
"""


@pytest.fixture
def recipe_file(text_file: Path, tmp_path: Path) -> Path:
    """A recipe for the tiny text, as a TOML file."""
    path = tmp_path / "river.toml"
    path.write_text(RECIPE.format(source=text_file.as_posix()), encoding="utf-8")
    return path


def test_train_export_verify(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way, by the commands that a user types."""
    run, model = tmp_path / "run", tmp_path / "models" / "river" / "1"
    assert main(["train", str(recipe_file), "--output", str(run), "--device", "cpu", "--quiet"]) == 0
    assert "bits_per_character" in capsys.readouterr().out
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint.pt", "figures.json"]
    assert main(["export", str(run / "checkpoint.pt"), "--output", str(model)]) == 0
    assert "bitwise over" in capsys.readouterr().out
    assert main(["verify", str(model / "model.onnx"), "--checkpoint", str(run / "checkpoint.pt")]) == 0
    assert "PyTorch differs by at most" in capsys.readouterr().out
    assert read_contract(model / "model.onnx").name == "river"


def test_models_makes_what_it_is_asked_for(recipe_file: Path, tmp_path: Path) -> None:
    """`models NAME` trains and exports into the repository's folder for name and version."""
    places = ["--output", str(tmp_path / "models"), "--runs", str(tmp_path / "runs")]
    assert main(["models", str(recipe_file), *places, "--device", "cpu", "--quiet"]) == 0
    assert (tmp_path / "models" / "river" / "1" / "model.onnx").exists()
    assert (tmp_path / "runs" / "river" / "checkpoint.pt").exists()


def test_failures_are_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe, a checkpoint and a model that are not there: exit code 1, the reason on standard error."""
    missing = str(tmp_path / "missing")
    for command, reason in (("train", "RecipeError"), ("export", "CheckpointError"), ("verify", "ContractError")):
        assert main([command, missing]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith(f"eddy {command}: {reason}: ")
        assert "missing" in captured.err
        assert captured.out == ""
