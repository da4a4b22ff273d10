"""Digits: handwritten ones, drawn into short clips in which they move.

Owns: reading the images and how a clip is made of one. Must not know torch or models.

A digit moves by some pixels a frame in one of eight directions; the frame has no edges, what leaves it on one side
comes in on the other, so that where a digit stands says nothing of where it goes. In every frame a bar hides a part of
the digit, and noise lies over all, so that a single frame is not enough to read it. The digit needs several frames,
the direction needs their order.
"""

import csv
import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from eddy.training.data import NO_TOKEN, Example, Floats, Tokens
from eddy.training.errors import DataError
from eddy.training.fields import require
from eddy.training.packages import read_packaged

DIGIT, DIRECTION, FRAMES = "digit", "direction", "frames"
IMAGE = 8
DIGITS = tuple("0123456789")
# Rows and columns of a move.
DIRECTIONS = {
    "right": (0, 1),
    "down-right": (1, 1),
    "down": (1, 0),
    "down-left": (1, -1),
    "left": (0, -1),
    "up-left": (-1, -1),
    "up": (-1, 0),
    "up-right": (-1, 1),
}


@dataclass(frozen=True, slots=True)
class ClipsSource:
    """Which clips are drawn. source: `wheel:NAME:PATH` of a .csv.gz with 64 pixels, 0 to 16, and a digit a line."""

    kind: ClassVar[str] = "clips"

    source: str
    licence: str
    # Rows and columns of a frame, and frames of a clip.
    size: int = 16
    frames: int = 8
    # Pixels of a move; a digit begins at a multiple of it. At 4, where two halvings of the frame end, a small model
    # learns both answers in minutes; at 1 or 2 it takes many times as long to tell a way from its opposite.
    speed: int = 4
    # Rows or columns of the digit that a bar hides in each frame, and the deviation of the noise; white is 1.
    hidden: int = 3
    noise: float = 0.1
    # Clips of each image for a training epoch, drawn anew for each.
    clips: int = 4
    seed: int = 1

    def __post_init__(self) -> None:
        require(self.size >= IMAGE, "data.size", self.size, f"at least {IMAGE}")
        divides = self.speed >= 1 and self.size % self.speed == 0
        require(divides, "data.speed", self.speed, f"1 or more, a divisor of the size {self.size}")
        require(self.frames >= 2, "data.frames", self.frames, "at least 2")
        require(0 <= self.hidden < IMAGE, "data.hidden", self.hidden, f"0 to {IMAGE - 1}")
        require(self.noise >= 0, "data.noise", self.noise, "0 or more")
        require(self.clips >= 1, "data.clips", self.clips, "at least 1")
        require(self.seed >= 0, "data.seed", self.seed, "0 or more")


@dataclass(frozen=True, slots=True)
class Images:
    """Digits: pixels float32 [N, 8, 8], 0 black to 1 white, and labels int64 [N]."""

    pixels: Floats
    labels: Tokens


def read_images(source: str) -> Images:
    """All images of a file. Raises PackageError, DataError."""
    try:
        text = gzip.decompress(read_packaged(source)).decode()
        table = np.array([[float(v) for v in row] for row in csv.reader(io.StringIO(text))], np.float32)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{source}: not readable as images: {error}") from error
    if table.ndim != 2 or table.shape[1] != IMAGE * IMAGE + 1:
        raise DataError(f"{source}: got a table of {table.shape}, expected {IMAGE * IMAGE} pixels and a digit a line")
    pixels = (table[:, :-1].reshape(-1, IMAGE, IMAGE) / 16).astype(np.float32)
    return Images(pixels, table[:, -1].astype(np.int64))


def draw_clips(source: ClipsSource, images: Images, rows: Tokens, ways: Tokens, rng: np.random.Generator) -> Floats:
    """Clips of the images `rows`, moving as `ways` say (indices of DIRECTIONS): float32 [N, T, size, size], 0 to 1."""
    number, size = len(rows), source.size
    steps = np.array(list(DIRECTIONS.values()))[ways] * source.speed
    starts = rng.integers(size // source.speed, size=(number, 2)) * source.speed
    corners = starts[:, None, :] + np.arange(source.frames)[None, :, None] * steps[:, None, :]
    places = (corners[..., None] + np.arange(IMAGE)) % size
    shown = images.pixels[rows][:, None] * _bars(source, (number, source.frames), rng)
    frames = np.zeros((number, source.frames, size, size), np.float32)
    clip, time = np.ogrid[:number, : source.frames]
    frames[clip[..., None, None], time[..., None, None], places[:, :, 0, :, None], places[:, :, 1, None, :]] = shown
    frames += rng.normal(0, source.noise, frames.shape).astype(np.float32)
    # As in a file of pictures, brightness has a hundred steps.
    found: Floats = (np.round(np.clip(frames, 0, 1) * 100) / 100).astype(np.float32)
    return found


def _bars(source: ClipsSource, shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """What bars leave of a digit: float32 [*shape, 8, 8] of 0 and 1, each a bar of rows or of columns."""
    first = rng.integers(IMAGE - source.hidden + 1, size=shape)[..., None]
    line = np.arange(IMAGE)
    open_ = ((line < first) | (line >= first + source.hidden)).astype(np.float32)
    is_row = rng.random(shape) < 0.5
    return np.where(is_row[..., None, None], open_[..., :, None], open_[..., None, :]).astype(np.float32)


def clip_examples(source: ClipsSource, images: Images, rows: Tokens, ways: Tokens, seed: int) -> tuple[Example, ...]:
    """Clips as examples: asked for the digit at every frame, and for the direction at all but the first."""
    clips = draw_clips(source, images, rows, ways, np.random.default_rng((source.seed, seed)))
    found = []
    for clip, row, way in zip(clips, rows, ways, strict=True):
        direction = np.full(source.frames, way, np.int64)
        direction[0] = NO_TOKEN
        found.append(Example({FRAMES: clip}, {DIGIT: np.full(source.frames, images.labels[row]), DIRECTION: direction}))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class DrawnClips:
    """Training clips, drawn anew for every epoch from its number."""

    source: ClipsSource
    images: Images
    rows: Tokens

    def epoch(self, number: int) -> Sequence[Example]:
        """The clips of an epoch."""
        rng = np.random.default_rng((self.source.seed, number))
        rows = np.repeat(self.rows, self.source.clips)
        ways = rng.integers(len(DIRECTIONS), size=len(rows))
        return clip_examples(self.source, self.images, rows, ways, 1000 + number)
