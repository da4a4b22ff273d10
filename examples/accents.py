"""Scene: French text, typed without its accents, gets them back a little later.

Owns the scene. The model reads in both directions, so that it answers once it has seen what follows: in blocks of some
characters, so many characters behind. At the end of a sentence `flush` brings the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from examples.model import Model, is_prose
from examples.stage import Stage

_PACE_SECONDS = 1 / 22
_NUM_SENTENCES = 4
_LENGTHS = range(30, 73)


@dataclass
class Sentence:
    """One sentence on its way.

    Attributes:
        stripped, written: without and with its accents, of one length.
        num_sent: characters that the model was given; restored: what it has answered.
        furthest: the most characters that it was behind.
    """

    stripped: str
    written: str
    num_sent: int = 0
    restored: str = ""
    furthest: int = 0

    @property
    def num_wrong(self) -> int:
        """Characters that were restored otherwise than they are written."""
        return sum(one != other for one, other in zip(self.restored, self.written, strict=False))


def choose(stage: Stage) -> list[Model]:
    """The model that looks ahead over characters and errs least."""
    return stage.choose(
        "model that restores accents as a stream",
        lambda model: model.figure("character_errors", 1.0),
        lambda contract: (
            Model.task_of(contract) == "TASK_TAGGING"
            and contract.streaming.look_ahead_steps > 0
            and contract.vocabulary.unit == "character"
        ),
    )[:1]


async def play(stage: Stage, models: list[Model]) -> str:
    """Plays the scene; returns a line for the summary."""
    [model], screen = models, stage.screen
    streaming = model.contract.streaming
    block, ahead = streaming.block_steps, streaming.look_ahead_steps
    sentences = _read_sentences(model, 2 if screen.is_quick else _NUM_SENTENCES)
    screen.say(
        "French sentences that no training has seen, sent character by character without their accents. "
        f"[bold]{model.name}[/] reads to the left and to the right: it answers in blocks of [bold]{block}[/] "
        f"characters, once it has seen [bold]{ahead}[/] more (dim: what it still holds back). [bold green]Green[/]: an "
        f"accent put back; [bold red]red[/]: wrong. {model.data}"
    )
    with screen.picture() as picture:
        for sentence in sentences:
            async with stage.client.session(model.name) as session:
                for character in sentence.stripped:
                    emitted = await session.step(_token(model, character))
                    sentence.num_sent += 1
                    _take(model, sentence, emitted)
                    picture.show(_page(sentences, screen.width))
                    await screen.pace(_PACE_SECONDS)
                _take(model, sentence, await session.flush())
            picture.show(_page(sentences, screen.width))
        picture.show(_page(sentences, screen.width), is_last=True)
    return await _judge(stage, model, sentences)


async def _judge(stage: Stage, model: Model, sentences: list[Sentence]) -> str:
    """Says what came of it, beside whole sentences at once and what the model's card measured."""
    tokens = [np.array([_token(model, each) for each in sentence.stripped]) for sentence in sentences]
    whole = [
        "".join(map(_symbol_of(model), given, scores))
        for given, scores in zip(
            [sentence.stripped for sentence in sentences], await stage.client.infer(model.name, tokens), strict=True
        )
    ]
    num_other = sum(
        one != other
        for text, sentence in zip(whole, sentences, strict=True)
        for one, other in zip(text, sentence.restored, strict=True)
    )
    total = sum(len(sentence.written) for sentence in sentences)
    wrong = sum(sentence.num_wrong for sentence in sentences)
    bare = sum(a != b for sentence in sentences for a, b in zip(sentence.stripped, sentence.written, strict=True))
    furthest = max(sentence.furthest for sentence in sentences)
    stage.screen.say(
        f"Of {total} characters {bare} had lost their accent; after restoring, [bold]{wrong}[/] are wrong. The answers "
        f"were at most {furthest} characters behind. Given whole sentences at once, the model answers "
        f"{num_other or 'no'} {'character' if num_other == 1 else 'characters'} otherwise."
    )
    stage.screen.say(_card_line(model))
    return f"{model.name}: {bare} accents lost, {wrong} characters wrong after, at most {furthest} behind"


def _read_sentences(model: Model, number: int) -> list[Sentence]:
    """Sentences of the model's sample that fit on a line, those of the most accents."""

    def num_accents(pair: list[str]) -> int:
        return sum(one != other for one, other in zip(*pair, strict=True))

    lines = (model.folder / "sample.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines]
    fitting = [pair for pair in pairs if len(pair[0]) in _LENGTHS and is_prose(pair[0])]
    chosen = sorted(fitting, key=num_accents, reverse=True)[:number]
    return [Sentence(stripped, written) for stripped, written in chosen]


def _token(model: Model, character: str) -> int:
    symbols = model.contract.vocabulary.symbols
    return list(symbols).index(character) if character in symbols else model.contract.vocabulary.unknown_id


def _take(model: Model, sentence: Sentence, emitted: np.ndarray) -> None:
    """The model has answered more characters, scores [E, V]."""
    place = len(sentence.restored)
    sentence.furthest = max(sentence.furthest, sentence.num_sent - place)
    given = sentence.stripped[place : place + len(emitted)]
    sentence.restored += "".join(map(_symbol_of(model), given, emitted))


class _symbol_of:  # noqa: N801  (used as a function)
    """From a character and its scores [V] to what the model says that it was."""

    def __init__(self, model: Model) -> None:
        self._vocabulary = model.contract.vocabulary

    def __call__(self, character: str, scores: np.ndarray) -> str:
        best = int(scores.argmax())
        return character if best == self._vocabulary.unknown_id else self._vocabulary.symbols[best]


def _page(sentences: list[Sentence], width: int) -> RenderableType:
    lines = [_line(sentence) for sentence in sentences]
    waiting = max(sentence.num_sent - len(sentence.restored) for sentence in sentences)
    title = f"held back now: {waiting:2} characters" if waiting else "all answered"
    return Panel(Group(*lines), title=title, title_align="left", border_style="blue", width=width)


def _line(sentence: Sentence) -> Text:
    """What was restored, then what is held back."""
    line = Text(no_wrap=True)
    for given, said, wanted in zip(sentence.stripped, sentence.restored, sentence.written, strict=False):
        style = "bold red" if said != wanted else "bold green" if said != given else ""
        line.append(said, style)
    return line.append(sentence.stripped[len(sentence.restored) : sentence.num_sent], "dim italic")


def _card_line(model: Model) -> str:
    """Errors over the whole test part, by the model's card."""
    ahead = model.contract.streaming.look_ahead_steps
    names = {
        f"character_errors_look_ahead_{ahead}": "as this stream",
        "character_errors": "whole sentences at once",
        "character_errors_most_frequent": "each word's most frequent form",
        "character_errors_copy": "no accents at all",
    }
    return f"Wrong characters over the whole test part, by the model's card: {model.told(names, '.2%')}."
