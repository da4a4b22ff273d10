"""Trials: a job is done: trained by its own budget of epochs, and measured.

Owns: what every trained job has measured: losses of each epoch, the figures of the test part, size, updates. Needs
torch, like `gradient` and `speed`, which measure what single sections ask for. Must not know files of results, or
other jobs.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from eddy.training.answers import Answers
from eddy.training.contract import STEP_FILE, numpy_dtype
from eddy.training.families.family import Model, count_parameters
from eddy.training.families.registry import build_contract, build_model, write_graphs
from eddy.training.families.shapes import on_grid
from eddy.training.figures import Figure
from eddy.training.recipe import Recipe
from eddy.training.runtime import cpu_name, runtime_name
from eddy.training.storage import make_folder
from eddy.training.study.gradient import measure_gradient
from eddy.training.study.job import Job, Probe
from eddy.training.study.look import measure_look
from eddy.training.study.result import Measured, Result
from eddy.training.study.speed import measure_speed
from eddy.training.tasks.registry import find_task
from eddy.training.train import build_spec, read_data
from eddy.training.trainer import Trainer


def perform(job: Job) -> Result:
    """Do a job. The same job gives the same losses and figures on the same machine with one thread.

    Raises what training raises: DataError, PackageError, TrainingError.
    """
    torch.set_num_threads(1)
    started = time.process_time()
    recipe = job.recipe()
    data = find_task(recipe.data).load(recipe.data)
    torch.manual_seed(job.seed)
    model = build_model(build_spec(recipe, data))
    measured = measure_speed(model) if job.probe is Probe.SPEED else _train(job, recipe, data, model)
    machine = f"torch {torch.__version__}, {runtime_name()}, {cpu_name()}"
    return Result(job, job.digest(), measured, time.process_time() - started, machine)


def _train(job: Job, recipe: Recipe, data: Any, model: Model) -> Measured:
    """All epochs, then the best weights, by validation, on the test part."""
    # 1. What only fresh weights show.
    series: dict[str, tuple[float, ...]] = {}
    if job.probe is Probe.GRADIENT:
        series |= measure_gradient(model, data.test, "fresh")
    # 2. The weights.
    trainer = Trainer(model, read_data(model, data, recipe.training), recipe.training)
    started = time.process_time()
    while not trainer.is_finished:
        trainer.advance()
    spent = time.process_time() - started
    model.load_state_dict(trainer.best.weights)
    model.eval()
    # 3. What they are worth.
    if job.probe is Probe.GRADIENT:
        series |= measure_gradient(model, data.test, "trained")
    texts: dict[str, tuple[str, ...]] = {}
    with TemporaryDirectory(prefix="eddy-") as folder:
        answers = write_answers(model, Path(folder))
        figures: list[Figure] = find_task(recipe.data).measure(answers, data, recipe.data)
        if job.probe is Probe.ATTENTION:
            looks, texts = measure_look(answers, data)
            series |= looks
    values = {
        "updates": float(trainer.steps),
        "seconds_per_update": spent / trainer.steps,
        "best_epoch": float(trainer.best.epoch),
        "validation_loss": trainer.best.loss,
        "final_validation_loss": trainer.epochs[-1].validation,
        "final_train_loss": trainer.epochs[-1].train,
        **model_size(model),
        **{figure.name: figure.value for figure in figures},
    }
    series["train_loss"] = tuple(epoch.train for epoch in trainer.epochs)
    series["validation_loss"] = tuple(epoch.validation for epoch in trainer.epochs)
    return Measured(values, series, texts)


def model_size(model: Model) -> dict[str, float]:
    """Trained values, and the bytes of state that one session holds."""
    contract = build_contract(model, "study")
    state = sum(numpy_dtype(s.dtype, s.name).itemsize * int(np.prod(s.shape)) for s in contract.states)
    return {"parameters": float(count_parameters(model)), "state_bytes": float(state)}


def write_answers(model: Model, folder: Path) -> Answers:
    """A model as the files that would be served, ready to answer; on other grids too where it has one."""
    contract = build_contract(model, "study")
    make_folder(folder)
    write_graphs(model, folder, contract)

    def on_another(block_steps: int, look_ahead_steps: int) -> Answers:
        other = build_model(on_grid(model.spec, block_steps, look_ahead_steps)).eval()
        other.load_state_dict(model.state_dict())
        return write_answers(other, folder / f"{block_steps}-{look_ahead_steps}")

    return Answers(folder / STEP_FILE, contract, on_another if contract.streaming.block_steps else None)
