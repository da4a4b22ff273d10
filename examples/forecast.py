"""Scene: a real time series streams into a forecaster, value by value, and the forecast is drawn beside the truth.

Owns the scene and the running errors. The series is the model's `sample.csv`: its first half is read as one chunk, so
that the session knows the past; its second half, which no training has seen, streams.

Dimension key: N values, F features, K horizons, Q quantiles.
"""

from __future__ import annotations

import csv
import re
import time
from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eddy import Client
from eddy.clients import chart
from examples.model import Model
from examples.screen import Screen

_PACE_SECONDS = 1 / 10
_TABLE_ROWS = 8
_UNITS = {"degF": "°F", "degC": "°C"}
# Seconds in the units of time, the largest that divides a step first.
_STEP_UNITS = {604800: "weeks", 86400: "d", 3600: "h", 60: "min", 1: "s"}
# Unseen values that are read before the scene begins, so that what the chart shows as past is unseen, too; and values
# before them, so that the session knows the past. One chunk takes 4,096 values at most.
_LEAD = 120
_HISTORY = 2000


@dataclass(frozen=True, slots=True)
class Series:
    """A model's sample, and what its contract says of it.

    Attributes:
        values: float32 [N, F]; target: the column that is forecast; start: the first value that no training has seen.
        horizons: steps ahead, int [K]; quantiles: float [Q].
        step_size, step_unit: what one step is: 5 and "min".
    """

    values: np.ndarray
    target: int
    start: int
    horizons: np.ndarray
    quantiles: np.ndarray
    meaning: str
    unit: str
    step_size: int
    step_unit: str

    def ahead(self, num_steps: int) -> str:
        """So many steps, in the unit of time."""
        return f"{num_steps * self.step_size} {self.step_unit}"

    @property
    def truth(self) -> np.ndarray:
        """The values of the target, float [N]."""
        return self.values[:, self.target].astype(np.float64)


