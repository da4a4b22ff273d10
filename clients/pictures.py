"""Moving pictures of streams on a terminal: a forecast, a text with its surprises, a text that is being restored.

Owns the drawing of records as they come. Must not know servers or files. A picture is drawn anew twelve times a second
from all that has come by then, so values may come as fast as they like, or stop.

Dimension key: K horizons.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Self

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from eddy.clients import chart
from eddy.clients.reading import Forecasts, Record

_FRAMES_PER_SECOND = 12
# Rows beside the chart or the text: legend, table, counter, cursor.
_OTHER_ROWS = 9
# More than any terminal has columns.
_NUM_RECENT = 500
_NUM_LINES = 200
_MARGIN = 0.1
# Bits -> style: expected, so so, surprising, very.
_SURPRISE = ((1.0, "green"), (4.0, ""), (7.0, "yellow"), (float("inf"), "bold red"))
_CHANGED = "bold green"


class Picture:
    """A moving picture: `draw` shows what is known. Its last state stays on the screen."""

    def __init__(self, console: Console) -> None:
        self.console = console
        # For the length of the `with` block.
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._live = Live(console=self.console, refresh_per_second=_FRAMES_PER_SECOND, get_renderable=self.draw)
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def read(self, given: Any) -> None:
        """Nothing to draw yet."""

    @property
    def width(self) -> int:
        """Columns to draw in."""
        return max(50, min(self.console.width, 120))

    def draw(self) -> RenderableType:
        """The picture now; called by the drawing thread, so it takes its data in single steps."""
        raise NotImplementedError


class ForecastPicture(Picture):
    """The series so far with what was forecast for it, the forecast from now on, and running errors."""

    def __init__(self, console: Console, reading: Forecasts, name: str) -> None:
        super().__init__(console)
        self._reading = reading
        self._name = name
        # Changed only by `show`. The last steps: truth, and all quantiles forecast then, [K, Q].
        self._recent: deque[tuple[float, np.ndarray]] = deque(maxlen=max(_NUM_RECENT, reading.horizons[-1]))
        self._count = 0
        # By horizon: sums of absolute errors of the forecast and of the last value, and how many.
        self._sums = np.zeros((3, len(reading.horizons)))

    def show(self, record: Record) -> None:
        """Takes a step: the truth about forecasts made before, and a new forecast."""
        truth = float(record["values"][self._reading.target])
        sums = self._sums.copy()
        for column, horizon in enumerate(self._reading.horizons):
            if horizon <= len(self._recent):
                value, made = self._recent[-horizon]
                sums[:, column] += abs(made[column, self._reading.middle] - truth), abs(value - truth), 1
        self._sums = sums
        self._recent.append((truth, np.array([list(levels.values()) for levels in record["forecast"].values()])))
        self._count += 1

    def draw(self) -> RenderableType:
        """Chart, legend, errors."""
        reading = self._reading
        recent = list(self._recent)
        if not recent:
            return Text(f"{self._name}: waiting for values", chart.AXIS)
        rows = max(9, min(26, self.console.height - _OTHER_ROWS))
        drawing = chart.draw(self._forecast(recent), self.width, rows)
        share = reading.quantiles[-1] - reading.quantiles[0]
        before = reading.ahead(reading.horizons[len(reading.horizons) // 2])
        legend = Text.assemble(
            ("        ⣀⡠⠊ ", chart.PAST), "so far   ",
            ("• ", chart.COMING), f"forecast {before} before   ",
            ("◆ ", chart.MEDIAN), "forecast now   ",
            ("░ ", chart.BAND), f"{share:.0%} band",
        )  # fmt: skip
        state = f"{self._name} · {reading.meaning}, {reading.unit} · value {self._count} is {recent[-1][0]:g}"
        return Group(drawing, legend, self._errors(), Text(state, chart.AXIS))

    def _forecast(self, recent: list[tuple[float, np.ndarray]]) -> chart.Forecast:
        reading = self._reading
        truth = np.array([value for value, _ in recent])
        made = recent[-1][1]
        ahead = np.arange(1, reading.horizons[-1] + 1)
        known = np.concatenate([[0], reading.horizons])
        columns = [np.interp(ahead, known, np.concatenate([[truth[-1]], column])) for column in made.T]
        middle = len(reading.horizons) // 2
        horizon = reading.horizons[middle]
        before = [then[middle, reading.middle] for _, then in recent[:-horizon]]
        foretold = np.array([np.nan] * min(horizon, len(recent)) + before)
        seen = np.concatenate([truth[-self.width :], made.ravel()])
        margin = _MARGIN * max(float(seen.max() - seen.min()), 1e-6)
        return chart.Forecast(
            past=truth,
            low=columns[0],
            median=columns[reading.middle],
            high=columns[-1],
            coming=np.empty(0),
            bounds=(float(seen.min() - margin), float(seen.max() + margin)),
            horizons=reading.horizons,
            step_size=reading.step_size,
            step_unit=reading.step_unit,
            foretold=foretold,
        )

    def _errors(self) -> Table:
        reading, sums = self._reading, self._sums
        table = Table(box=None, padding=(0, 1), pad_edge=False)
        table.add_column(f"mean abs. error, {reading.unit}", no_wrap=True)
        for horizon in reading.horizons:
            table.add_column(f"+{reading.ahead(horizon)}", justify="right", no_wrap=True)
        for name, row, style in (("forecast", 0, chart.MEDIAN), ("last value", 1, "")):
            means = [
                f"{total / number:.2f}" if number else "-" for total, number in zip(sums[row], sums[2], strict=True)
            ]
            table.add_row(name, *means, style=style)
        return table


class TextPicture(Picture):
    """The end of the text, each character in the colour of its surprise, and what is expected next."""

    def __init__(self, console: Console, name: str) -> None:
        super().__init__(console)
        self._name = name
        # Changed only by `show`: the last lines, characters with their styles.
        self._lines: deque[Text] = deque([Text()], maxlen=_NUM_LINES)
        self._latest: Record | None = None
        self._bits = (0.0, 0)

    def show(self, record: Record) -> None:
        """Takes a character."""
        bits, symbol = record["bits"], record["symbol"]
        if bits is not None:
            self._bits = (self._bits[0] + bits, self._bits[1] + 1)
        style = next(style for limit, style in _SURPRISE if (bits or 0.0) < limit)
        line = self._lines[-1].copy()  # The drawing thread may have the other one.
        if symbol != "\n":
            line.append("·" if symbol == "\t" else symbol, style)
            self._lines[-1] = line
        if symbol == "\n" or len(line) >= self.width:
            self._lines.append(Text())
        self._latest = record

    def draw(self) -> RenderableType:
        """The text's last lines, guesses, bits."""
        latest = self._latest
        if latest is None:
            return Text(f"{self._name}: waiting for text", chart.AXIS)
        rows = max(3, min(16, self.console.height - _OTHER_ROWS))
        lines = list(self._lines)[-rows:]
        guesses = Table(box=None, padding=(0, 1), pad_edge=False, show_header=False)
        for guess in latest["expected"]:
            bar = "█" * round(30 * guess["probability"])
            shown = "newline" if guess["symbol"] == "\n" else repr(guess["symbol"])
            guesses.add_row("next", shown, f"{guess['probability']:.0%}", Text(bar, chart.BAND))
        legend = Text.assemble(
            "bits a character: ", ("below 1", "green"), ", 1 to 4, ", ("4 to 7", "yellow"), ", ", ("more", "bold red")
        )
        total, count = self._bits
        mean = f"{total / count:.2f} bits a character on average" if count else ""
        state = Text(f"{self._name} · character {latest['position'] + 1} · {mean}", chart.AXIS)
        return Group(Text("\n").join(lines), Text(), guesses, legend, state)


