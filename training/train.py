"""Training: the run that turns a recipe into a checkpoint, from its beginning or from where it stopped.

Owns: seeds, the device, the model's shape, and what may happen to a run that a folder already holds. Must not know
ONNX. Order: the checkpoint is written before the first step, so that a folder that cannot be written shows at once,
then at the end of every epoch, and last with the figures and without progress.
"""

from pathlib import Path

import torch

from eddy.training.checkpoint import Checkpoint, load_checkpoint
from eddy.training.data import SetData
from eddy.training.errors import CheckpointError, RecipeError
from eddy.training.families.family import Model, StreamingModel
from eddy.training.families.registry import build_model
from eddy.training.location import CHECKPOINT_FILE
from eddy.training.recipe import Recipe, Schedule
from eddy.training.run import Run, progress_bar
from eddy.training.set_pass import SetReading
from eddy.training.spec import Spec
from eddy.training.stop import Stop
from eddy.training.storage import make_folder
from eddy.training.stream_pass import StreamReading
from eddy.training.tasks.registry import find_task
from eddy.training.tasks.task import TaskData
from eddy.training.trainer import Reading, Trainer


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
    data: TaskData = find_task(recipe.data).load(recipe.data)
    model = build_model(build_spec(recipe, data)).to(where)
    trainer = Trainer(model, read_data(model, data, recipe.training), recipe.training)
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


def build_spec(recipe: Recipe, data: TaskData) -> Spec:
    """The model's full shape: the recipe's architecture, what goes in and what comes out from the task."""
    return recipe.model.spec(*find_task(recipe.data).ports(data, recipe.data))


def read_data(model: Model, data: TaskData, plan: Schedule) -> Reading:
    """How a model reads the data: one long sequence in order, or separate sequences. Raises RecipeError."""
    if isinstance(data, SetData):
        return SetReading(model, data, plan)
    if not isinstance(model, StreamingModel):
        raise RecipeError(
            f"model.family: got {model.spec.kind!r}, expected one that streams, as the data is one stream"
        )
    return StreamReading(model, data, plan)


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
