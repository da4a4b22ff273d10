"""Sections: one question of the study each: the runs that answer it, and how the answer is shown.

Owns: the protocol of sections, and the tables and claims that all of them write. Must not know torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from eddy.training.chart import Band, Chart, Line
from eddy.training.study.job import Job, Size
from eddy.training.study.result import Results
from eddy.training.study.spread import Spread, Verdict
from eddy.training.svg import draw_svg

# The French message catalogues, as two sections read them.
FRENCH: Mapping[str, object] = {
    "catalogues": [
        "wheel:django:*/locale/fr/LC_MESSAGES/*.po",
        "wheel:wagtail:*/locale/fr/LC_MESSAGES/*.po",
        "wheel:sphinx:*/locale/fr/LC_MESSAGES/*.po",
        "wheel:superset:*/fr/LC_MESSAGES/*.po",
    ],
    "licence": "BSD-3-Clause AND BSD-2-Clause AND Apache-2.0",
}


@dataclass(frozen=True, slots=True)
class Claim:
    """An assertion of textbooks, what was measured of it, and what the seeds say."""

    text: str
    measured: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Shown:
    """A section as a person reads it.

    body: Markdown; pictures stand in it as ![...](name.svg). pictures: SVG documents by file name. claims: in order.
    """

    body: str
    pictures: Mapping[str, str]
    claims: tuple[Claim, ...]


class Section(Protocol):
    """One question."""

    @property
    def name(self) -> str:
        """A word, for files and the command line."""

    @property
    def title(self) -> str:
        """The question, as a heading."""

    def jobs(self, size: Size) -> tuple[Job, ...]:
        """The runs that answer it, in order."""

    def show(self, results: Results, size: Size) -> Shown:
        """The answer as far as results are there; a picture without a single result is left out."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column's cells are names, the others' are numbers."""
    rule = "|".join(["---", *["--:"] * (len(head) - 1)])
    return "\n".join(f"| {' | '.join(cells)} |" if cells else f"|{rule}|" for cells in (head, (), *rows))


def compare(names: Mapping[str, Spread], form: str = ".3f") -> str:
    """Named spreads in a row, as a claim shows what was measured."""
    return "; ".join(f"{name} {spread.show(form)}" for name, spread in names.items())


def picture(name: str, chart: Chart) -> dict[str, str]:
    """The chart as an SVG document under its file name; nothing where it has no point to show."""
    try:
        return {name: draw_svg(chart)}
    except ValueError:  # What a chart raises that has no finite point.
        return {}


def embed(pictures: Mapping[str, str], name: str, words: str) -> list[str]:
    """The picture in Markdown, if it was drawn."""
    return [f"![{words}]({name})"] if name in pictures else []


def bands_of(found: Mapping[str, Sequence[Spread]], x: Sequence[float]) -> tuple[tuple[Line, ...], tuple[Band, ...]]:
    """A line of medians with a band from the lowest to the highest seed, for each name."""
    at = tuple(x)
    lines = tuple(
        Line(name, at, tuple(s.median for s in spreads), has_points=len(at) < 20) for name, spreads in found.items()
    )
    bands = tuple(
        Band(name, at, tuple(s.low for s in spreads), tuple(s.high for s in spreads), of=name)
        for name, spreads in found.items()
    )
    return lines, bands
