"""Small real files and small trained models, made once and used by every test that only reads them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from eddy.training.recipe import Recipe, parse_recipe
from eddy.training.train import train

LINE = "the river turns back on itself, and what it carried turns with it.\n"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread, as `eddy train` uses: only so do two runs give the same weights."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short English text, 80 lines."""
    path = tmp_path_factory.mktemp("text") / "river.txt"
    path.write_text("".join(f"{i % 7} {LINE}" for i in range(80)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def series_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two columns: a wave of 24 steps around 10 that drifts, and its phase; 600 rows."""
    path = tmp_path_factory.mktemp("series") / "wave.csv"
    rows = [f"{i},{10 + 5 * math.sin(i * math.tau / 24) + i / 200:.4f},{i % 24}" for i in range(600)]
    path.write_text("\n".join(["step,level,phase", *rows]) + "\n", encoding="utf-8")
    return path


def _text_table(path: Path) -> dict[str, Any]:
    """A recipe's tables for a tiny character model."""
    return {
        "name": "tiny-text",
        "description": "A tiny character model",
        "data": {"kind": "text", "source": str(path), "licence": "CC0-1.0"},
        "model": {"cell": "lstm", "hidden": 12, "embedding": 6},
        "training": {"epochs": 3, "streams": 4, "steps": 16, "learning_rate": 0.02},
    }


def _series_table(path: Path) -> dict[str, Any]:
    """A recipe's tables for a tiny forecaster with two features."""
    return {
        "name": "tiny-forecast",
        "description": "A tiny forecaster",
        "data": {
            "kind": "series",
            "source": str(path),
            "licence": "CC0-1.0",
            "columns": ["phase", "level"],
            "target": "level",
            "unit": "m",
            "meaning": "water level",
            "step_seconds": 3600,
            "season_steps": 24,
            "horizons": [1, 6],
        },
        "model": {"cell": "gru", "hidden": 16, "layers": 2},
        "training": {"epochs": 25, "streams": 4, "steps": 24, "learning_rate": 0.02},
    }


@pytest.fixture
def text_table(text_file: Path) -> dict[str, Any]:
    """The tables of the tiny character model's recipe, a fresh copy to change."""
    return _text_table(text_file)


@pytest.fixture
def series_table(series_file: Path) -> dict[str, Any]:
    """The tables of the tiny forecaster's recipe, a fresh copy to change."""
    return _series_table(series_file)


@pytest.fixture(scope="session")
def text_recipe(text_file: Path) -> Recipe:
    """The tiny character model's recipe."""
    return parse_recipe(_text_table(text_file))


@pytest.fixture(scope="session")
def series_recipe(series_file: Path) -> Recipe:
    """The tiny forecaster's recipe."""
    return parse_recipe(_series_table(series_file))


@pytest.fixture(scope="session")
def text_checkpoint(text_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny character model, trained."""
    return train(text_recipe, tmp_path_factory.mktemp("run"), device="cpu", show_progress=False)


@pytest.fixture(scope="session")
def series_checkpoint(series_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny forecaster, trained."""
    return train(series_recipe, tmp_path_factory.mktemp("run"), device="cpu", show_progress=False)
