"""Scene: text streams out of the character models, token by token.

Owns the scene. The client samples: it gets the scores of the next character, draws one, and sends it as the next step.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from eddy import Client, Session
from examples.model import Model
from examples.screen import Screen
from examples.stage import Stage

_PROMPT_CHARACTERS = 200
_TEMPERATURE = 0.6
_NUM_MODELS = 4
# Fast enough to stream, slow enough to read along.
_PACE_SECONDS = 1 / 24
_STYLES = ("green", "cyan", "magenta", "blue")


@dataclass
class Writer:
    """One model that writes.

    Attributes:
        seconds: how long each step took, from the call to its answer.
        bits: bits per character on held-out text.
    """

    model: Model
    style: str
    bits: float = 0.0
    prompt: str = ""
    text: str = ""
    seconds: list[float] = field(default_factory=list)

    def encode(self, text: str) -> np.ndarray:
        """Characters to token ids, int64 [T]."""
        vocabulary = self.model.contract.vocabulary
        ids = {symbol: number for number, symbol in enumerate(vocabulary.symbols)}
        return np.array([ids.get(character, vocabulary.unknown_id) for character in text])

    def draw(self, logits: np.ndarray, generator: np.random.Generator) -> int:
        """The next token, drawn by softmax(logits [V] / temperature); never the unknown symbol."""
        scores = logits.astype(np.float64) / _TEMPERATURE
        if self.model.contract.vocabulary.HasField("unknown_id"):
            scores[self.model.contract.vocabulary.unknown_id] = -np.inf
        shares = np.exp(scores - scores.max())
        return int(generator.choice(len(shares), p=shares / shares.sum()))


def choose(stage: Stage) -> list[Model]:
    """The models that write characters, the best first; as many as a screen holds."""
    return stage.choose(
        "text model",
        lambda model: model.figure("bits_per_character", float("inf")),
        lambda contract: Model.task_of(contract) == "TASK_NEXT_TOKEN" and contract.vocabulary.unit == "character",
    )[:_NUM_MODELS]


async def play(stage: Stage, models: list[Model]) -> str:
    """Plays the scene; returns a line for the summary."""
    client, screen = stage.client, stage.screen
    sample = read_sample(models[0])
    number = 60 if screen.is_quick else 280
    writers = [Writer(model, style) for model, style in zip(models, cycle(_STYLES), strict=False)]
    screen.say(
        f"The prompt is held-out text of {models[0].origin}, dim below. Each model "
        "has one session; its hidden state stays in the server. One character is one step: the server answers with the "
        "scores of the next one, this client draws it and sends it back. The bits per character are measured on "
        f"that text; counts of character pairs need {models[0].figure('bits_per_character_bigram'):.2f}."
    )
    for writer in writers:
        writer.bits = await _measure_bits(client, writer, sample)
    with screen.picture() as picture:
        works = [asyncio.create_task(_write(client, screen, writer, sample, number)) for writer in writers]
        try:
            while not all(work.done() for work in works):
                picture.show(_page(writers, screen))
                await asyncio.wait(works, timeout=0.05)
        finally:
            for work in works:
                work.cancel()
        for work in works:
            work.result()
        picture.show(_page(writers, screen), is_last=True)
    best = min(writers, key=lambda writer: writer.bits)
    typical = np.median(np.concatenate([writer.seconds for writer in writers])) * 1e3
    pace = "Paced for reading" if screen.is_moving and not screen.is_quick else "Unpaced"
    screen.say(f"{pace}. With {len(writers)} sessions at once a step takes {typical:.1f} ms here and back (median).")
    return f"{len(writers)} models wrote {number} characters each; best {best.model.name}, {best.bits:.2f} bits"


def read_sample(model: Model) -> str:
    """The held-out text beside a model."""
    return (model.folder / "sample.txt").read_text(encoding="utf-8")


async def _measure_bits(client: Client, writer: Writer, sample: str) -> float:
    """Bits per character over the sample, read as one chunk: mean of -log2 p(next character)."""
    tokens = writer.encode(sample)
    async with client.session(writer.model.name) as session:
        logits = (await session.step(tokens[:-1])).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    scores = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(-scores[np.arange(len(scores)), tokens[1:]].mean() / np.log(2))


async def _write(client: Client, screen: Screen, writer: Writer, sample: str, number: int) -> None:
    generator = np.random.default_rng(7)
    writer.prompt = sample[: sample.rindex(" ", 0, _PROMPT_CHARACTERS) + 1]
    async with client.session(writer.model.name) as session:
        # The whole prompt is one chunk of many steps.
        logits = (await session.step(writer.encode(writer.prompt)))[-1]
        for _ in range(number):
            token = writer.draw(logits, generator)
            writer.text += writer.model.contract.vocabulary.symbols[token]
            logits = await _timed_step(session, token, writer.seconds)
            await screen.pace(_PACE_SECONDS)


async def _timed_step(session: Session, token: int, seconds: list[float]) -> np.ndarray:
    start = time.perf_counter()
    logits = await session.step(token)
    seconds.append(time.perf_counter() - start)
    return logits


def _page(writers: list[Writer], screen: Screen) -> RenderableType:
    rows = max(2, min(6, screen.height // len(writers) - 2))
    return Group(*(_panel(writer, screen.width, rows) for writer in writers))


def _panel(writer: Writer, width: int, rows: int) -> Panel:
    """The end of what a model has read and written, `rows` lines of text."""
    prompt, text = _flat(writer.prompt), _flat(writer.text)
    columns = width - 4
    whole = prompt + text
    num_lines = max(rows, -(-len(whole) // columns))
    lines = Text()
    for line in range(num_lines - rows, num_lines):
        begin, end = line * columns, min((line + 1) * columns, len(whole))
        border = min(max(len(prompt), begin), max(end, begin))
        lines.append(whole[begin:border], "dim").append(whole[border:end], writer.style)
        lines.append("" if line == num_lines - 1 else "\n")
    parameters = writer.model.contract.training.parameters
    title = f"[bold]{writer.model.name}[/] · {parameters:,} parameters · {writer.bits:.2f} bits per character"
    return Panel(lines, title=title, title_align="left", border_style=writer.style, width=width, height=rows + 2)


def _flat(text: str) -> str:
    """Line ends and indents as one sign, so that many lines fit into few."""
    return re.sub(r"\s*\n\s*", " ↵ ", text).replace("\t", " ")
