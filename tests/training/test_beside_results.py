"""What stands beside a result: baselines wherever figures are shown, and shipped figures that can be measured again."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from eddy.training.__main__ import main
from eddy.training.checkpoint import load_checkpoint
from eddy.training.contract import read_contract
from eddy.training.errors import Stopped
from eddy.training.figures import Figure, compare_figures
from eddy.training.recipe import RECIPES, Recipe
from eddy.training.stop import Stop
from eddy.training.tasks.registry import BASELINES
from eddy.training.train import train

MODELS = Path(__file__).parents[2] / "models"
NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))
TEXT = ("_unigram", "_bigram", "_4gram")
SERIES = ("_last_value", "_seasonal_last_value", "_linear")


def figures(path: Path) -> dict[str, Any]:
    """The figures in a model's contract."""
    return {figure.name: figure.value for figure in read_contract(path).training.figures}


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_figure_stands_beside_its_baselines(name: str) -> None:
    """In the contract and on the card, under the baseline's name; a forecaster's at each horizon."""
    folder = MODELS / name / "1"
    found = [Figure(key, value, "") for key, value in figures(folder / "model.onnx").items()]
    card = (folder / "README.md").read_text(encoding="utf-8")
    compared = compare_figures(found, BASELINES)
    assert len(compared) >= (12 if name.startswith("forecast") else 1)
    for comparison in compared:
        for value in (comparison.figure.value, *comparison.baselines.values()):
            written = f" {value:.1f} |" if comparison.figure.name.startswith(("bleu", "chrf")) else f" {value:.3f} |"
            assert written in card or f" {value:.1%} |" in card or f" {value:.2%} |" in card, comparison
        for baseline in comparison.baselines:
            assert f"| {BASELINES[baseline]} |" in card


def test_shipped_figures_can_be_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The forecaster's figures and its baselines', from its file and the data, are those that it ships with."""
    folder = tmp_path / "forecast-gru"
    shutil.copytree(MODELS / "forecast-gru", folder)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["evaluate", str(folder)]) == 0
    shown = capsys.readouterr().out
    found = figures(folder / "1" / "model.onnx")
    # Float32 outputs of another build of ONNX Runtime or another processor.
    assert found == pytest.approx(figures(MODELS / "forecast-gru" / "1" / "model.onnx"), rel=1e-4)
    assert re.search(r"this model +┃ linear +┃ last value +┃ seasonal last value", shown)
    for measure in ("mae", "pinball_loss"):
        [line] = [line for line in shown.splitlines() if line.startswith(f"│ {measure} ")]
        values = [float(cell) for cell in line.strip("│").split("│")[2:]]
        assert values == pytest.approx(
            [found[measure + baseline] for baseline in ("", "_linear", "_last_value", "_seasonal_last_value")], rel=1e-3
        )


@pytest.mark.parametrize(("kind", "baselines"), [("text_checkpoint", TEXT), ("series_checkpoint", SERIES)])
def test_runs_show_baselines(kind: str, baselines: tuple[str, ...], request: pytest.FixtureRequest) -> None:
    """A run's figures have them, and so has the picture of its learning curve."""
    checkpoint: Path = request.getfixturevalue(kind)
    names = {figure.name for figure in load_checkpoint(checkpoint).figures}
    for measure in ("bits_per_character",) if kind == "text_checkpoint" else ("mae", "pinball_loss"):
        assert {measure, *(measure + baseline for baseline in baselines)} <= names
    picture = (checkpoint.parent / "curve.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(picture).tag.endswith("svg")  # noqa: S314  # our own document
    words = ("4-grams", "pairs") if kind == "text_checkpoint" else ("last value", "linear")
    for word in ("training", "validation", "best: epoch", *words):
        assert word in picture


def test_a_stopped_run_can_be_heard_and_seen(
    text_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint that a stop leaves writes text, and its learning curve is drawn, before the run goes on."""
    with pytest.raises(Stopped):
        train(text_recipe, tmp_path, device="cpu", show_progress=False, stop=Stop(130))
    assert load_checkpoint(tmp_path / "checkpoint.pt").progress is not None
    assert main(["sample", str(tmp_path), "--prompt", "the ", "--length", "20", "--seed", "1"]) == 0
    assert len(capsys.readouterr().out) == 4 + 20 + 1
    assert main(["plot", str(tmp_path)]) == 0
    assert "learning curve" in capsys.readouterr().out


def test_sample_and_plot_are_commands_of_eddy(tmp_path: Path) -> None:
    """By the one command that users have, on a shipped model's name."""
    for words in (
        ["sample", "text-rnn", "--length", "9"],
        ["plot", "forecast-gru", "--output", str(tmp_path / "f.svg")],
    ):
        done = subprocess.run(  # noqa: S603  # our own command
            [sys.executable, "-m", "eddy.cli", *words], capture_output=True, text=True, check=False, cwd=MODELS.parent
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout
    assert (tmp_path / "f.svg").read_text(encoding="utf-8").startswith("<svg")
