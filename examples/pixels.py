"""Pixels: small grey pictures as characters of a terminal.

Owns the drawing. With colours a character holds two pixels, one above the other; without, its darkness stands for one.
"""

from __future__ import annotations

from itertools import groupby

import numpy as np
from rich.text import Text

# From black to white, for a dark background.
_SHADES = " .:-=+*#%@"
# Terminals of 256 colours have 24 greys, from this one on.
_DARKEST, _LIGHTEST = 232, 23


def draw(frame: np.ndarray, *, has_colours: bool, scale: int = 1) -> Text:
    """A frame [rows, columns], 0 black to 1 white; each pixel is `scale` characters wide, and half as many high."""
    pixels = np.clip(np.repeat(np.repeat(frame, scale, axis=0), scale, axis=1), 0.0, 1.0)
    if len(pixels) % 2:
        pixels = np.vstack([pixels, np.zeros((1, pixels.shape[1]))])
    above, below = pixels[::2], pixels[1::2]
    lines = Text(no_wrap=True)
    for number, (upper, lower) in enumerate(zip(_levels(above), _levels(below), strict=True)):
        lines.append("\n" if number else "")
        for (top, bottom), run in groupby(zip(upper, lower, strict=True)):
            length = len(list(run))
            if has_colours:
                lines.append("▀" * length, f"color({_DARKEST + top}) on color({_DARKEST + bottom})")
            else:
                lines.append(_SHADES[(top + bottom) * (len(_SHADES) - 1) // (2 * _LIGHTEST)] * length)
    return lines


def _levels(pixels: np.ndarray) -> list[list[int]]:
    levels: list[list[int]] = np.round(pixels * _LIGHTEST).astype(int).tolist()
    return levels


def shrink(frame: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A frame [H, W] made smaller, float32 [rows, columns]: each pixel the mean of the area that it stands for."""
    down, across = (
        np.linspace(0, size, parts + 1).round().astype(int)
        for size, parts in zip(frame.shape, (rows, columns), strict=True)
    )
    sums = np.add.reduceat(np.add.reduceat(frame.astype(np.float64), down[:-1], axis=0), across[:-1], axis=1)
    return (sums / np.outer(np.diff(down), np.diff(across))).astype(np.float32)
