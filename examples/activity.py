"""Scene: readings of a smartwatch, and which exercise is being done.

Owns the scene. Convolutions over the latest readings come before the recurrent layer; their past inputs are part of the
session's state, so that it makes no difference how many readings a call brings.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from examples.model import Model
from examples.stage import Stage

_PACE_SECONDS = 1 / 15
# Readings of a call.
_CHUNK_STEPS = 24
_BARS = "▁▂▃▄▅▆▇█"
_NUM_CHANNELS = 3
_BAR_COLUMNS = 30
# The chart has one reading of so many.
_THINNING = 4


def choose(stage: Stage) -> list[Model]:
    """The model that tells a class at every reading of a sensor."""
    return stage.choose(
        "model that classifies a sensor's readings",
        lambda model: -model.figure("accuracy", 0.0),
        lambda contract: (
            Model.task_of(contract) == "TASK_CLASSIFICATION"
            and [len(port.shape) for port in contract.inputs] == [1]
            and any(state.name.startswith("conv") for state in contract.states)
        ),
    )[:1]


async def play(stage: Stage, models: list[Model]) -> str:
    """Plays the scene; returns a line for the summary."""
    [model], screen = models, stage.screen
    names, values, truth = _read_recording(model)
    labels = list(model.contract.outputs[0].axes[0].labels)
    wanted = np.array([labels.index(each) for each in truth])
    number = 480 if screen.is_quick else len(values)
    screen.say(
        f"The wrist of a person that no training has seen: six values a reading, {number:,} readings, sent "
        f"{_CHUNK_STEPS} at a time. [bold]{model.name}[/] says after every reading which exercise it takes it for. "
        f"{model.data}"
    )
    said = np.empty((0, len(labels)))
    async with stage.client.session(model.name) as session:
        with screen.picture() as picture:
            for begin in range(0, number, _CHUNK_STEPS):
                scores = await session.step(values[begin : min(begin + _CHUNK_STEPS, number)])
                said = np.concatenate([said, _shares(scores)])
                page = _page(names, values[: len(said)], labels, said, wanted[: len(said)], screen.width)
                picture.show(page, is_last=len(said) == number)
                await screen.pace(_PACE_SECONDS)
    right = float(np.mean(said.argmax(axis=1) == wanted[:number]))
    told = {"accuracy": "this model", "accuracy_nearest_mean": "nearest mean", "accuracy_majority": "majority class"}
    screen.say(f"Right at every reading of the whole test part, by the model's card: {model.told(told, '.1%')}.")
    return f"{model.name}: {right:.0%} of {number:,} readings right"


def _read_recording(model: Model) -> tuple[list[str], np.ndarray, list[str]]:
    """Names of the channels, their values float32 [N, F], and the right class of every reading."""
    with (model.folder / "sample.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    return header[:-1], np.array([row[:-1] for row in rows], np.float32), [row[-1] for row in rows]


def _shares(scores: np.ndarray) -> np.ndarray:
    exponents = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))


def _page(
    names: Sequence[str], values: np.ndarray, labels: Sequence[str], said: np.ndarray, wanted: np.ndarray, width: int
) -> RenderableType:
    """The latest readings of the first channels, and the shares of all classes."""
    columns = width - 6
    lines = [
        Text.assemble((f"{name:>3}  ", "dim"), (_spark(line[::_THINNING], columns), "cyan"))
        for name, line in zip(names[:_NUM_CHANNELS], values.T, strict=False)
    ]
    table = Table(box=None, padding=(0, 1), pad_edge=False, show_header=False)
    for number, label in enumerate(labels):
        share = float(said[-1, number])
        is_best, is_right = number == said[-1].argmax(), number == wanted[-1]
        style = ("bold green" if is_right else "bold red") if is_best else "" if is_right else "dim"
        table.add_row(Text(f"{label:<20}", style), Text("━" * round(share * _BAR_COLUMNS), style), f"{share:4.0%}")
    right = float(np.mean(said.argmax(axis=1) == wanted))
    state = f"reading {len(said):,} · truth: {labels[wanted[-1]]} · {right:.0%} right so far"
    return Group(*lines, table, Text(state, "dim"))


def _spark(values: np.ndarray, columns: int) -> str:
    """The latest values as bars, between the least and the greatest so far."""
    low, high = float(values.min()), float(values.max())
    levels = (values[-columns:] - low) / max(high - low, 1e-6) * (len(_BARS) - 1)
    return "".join(_BARS[level] for level in levels.round().astype(int).tolist())
