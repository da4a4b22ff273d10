"""SVG: a chart as a picture that any browser shows, in plain text.

Owns: sizes, colours and the drawing order: grid, bands, levels, lines, mark, labels, legend.
"""

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from eddy.training.chart import Band, Chart, Line, Span, level_label, tick_label

WIDTH, HEIGHT = 880, 470
# The plot's edges: room for the title and the legend above, labels below and at the sides.
LEFT, RIGHT, TOP, BOTTOM = 76, 856, 92, 408
# Distinct in lightness as well as in hue, so that they stay apart in grey and for most colour-blind eyes.
COLOURS = ("#1f2937", "#d9480f", "#1971c2", "#2f9e44", "#862e9c", "#b08900", "#0b7285")
LEVEL_COLOURS = ("#868e96", "#b08900", "#0b7285", "#9c36b5")
BAND, GRID, TEXT, QUIET = "#1971c2", "#e9ecef", "#212529", "#5c636a"


def draw_svg(chart: Chart) -> str:
    """The chart as an SVG document."""
    x, y = chart.x_span, chart.y_span
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            'font-family="system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, sans-serif" font-size="13">'
        ),
        f"<title>{escape(chart.title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<clipPath id="plot"><rect x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{BOTTOM - TOP}"/></clipPath>',
        _text(LEFT, 30, chart.title, size=17, weight="600"),
        *_grid(chart, x, y),
        '<g clip-path="url(#plot)">',
        *_bands(chart, x, y),
        *_levels(chart, y),
        *_lines(chart, x, y),
        "</g>",
        *_mark(chart, x, y),
        *_legend(chart),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _grid(chart: Chart, x: Span, y: Span) -> Iterator[str]:
    for value in y.ticks:
        at = _down(y, value)
        yield f'<path d="M{LEFT} {at:.1f}H{RIGHT}" stroke="{GRID}"/>'
        yield _text(LEFT - 9, at + 4.5, tick_label(value, y), anchor="end", colour=QUIET)
    for value in x.ticks:
        at = _across(x, value)
        yield f'<path d="M{at:.1f} {BOTTOM}v5" stroke="{QUIET}"/>'
        yield _text(at, BOTTOM + 21, tick_label(value, x), anchor="middle", colour=QUIET)
    yield f'<path d="M{LEFT} {BOTTOM}H{RIGHT}" stroke="{QUIET}"/>'
    yield _text((LEFT + RIGHT) / 2, HEIGHT - 16, chart.x_label, anchor="middle")
    middle = (TOP + BOTTOM) / 2
    turned = f'transform="rotate(-90 20 {middle})"'
    yield f'<text x="20" y="{middle}" text-anchor="middle" fill="{TEXT}" {turned}>{escape(chart.y_label)}</text>'


def _bands(chart: Chart, x: Span, y: Span) -> Iterator[str]:
    for band in chart.bands:
        there = list(zip(band.x, band.high, strict=True))
        back = list(zip(band.x, band.low, strict=True))[::-1]
        shown = [(a, b) for a, b in there + back if _is_shown(b, y)]
        points = " ".join(f"{_across(x, a):.1f},{_down(y, b):.1f}" for a, b in shown)
        yield f'<polygon points="{points}" fill="{_band_colour(chart, band)}" fill-opacity="0.16"/>'


def _levels(chart: Chart, y: Span) -> Iterator[str]:
    for level in chart.near_levels:
        at, colour = _down(y, level.y), _level_colour(chart, level.name)
        yield f'<path d="M{LEFT} {at:.1f}H{RIGHT}" stroke="{colour}" stroke-width="1.5" stroke-dasharray="7 5"/>'


def _lines(chart: Chart, x: Span, y: Span) -> Iterator[str]:
    for line, colour in zip(chart.lines, _line_colours(chart), strict=True):
        dash = ' stroke-dasharray="4 4" stroke-width="1.4"' if line.is_dashed else ' stroke-width="2.2"'
        for piece in _pieces(line, y):
            points = " ".join(f"{_across(x, a):.1f},{_down(y, b):.1f}" for a, b in piece)
            yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-linejoin="round"{dash}/>'
            for a, b in piece if line.has_points or len(piece) == 1 else ():
                yield f'<circle cx="{_across(x, a):.1f}" cy="{_down(y, b):.1f}" r="2.6" fill="{colour}"/>'


def _mark(chart: Chart, x: Span, y: Span) -> Iterator[str]:
    if chart.mark is None:
        return
    across, down = _across(x, chart.mark.x), _down(y, chart.mark.y)
    yield f'<path d="M{across:.1f} {TOP}V{BOTTOM}" stroke="{QUIET}" stroke-dasharray="2 4"/>'
    yield f'<circle cx="{across:.1f}" cy="{down:.1f}" r="5" fill="#ffffff" stroke="{TEXT}" stroke-width="2"/>'
    is_right = across > (LEFT + RIGHT) / 2
    yield _text(across + (4 if is_right else -4), TOP - 6, chart.mark.text, anchor="end" if is_right else "start")


def _legend(chart: Chart) -> Iterator[str]:
    """One row above the plot; levels with their values, and an arrow at those off the axis."""
    y = chart.y_span
    at, row = float(LEFT), 52.0
    entries = [
        (line.name, _swatch(c, dashed=line.is_dashed))
        for line, c in zip(chart.lines, _line_colours(chart), strict=True)
    ]
    entries += [
        (band.name, f'<rect y="-9" width="22" height="10" fill="{BAND}" fill-opacity="0.2"/>')
        for band in chart.bands
        if not band.of
    ]
    for level in chart.levels:
        entries.append((level_label(level, y), _swatch(_level_colour(chart, level.name), dashed=True)))
    for name, swatch in entries:
        # About 6.7 units a character at this size; exact widths need the reader's fonts.
        width = 28 + 6.9 * len(name) + 18
        if at + width > RIGHT + 24 and at > LEFT:
            at, row = float(LEFT), row + 20
        yield f'<g transform="translate({at:.1f} {row:.1f})">{swatch}{_text(28, 0, name)}</g>'
        at += width


def _swatch(colour: str, *, dashed: bool) -> str:
    dash = ' stroke-dasharray="5 3"' if dashed else ""
    return f'<path d="M0 -4.5h22" stroke="{colour}" stroke-width="2.2"{dash}/>'


def _line_colours(chart: Chart) -> Sequence[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(chart.lines))]


def _level_colour(chart: Chart, name: str) -> str:
    return LEVEL_COLOURS[[level.name for level in chart.levels].index(name) % len(LEVEL_COLOURS)]


def _band_colour(chart: Chart, band: Band) -> str:
    """Its line's, or that of bands."""
    colours = dict(zip((line.name for line in chart.lines), _line_colours(chart), strict=True))
    return colours[band.of] if band.of else BAND


def _is_shown(value: float, span: Span) -> bool:
    """True for what has a place on the axis."""
    return math.isfinite(value) and (value > 0 or not span.is_log)


def _pieces(line: Line, y: Span) -> list[list[tuple[float, float]]]:
    """The line's points, cut where one is missing."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for a, b in zip(line.x, line.y, strict=True):
        if _is_shown(b, y):
            pieces[-1].append((a, b))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _across(span: Span, value: float) -> float:
    return LEFT + span.place(value) * (RIGHT - LEFT)


def _down(span: Span, value: float) -> float:
    return BOTTOM - span.place(value) * (BOTTOM - TOP)


def _text(
    x: float, y: float, words: str, *, size: int = 13, weight: str = "400", anchor: str = "start", colour: str = TEXT
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{colour}">{escape(words)}</text>'
    )
