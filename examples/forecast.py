"""Scene: a real time series streams into a forecaster, value by value, and the forecast is drawn beside the truth.

Owns the scene and the running errors. The series is the model's `sample.csv`: its first half is read as one chunk, so
that the session knows the past; its second half, which no training has seen, streams.

Dimension key: N values, F features, K horizons, Q quantiles.
"""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eddy.clients import chart
from eddy.clients.reading import Forecasts, read_contract
from examples.model import Model
from examples.screen import Screen
from examples.stage import Stage

_PACE_SECONDS = 1 / 10
_TABLE_ROWS = 8
_UNITS = {"degF": "°F", "degC": "°C"}
# Unseen values that are read before the scene begins, so that what the chart shows as past is unseen, too; and values
# before them, so that the session knows the past. One chunk takes 4,096 values at most.
_LEAD = 120
_HISTORY = 2000


@dataclass(frozen=True, slots=True)
class Series:
    """A model's sample, and what its contract says of it.

    Attributes:
        values: float32 [N, F]; start: the first value that no training has seen.
    """

    values: np.ndarray
    start: int
    reading: Forecasts

    @property
    def truth(self) -> np.ndarray:
        """The values of the target, float [N]."""
        return self.values[:, self.reading.target].astype(np.float64)


class Errors:
    """Running mean absolute errors at each horizon, as values come in."""

    def __init__(self, series: Series) -> None:
        self._series = series
        # Changed only by `add` and `observe`. Forecasts by the step at which they were made, [K, Q] each.
        self._forecasts: dict[int, np.ndarray] = {}
        num_horizons = len(series.reading.horizons)
        self.model, self.last_value = np.zeros(num_horizons), np.zeros(num_horizons)
        self.inside, self.count = np.zeros(num_horizons), np.zeros(num_horizons)

    def add(self, step: int, quantiles: np.ndarray) -> None:
        """The forecast made once the value at `step` was known."""
        self._forecasts[step] = quantiles

    def observe(self, step: int) -> None:
        """The value at `step` is there: judges the forecasts that were made for it."""
        truth = self._series.truth
        for column, horizon in enumerate(self._series.reading.horizons):
            made = self._forecasts.get(step - horizon)
            if made is None:
                continue
            low, median, high = made[column, 0], made[column, len(made[column]) // 2], made[column, -1]
            self.model[column] += abs(median - truth[step])
            self.last_value[column] += abs(truth[step - horizon] - truth[step])
            self.inside[column] += low <= truth[step] <= high
            self.count[column] += 1


def read_series(model: Model) -> Series:
    """The sample beside a model, with what the contract says of it."""
    with (model.folder / "sample.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    reading = read_contract(model.contract)
    assert isinstance(reading, Forecasts)
    unit = _UNITS.get(reading.unit, reading.unit)
    return Series(
        values=np.array(rows, np.float32),
        start=len(rows) // 2 + _LEAD,
        reading=replace(reading, meaning=reading.meaning or header[0], unit=unit),
    )


def choose(stage: Stage) -> list[Model]:
    """The forecaster of the least error."""
    return stage.choose(
        "forecaster",
        lambda model: model.figure("mae", float("inf")),
        lambda contract: Model.task_of(contract) == "TASK_FORECAST",
    )[:1]


async def play(stage: Stage, models: list[Model]) -> str:
    """Plays the scene; returns a line for the summary."""
    [model], screen = models, stage.screen
    series = read_series(model)
    reading = series.reading
    furthest = max(reading.horizons)
    number = min(60 if screen.is_quick else 180, len(series.values) - series.start - furthest)
    screen.say(
        f"[bold]{reading.meaning}[/] in {reading.unit}, one value a step ({model.origin}). "
        f"{model.name} reads the {min(_HISTORY, series.start)} values before as one chunk; then each "
        f"new value is one step, and its answer is a forecast up to {reading.ahead(furthest)} "
        "ahead. No training has seen these values."
    )
    errors, seconds = Errors(series), []
    span = series.truth[series.start - 60 : series.start + number + furthest]
    margin = 0.15 * (span.max() - span.min())
    bounds = (float(span.min() - margin), float(span.max() + margin))
    async with stage.client.session(model.name) as session:
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
                picture.show(_page(reading, errors, drawing, state), is_last=is_last)
                await screen.pace(_PACE_SECONDS)
    screen.say(_card_line(model, reading))
    return _summary(model, reading, errors, number)


def _chart_rows(screen: Screen) -> int:
    return max(9, min(26, screen.height - _TABLE_ROWS))


def _forecast(series: Series, step: int, quantiles: np.ndarray, bounds: tuple[float, float]) -> chart.Forecast:
    """The forecast made at `step` for every step up to the furthest horizon, straight lines between the horizons."""
    reading = series.reading
    furthest = max(reading.horizons)
    ahead = np.arange(1, furthest + 1)
    now = np.full(quantiles.shape[1], series.truth[step])
    known = np.concatenate([[0], reading.horizons])
    columns = [np.interp(ahead, known, column) for column in np.vstack([now, quantiles]).T]
    return chart.Forecast(
        past=series.truth[: step + 1],
        low=columns[0],
        median=columns[len(columns) // 2],
        high=columns[-1],
        coming=series.truth[step + 1 : step + 1 + furthest],
        bounds=bounds,
        horizons=reading.horizons,
        step_size=reading.step_size,
        step_unit=reading.step_unit,
    )


def _page(reading: Forecasts, errors: Errors, drawing: Text, state: str) -> RenderableType:
    share = reading.quantiles[-1] - reading.quantiles[0]
    legend = Text.assemble(
        ("        ⣀⡠⠊ ", chart.PAST), "so far   ", ("◆ ", chart.MEDIAN), "forecast, joined by lines   ",
        ("░ ", chart.BAND), f"{share:.0%} band   ",
        ("• ", chart.COMING), "what then came",
    )  # fmt: skip
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column(f"mean abs. error, {reading.unit}", no_wrap=True)
    for horizon in reading.horizons:
        table.add_column(f"+{reading.ahead(horizon)}", justify="right", no_wrap=True)
    table.add_row("forecast (median)", *_means(errors.model, errors.count, ".2f"), style=chart.MEDIAN)
    table.add_row("last value", *_means(errors.last_value, errors.count, ".2f"))
    table.add_row(f"in the band ({share:.0%} due)", *_means(errors.inside, errors.count, ".0%"), style=chart.BAND)
    return Group(drawing, legend, table, Text(state, chart.AXIS))


def _means(sums: np.ndarray, counts: np.ndarray, form: str) -> list[str]:
    return [f"{total / count:{form}}" if count else "-" for total, count in zip(sums, counts, strict=True)]


def _card_line(model: Model, reading: Forecasts) -> str:
    """What the model's card says of the whole test part, baselines included."""
    names = {
        "mae": "forecast",
        "mae_last_value": "last value",
        "mae_linear": "linear extrapolation",
    }
    known = [f"{text} {model.figure(name):.2f}" for name, text in names.items()]
    return f"Over the whole test part, all horizons, by the model's card ({reading.unit}): {', '.join(known)}."


def _summary(model: Model, reading: Forecasts, errors: Errors, number: int) -> str:
    middle = len(reading.horizons) // 2
    ours, theirs = (sums[middle] / max(1, errors.count[middle]) for sums in (errors.model, errors.last_value))
    return (
        f"{model.name}, {number} values, {reading.ahead(reading.horizons[middle])} ahead: error {ours:.2f} "
        f"{reading.unit}, last value {theirs:.2f}"
    )
