"""An attention map, drawn with characters: where each written symbol looked in the source.

Owns the drawing. Must not know models, servers or the terminal: it is given symbols, numbers and a width.

Dimension key: T written symbols, S source symbols.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.text import Text

# From nothing to everything, readable without colours.
_SHADES = " ░▒▓█"
_STYLE, _LABEL = "cyan", "dim"
_MAX_LABEL = 16
_GAP = 1


def draw_attention(source: Sequence[str], written: Sequence[str], weights: np.ndarray, width: int) -> Text:
    """A row a written symbol, a column a source symbol, as wide as the symbol; further blocks where they do not fit.

    Args:
        source: symbols [S]; written: symbols [T]; weights: shares, float [T, at least S]; width: in columns.
    """
    shown = [_shown(symbol) for symbol in written]
    label = min(_MAX_LABEL, max(map(len, shown), default=0))
    names = [_shown(symbol) for symbol in source]
    lines: list[Text] = []
    for begin, end in _blocks(names, width - label - _GAP):
        if lines:
            lines.append(Text())
        header = Text(" " * label)
        for name in names[begin:end]:
            header.append(" " * _GAP + name, _LABEL)
        lines.append(header)
        for name, row in zip(shown, weights, strict=True):
            line = Text(f"{name[:label]:>{label}}")
            for column, weight in zip(names[begin:end], row[begin:end], strict=True):
                line.append(" " * _GAP + _shade(float(weight)) * len(column), _STYLE)
            lines.append(line)
    return Text("\n").join(lines)


def _shown(symbol: str) -> str:
    """A symbol in visible characters, at least one."""
    return symbol.replace("\u2581", "·").replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·") or "∅"


def _shade(weight: float) -> str:
    return _SHADES[min(len(_SHADES) - 1, max(0, round(weight * (len(_SHADES) - 1))))]


def _blocks(names: Sequence[str], width: int) -> list[tuple[int, int]]:
    """Begin and end of as many columns as fit, at least one each."""
    blocks: list[tuple[int, int]] = []
    begin = used = 0
    for place, name in enumerate(names):
        needed = _GAP + len(name)
        if place > begin and used + needed > width:
            blocks.append((begin, place))
            begin, used = place, 0
        used += needed
    return [*blocks, (begin, len(names))]
