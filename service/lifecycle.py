"""The life of a session: its statuses, the events, and the transition table.

Owns which event is legal in which status. Must not know why an event happens or what follows from it.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Status(IntEnum):
    """What a row of the session table is."""

    FREE = 0
    # Open, and owned by a stream.
    ATTACHED = 1
    # Open, and owned by nobody: used by unary calls, or waiting for its client to come back.
    DETACHED = 2


class Tier(IntEnum):
    """Where a session's states are."""

    # In a slot of the arena.
    DEVICE = 0
    # In a cell of the host's memory.
    HOST = 1
    # In the state store only.
    STORE = 2
    # Nowhere: they are the initial ones, and it has no slot yet.
    INITIAL = 3


class Event(IntEnum):
    """What happens to a session."""

    # A client opens it, on a stream or by a unary call.
    OPEN_ATTACHED = 0
    OPEN_DETACHED = 1
    # A stream takes it over.
    ATTACH = 2
    # Its stream ended.
    DETACH = 3
    # A chunk is applied.
    STEP = 4
    # Back to the initial state.
    RESET = 5
    # Its client closed it, its idle timeout passed, or its model failed.
    CLOSE = 6
    EXPIRE = 7
    FAIL = 8
    # Its model was retired, and the time to finish is over.
    RETIRE = 9
    # It gave, or holds, values that are not finite.
    QUARANTINE = 10
    # Another server goes on with it.
    FENCE = 11


_TRANSITIONS: dict[tuple[Status, Event], Status] = {
    (Status.FREE, Event.OPEN_ATTACHED): Status.ATTACHED,
    (Status.FREE, Event.OPEN_DETACHED): Status.DETACHED,
    (Status.ATTACHED, Event.ATTACH): Status.ATTACHED,
    (Status.ATTACHED, Event.DETACH): Status.DETACHED,
    (Status.ATTACHED, Event.STEP): Status.ATTACHED,
    (Status.ATTACHED, Event.RESET): Status.ATTACHED,
    (Status.ATTACHED, Event.CLOSE): Status.FREE,
    (Status.ATTACHED, Event.EXPIRE): Status.FREE,
    (Status.ATTACHED, Event.FAIL): Status.FREE,
    (Status.ATTACHED, Event.RETIRE): Status.FREE,
    (Status.ATTACHED, Event.QUARANTINE): Status.FREE,
    (Status.ATTACHED, Event.FENCE): Status.FREE,
    (Status.DETACHED, Event.ATTACH): Status.ATTACHED,
    (Status.DETACHED, Event.STEP): Status.DETACHED,
    (Status.DETACHED, Event.RESET): Status.DETACHED,
    (Status.DETACHED, Event.CLOSE): Status.FREE,
    (Status.DETACHED, Event.EXPIRE): Status.FREE,
    (Status.DETACHED, Event.FAIL): Status.FREE,
    (Status.DETACHED, Event.RETIRE): Status.FREE,
    (Status.DETACHED, Event.QUARANTINE): Status.FREE,
    (Status.DETACHED, Event.FENCE): Status.FREE,
}

ILLEGAL = -1
_TABLE = np.full((len(Status), len(Event)), ILLEGAL, np.int8)
for (_status, _event), _next in _TRANSITIONS.items():
    _TABLE[_status, _event] = _next


class IllegalTransition(Exception):
    """An event came in a status that does not allow it; nothing was changed."""


def transition(statuses: np.ndarray, event: Event) -> np.ndarray:
    """Statuses after `event`, int8 [n] -> int8 [n].

    Raises:
        IllegalTransition: for any of them; the message names the first.
    """
    after: np.ndarray = _TABLE[statuses, event]
    if (after == ILLEGAL).any():
        first = Status(int(statuses[int(np.argmax(after == ILLEGAL))]))
        raise IllegalTransition(f"event {event.name} in status {first.name}")
    return after
