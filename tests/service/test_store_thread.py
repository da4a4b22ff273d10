"""The store's thread: what is asked of it while it lives, and after its end."""

import asyncio
from functools import partial
from pathlib import Path

import pytest

from eddy.service.store import StoreError
from eddy.service.store_thread import StoreThread
from eddy.service.stores import open_store


def test_what_comes_after_the_end_is_told(tmp_path: Path) -> None:
    """Whoever asks when the server is ending is told so by the store's own error; what was asked before is done."""

    async def scenario() -> None:
        thread = StoreThread(partial(open_store, f"sqlite:{tmp_path}/store"))
        thread.open()
        counting = thread.call(lambda store: store.count())
        await asyncio.to_thread(thread.close)
        assert await counting == 0
        with pytest.raises(StoreError, match="the server is ending"):
            await thread.call(lambda store: store.count())

    asyncio.run(scenario())
