"""Stop: when a run should end early, and by whose wish.

Owns: the wish, from a signal or from a number of steps agreed before. Must not know what is being run: whoever runs
asks between two steps, so nothing is ever cut in the middle.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """A wish to stop, asked for between two steps."""

    def __init__(self, max_steps: int | None = None) -> None:
        """max_steps: wish to stop after so many steps; None means that only signals do."""
        self.max_steps = max_steps
        # Written by `count_step` and by the signal handler, both in the main thread.
        self.steps = 0
        self.signal: signal.Signals | None = None

    def count_step(self) -> None:
        """One step was done."""
        self.steps += 1

    @property
    def is_due(self) -> bool:
        """True once a signal came or the agreed number of steps is done."""
        return self.signal is not None or (self.max_steps is not None and self.steps >= self.max_steps)

    @property
    def reason(self) -> str:
        """Who wished it, in a few words."""
        return f"by {self.signal.name}" if self.signal else f"after {self.steps} steps, as asked"

    @property
    def exit_code(self) -> int:
        """What a shell expects: 128 and the signal's number, or 0 where it was agreed before."""
        return 128 + self.signal if self.signal else 0

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within this, the first SIGINT or SIGTERM is a wish; a second one ends the process as it usually would."""
        before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}

        def wish(number: int, _: FrameType | None) -> None:
            self.signal = signal.Signals(number)
            for each, handler in before.items():
                signal.signal(each, handler)

        for number in SIGNALS:
            signal.signal(number, wish)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