class RestoredPicture(Picture):
    """The end of the text as it was restored, what was changed in colour, and the characters without an answer yet."""

    def __init__(self, console: Console, name: str) -> None:
        super().__init__(console)
        self._name = name
        # Changed only by `read` and `show`: the last lines, restored; what was read and not answered.
        self._lines: deque[Text] = deque([Text()], maxlen=_NUM_LINES)
        self._waiting = ""
        self._num_changed = 0
        self._delay = 0

    def read(self, given: Any) -> None:
        """Takes a character that has no answer yet."""
        self._waiting += given

    def show(self, record: Record) -> None:
        """Takes the answer to the character that has waited longest."""
        self._waiting = self._waiting[1:]
        symbol, is_changed = record["restored"], record["restored"] != record["symbol"]
        line = self._lines[-1].copy()  # The drawing thread may have the other one.
        if symbol != "\n":
            line.append("·" if symbol == "\t" else symbol, _CHANGED if is_changed else "")
            self._lines[-1] = line
        if symbol == "\n" or len(line) >= self.width:
            self._lines.append(Text())
        self._num_changed += is_changed
        self._delay = record.get("delay", 0)

    def draw(self) -> RenderableType:
        """The text's last lines, the characters that wait, how many were changed."""
        rows = max(3, min(16, self.console.height - _OTHER_ROWS))
        lines = list(self._lines)[-rows:]
        waiting = self._waiting.replace("\n", "⏎").replace("\t", "·")
        lines[-1] = lines[-1] + Text(waiting, chart.AXIS)
        legend = Text.assemble(("changed", _CHANGED), ", as it was, ", ("read and not answered yet", chart.AXIS))
        state = f"{self._name} · {self._num_changed} changed · the last answer came {self._delay} characters later"
        return Group(Text("\n").join(lines), Text(), legend, Text(state, chart.AXIS))
