"""The screen: pictures that move on a terminal and are printed once anywhere else.

Owns the console and the pace. Must not know what is shown. On a terminal a scene moves at reading speed; elsewhere
(a pipe, a log) nothing waits, nothing moves, and the last picture of each scene is printed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.rule import Rule

_FRAME_SECONDS = 1 / 15
_RECORDED_WIDTH = 100


class Picture:
    """One moving picture; `show` replaces it."""

    def __init__(self, live: Live | None) -> None:
        self._live = live
        # Changed only by `show`.
        self.latest: RenderableType = ""
        self._shown = 0.0

    def show(self, content: RenderableType, *, is_last: bool = False) -> None:
        """Replaces the picture; more often than 15 times a second only the last is drawn."""
        self.latest = content
        now = time.monotonic()
        if self._live is not None and (is_last or now - self._shown >= _FRAME_SECONDS):
            self._live.update(content, refresh=True)
            self._shown = now


class Screen:
    """Where the demo draws.

    Args:
        is_quick: a run of a few seconds, for tests.
        is_recording: nothing moves, colours are kept, and `save` writes what was shown.
    """

    def __init__(self, *, is_quick: bool = False, is_recording: bool = False) -> None:
        # A terminal or log that lacks a character shows a question mark instead of ending the demo.
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        recorded = {"record": True, "width": _RECORDED_WIDTH, "force_terminal": True, "color_system": "truecolor"}
        self.console = Console(highlight=False, **(recorded if is_recording else {}))  # type: ignore[arg-type]
        self.is_quick = is_quick
        self.is_moving = self.console.is_terminal and not self.console.is_dumb_terminal and not is_recording

    @property
    def width(self) -> int:
        """Columns to draw in: wider lines are harder to read, and narrower than 50 no chart fits."""
        return max(50, min(self.console.width, 120))

    @property
    def height(self) -> int:
        """Rows that a picture may take with its title above and the cursor below it."""
        return max(12, min(self.console.height, 44) - 3) if self.is_moving else 20

    @property
    def has_colours(self) -> bool:
        """What is drawn may be told apart by its colours."""
        return self.console.color_system is not None

    def title(self, number: int, text: str) -> None:
        """Begins a scene."""
        self.console.print()
        self.console.print(Rule(f"[bold]{number}[/] · {escape(text)}", align="left", style="blue"), width=self.width)

    def say(self, text: str) -> None:
        """A line of text, with markup."""
        self.console.print(text, width=self.width)

    @contextmanager
    def picture(self) -> Iterator[Picture]:
        """A picture for the length of a `with` block; its last state stays on the screen."""
        if not self.is_moving:
            picture = Picture(None)
            yield picture
            self.console.print(picture.latest)
            return
        with Live(console=self.console, auto_refresh=False) as live:
            picture = Picture(live)
            yield picture
            live.update(picture.latest, refresh=True)

    def save(self, path: Path) -> None:
        """Writes everything shown so far as a picture of a terminal, SVG.

        Raises:
            OSError: it cannot be written.
        """
        path.write_text(self.console.export_svg(title="make demo"), encoding="utf-8")

    async def pace(self, seconds: float) -> None:
        """Waits, so that a person can follow; does not where nobody watches."""
        await asyncio.sleep(seconds if self.is_moving and not self.is_quick else 0.0)
