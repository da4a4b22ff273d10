"""The models in the repository: present, small, verified, and better than the baselines that their cards name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from eddy.training.contract import read_contract, sample_path
from eddy.training.figures import HIGHER, Figure, compare_figures
from eddy.training.recipe import RECIPES, load_recipe
from eddy.training.tasks.registry import BASELINES, TASKS
from eddy.training.tasks.series_data import SeriesSource
from eddy.training.verify import verify

MODELS = Path(__file__).parents[2] / "models"
# A recipe's model in each of its precisions -> the recipe.
RECIPE_OF = {
    load_recipe(path).model_name(precision): load_recipe(path)
    for path in sorted(RECIPES.glob("*.toml"))
    for precision in load_recipe(path).precisions
}
NAMES = sorted(RECIPE_OF)
# What 8 bits may cost a figure of the test part, as a share of it.
INT8_LOSS = 0.005
MAX_BYTES = 3_000_000
# What the best shipped model of a task reaches at least (shares), or at most (bits), on its test part.
FLOORS = {
    "text": {"bits_per_character": 1.80},
    "clips": {"accuracy_digit": 0.95, "accuracy_direction": 0.95},
    "translation": {"bleu": 28.0, "chrf": 50.0},
}


def figures_of(name: str) -> list[Figure]:
    """The figures in a shipped model's contract."""
    contract = read_contract(MODELS / name / "1" / "model.onnx")
    return [Figure(figure.name, figure.value, figure.unit) for figure in contract.training.figures]


@pytest.mark.parametrize("name", NAMES)
def test_shipped_model_is_small_and_keeps_its_contract(name: str) -> None:
    """At most 3 MB with all its files, contract and card present, verified, a sample beside it."""
    folder = MODELS / name / "1"
    path = folder / "model.onnx"
    contract = read_contract(path)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= MAX_BYTES
    assert contract.name == name
    assert contract.numerics.bitwise or contract.numerics.tolerance <= 1e-5
    # Verification draws inputs around the mean; an output of hundreds cannot be closer than its own spacing.
    scaling = contract.inputs[0].normalization
    largest = max([1.0, *(mean + 6 * scale for mean, scale in zip(scaling.mean, scaling.scale, strict=True))])
    assert contract.numerics.parity_max_difference <= 1e-5 * largest
    assert (folder / "README.md").read_text(encoding="utf-8").startswith(f"# {name}\n")
    assert sample_path(path, contract).stat().st_size > 0


@pytest.mark.parametrize("name", NAMES)
def test_shipped_model_beats_its_baselines(name: str) -> None:
    """In every figure that baselines have too; texts and forecasts by a margin."""
    data, figures = RECIPE_OF[name].data, figures_of(name)
    compared = compare_figures(figures, BASELINES)
    assert compared
    for comparison in compared:
        if comparison.figure.name.endswith("_words"):  # By length a dictionary may be better here and there.
            continue
        for value in comparison.baselines.values():
            is_more = comparison.figure.value > value
            assert is_more == comparison.figure.name.startswith(HIGHER), comparison
    values = {figure.name: figure.value for figure in figures}
    if data.kind == "text":
        assert values["bits_per_character"] < values["bits_per_character_bigram"] - 1
        assert values["bits_per_character"] < values["bits_per_character_4gram"] - 0.1
    if isinstance(data, SeriesSource):
        _beats_forecasts(values, data)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-int8")])
def test_eight_bits_lose_little_and_gain_speed(name: str) -> None:
    """Beside the same weights in float32, which are shipped too: every figure, and calls of more than one row."""
    values = {figure.name: figure.value for figure in figures_of(name)}
    plain = {figure.name: figure.value for figure in figures_of(name.removesuffix("-int8"))}
    compared = [figure for figure in values if f"float32_{figure}" in values]
    assert compared
    for figure in compared:
        assert values[f"float32_{figure}"] == pytest.approx(plain[figure], rel=1e-5)
        assert values[figure] == pytest.approx(values[f"float32_{figure}"], rel=INT8_LOSS)
    assert min(values["speedup_16"], values["speedup_256"]) > 1
    assert read_contract(MODELS / name / "1" / "model.onnx").precision == "int8"


@pytest.mark.parametrize("kind", FLOORS)
def test_the_best_of_a_task_reaches_its_floor(kind: str) -> None:
    """The quality that the project promises of what it ships."""
    names = [name for name in NAMES if RECIPE_OF[name].data.kind == kind]
    values: list[Mapping[str, Any]] = [{f.name: f.value for f in figures_of(name)} for name in names]
    for figure, floor in FLOORS[kind].items():
        if figure.startswith(HIGHER):
            assert max(value[figure] for value in values) >= floor
        else:
            assert min(value[figure] for value in values) <= floor


def test_accents_make_half_the_errors_of_the_most_frequent_form() -> None:
    """At full context; streamed on the shipped grid within a tenth of that, which they are not without look-ahead."""
    found = {figure.name: figure.value for figure in figures_of("accents")}
    streaming = read_contract(MODELS / "accents" / "1" / "model.onnx").streaming
    exact, streamed = found["character_errors"], found[f"character_errors_look_ahead_{streaming.look_ahead_steps}"]
    assert exact <= found["character_errors_most_frequent"] / 2
    assert streamed <= 1.1 * exact < found["character_errors_look_ahead_0"]


def test_floors_are_of_known_tasks() -> None:
    """A floor whose task was renamed would never be looked at."""
    assert set(FLOORS) <= set(TASKS)


def _beats_forecasts(figures: Mapping[str, float], data: SeriesSource) -> None:
    for key in ("mae", *(f"mae_{horizon}" for horizon in data.horizons)):
        assert figures[key] < 0.85 * figures[f"{key}_last_value"]
        assert figures[key] < 0.6 * figures[f"{key}_seasonal_last_value"]
        assert figures[key] < 0.97 * figures[f"{key}_linear"]
        loss = key.replace("mae", "pinball_loss")
        for baseline in ("last_value", "seasonal_last_value", "linear"):
            assert figures[loss] < 0.95 * figures[f"{loss}_{baseline}"]
    # The interval's share may be a few points off: the last weeks differ a little from those trained on.
    assert abs(figures["interval_coverage"] - figures["interval_coverage_nominal"]) < 0.05


def test_a_shipped_model_verifies_here(tmp_path: Path) -> None:
    """The smallest shipped model passes on this machine, in a copy, since the verdict is written into the file."""
    source = min((MODELS / name / "1" / "model.onnx" for name in NAMES), key=lambda path: path.stat().st_size)
    copy = tmp_path / "model.onnx"
    copy.write_bytes(source.read_bytes())
    verify(copy)
