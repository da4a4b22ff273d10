"""Curve: the losses of a run, epoch by epoch, beside what simple baselines reach.

Owns: `curve.json` and `curve.svg` in a run's folder. Must not know torch: the losses come in as numbers.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from eddy.training.chart import Chart, Level, Line, Mark, tuples
from eddy.training.errors import LocationError
from eddy.training.storage import write_whole
from eddy.training.svg import draw_svg

CURVE_FILE = "curve.json"
PICTURE_FILE = "curve.svg"


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch: its number from 1, the steps until its end, mean losses, and the learning rate that it ran at."""

    number: int
    steps: int
    train: float
    validation: float
    rate: float


@dataclass(frozen=True, slots=True)
class Measure:
    """What a loss is called for a person: value = loss x factor, in `label` ("bits per character")."""

    label: str
    factor: float


@dataclass(frozen=True, slots=True)
class Curve:
    """A run's losses. levels: what each baseline reaches on the validation part, already in the measure's unit."""

    name: str
    measure: Measure
    epochs: tuple[Epoch, ...]
    levels: tuple[Level, ...]

    @property
    def best(self) -> Epoch:
        """The epoch with the lowest validation loss, the first of equals; there must be one."""
        return min(self.epochs, key=lambda epoch: epoch.validation)


def write_curve(folder: Path, curve: Curve) -> None:
    """Write the curve's numbers and, after the first epoch, its picture. Raises StorageError."""
    text = json.dumps(asdict(curve), indent=2)
    write_whole(folder / CURVE_FILE, f"{text}\n".encode())
    if curve.epochs:
        write_whole(folder / PICTURE_FILE, draw_svg(chart_curve(curve)).encode())


def read_curve(folder: Path) -> Curve:
    """Read `curve.json` from a run's folder. Raises LocationError where there is none that can be read."""
    path = folder / CURVE_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Curve(
            name=values["name"],
            measure=Measure(**values["measure"]),
            epochs=tuple(Epoch(**epoch) for epoch in values["epochs"]),
            levels=tuple(Level(**level) for level in values["levels"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LocationError(f"{path}: got {error}, expected the learning curve that `eddy train` writes") from error


def chart_curve(curve: Curve) -> Chart:
    """Training and validation loss by epoch, the best epoch marked, baselines as levels."""
    best, factor = curve.best, curve.measure.factor
    numbers = tuples(epoch.number for epoch in curve.epochs)
    return Chart(
        title=f"{curve.name}: learning curve",
        x_label="epoch",
        y_label=curve.measure.label,
        lines=(
            Line("training", numbers, tuples(e.train * factor for e in curve.epochs)),
            Line("validation", numbers, tuples(e.validation * factor for e in curve.epochs)),
        ),
        levels=curve.levels,
        mark=Mark(f"best: epoch {best.number}, {best.validation * factor:.4g}", best.number, best.validation * factor),
        is_x_whole=True,
    )
