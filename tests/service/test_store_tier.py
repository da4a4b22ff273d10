"""Sessions beyond slots and host memory, over the wire: their states are in a state store, and come back from there."""

import asyncio
from pathlib import Path

import numpy as np
from graphs import family
from loopback import array, chunk, configure, serve, write_model

from eddy.service.lifecycle import Tier
from eddy.v1 import inference_pb2

HISTORY = family("history")
NUM_SLOTS, NUM_CELLS, NUM_SESSIONS = 4, 9, 24
_STATE_BYTES = 8


def test_sessions_come_back_from_the_store(tmp_path: Path) -> None:
    """Twenty-four sessions over four slots and nine cells: every answer spells its session's own history."""
    write_model(tmp_path, "history")
    state = {"store": f"sqlite:{tmp_path / 'sessions'}", "host_bytes": NUM_CELLS * _STATE_BYTES}

    async def check() -> None:
        config = configure(tmp_path, model={"max_slots": NUM_SLOTS, "max_rows": NUM_SLOTS}, state=state)
        async with serve(config) as running, running.stream() as stream:
            handles = await stream.handles("history", NUM_SESSIONS)
            model = running.host.catalog.ready("history", "")
            for position in range(4):
                for begin in range(0, NUM_SESSIONS, 3):
                    mine = handles[begin : begin + 3]
                    digits = [[1 + (begin + place + position) % 9] for place in range(3)]
                    stepped = await stream.step(HISTORY, mine, [position] * 3, digits)
                    wanted = [
                        int("".join(str(1 + (begin + place + each) % 9) for each in range(position + 1)))
                        for place in range(3)
                    ]
                    assert array(stepped.outputs[0])[:, 0].tolist() == wanted
            counts = model.residence.by_tier
            assert counts[Tier.DEVICE] == NUM_SLOTS
            assert counts[Tier.STORE] > 0
            # A fork of one that is only in the store.
            table = running.host.table
            rows = table.rows_of(np.array(handles, np.uint64))
            stored = int(np.flatnonzero(table.tiers_of(rows) == Tier.STORE)[0])
            before = int("".join(str(1 + (stored + each) % 9) for each in range(4)))
            response = await stream.send(
                fork=inference_pb2.ForkSessions(handles=np.array([handles[stored]], "<u8").tobytes())
            )
            assert not response.forked.errors
            (forked,) = np.frombuffer(response.forked.handles, "<u8").tolist()
            answer = await stream.send(step=chunk(HISTORY, [forked], [4], [[5]]))
            assert array(answer.step.outputs[0]).tolist() == [[10 * before + 5]]
            answer = await stream.send(step=chunk(HISTORY, [handles[stored]], [4], [[6]]))
            assert array(answer.step.outputs[0]).tolist() == [[10 * before + 6]]

    asyncio.run(check())
