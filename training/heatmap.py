"""Heat maps: a table of shares as a picture in plain text: darker is more.

Owns: sizes and colours. Must not know what is shown.
"""

from dataclasses import dataclass
from xml.sax.saxutils import escape

CELL = 26
# Units that a character of a label takes at its size.
LETTER = 7.6
MARGIN, TITLE = 14, 44
DARK, TEXT, QUIET = (25, 113, 194), "#212529", "#5c636a"


@dataclass(frozen=True, slots=True)
class HeatMap:
    """shares: one row for each of `rows`, in each one value, 0 to 1, for each of `columns`."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    row_label: str
    column_label: str
    shares: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if len(self.shares) != len(self.rows) or any(len(row) != len(self.columns) for row in self.shares):
            raise ValueError(f"shares: got {len(self.shares)} rows, expected {len(self.rows)} x {len(self.columns)}")


def draw_heatmap(heat: HeatMap) -> str:
    """The map as an SVG document; columns are labelled upwards above it."""
    left = MARGIN + 20 + LETTER * max(map(len, heat.rows), default=0)
    top = TITLE + 20 + LETTER * max(map(len, heat.columns), default=0)
    width = max(left + CELL * len(heat.columns) + MARGIN, MARGIN * 2 + 9 * len(heat.title))
    height = top + CELL * len(heat.rows) + MARGIN
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" font-family="system-ui, DejaVu Sans, sans-serif" font-size="13">'
        ),
        f"<title>{escape(heat.title)}</title>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="26" font-size="16" font-weight="600" fill="{TEXT}">{escape(heat.title)}</text>',
        f'<text x="{MARGIN}" y="{top - 6:.0f}" fill="{QUIET}" font-size="11">{escape(heat.row_label)} ↓</text>',
        f'<text x="{left:.0f}" y="{TITLE}" fill="{QUIET}" font-size="11">{escape(heat.column_label)} →</text>',
    ]
    for i, name in enumerate(heat.columns):
        x, y = left + CELL * (i + 0.5) + 4, top - 6
        parts.append(f'<text transform="translate({x:.1f} {y:.1f}) rotate(-90)" {_words(name)}')
    for i, (name, row) in enumerate(zip(heat.rows, heat.shares, strict=True)):
        y = top + CELL * i
        parts.append(f'<text x="{left - 8:.1f}" y="{y + 17:.1f}" text-anchor="end" {_words(name)}')
        parts += [_cell(left + CELL * j, y, share) for j, share in enumerate(row)]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _words(text: str) -> str:
    """What stands behind a text's place; spaces are shown, since symbols may begin with one."""
    return f'fill="{TEXT}" font-family="DejaVu Sans Mono, monospace">{escape(text.replace(" ", "·"))}</text>'


def _cell(x: float, y: float, share: float) -> str:
    colour = "#" + "".join(f"{round(255 + (dark - 255) * min(1.0, share)):02x}" for dark in DARK)
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{CELL}" height="{CELL}" fill="{colour}" stroke="#e9ecef">'
        f"<title>{share:.2f}</title></rect>"
    )