class Errors:
    """Running mean absolute errors at each horizon, as values come in."""

    def __init__(self, series: Series) -> None:
        self._series = series
        # Changed only by `add` and `observe`. Forecasts by the step at which they were made, [K, Q] each.
        self._forecasts: dict[int, np.ndarray] = {}
        num_horizons = len(series.horizons)
        self.model, self.last_value = np.zeros(num_horizons), np.zeros(num_horizons)
        self.inside, self.count = np.zeros(num_horizons), np.zeros(num_horizons)

    def add(self, step: int, quantiles: np.ndarray) -> None:
        """The forecast made once the value at `step` was known."""
        self._forecasts[step] = quantiles

    def observe(self, step: int) -> None:
        """The value at `step` is there: judges the forecasts that were made for it."""
        truth = self._series.truth
        for column, horizon in enumerate(self._series.horizons):
            made = self._forecasts.get(step - int(horizon))
            if made is None:
                continue
            low, median, high = made[column, 0], made[column, len(made[column]) // 2], made[column, -1]
            self.model[column] += abs(median - truth[step])
            self.last_value[column] += abs(truth[step - int(horizon)] - truth[step])
            self.inside[column] += low <= truth[step] <= high
            self.count[column] += 1


def read_series(model: Model) -> Series:
    """The sample beside a model, with what the contract says of it."""
    with (model.folder / "sample.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    output = model.contract.outputs[0]
    labels = {axis.name: list(axis.labels) for axis in output.axes}
    found = re.search(r"steps of (\d+) s", output.meaning)
    seconds = int(found[1]) if found else 0
    unit_seconds = next((size for size in _STEP_UNITS if seconds and seconds % size == 0), 0)
    return Series(
        values=np.array(rows, np.float32),
        target=0,
        start=len(rows) // 2 + _LEAD,
        horizons=np.array(labels["horizons"], np.int64),
        quantiles=np.array(labels["quantiles"], np.float64),
        meaning=re.sub(r"^quantiles of |, a number of steps.*$", "", output.meaning) or header[0],
        unit=_UNITS.get(output.unit, output.unit),
        step_size=seconds // unit_seconds if unit_seconds else 1,
        step_unit=_STEP_UNITS.get(unit_seconds, "steps"),
    )


async def play(client: Client, screen: Screen, model: Model) -> str:
    """Plays the scene; returns a line for the summary."""
    series = read_series(model)
    furthest = int(series.horizons.max())
    number = min(60 if screen.is_quick else 180, len(series.values) - series.start - furthest)
    screen.say(
        f"[bold]{series.meaning}[/] in {series.unit}, one value a step ({model.origin}). "
        f"{model.name} reads the {min(_HISTORY, series.start)} values before as one chunk; then each "
        f"new value is one step, and its answer is a forecast up to {series.ahead(furthest)} "
        "ahead. No training has seen these values."
    )
    errors, seconds = Errors(series), []
    span = series.truth[series.start - 60 : series.start + number + furthest]
    margin = 0.15 * (span.max() - span.min())
    bounds = (float(span.min() - margin), float(span.max() + margin))
    async with client.session(model.name) as session:
        await session.step(series.values[max(0, series.start - _HISTORY) : series.start])
        with screen.picture() as picture:
            for step in range(series.start, series.start + number):
                begin = time.perf_counter()
                quantiles = await session.step(series.values[step])
                seconds.append(time.perf_counter() - begin)
                errors.observe(step)
                errors.add(step, quantiles)
                drawing = chart.draw(_forecast(series, step, quantiles, bounds), screen.width, _chart_rows(screen))
                is_last = step == series.start + number - 1
                state = f"value {step - series.start + 1} of {number} · {np.median(seconds) * 1e3:.1f} ms a step"
                picture.show(_page(series, errors, drawing, state), is_last=is_last)
                await screen.pace(_PACE_SECONDS)
    screen.say(_card_line(model, series))
    return _summary(model, series, errors, number)


def _chart_rows(screen: Screen) -> int:
    return max(9, min(26, screen.height - _TABLE_ROWS))


def _forecast(series: Series, step: int, quantiles: np.ndarray, bounds: tuple[float, float]) -> chart.Forecast:
    """The forecast made at `step` for every step up to the furthest horizon, straight lines between the horizons."""
    furthest = int(series.horizons.max())
    ahead = np.arange(1, furthest + 1)
    now = np.full(quantiles.shape[1], series.truth[step])
    known = np.concatenate([[0], series.horizons])
    columns = [np.interp(ahead, known, column) for column in np.vstack([now, quantiles]).T]
    return chart.Forecast(
        past=series.truth[: step + 1],
        low=columns[0],
        median=columns[len(columns) // 2],
        high=columns[-1],
        coming=series.truth[step + 1 : step + 1 + furthest],
        bounds=bounds,
        horizons=tuple(series.horizons.tolist()),
        step_size=series.step_size,
        step_unit=series.step_unit,
    )


def _page(series: Series, errors: Errors, drawing: Text, state: str) -> RenderableType:
    share = series.quantiles[-1] - series.quantiles[0]
    legend = Text.assemble(
        ("        ⣀⡠⠊ ", chart.PAST), "so far   ", ("◆ ", chart.MEDIAN), "forecast, joined by lines   ",
        ("░ ", chart.BAND), f"{share:.0%} band   ",
        ("• ", chart.COMING), "what then came",
    )  # fmt: skip
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column(f"mean abs. error, {series.unit}", no_wrap=True)
    for horizon in series.horizons:
        table.add_column(f"+{series.ahead(int(horizon))}", justify="right", no_wrap=True)
    table.add_row("forecast (median)", *_means(errors.model, errors.count, ".2f"), style=chart.MEDIAN)
    table.add_row("last value", *_means(errors.last_value, errors.count, ".2f"))
    table.add_row(f"in the band ({share:.0%} due)", *_means(errors.inside, errors.count, ".0%"), style=chart.BAND)
    return Group(drawing, legend, table, Text(state, chart.AXIS))


def _means(sums: np.ndarray, counts: np.ndarray, form: str) -> list[str]:
    return [f"{total / count:{form}}" if count else "-" for total, count in zip(sums, counts, strict=True)]


def _card_line(model: Model, series: Series) -> str:
    """What the model's card says of the whole test part, baselines included."""
    names = {
        "mae": "forecast",
        "mae_last_value": "last value",
        "mae_linear": "linear extrapolation",
    }
    known = [f"{text} {model.figure(name):.2f}" for name, text in names.items()]
    return f"Over the whole test part, all horizons, by the model's card ({series.unit}): {', '.join(known)}."


def _summary(model: Model, series: Series, errors: Errors, number: int) -> str:
    middle = len(series.horizons) // 2
    ours, theirs = (sums[middle] / max(1, errors.count[middle]) for sums in (errors.model, errors.last_value))
    return (
        f"{model.name}, {number} values, {series.ahead(int(series.horizons[middle]))} ahead: error {ours:.2f} "
        f"{series.unit}, last value {theirs:.2f}"
    )
