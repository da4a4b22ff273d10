"""Stop strings: where generated text ends, and how much of it is certain.

Owns the text that is held back because it may be the beginning of a stop string. Must not know tokens or models.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Looks for the first of several strings in text that comes in pieces.

    Args:
        stops: none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        # Changed only by the methods below.
        self._held = ""
        self.found = ""

    def feed(self, text: str) -> str:
        """Takes the next piece; returns the text that is certain now. After a match (`found`) there is no more."""
        self._held += text
        places = [(place, stop) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            # The earliest; of two at one place the one named first.
            place, self.found = min(places, key=lambda each: each[0])
            certain, self._held = self._held[:place], ""
            return certain
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        certain = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return certain

    def flush(self) -> str:
        """The text held back, when nothing follows."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Length of the longest beginning of `stop` that the held text ends with."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
