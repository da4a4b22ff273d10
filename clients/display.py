"""What a stream looks like: a live picture on a terminal, plain lines or JSON anywhere else.

Owns the lines, and the choice. Must not know servers or files, nor how pictures are drawn.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol, Self

from rich.console import Console

from eddy.clients.pictures import ForecastPicture, RestoredPicture, TextPicture
from eddy.clients.reading import Forecasts, Reading, Record, Restorations, Surprises


class Display(Protocol):
    """Shows records; used within `with`."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def read(self, given: Any) -> None:
        """A value was read; it is shown as soon as the model has answered it."""

    def show(self, record: Record) -> None:
        """One more step, in the order of reading."""


class JsonLines:
    """One JSON object a line."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, given: Any) -> None:
        """Nothing to write yet."""

    def show(self, record: Record) -> None:
        """Writes it at once."""
        write_json(record)


def write_json(record: Record) -> None:
    """One object a line, at once."""
    print(json.dumps(record, ensure_ascii=False), flush=True)


class PlainLines:
    """One line a step, cells separated by tabs, below a line with their names."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def __enter__(self) -> Self:
        print(*self._reading.columns, sep="\t", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, given: Any) -> None:
        """Nothing to write yet."""

    def show(self, record: Record) -> None:
        """Writes it at once."""
        print(*self._reading.cells(record), sep="\t", flush=True)


class RestoredText:
    """The restored text itself, as it becomes certain: what a pipe wants."""

    def __init__(self) -> None:
        self._last = "\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._last != "\n":
            print(flush=True)

    def read(self, given: Any) -> None:
        """Nothing to write yet."""

    def show(self, record: Record) -> None:
        """Writes it at once."""
        self._last = record["restored"]
        print(self._last, end="", flush=True)


def make_display(reading: Reading, name: str, *, is_json: bool) -> Display:
    """What suits the reading and where standard output goes.

    Args:
        name: of the model.
    """
    if is_json:
        return JsonLines()
    if hasattr(sys.stdout, "reconfigure"):  # A log that lacks a character shows a question mark.
        sys.stdout.reconfigure(errors="replace")
    console = Console(highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        if isinstance(reading, Forecasts):
            return ForecastPicture(console, reading, name)
        if isinstance(reading, Surprises):
            return TextPicture(console, name)
        if isinstance(reading, Restorations):
            return RestoredPicture(console, name)
    if isinstance(reading, Restorations):
        return RestoredText()
    return PlainLines(reading)
