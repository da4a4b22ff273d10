"""The state stores that there are, by URL.

Owns the choice. Must not know how stores work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from eddy.service.store import StateStore, StoreError

_SQLITE = "sqlite:"


def open_store(url: str, clock: Callable[[], float] = time.time) -> StateStore | None:
    """The store that a checked `state.store` names: `memory` (None), `sqlite:PATH`, `redis://` or `rediss://`.

    Args:
        clock: unix seconds.

    Raises:
        StoreError: it cannot be opened, reached or trusted; the message says why in one line.
    """
    if url == "memory":
        return None
    if url.startswith(_SQLITE):
        from eddy.service.sqlite_store import SqliteStore

        return SqliteStore(Path(url.removeprefix(_SQLITE)), clock)
    try:
        from eddy.service.redis_store import RedisStore
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "redis":
            raise
        message = f"state store {url.partition(':')[0]}: it needs the extra `redis`: pip install 'eddy-serve[redis]'"
        raise StoreError(message) from error
    return RedisStore(url, clock)
