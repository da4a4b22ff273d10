"""Recipes: what to train, on what, and how, read from TOML into frozen dataclasses.

Owns: the keys of a recipe, their defaults and the reasons for them. Unknown keys are refused, so that a misspelt
option cannot silently do nothing. Must not know torch.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from eddy.training.errors import RecipeError
from eddy.training.families.shapes import parse_architecture
from eddy.training.fields import build, refuse_unknown, require, typed
from eddy.training.spec import FLOAT32, PRECISIONS, Architecture
from eddy.training.tasks.registry import find_table
from eddy.training.tasks.task import Source

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the weights are found: by AdamW.

    A long sequence is read by truncated back-propagation through time with carried state: `streams`, `steps` and
    `reset_share` say how. Separate sequences are read whole, `batch` at a time.
    """

    epochs: int
    # Parallel pieces that the training part is cut into, each read in order with its state carried along.
    streams: int = 32
    # Steps between two weight updates; gradients do not reach further back, the state does.
    steps: int = 64
    # Separate sequences of similar length that one update is made from.
    batch: int = 32
    learning_rate: float = 0.003
    weight_decay: float = 0.01
    # Largest norm of the whole gradient; recurrent gradients explode now and then.
    clip_norm: float = 1.0
    # Share of a token's probability that is asked for evenly from all symbols, of separate sequences: with few of them
    # a model is too sure of itself otherwise.
    label_smoothing: float = 0.0
    # Share of rows whose state is zeroed before a window: a session starts from zeros, so training must see them.
    reset_share: float = 0.02
    # Epochs without a better validation loss before training stops.
    patience: int = 4
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "streams", "steps", "batch", "patience"):
            require(getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "at least 1")
        for name in ("learning_rate", "clip_norm"):
            require(getattr(self, name) > 0, f"training.{name}", getattr(self, name), "above 0")
        require(self.weight_decay >= 0, "training.weight_decay", self.weight_decay, "0 or more")
        require(0 <= self.label_smoothing < 1, "training.label_smoothing", self.label_smoothing, "a share in [0, 1)")
        require(0 <= self.reset_share <= 1, "training.reset_share", self.reset_share, "a share in [0, 1]")
        require(self.seed >= 0, "training.seed", self.seed, "0 or more")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training run. The name is also the model's name in the repository.

    precisions: what a shipped model is exported in, each as a model of its own.
    """

    name: str
    description: str
    data: Source
    model: Architecture
    training: Schedule
    version: int = field(default=1)
    precisions: tuple[str, ...] = (FLOAT32,)

    def __post_init__(self) -> None:
        plain = self.name != "" and all(c.isascii() and (c.isalnum() or c in "-_.") for c in self.name)
        require(plain and not self.name.startswith("."), "name", self.name, "letters, digits, '-', '_' and '.'")
        require(self.version >= 1, "version", self.version, "1 or more")
        known = self.precisions and set(self.precisions) <= set(PRECISIONS)
        require(known, "precisions", self.precisions, f"some of {', '.join(PRECISIONS)}")

    def model_name(self, precision: str) -> str:
        """The name of the model in the repository: the recipe's, with the precision behind it unless float32."""
        return self.name if precision == FLOAT32 else f"{self.name}-{precision}"

    def to_dict(self) -> dict[str, Any]:
        """As plain values, the same layout as the TOML file; `parse_recipe` reads it back."""
        values = asdict(self)
        return values | {
            "data": {"kind": self.data.kind} | values["data"],
            "model": {"family": self.model.kind} | values["model"],
        }


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file, or the shipped recipe of that name. Raises RecipeError."""
    if path.suffix != ".toml" and not path.exists():
        path = RECIPES / f"{path.name}.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"recipe: no file {path}; shipped recipes: {', '.join(shipped_recipes())}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"recipe {path}: not readable as TOML: {error}") from error
    return parse_recipe(table)


def shipped_recipes() -> list[str]:
    """The names of the shipped recipes, in order."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def parse_recipe(table: Mapping[str, Any]) -> Recipe:
    """Build a Recipe from nested tables. Raises RecipeError naming the key, what came and what was expected."""
    allowed = [f.name for f in fields(Recipe)]
    refuse_unknown(table, allowed, "recipe")
    for name in ("data", "model", "training"):
        require(isinstance(table.get(name), Mapping), name, table.get(name), f"a table [{name}]")
    data = dict(table["data"])
    source = build(find_table(data.pop("kind", None)), data, "data")
    parts = {
        "data": source,
        "model": parse_architecture(table["model"]),
        "training": build(Schedule, table["training"], "training"),
    }
    for name in ("name", "description"):
        require(isinstance(table.get(name), str), name, table.get(name), "text")
    typed(table.get("version", 1), int, "version")
    parts["precisions"] = typed(table.get("precisions", (FLOAT32,)), tuple[str, ...], "precisions")
    return Recipe(**{**table, **parts})
