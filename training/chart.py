"""Chart: lines, bands and levels over two axes, as plain data, and where its ticks lie.

Owns: what a chart is and its scales. Must not know how it is drawn: `svg` and `terminal` do that.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# A level further from the lines than this share of their span would squash them: it is named, not drawn.
LEVEL_REACH = 1.0


@dataclass(frozen=True, slots=True)
class Line:
    """Points joined in order; a NaN in y breaks the line.

    is_dashed: for what only serves to compare. has_points: the points themselves are shown, where they are few.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    is_dashed: bool = False
    has_points: bool = False


@dataclass(frozen=True, slots=True)
class Band:
    """The area between two lines over the same x.

    of: the line that it belongs to, whose colour it takes; the legend then names the line alone.
    """

    name: str
    x: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    of: str = ""


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line across the whole chart."""

    name: str
    y: float


@dataclass(frozen=True, slots=True)
class Mark:
    """One point to be seen, with its text."""

    text: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Span:
    """The values that an axis covers and where its ticks lie. is_log: equal lengths are equal ratios."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high end."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def value(self, place: float) -> float:
        """The value at a place; the inverse of `place`."""
        if self.is_log:
            return float(self.low * (self.high / self.low) ** place)
        return self.low + place * (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture's content. Axis labels name the unit. Its spans raise ValueError without a finite point.

    is_x_whole: x counts things, so there are no ticks between whole numbers. is_x_log, is_y_log: the axis is
    logarithmic; what is not above 0 is then as good as missing.
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    bands: tuple[Band, ...] = ()
    levels: tuple[Level, ...] = ()
    mark: Mark | None = None
    is_x_whole: bool = False
    is_x_log: bool = False
    is_y_log: bool = False

    @property
    def x_span(self) -> Span:
        """The x axis: exactly as wide as the data."""
        values = [v for line in self.lines for v in line.x] + [v for band in self.bands for v in band.x]
        low, high = _extent(values, is_log=self.is_x_log)
        if self.is_x_log:
            return Span(low, high, log_ticks(low, high, 8), is_log=True)
        return Span(low, high, ticks(low, high, 8, least=1.0 if self.is_x_whole else 0.0))

    @property
    def y_span(self) -> Span:
        """The y axis: the data and the levels near it, with a little room, between round numbers."""
        bands = (v for band in self.bands for v in (*band.low, *band.high))
        low, high = _extent([v for line in self.lines for v in line.y] + list(bands), is_log=self.is_y_log)
        if self.is_y_log:
            room = (high / low) ** 0.04
            return Span(low / room, high * room, log_ticks(low / room, high * room, 7), is_log=True)
        near = [level.y for level in self.levels if self._is_near(level, low, high)]
        low, high = min([low, *near]), max([high, *near])
        room = 0.04 * (high - low)
        return Span(low - room, high + room, ticks(low - room, high + room, 6))

    @property
    def near_levels(self) -> tuple[Level, ...]:
        """Levels that the y axis covers."""
        span = self.y_span
        return tuple(level for level in self.levels if span.low <= level.y <= span.high)

    @staticmethod
    def _is_near(level: Level, low: float, high: float) -> bool:
        reach = LEVEL_REACH * (high - low)
        return low - reach <= level.y <= high + reach


def ticks(low: float, high: float, most: int, least: float = 0.0) -> tuple[float, ...]:
    """Round numbers (1, 2 or 5 times a power of ten apart, at least `least`) in [low, high], at most `most` of them."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10, 20) if (high - low) // (m * power) + 1 <= most)
    step = max(step, least)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(i * step for i in range(first, last + 1))


def log_ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    """Ticks of a logarithmic axis in [low, high], at most `most`: 1, 2 and 5 times powers of ten, or powers alone."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    fine = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    coarse = [[10.0**e for e in range(-apart * 40, last + 1, apart)] for apart in range(1, last - first + 2)]
    inside = [tuple(v for v in values if low <= v * 1.000001 and v <= high * 1.000001) for values in (fine, *coarse)]
    return next(found for found in inside if len(found) <= most)


def tick_label(value: float, span: Span) -> str:
    """A tick as text, with just the decimals that its axis needs."""
    if span.is_log:
        return f"{value:,.0f}" if 1 <= value < 1e6 else f"{value:g}"
    step = span.ticks[1] - span.ticks[0] if len(span.ticks) > 1 else abs(value) or 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value + 0.0:,.{decimals}f}"


def level_label(level: Level, span: Span) -> str:
    """A level's name and value, and an arrow where it lies off its axis."""
    arrow = " ↑" if level.y > span.high else " ↓" if level.y < span.low else ""
    return f"{level.name} {level.y:.3g}{arrow}"


def tuples(values: Iterable[float]) -> tuple[float, ...]:
    """Any numbers, arrays too, as a tuple of plain floats."""
    return tuple(float(v) for v in values)


def _extent(values: Iterable[float], *, is_log: bool = False) -> tuple[float, float]:
    """Smallest and largest finite value, on a logarithmic axis above 0, made different where they are not."""
    finite: Sequence[float] = [v for v in values if math.isfinite(v) and (v > 0 or not is_log)]
    if not finite:
        raise ValueError("a chart needs at least one finite point")
    low, high = min(finite), max(finite)
    if is_log:
        return (low, high) if high > low else (low / 2, high * 2)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
