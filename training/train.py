"""Training: the run that turns a recipe into a checkpoint, from its beginning or from where it stopped.

Owns: seeds, the device, the model's shape, and what may happen to a run that a folder already holds. Must not know
ONNX. Order: the checkpoint is written before the first step, so that a folder that cannot be written shows at once,
then at the end of every epoch, and last with the figures and without progress.
"""

from pathlib import Path

import torch

from eddy.training.checkpoint import Checkpoint, load_checkpoint
from eddy.training.data import SeriesData, TextData, load_series, load_text
from eddy.training.errors import CheckpointError, RecipeError
from eddy.training.families.family import StreamingModel
from eddy.training.families.registry import build_model
from eddy.training.location import CHECKPOINT_FILE
from eddy.training.recipe import Recipe, SeriesSource, TextSource
from eddy.training.run import Run, progress_bar
from eddy.training.spec import FeatureInput, QuantileHead, Spec, TokenHead, TokenInput
from eddy.training.stop import Stop
from eddy.training.storage import make_folder
from eddy.training.trainer import Trainer


def train(
    recipe: Recipe,
    directory: Path,
    *,
    device: str | None = None,
    show_progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_steps: int | None = None,
    stop: Stop | None = None,
) -> Path:
    """Train a recipe and leave `checkpoint.pt`, `figures.json` and the curve in `directory`; returns the first's path.

    device: "cpu" or "cuda"; by itself CUDA where there is one. The same recipe, seed, device and torch build give the
    same weights on the CPU with one thread, in one go or resumed. resume: go on from the folder's checkpoint; a run
    that has ended is left as it is. overwrite: begin again although the folder holds an unfinished run.
    checkpoint_steps: write the checkpoint every so many steps too. stop: asked after every step.

    Raises Stopped, with a checkpoint to go on from, when `stop` is due; DataError for unusable data; TrainingError if
    the loss diverges; CheckpointError where there is nothing to resume, or something that this recipe, data, device,
    thread count or torch would not continue, or an unfinished or unreadable run in the way; StorageError where files
    cannot be written.
    """
    # 1. What the folder holds already.
    path = directory / CHECKPOINT_FILE
    before = _find_earlier(path, recipe, resume=resume, overwrite=overwrite)
    if before is not None and before.progress is None:
        return path
    # 2. Everything random follows from the seed.
    torch.manual_seed(recipe.training.seed)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    # 3. The data, and the model's shape that follows from it.
    data = load_text(recipe.data) if isinstance(recipe.data, TextSource) else load_series(recipe.data)
    model = build_model(build_spec(recipe, data)).to(where)
    if not isinstance(model, StreamingModel):
        raise RecipeError(f"model.family: got {model.spec.kind!r}, expected one that streams")
    trainer = Trainer(model, data, recipe.training)
    run = Run(directory, recipe, data, trainer, where)
    # 4. The state that it starts from.
    if before is not None:
        run.go_on(before)
    make_folder(directory)
    run.save()
    # 5. The weights.
    run.fit(progress_bar(disable=not show_progress), checkpoint_steps, stop or Stop())
    # 6. What they are worth.
    run.finish()
    return path


def build_spec(recipe: Recipe, data: TextData | SeriesData) -> Spec:
    """The model's full shape: the recipe's architecture, input and head from the data."""
    if isinstance(data, TextData):
        size = len(data.vocabulary.symbols)
        return recipe.model.spec(TokenInput(size), (TokenHead(size),))
    assert isinstance(recipe.data, SeriesSource)
    head = QuantileHead(recipe.data.horizons, recipe.data.quantiles, data.target)
    return recipe.model.spec(FeatureInput(data.mean, data.scale), (head,))


def _find_earlier(path: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> Checkpoint | None:
    """The checkpoint to go on from, or None for a fresh start."""
    if not resume:
        if path.exists() and not overwrite and load_checkpoint(path).progress is not None:
            raise CheckpointError(
                f"{path}: holds a run that has not ended, expected an empty folder: "
                "go on with it by --resume, or begin again by --overwrite"
            )
        return None
    if not path.exists():
        raise CheckpointError(f"{path}: got no such file, expected a checkpoint to go on from; leave out --resume")
    earlier = load_checkpoint(path)
    if earlier.recipe != recipe:
        raise CheckpointError(f"{path}: {_first_difference(earlier.recipe, recipe)}; a run goes on by its own recipe")
    return earlier


def _first_difference(earlier: Recipe, now: Recipe) -> str:
    """The first key that two recipes differ in: what came and what was expected."""
    one, other = _flatten(now.to_dict()), _flatten(earlier.to_dict())
    key = next(key for key in {**other, **one} if one.get(key) != other.get(key))
    return f"{key}: got {one.get(key)!r}, expected {other.get(key)!r} as in the checkpoint"


def _flatten(table: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Nested tables as one, keys joined by dots."""
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
