"""Run: a trainer in its folder, with all that it leaves there.

Owns: `checkpoint.pt`, `curve.json`, `curve.svg` and, at the end, `figures.json`; when they are written and what a
checkpoint must agree with to be gone on from. Must not know how a step is done.
"""

import shlex
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from eddy.training.answers import Answers
from eddy.training.checkpoint import Checkpoint, Progress, save_checkpoint
from eddy.training.contract import STEP_FILE
from eddy.training.curve import Curve, write_curve
from eddy.training.data import describe_origin
from eddy.training.errors import CheckpointError, Stopped
from eddy.training.families.family import count_parameters
from eddy.training.families.registry import build_contract, write_graphs
from eddy.training.families.shapes import on_grid
from eddy.training.figures import Figure, write_figures
from eddy.training.location import CHECKPOINT_FILE
from eddy.training.recipe import Recipe
from eddy.training.stop import Stop
from eddy.training.storage import make_folder
from eddy.training.tasks.registry import find_task
from eddy.training.tasks.task import TaskData
from eddy.training.trainer import Trainer


class Run:
    """One run: the trainer, its folder and what is written there."""

    def __init__(self, directory: Path, recipe: Recipe, data: TaskData, trainer: Trainer, device: torch.device) -> None:
        self._directory, self._recipe, self._data = directory, recipe, data
        self._trainer, self._device = trainer, device
        self._task = find_task(recipe.data)
        self._sample = self._task.sample(data, recipe.data)
        self._measure, self._levels = self._task.curve(data, recipe.data)
        self._symbols, self._source_symbols = self._task.symbols(data)
        self._digest = trainer.reading.digest()

    def go_on(self, earlier: Checkpoint) -> None:
        """Take over an earlier checkpoint's progress. Raises CheckpointError where the bits would differ."""
        progress, here = earlier.progress, self._progress()
        assert progress is not None
        path = self._directory / CHECKPOINT_FILE
        for field, fix in (
            ("data", "the training data has changed; begin again by --overwrite"),
            ("device", "choose it by --device"),
            ("threads", "choose them by --threads"),
            ("torch", "install that version, or begin again by --overwrite"),
        ):
            came, expected = getattr(here, field), getattr(progress, field)
            if came != expected:
                raise CheckpointError(
                    f"{path}: {field}: got {came!r}, expected {expected!r} as in the checkpoint; {fix}"
                )
        self._trainer.restore(progress.trainer, list(earlier.epochs), earlier.weights)

    def _progress(self) -> Progress:
        return Progress(
            trainer=self._trainer.snapshot(),
            data=self._digest,
            device=self._device.type,
            threads=torch.get_num_threads(),
            torch=str(torch.__version__),
        )

    def save(self) -> None:
        """Write the curve and the checkpoint as things stand. Raises StorageError."""
        save_checkpoint(self._directory / CHECKPOINT_FILE, replace(self._checkpoint(), progress=self._progress()))
        write_curve(self._directory, Curve(self._recipe.name, self._measure, tuple(self._trainer.epochs), self._levels))

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            recipe=self._recipe,
            origin=describe_origin(self._recipe.data.source),
            spec=self._trainer.model.spec,
            weights=self._trainer.weights,
            figures=(),
            symbols=self._symbols,
            source_symbols=self._source_symbols,
            sample=self._sample,
            epochs=tuple(self._trainer.epochs),
        )

    def fit(self, bar: Bar, checkpoint_steps: int | None, stop: Stop) -> None:
        """All epochs, or fewer when validation stops getting better. Raises Stopped."""
        trainer, plan = self._trainer, self._recipe.training
        with bar:
            task = bar.add_task(self._recipe.name, total=plan.epochs, completed=len(trainer.epochs), note="")
            while not trainer.is_finished:
                is_end = trainer.advance()
                stop.count_step()
                if is_end:
                    bar.update(task, completed=len(trainer.epochs), note=self._note())
                is_saved = is_end or (checkpoint_steps is not None and trainer.steps % checkpoint_steps == 0)
                if is_saved or stop.is_due:
                    self.save()
                if stop.is_due:
                    raise Stopped(self._farewell(stop), stop.exit_code)

    def _note(self) -> str:
        last, factor = self._trainer.epochs[-1], self._measure.factor
        return (
            f"train {last.train * factor:.4f}  validation {last.validation * factor:.4f}  "
            f"best {self._trainer.best.loss * factor:.4f} {self._measure.label}"
        )

    def _farewell(self, stop: Stop) -> str:
        """Where the run stands, in one line."""
        trainer = self._trainer
        return (
            f"stopped {stop.reason}, at step {trainer.steps}, {len(trainer.epochs)} of {self._recipe.training.epochs} "
            f"epochs done; checkpoint: {shlex.quote(str(self._directory / CHECKPOINT_FILE))}"
        )

    def finish(self) -> None:
        """Measure the best weights on the test part and write the files of an ended run. Raises StorageError."""
        trainer = self._trainer
        trainer.model.load_state_dict(trainer.best.weights)
        figures = (
            Figure("parameters", count_parameters(trainer.model), ""),
            Figure("best_epoch", trainer.best.epoch, ""),
            Figure("validation_loss", trainer.best.loss, ""),
            *self._measure_test(),
        )
        write_figures(self._directory / "figures.json", figures)
        save_checkpoint(self._directory / CHECKPOINT_FILE, replace(self._checkpoint(), figures=figures))

    def _measure_test(self) -> list[Figure]:
        """The figures on the test part, which nothing before has looked at, by the graphs that would be served."""
        with TemporaryDirectory(prefix="eddy-") as folder:
            return self._task.measure(write_answers(self._checkpoint(), Path(folder)), self._data, self._recipe.data)


def write_answers(source: Checkpoint, folder: Path) -> Answers:
    """A checkpoint's model as files in a folder, ready to answer; on other grids too where it has one."""
    model = source.build()
    contract = build_contract(model, source.recipe.name, source.recipe.description)
    make_folder(folder)
    write_graphs(model, folder, contract)

    def on_another(block_steps: int, look_ahead_steps: int) -> Answers:
        other = replace(source, spec=on_grid(source.spec, block_steps, look_ahead_steps))
        return write_answers(other, folder / f"{block_steps}-{look_ahead_steps}")

    return Answers(folder / STEP_FILE, contract, on_another if contract.streaming.block_steps else None)


def progress_bar(*, disable: bool) -> Bar:
    """A bar on standard error with the losses beside it."""
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=disable,
    )
