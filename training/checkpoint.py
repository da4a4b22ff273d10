"""Checkpoints: a model, trained or half trained, with everything that export or the rest of its training needs.

Owns: the file format. It is a dictionary of numbers, texts, lists and tensors, so that it loads with
`weights_only=True` and never runs code. Must not know how a model is trained or exported; what a run needs to go on
is the trainer's snapshot, which passes through here as it is.
"""

import io
import pickle
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eddy.training.curve import Epoch
from eddy.training.errors import CheckpointError, RecipeError
from eddy.training.families.family import Model
from eddy.training.families.registry import build_model
from eddy.training.families.shapes import spec_from_dict
from eddy.training.figures import Figure
from eddy.training.recipe import Recipe, parse_recipe
from eddy.training.spec import Spec
from eddy.training.storage import write_whole

FORMAT = 2
# Format 1 had neither epochs nor progress: always a finished run.
READABLE = (1, FORMAT)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run that has not ended needs to go on with the same bits.

    trainer: the trainer's snapshot. data: SHA-256 of the training part. device, threads, torch: what else the bits
    depend on.
    """

    trainer: dict[str, Any]
    data: str
    device: str
    threads: int
    torch: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model and where it comes from.

    weights: the best so far. figures: empty until the run has ended. progress: None once it has.
    origin: the data with its version. symbols, source_symbols: the vocabularies of the step graph's and of the prime
    graph's tokens, else empty.
    sample: real input from the validation and test parts, in the model's units, for cards and demonstrations: text,
    or CSV with a header.
    """

    recipe: Recipe
    origin: str
    spec: Spec
    weights: dict[str, Tensor]
    figures: tuple[Figure, ...]
    symbols: tuple[str, ...]
    sample: str
    epochs: tuple[Epoch, ...] = ()
    progress: Progress | None = None
    source_symbols: tuple[str, ...] = ()

    def build(self) -> Model:
        """The model with these weights, in evaluation mode, on the CPU. Raises CheckpointError if they do not fit."""
        model = build_model(self.spec)
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise CheckpointError(f"weights: they do not fit the specification: {error}") from error
        return model.eval()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint file. Raises StorageError, and the file is as it was before then."""
    values: dict[str, Any] = {
        "format": FORMAT,
        "recipe": checkpoint.recipe.to_dict(),
        "origin": checkpoint.origin,
        "spec": checkpoint.spec.to_dict(),
        "weights": {name: tensor.detach().cpu() for name, tensor in checkpoint.weights.items()},
        "figures": [asdict(figure) for figure in checkpoint.figures],
        "symbols": list(checkpoint.symbols),
        "source_symbols": list(checkpoint.source_symbols),
        "sample": checkpoint.sample,
        "epochs": [asdict(epoch) for epoch in checkpoint.epochs],
        "progress": None
        if checkpoint.progress is None
        else {field.name: getattr(checkpoint.progress, field.name) for field in fields(Progress)},
    }
    content = io.BytesIO()
    torch.save(values, content)
    write_whole(path, content.getvalue())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file. Raises CheckpointError."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: not readable as a checkpoint: {error}") from error
    if not isinstance(values, dict) or values.get("format") not in READABLE:
        came = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise CheckpointError(f"{path}: format is {came!r}, expected {FORMAT} (or 1)")
    try:
        return Checkpoint(
            recipe=parse_recipe(values["recipe"]),
            origin=values["origin"],
            spec=spec_from_dict(values["spec"]),
            weights=values["weights"],
            figures=tuple(Figure(**figure) for figure in values["figures"]),
            symbols=tuple(values["symbols"]),
            source_symbols=tuple(values.get("source_symbols", ())),
            sample=values["sample"],
            epochs=tuple(Epoch(**epoch) for epoch in values.get("epochs", ())),
            progress=None if values.get("progress") is None else Progress(**values["progress"]),
        )
    except (KeyError, TypeError, RecipeError) as error:
        raise CheckpointError(f"{path}: broken entry: {error}") from error
