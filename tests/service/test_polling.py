"""Polling: a session that steps in a closed loop keeps the event loop awake, for as long as it may."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from typing import cast

import pytest

from eddy.service import polling
from eddy.service.polling import BusyPoll

SECONDS = 0.5


class _Loop:
    """An event loop whose turns a test takes, at times it chooses."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ready: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        """As the event loop's."""
        self.ready.append(callback)

    def turn(self) -> bool:
        """One turn; whether the loop would look at its sockets without sleeping before it."""
        ready, self.ready = self.ready, []
        for callback in ready:
            callback()
        return bool(ready)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> _Loop:
    """A loop on a machine of two processors."""
    monkeypatch.setattr(polling, "_num_processors", lambda: 2)
    return _Loop()


def _busy_poll(loop: _Loop, seconds: float = SECONDS) -> BusyPoll:
    return BusyPoll(cast("asyncio.AbstractEventLoop", loop), lambda: loop.now, seconds)


def test_a_closed_loop_keeps_the_event_loop_awake_until_it_ends(loop: _Loop) -> None:
    """From its second step on, for so long after each step, by one callback at a time."""
    poll = _busy_poll(loop)
    poll.stepped(10.0)
    assert not loop.ready, "a step that nobody followed yet"
    for loop.now in (10.2, 10.6, 11.0):
        poll.stepped(loop.now)
        assert len(loop.ready) == 1
        assert loop.turn()
    loop.now = 11.4
    assert loop.turn()
    loop.now = 11.6
    assert loop.turn(), "it looks a last time"
    assert not loop.turn(), "then it sleeps"


def test_a_slow_session_costs_nothing(loop: _Loop) -> None:
    """Steps further apart than what would be looked for."""
    poll = _busy_poll(loop)
    for loop.now in (1.0, 1.6, 2.2):
        poll.stepped(loop.now)
    assert not loop.ready


def test_it_begins_again(loop: _Loop) -> None:
    """After a pause, with the second step."""
    poll = _busy_poll(loop)
    for start in (1.0, 9.0):
        for loop.now in (start, start + 0.1):
            poll.stepped(loop.now)
        assert loop.turn()
        loop.now += 1.0
        assert loop.turn()
        assert not loop.turn()


@pytest.mark.parametrize(("seconds", "processors"), [(0.0, 2), (SECONDS, 1)])
def test_it_can_be_without(seconds: float, processors: int, loop: _Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the configuration says so, and where the one processor is needed by others."""
    monkeypatch.setattr(polling, "_num_processors", lambda: processors)
    poll = _busy_poll(loop, seconds)
    for loop.now in (1.0, 1.0, 1.1):
        poll.stepped(loop.now)
    assert not loop.ready


def test_the_processors_are_those_it_may_use() -> None:
    """Not those of the machine."""
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
    code += "from eddy.service.polling import _num_processors; print(_num_processors())"
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot say which processors a process may use")
    found = subprocess.run(  # noqa: S603  our own command
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert int(found.stdout) == 1
