"""What happens to sessions while they are written to the state store, and while it fails: a server in this process."""

import asyncio
from pathlib import Path

import numpy as np
from graphs import family
from loopback import PATIENCE_SECONDS, Loopback, attach_request, configure, serve, until

from eddy.service.errors import Reason

HISTORY = family("history")


def _state(folder: Path, **settings: object) -> dict[str, object]:
    # Nothing is written but what is asked for.
    return {"store": f"sqlite:{folder}/store", "checkpoint_seconds": 1000.0, "max_lag_seconds": 1e6} | settings


async def _written(server: Loopback, rows: np.ndarray) -> None:
    await asyncio.wait_for(server.host.persist(rows), PATIENCE_SECONDS)


def test_closed_in_a_new_epoch_that_is_being_written(repository: Path, tmp_path: Path) -> None:
    """Closed at any moment while its new epoch is written, a session is not in the store afterwards."""

    async def check() -> None:
        config = configure(repository, state=_state(tmp_path))
        async with serve(config) as server, server.stream() as stream:
            table, number = server.host.table, server.host.add_stream(lambda *_: None)
            opened, other = await stream.open("history", 40), await stream.open("history")
            handles = np.frombuffer(opened.handles, "<u8")
            await stream.step(HISTORY, handles.tolist(), [0] * 40, [[1]] * 40)
            for turns, row in enumerate(table.rows_of(handles).tolist()):
                token = opened.resume_tokens[16 * turns : 16 * turns + 16]
                told: list[object] = []
                server.host.attach(opened.session_ids[turns], token, number, told.append)
                for _ in range(turns):
                    await asyncio.sleep(0)
                server.host.close(np.array([row]), lambda _: None)
                await until(lambda told=told: told)
            await _written(server, table.rows_of(np.frombuffer(other.handles, "<u8")))
            for turns in range(40):
                detail = await stream.refusal(attach=attach_request(opened, turns))
                assert detail.reason == Reason.UNKNOWN_SESSION, turns

    asyncio.run(check())
