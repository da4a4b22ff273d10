"""A chart of a time series with its forecast, drawn with characters.

Owns the drawing. Must not know models, servers or the terminal: it is given numbers and a size.

One column is one time step. Lines are drawn with braille dots (2 x 4 a cell), the band with shaded cells, so that
the picture is readable without colours.

Dimension key: P past steps, H future steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from rich.text import Text

_BRAILLE = 0x2800
# Bit of a dot, by column and row within its cell: https://www.unicode.org/charts/PDF/U2800.pdf
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_LABEL_COLUMNS = 8
_TICK_STEPS = 12

# No white and no black: the terminal may be dark or light.
PAST, MEDIAN, BAND, COMING, AXIS = "bold", "bold cyan", "blue", "bold magenta", "dim"


@dataclass(frozen=True, slots=True)
class Forecast:
    """What to draw.

    Attributes:
        past: values so far, float [P], the newest last.
        foretold: what some steps before was forecast for each of them, float [P], NaN where nothing was; or empty.
        low, median, high: the forecast of the next steps, float [H] each.
        coming: what came then, float [at most H].
        bounds: lowest and highest value of the axis.
        horizons: steps ahead at which the model forecasts; between them the lines are straight.
        step_size, step_unit: what one step is, for the labels of time.
    """

    past: np.ndarray
    low: np.ndarray
    median: np.ndarray
    high: np.ndarray
    coming: np.ndarray
    bounds: tuple[float, float]
    horizons: tuple[int, ...]
    step_size: int
    step_unit: str
    foretold: np.ndarray = field(default_factory=lambda: np.empty(0))


class _Grid:
    """Cells of characters over a grid of dots.

    Args:
        columns, rows: of cells; bounds: values at the lower and upper edge.
    """

    def __init__(self, columns: int, rows: int, bounds: tuple[float, float]) -> None:
        self.columns, self.rows = columns, rows
        self._low, self._span = bounds[0], max(bounds[1] - bounds[0], 1e-9)
        # Changed only by `put`.
        self._cells: dict[tuple[int, int], tuple[str, str]] = {}

    def height(self, value: float) -> int:
        """The dot row of a value, counted from the top."""
        share = (value - self._low) / self._span
        return int(np.clip(round((1.0 - share) * (self.rows * 4 - 1)), 0, self.rows * 4 - 1))

    def put(self, row: int, column: int, character: str, style: str) -> None:
        """One cell's character."""
        self._cells[row, column] = (character, style)

    def line(self, values: np.ndarray, column: int, style: str) -> None:
        """A line through `values`, one a column, beginning in the middle of `column`."""
        dots: dict[tuple[int, int], int] = {}
        places = np.arange(0.0, len(values) - 1 + 1e-9, 0.5)
        heights = [self.height(value) for value in np.interp(places, np.arange(len(values)), values)]
        before = heights[0] if heights else 0
        for place, height in zip(places, heights, strict=True):
            # All dots from the last one's height to this one's, so that steep pieces are not torn.
            for dot in range(min(before, height), max(before, height) + 1):
                x = int(place * 2)
                key = (dot // 4, column + x // 2)
                dots[key] = dots.get(key, 0) | _DOTS[x % 2][dot % 4]
            before = height
        for (row, x), bits in dots.items():
            if 0 <= x < self.columns:
                self.put(row, x, chr(_BRAILLE | bits), style)

    def text(self, row: int) -> Text:
        """One row of cells."""
        line = Text()
        for column in range(self.columns):
            line.append(*self._cells.get((row, column), (" ", "")))
        return line


def draw(forecast: Forecast, width: int, height: int) -> Text:
    """The chart, `height` rows of `width` columns, its axes included.

    From left to right: labels, the past (as much as fits), the present, the forecast.
    """
    num_future = len(forecast.median)
    columns = width - _LABEL_COLUMNS
    now = columns - num_future - 1
    grid = _Grid(columns, height - 2, forecast.bounds)
    for row in range(grid.rows):
        grid.put(row, now, "│", AXIS)
    _draw_band(grid, forecast, now + 1)
    past = forecast.past[-(now + 1) :]
    present = past[-1:]
    grid.line(np.concatenate([present, forecast.median]), now, MEDIAN)
    for step in range(1, len(forecast.coming), 2):
        grid.put(grid.height(forecast.coming[step]) // 4, now + 1 + step, "•", COMING)
    for horizon in forecast.horizons:
        grid.put(grid.height(forecast.median[horizon - 1]) // 4, now + horizon, "◆", MEDIAN)
    for column, value in enumerate(forecast.foretold[len(forecast.foretold) - len(past) :], now + 1 - len(past)):
        if np.isfinite(value) and column % 2:
            grid.put(grid.height(value) // 4, column, "•", COMING)
    grid.line(past, now + 1 - len(past), PAST)
    lines = _with_values(grid, forecast)
    lines += _time_axis(now, columns, forecast)
    return Text("\n").join(lines)


def _draw_band(grid: _Grid, forecast: Forecast, column: int) -> None:
    for step, (low, high) in enumerate(zip(forecast.low, forecast.high, strict=True)):
        top, bottom = grid.height(max(low, high)) // 4, grid.height(min(low, high)) // 4
        for row in range(top, bottom + 1):
            grid.put(row, column + step, "░", BAND)


def _with_values(grid: _Grid, forecast: Forecast) -> list[Text]:
    """The rows with the value axis: a label on every third row."""
    low, high = forecast.bounds
    decimals = max(0, 1 - int(np.floor(np.log10(max(high - low, 1e-9) / 4))))
    lines = []
    for row in range(grid.rows):
        value = high - (high - low) * (row * 4 + 1.5) / (grid.rows * 4 - 1)
        label = f"{value:.{decimals}f}" if row % 3 == 0 else ""
        lines.append(Text(f"{label:>{_LABEL_COLUMNS - 1}}", AXIS) + Text("┤" if label else "│", AXIS) + grid.text(row))
    return lines


def _time_axis(now: int, columns: int, forecast: Forecast) -> list[Text]:
    """The time axis and its labels: a tick every 12 steps to both sides of the present."""
    axis = ["─"] * columns
    labels = [" "] * (columns + _LABEL_COLUMNS)
    for offset in range(-(now // _TICK_STEPS) * _TICK_STEPS, columns - now, _TICK_STEPS):
        column = now + offset
        label = "now" if offset == 0 else f"{offset * forecast.step_size:+d} {forecast.step_unit}"
        begin = min(_LABEL_COLUMNS + column - len(label) // 2, len(labels) - len(label))
        if begin < 0 or any(place != " " for place in labels[begin : begin + len(label)]):
            continue
        axis[column] = "┴" if offset else "┼"
        labels[begin : begin + len(label)] = label
    padding = " " * (_LABEL_COLUMNS - 1)
    return [Text(padding + "└" + "".join(axis), AXIS), Text("".join(labels).rstrip(), AXIS)]
