"""The commands, end to end: recipe file to verified model, and failures as messages with exit code 1."""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eddy.training.__main__ import main
from eddy.training.commands import add_parsers
from eddy.training.contract import load_model, read_contract, write_contract

MODELS = Path(__file__).parents[2] / "models"

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


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from eddy.training.__main__ import main
sys.exit(main(sys.argv[1:]))
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
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoint.pt", "curve.json", "curve.svg", "figures.json",
    ]  # fmt: skip
    assert main(["export", str(run / "checkpoint.pt"), "--output", str(model)]) == 0
    assert "bitwise over" in capsys.readouterr().out
    assert main(["verify", str(model / "model.onnx"), "--checkpoint", str(run / "checkpoint.pt")]) == 0
    assert "PyTorch differs by at most" in capsys.readouterr().out
    assert read_contract(model / "model.onnx").name == "river"


def test_shipped_trains_exports_and_evaluates(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train --shipped NAMES` fills the repository's folder for name and version; resumed, ended runs stay."""
    places = ["--models", str(tmp_path / "models"), "--runs", str(tmp_path / "runs"), "--device", "cpu", "--quiet"]
    words = ["train", "--shipped", str(recipe_file), *places]
    assert main([*words, "--max-steps", "3"]) == 0
    assert re.search(
        r"stopped after 3 steps, as asked, at step 3, 0 of 2 epochs done; .* resume: eddy train --shipped .* --resume$",
        capsys.readouterr().err,
    )
    assert not (tmp_path / "models").exists()
    for _ in range(2):
        assert main([*words, "--resume"]) == 0
        model = tmp_path / "models" / "river" / "1" / "model.onnx"
        figures = {figure.name: figure.value for figure in read_contract(model).training.figures}
        assert figures["bits_per_character"] < figures["bits_per_character_unigram"]
    assert (tmp_path / "runs" / "river" / "checkpoint.pt").exists()


def test_evaluate_replaces_figures_and_nothing_else(
    recipe_file: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures that were lost come back from the model file alone; the graph keeps its bytes; other data is refused."""
    run, model = tmp_path / "run", tmp_path / "river" / "1" / "model.onnx"
    assert main(["train", str(recipe_file), "--output", str(run), "--device", "cpu", "--quiet"]) == 0
    assert main(["export", str(run / "checkpoint.pt"), "--output", str(model.parent)]) == 0
    before, card = load_model(model), (model.parent / "README.md").read_text()
    contract = read_contract(model)
    wanted = {figure.name: figure.value for figure in contract.training.figures}
    for figure in contract.training.figures:
        if figure.name.startswith("bits"):
            figure.value = 99
    write_contract(model, contract)
    assert main(["evaluate", str(model.parent), "--recipe", str(recipe_file)]) == 0
    found = {figure.name: figure.value for figure in read_contract(model).training.figures}
    # PyTorch measured first, ONNX Runtime now: both sum float32 logits, in other orders.
    assert found == pytest.approx(wanted, rel=1e-5)
    assert load_model(model).graph.SerializeToString(deterministic=True) == before.graph.SerializeToString(
        deterministic=True
    )
    assert (model.parent / "README.md").read_text() == card
    capsys.readouterr()
    text_copy = tmp_path / "other.txt"
    text_copy.write_text(text_file.read_text())
    recipe_file.write_text(RECIPE.format(source=text_copy.as_posix()), encoding="utf-8")
    assert main(["evaluate", str(model), "--recipe", str(recipe_file)]) == 1
    assert "DataError" in capsys.readouterr().err


def test_sample_is_the_same_for_a_seed(text_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a shipped model and from a run's folder: prompt and text, the same for a seed; unknown signs are named."""
    for model in (str(MODELS / "text-gru"), str(text_checkpoint.parent)):
        texts = []
        for seed in ("3", "3", "4"):
            words = ["sample", model, "--prompt", "the ", "--length", "40", "--seed", seed, "--top-k", "8"]
            assert main(words) == 0
            texts.append(capsys.readouterr().out)
        assert texts[0].startswith("the ")
        assert len(texts[0]) == 4 + 40 + 1
        assert texts[0] == texts[1] != texts[2]
    assert main(["sample", str(MODELS / "text-gru"), "--prompt", "a\N{SNOWMAN}", "--length", "1"]) == 0
    assert capsys.readouterr().err == "eddy sample: not in the vocabulary, read as unknown: '\N{SNOWMAN}'\n"


def test_sampling_and_plotting_a_model_file_need_no_torch(tmp_path: Path) -> None:
    """In a process where torch cannot be imported, a model file writes, is drawn and is evaluated."""
    copy = tmp_path / "forecast-gru"
    shutil.copytree(MODELS / "forecast-gru", copy)
    for words in (
        ["sample", str(MODELS / "text-gru"), "--length", "5"],
        ["plot", str(MODELS / "forecast-gru"), "--steps", "20"],
        ["evaluate", str(copy)],
    ):
        done = subprocess.run(  # noqa: S603  # our own command
            [sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "OptionError: recipe: got 0, expected one: a TOML file or one of "),
        (["train", "text-gru", "--models", "x"], "OptionError: --models: got it without --shipped"),
        (["train", "--shipped", "--output", "x"], "OptionError: --output: got it with --shipped"),
        (["train", "text-gru", "--max-steps", "0"], "OptionError: --max-steps: got 0, expected at least 1"),
        (["train", "text-gru", "--resume", "--overwrite"], "OptionError: --overwrite: got it with --resume"),
        (
            ["train", "text-gru", "--output", "nothing", "--resume"],
            "CheckpointError: nothing/checkpoint.pt: got no such",
        ),
        (["sample", "forecast-gru"], "ContractError: models/forecast-gru/1/model.onnx: vocabulary: got none, expected"),
        (["sample", "text-gru", "--temperature", "-1"], "OptionError: temperature: got -1.0, expected 0 or more"),
        (["sample", "text-gru", "--prompt", ""], "OptionError: prompt: got nothing, expected at least one character"),
        (["sample", "nobody"], "LocationError: nobody: got no model there, expected an ONNX file, a folder with"),
        (["plot", "forecast-gru", "--horizon", "5"], "OptionError: horizon: got 5, expected one of 1, 3, 6, 9, 12"),
        (
            ["plot", "forecast-gru", "--start", "99999"],
            "OptionError: start: got 99999 and 288 steps, expected at least 2",
        ),
        (["plot", "forecast-gru", "--target", "b"], "OptionError: target: got 'b', expected one of glucose"),
        (["plot", "text-gru", "--horizon", "1"], "OptionError: --horizon: got it with a text model"),
        (
            ["plot", "text-gru", "--data", "nothing"],
            "DataError: nothing: no such file, expected data that the model has",
        ),
        (
            ["plot", "text-gru", "--output", "x.png"],
            "OptionError: --output: got 'x.png', expected a file name that ends",
        ),
    ],
)
def test_errors_are_one_line_with_the_fix(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, nothing on standard output, and one line on standard error that says what was expected."""
    monkeypatch.chdir(MODELS.parent)
    assert main(words) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"eddy {words[0]}: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("name", ["train", "export", "verify", "evaluate", "sample", "plot"])
def test_help_has_examples_that_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command's help ends with examples, and its own parser accepts each of them."""
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    shown = capsys.readouterr().out
    lines = shown[shown.index("examples:") :].splitlines()[1:]
    assert lines
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers(dest="command"))
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "eddy"
        assert parser.parse_args(words[1:]).command == name


def test_failures_are_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe, a checkpoint and a model that are not there: exit code 1, the reason on standard error."""
    missing = str(tmp_path / "missing")
    for command, reason in (("train", "RecipeError"), ("export", "CheckpointError"), ("verify", "ContractError")):
        assert main([command, missing]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith(f"eddy {command}: {reason}: ")
        assert "missing" in captured.err
        assert captured.out == ""
