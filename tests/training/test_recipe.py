"""Recipes: what is accepted, and how everything else is refused."""

from pathlib import Path
from typing import Any

import pytest

from eddy.training.errors import RecipeError
from eddy.training.recipe import RECIPES, load_recipe, parse_recipe
from eddy.training.tasks.series_data import SeriesSource

Tables = dict[str, Any]

# Every shipped model has a recipe, and the other way round.
SHIPPED = sorted(path.name for path in (Path(__file__).parents[2] / "models").iterdir() if path.is_dir())


def test_shipped_recipes_load_by_name() -> None:
    """Every shipped recipe is valid and called like its file; each of its precisions is a model of its own."""
    names = sorted(path.stem for path in RECIPES.glob("*.toml"))
    recipes = [load_recipe(Path(name)) for name in names]
    assert [recipe.name for recipe in recipes] == names
    models = [recipe.model_name(precision) for recipe in recipes for precision in recipe.precisions]
    assert sorted(models) == SHIPPED
    assert "text-lstm-2layer-int8" in models


def test_precisions_are_a_list_of_known_ones(text_table: Tables) -> None:
    """Float32 alone where none are named."""
    assert parse_recipe(text_table).precisions == ("float32",)
    assert parse_recipe(text_table | {"precisions": ["float32", "int8"]}).precisions == ("float32", "int8")
    for came in ([], ["int4"], "int8"):
        with pytest.raises(RecipeError, match="precisions: got"):
            parse_recipe(text_table | {"precisions": came})


def test_a_recipe_survives_plain_values(series_table: Tables) -> None:
    """A recipe written as tables and parsed again is equal."""
    recipe = parse_recipe(series_table)
    assert parse_recipe(recipe.to_dict()) == recipe
    assert isinstance(recipe.data, SeriesSource)
    assert recipe.data.quantiles == (0.1, 0.5, 0.9)


def test_unknown_keys_are_refused_and_the_allowed_named(text_table: Tables) -> None:
    """A misspelt key is an error in every table, not a silent default."""
    with pytest.raises(RecipeError, match=r"recipe: unknown key 'modle'; allowed: name, description, data, model"):
        parse_recipe(text_table | {"modle": {}})
    typo = text_table["training"] | {"learning_rat": 0.1}
    with pytest.raises(RecipeError, match=r"training: unknown key 'learning_rat'; allowed: epochs, .*learning_rate"):
        parse_recipe(text_table | {"training": typo})
    with pytest.raises(RecipeError, match=r"model: unknown key 'units'; allowed: cell, hidden"):
        parse_recipe(text_table | {"model": text_table["model"] | {"units": 3}})


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("training", "epochs", 0, r"training.epochs: got 0, expected at least 1"),
        ("training", "epochs", "9", r"training.epochs: got '9', expected a value of type int"),
        ("training", "epochs", True, r"training.epochs: got True, expected a value of type int"),
        ("training", "learning_rate", -1, r"training.learning_rate: got -1.0, expected above 0"),
        ("training", "reset_share", 2.0, r"training.reset_share: got 2.0, expected a share"),
        ("model", "cell", "transformer", r"model.cell: got 'transformer', expected one of rnn_tanh"),
        ("model", "hidden", 1.5, r"model.hidden: got 1.5, expected a value of type int"),
        ("model", "dropout", 1.0, r"model.dropout: got 1.0, expected a share in \[0, 1\)"),
        ("data", "kind", "video", r"data.kind: got 'video', expected 'text' or "),
        ("data", "min_count", 0, r"data.min_count: got 0, expected at least 1"),
    ],
)
def test_impossible_values_are_refused_by_name(
    text_table: Tables, part: str, key: str, value: Any, message: str
) -> None:
    """The message names the key, what came and what was expected."""
    text_table[part][key] = value
    with pytest.raises(RecipeError, match=message):
        parse_recipe(text_table)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("target", "depth", r"data.target: got 'depth', expected one of phase, level"),
        ("columns", "level", r"data.columns: got 'level', expected a list of str"),
        ("horizons", [], r"data.horizons: got \(\), expected at least one horizon"),
        ("horizons", [1, 2.5], r"data.horizons: got 2.5, expected a value of type int"),
        ("horizons", [0, 1], r"data.horizons: got \(0, 1\), expected steps ahead"),
    ],
)
def test_impossible_series_are_refused_by_name(series_table: Tables, key: str, value: Any, message: str) -> None:
    """A series' own keys are checked as the others are."""
    series_table["data"][key] = value
    with pytest.raises(RecipeError, match=message):
        parse_recipe(series_table)


def test_a_version_is_a_whole_number(text_table: Tables) -> None:
    """It becomes a folder's name, so text and zero are refused."""
    assert parse_recipe(text_table | {"version": 3}).version == 3
    with pytest.raises(RecipeError, match="version: got '2', expected a value of type int"):
        parse_recipe(text_table | {"version": "2"})
    with pytest.raises(RecipeError, match="version: got 0, expected 1 or more"):
        parse_recipe(text_table | {"version": 0})


def test_missing_parts_are_named(text_table: Tables) -> None:
    """A missing table, a missing key and a missing name are each said."""
    with pytest.raises(RecipeError, match=r"model: got None, expected a table \[model\]"):
        parse_recipe({"data": {}})
    nameless = {key: value for key, value in text_table.items() if key != "name"}
    with pytest.raises(RecipeError, match="name: got None, expected text"):
        parse_recipe(nameless)
    del text_table["data"]["licence"]
    with pytest.raises(RecipeError, match="data: missing licence"):
        parse_recipe(text_table)


def test_a_name_cannot_leave_the_repository(text_table: Tables) -> None:
    """The name becomes a folder, so separators and leading dots are refused."""
    for name in ("../x", "a/b", ".hidden", ""):
        with pytest.raises(RecipeError, match="name: got"):
            parse_recipe(text_table | {"name": name})


def test_unreadable_recipes_are_refused(tmp_path: Path) -> None:
    """No such file (the shipped ones are listed), and a file that is not TOML."""
    with pytest.raises(RecipeError, match=r"no file .*shipped recipes: .*forecast-gru, "):
        load_recipe(tmp_path / "nothing")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ", encoding="utf-8")
    with pytest.raises(RecipeError, match="not readable as TOML"):
        load_recipe(broken)
