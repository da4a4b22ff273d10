"""Terminal: a chart drawn with braille dots, 2 x 4 in each character, and colours where there are any.

Owns: the canvas, its size and its characters. A terminal without colours shows the same dots.
"""

import math
from itertools import pairwise

from rich.text import Text

from eddy.training.chart import Chart, Line, Span, level_label, tick_label

COLUMNS, ROWS = 76, 18
STYLES = ("bold white", "bright_red", "bright_blue", "green", "magenta")
BAND_STYLE, LEVEL_STYLE, QUIET = "blue", "yellow", "bright_black"
# Bits of the eight dots of a braille character, by column (2) and row (4); Unicode 15, chapter 21.1.
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
BRAILLE = 0x2800


class Canvas:
    """COLUMNS x ROWS characters, each with a style; later drawing lies on top."""

    def __init__(self) -> None:
        # Written by the drawing methods only.
        self.characters = [[" "] * COLUMNS for _ in range(ROWS)]
        self.styles = [[""] * COLUMNS for _ in range(ROWS)]

    def put(self, column: int, row: int, character: str, style: str) -> None:
        """One character; outside the canvas nothing happens."""
        if 0 <= column < COLUMNS and 0 <= row < ROWS:
            self.characters[row][column], self.styles[row][column] = character, style

    def dot(self, across: float, up: float, style: str) -> None:
        """One dot, both coordinates between 0 and 1, joined with the dots that its character already has."""
        x, y = round(across * (2 * COLUMNS - 1)), round((1 - up) * (4 * ROWS - 1))
        column, row = x // 2, y // 4
        if not (0 <= column < COLUMNS and 0 <= row < ROWS):
            return
        before = ord(self.characters[row][column])
        bits = before - BRAILLE if BRAILLE <= before < BRAILLE + 256 else 0
        self.put(column, row, chr(BRAILLE + (bits | DOTS[x % 2][y % 4])), style)


def draw_terminal(chart: Chart) -> Text:
    """The chart as text for `rich`."""
    x, y, canvas = chart.x_span, chart.y_span, Canvas()
    for band in chart.bands:
        for column in range(COLUMNS):
            value = x.value((column + 0.5) / COLUMNS)
            low, high = (_value_at(band.x, edge, value) for edge in (band.low, band.high))
            for row in range(ROWS):
                if low <= y.value(1 - (row + 0.5) / ROWS) <= high:
                    canvas.put(column, row, "░", BAND_STYLE)
    for level in chart.near_levels:
        for column in range(0, COLUMNS, 2):
            canvas.put(column, _row(y, level.y), "╌", LEVEL_STYLE)
    for line, style in zip(chart.lines, STYLES * len(chart.lines), strict=False):
        _draw_line(canvas, line, x, y, style)
    if chart.mark is not None:
        column = round(x.place(chart.mark.x) * (COLUMNS - 1))
        canvas.put(column, _row(y, chart.mark.y), "◉", "bold")
    return _frame(chart, canvas, x, y)


def _draw_line(canvas: Canvas, line: Line, x: Span, y: Span, style: str) -> None:
    """Dots at every place between neighbouring points; every fourth of them where the line is dashed."""
    shown = [b if b > 0 or not y.is_log else math.nan for b in line.y]
    points = [(x.place(a), y.place(b)) for a, b in zip(line.x, shown, strict=True)]
    if len(points) == 1:
        points *= 2
    count = 0
    for (x0, y0), (x1, y1) in pairwise(points):
        if not (math.isfinite(y0) and math.isfinite(y1)):
            continue
        number = max(1, math.ceil(2 * COLUMNS * abs(x1 - x0)), math.ceil(4 * ROWS * abs(y1 - y0)))
        for i in range(number + 1):
            count += 1
            if not line.is_dashed or count % 4 == 0:
                canvas.dot(x0 + (x1 - x0) * i / number, y0 + (y1 - y0) * i / number, style)


def _value_at(xs: tuple[float, ...], ys: tuple[float, ...], x: float) -> float:
    """The y that belongs to the nearest x."""
    return ys[min(range(len(xs)), key=lambda i: abs(xs[i] - x))]


def _row(y: Span, value: float) -> int:
    return min(ROWS - 1, int((1 - y.place(value)) * ROWS))


def _frame(chart: Chart, canvas: Canvas, x: Span, y: Span) -> Text:
    """Title, axes with their ticks, and a legend around the canvas."""
    labels = {_row(y, tick): tick_label(tick, y) for tick in y.ticks}
    margin = max(map(len, labels.values()), default=0) + 1
    out = Text(no_wrap=True)
    out.append(f"{chart.title}\n", "bold")
    out.append(f"{chart.y_label}\n", QUIET)
    for row in range(ROWS):
        out.append(f"{labels.get(row, ''):>{margin}}{'┤' if row in labels else '│'}", QUIET)
        for character, style in zip(canvas.characters[row], canvas.styles[row], strict=True):
            out.append(character, style)
        out.append("\n")
    rule, words = ["─"] * COLUMNS, [" "] * (COLUMNS + 12)
    for tick in x.ticks:
        column, label = round(x.place(tick) * (COLUMNS - 1)), tick_label(tick, x)
        rule[column] = "┴"
        start = max(0, column - len(label) // 2)
        words[start : start + len(label)] = label
    out.append(f"{'':>{margin}}└{''.join(rule)}\n", QUIET)
    out.append(f"{'':>{margin}} {''.join(words).rstrip()}\n", QUIET)
    out.append(f"{'':>{margin}} {chart.x_label:^{COLUMNS}}".rstrip() + "\n", QUIET)
    _append_legend(out, chart, y, margin)
    return out


def _append_legend(out: Text, chart: Chart, y: Span, margin: int) -> None:
    entries = [
        ("┄┄" if line.is_dashed else "⠒⠒", line.name, style)
        for line, style in zip(chart.lines, STYLES * len(chart.lines), strict=False)
    ]
    entries += [("░░", band.name, BAND_STYLE) for band in chart.bands if not band.of]
    entries += [("╌╌", level_label(level, y), LEVEL_STYLE) for level in chart.levels]
    if chart.mark is not None:
        entries.append(("◉", chart.mark.text, "bold"))
    used = 0
    for sign, name, style in entries:
        if used + len(name) + 6 > COLUMNS:
            out.append("\n")
            used = 0
        out.append(" " * (margin + 1) if used == 0 else "   ")
        out.append(sign, style)
        out.append(f" {name}")
        used += len(name) + 6
