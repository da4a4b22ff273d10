"""Scene: English sentences become French ones, token by token, and the model shows where it looks.

Owns the scene. The server reads the sentence once, into the session's memory, and then writes by itself; with each
token come the attention weights: how much of the look each piece of the source had.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from eddy.v1 import contract_pb2
from examples.model import Model, is_prose
from examples.stage import Stage

_PACE_SECONDS = 1 / 5
_NUM_SENTENCES = 5
_WORDS = range(3, 10)
_MAX_CHARACTERS = 60
_MAX_TOKENS = 64
_NUM_BEAMS = 4
_SPACE = "\u2581"


@dataclass
class Pair:
    """One sentence on its way.

    Attributes:
        source, person: the sentence and a person's translation; pieces: the source as the model reads it.
        text: what was written so far; look: of the last token, float [S], None where nothing is looked at now.
    """

    source: str
    person: str
    pieces: list[str]
    text: str = ""
    look: np.ndarray | None = None
    num_tokens: int = 0


def choose(stage: Stage) -> list[Model]:
    """The best translator."""
    return stage.choose(
        "translator",
        lambda model: -model.figure("chrf", 0.0),
        lambda contract: Model.task_of(contract) == "TASK_TRANSLATION",
    )[:1]


async def play(stage: Stage, models: list[Model]) -> str:
    """Plays the scene; returns a line for the summary."""
    [model], screen = models, stage.screen
    pairs = _read_pairs(model, 2 if screen.is_quick else _NUM_SENTENCES)
    attention = [port.name for port in model.contract.outputs if port.name == "attention"]
    shown = " (shaded: where it looks at the moment)" if attention else ""
    screen.say(
        f"English sentences that no training has seen. [bold]{model.name}[/] reads a sentence once, into the session's "
        f"memory on the server, and writes the translation token by token, always the likeliest{shown}. The server "
        f"feeds each token back by itself. {model.data}"
    )
    with screen.picture() as picture:
        for pair in pairs:
            async with stage.client.generate(
                model.name, source=pair.source, temperature=0.0, max_tokens=_MAX_TOKENS, outputs=attention
            ) as generation:
                async for piece in generation:
                    pair.text += piece.text
                    pair.num_tokens += len(piece.tokens)
                    if attention and piece.tokens:
                        pair.look = piece.tokens[-1].outputs[attention[0]]
                    picture.show(_page(pairs, screen.width))
                    await screen.pace(_PACE_SECONDS)
            pair.look = None
            picture.show(_page(pairs, screen.width))
        picture.show(_page(pairs, screen.width), is_last=True)
    await _search(stage, model, pairs[-1])
    screen.say(_card_line(model))
    return f"{model.name}: {len(pairs)} sentences, {sum(pair.num_tokens for pair in pairs)} tokens, beam search"


async def _search(stage: Stage, model: Model, pair: Pair) -> None:
    """Shows what a beam search finds for a sentence."""
    found = await stage.client.complete(model.name, source=pair.source, num_beams=_NUM_BEAMS, max_tokens=_MAX_TOKENS)
    stage.screen.say(f"The last one again, by a beam search of {_NUM_BEAMS} on the server:")
    for hypothesis in found.hypotheses[:3]:
        stage.screen.console.print(
            Text.assemble((f"  log p {hypothesis.log_probability:7.2f}  ", "dim"), (hypothesis.text, "cyan")),
            width=stage.screen.width,
        )


def _read_pairs(model: Model, number: int) -> list[Pair]:
    """Sentences of the model's sample of some words, spread over it."""
    lines = (model.folder / "sample.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines]
    fitting = [
        pair
        for pair in pairs
        if len(pair[0].split()) in _WORDS and max(map(len, pair)) <= _MAX_CHARACTERS and is_prose(pair[0])
    ]
    vocabulary = model.contract.source_vocabulary
    chosen = fitting[:: max(1, len(fitting) // number)][:number]
    return [Pair(source, person, _cut(source, vocabulary)) for source, person in chosen]


def _cut(text: str, vocabulary: contract_pb2.Vocabulary) -> list[str]:
    """The pieces of a source: at every place the longest symbol that it goes on with, else one character."""
    symbols, rest, pieces = set(vocabulary.symbols), text.replace(" ", _SPACE), []
    while rest:
        length = next((size for size in range(len(rest), 0, -1) if rest[:size] in symbols), 1)
        pieces.append(rest[:length].replace(_SPACE, " "))
        rest = rest[length:]
    return pieces


def _page(pairs: list[Pair], width: int) -> RenderableType:
    table = Table(box=None, padding=(0, 1), pad_edge=False, width=width)
    for name in ("English", "French, as it comes", "a person's"):
        table.add_column(name, ratio=1)
    for pair in pairs:
        table.add_row(_source(pair), Text(pair.text, "bold cyan"), Text(pair.person if pair.text else "", "dim"))
    return table


def _source(pair: Pair) -> Text:
    """The source, shaded by the last token's attention."""
    if pair.look is None:
        return Text(pair.source)
    line = Text()
    for piece, share in zip(pair.pieces, pair.look.tolist(), strict=False):
        level = round(40 + 215 * min(1.0, share / max(float(pair.look.max()), 1e-6)))
        line.append(piece, f"on rgb(0,{level // 3},{level})" if share >= 0.05 else "")
    return line


def _card_line(model: Model) -> str:
    """Scores over the whole test part, by the model's card."""
    names = {"": "beam search", "_greedy": "greedy", "_dictionary": "word by word", "_copy": "copied"}
    scores = [
        f"{score} {model.told({f'{name}{end}': text for end, text in names.items()}, '.1f')}"
        for name, score in (("bleu", "BLEU"), ("chrf", "chrF"))
    ]
    return f"Over the whole test part, by the model's card: {'; '.join(scores)}."
