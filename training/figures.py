"""Figures: named numbers that say how good a model is, next to those of honest baselines.

Owns: how figures are called and written: a baseline's figure is called as the model's, with the baseline's name
behind. Must not know how they are computed.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from eddy.training.storage import write_whole

SHARE = "share"
# How figures begin of which more is better; of all others less is.
HIGHER = ("accuracy", "bleu", "chrf")
# How figures of a model in another precision begin that compare it with the one in float32: that one's quality, and
# steps per second over that one's, by the rows of a call.
IN_FLOAT32, SPEEDUP = "float32_", "speedup_"


@dataclass(frozen=True, slots=True)
class Figure:
    """One named result. unit: "bit", "mg/dL", "share"; empty for a plain number."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model's figure with those of the baselines, by the baselines' names."""

    figure: Figure
    baselines: dict[str, float]


def compare_figures(figures: Sequence[Figure], names: Iterable[str]) -> list[Comparison]:
    """All figures that some of the named baselines have too, each with theirs."""
    values = {figure.name: figure.value for figure in figures}
    names = tuple(names)
    found = [
        Comparison(
            figure, {name: values[f"{figure.name}_{name}"] for name in names if f"{figure.name}_{name}" in values}
        )
        for figure in figures
    ]
    return [comparison for comparison in found if comparison.baselines]


def in_float32(figures: Sequence[Figure], kept: Iterable[str], baselines: Iterable[str]) -> list[Figure]:
    """The figures of a model in float32, as the same model in another precision states them.

    kept: figures that belong to both. baselines: by name; theirs are left out.
    """
    kept, baselines = tuple(kept), tuple(baselines)
    theirs = {f"{figure.name}_{name}" for figure in figures for name in baselines}
    return [
        figure if figure.name in kept else replace(figure, name=f"{IN_FLOAT32}{figure.name}")
        for figure in figures
        if figure.name not in theirs
    ]


def write_figures(path: Path, figures: Sequence[Figure]) -> None:
    """Write figures as JSON: {"figures": [{"name", "value", "unit"}, ...]}. Raises StorageError."""
    write_whole(path, (json.dumps({"figures": [asdict(f) for f in figures]}, indent=2) + "\n").encode())


def cells(values: Mapping[str, float], figure: str, ends: Iterable[str]) -> str:
    """One figure of the model and of the baselines, by the ends of their names, as cells of a table's row."""
    return " | ".join(f"{values[figure + end]:.3f}" for end in ends)


def share_cells(values: Mapping[str, float], figure: str, ends: Iterable[str]) -> str:
    """As `cells`, for shares, in per cent; a dash where there is none."""
    return " | ".join(f"{values[figure + end]:.1%}" if figure + end in values else "-" for end in ends)
