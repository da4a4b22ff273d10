"""Checkpoints: a trained model with everything that export needs, in one file of plain values.

Owns: the file format. It is a dictionary of numbers, texts, lists and tensors, so that it loads with
`weights_only=True` and never runs code. Must not know how a model is trained or exported.
"""

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eddy.training.errors import CheckpointError, RecipeError
from eddy.training.figures import Figure
from eddy.training.model import RecurrentModel
from eddy.training.recipe import Recipe, parse_recipe
from eddy.training.spec import ModelSpec

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trained model and where it comes from.

    origin: the data with its version. symbols: the vocabulary of a token model, else empty.
    sample: real input from the validation and test parts, in the model's units, for cards and demonstrations: text,
    or CSV with a header.
    """

    recipe: Recipe
    origin: str
    spec: ModelSpec
    weights: dict[str, Tensor]
    figures: tuple[Figure, ...]
    symbols: tuple[str, ...]
    sample: str

    def build(self) -> RecurrentModel:
        """The model with these weights, in evaluation mode, on the CPU. Raises CheckpointError if they do not fit."""
        model = RecurrentModel(self.spec)
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise CheckpointError(f"weights: they do not fit the specification: {error}") from error
        return model.eval()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint file (through a neighbour file, so that a half-written one never has the name)."""
    values: dict[str, Any] = {
        "format": FORMAT,
        "recipe": checkpoint.recipe.to_dict(),
        "origin": checkpoint.origin,
        "spec": checkpoint.spec.to_dict(),
        "weights": {name: tensor.detach().cpu() for name, tensor in checkpoint.weights.items()},
        "figures": [asdict(figure) for figure in checkpoint.figures],
        "symbols": list(checkpoint.symbols),
        "sample": checkpoint.sample,
    }
    draft = path.with_name(path.name + ".part")
    torch.save(values, draft)
    draft.replace(path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file. Raises CheckpointError."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: not readable as a checkpoint: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        came = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise CheckpointError(f"{path}: format is {came!r}, expected {FORMAT}")
    try:
        return Checkpoint(
            recipe=parse_recipe(values["recipe"]),
            origin=values["origin"],
            spec=ModelSpec.from_dict(values["spec"]),
            weights=values["weights"],
            figures=tuple(Figure(**figure) for figure in values["figures"]),
            symbols=tuple(values["symbols"]),
            sample=values["sample"],
        )
    except (KeyError, TypeError, RecipeError) as error:
        raise CheckpointError(f"{path}: broken entry: {error}") from error
