"""What happens to sessions while they are written to the state store, and while it fails: a server in this process."""

import asyncio
from pathlib import Path

import numpy as np
from graphs import family, history_in
from loopback import (
    PATIENCE_SECONDS,
    Loopback,
    array,
    attach_request,
    configure,
    serve,
    until,
    write_model,
)

from eddy.service.durability import Durability
from eddy.service.errors import Reason
from eddy.service.record import decode
from eddy.v1 import inference_pb2, sessions_pb2

HISTORY = family("history")


def _state(folder: Path, **settings: object) -> dict[str, object]:
    # Nothing is written but what is asked for.
    return {"store": f"sqlite:{folder}/store", "checkpoint_seconds": 1000.0, "max_lag_seconds": 1e6} | settings


async def _written(server: Loopback, rows: np.ndarray) -> None:
    await asyncio.wait_for(server.host.persistence.persist(rows), PATIENCE_SECONDS)


def test_closed_in_a_new_epoch_that_is_being_written(repository: Path, tmp_path: Path) -> None:
    """Closed at any moment while its new epoch is written, a session is not in the store afterwards."""

    async def check() -> None:
        config = configure(repository, state=_state(tmp_path))
        async with serve(config) as server, server.stream() as stream:
            table, number = server.host.table, server.host.streams.add(lambda *_: None)
            opened, other = await stream.open("history", 40), await stream.open("history")
            handles = np.frombuffer(opened.handles, "<u8")
            await stream.step(HISTORY, handles.tolist(), [0] * 40, [[1]] * 40)
            for turns, row in enumerate(table.rows_of(handles).tolist()):
                token = opened.resume_tokens[16 * turns : 16 * turns + 16]
                told: list[object] = []
                server.host.takeover.attach(opened.session_ids[turns], token, number, told.append)
                for _ in range(turns):
                    await asyncio.sleep(0)
                server.host.endings.close(np.array([row]), lambda _: None)
                await until(lambda told=told: told)
            await _written(server, table.rows_of(np.frombuffer(other.handles, "<u8")))
            for turns in range(40):
                detail = await stream.refusal(attach=attach_request(opened, turns))
                assert detail.reason == Reason.UNKNOWN_SESSION, turns

    asyncio.run(check())


def test_refused_before_anything_is_changed(repository: Path, tmp_path: Path) -> None:
    """With `refuse` and a store that fails: take-overs and resets are refused, and the session's owner goes on."""

    async def check() -> None:
        config = configure(repository, state=_state(tmp_path, on_failure="refuse"))
        async with serve(config) as server, server.stream() as stream, server.stream() as other:
            opened = await stream.open("history")
            (handle,) = np.frombuffer(opened.handles, "<u8").tolist()
            await stream.step(HISTORY, [handle], [0], [[1]])
            assert server.host.durability is not None
            server.host.durability.health.failed("it is away")
            reset = sessions_pb2.ResetSessionRequest(session_id=opened.session_ids[0])
            refused = [
                await other.refusal(attach=attach_request(opened)),
                await stream.refusal(reset=inference_pb2.ResetSessions(handles=opened.handles)),
                await server.refusal("SessionService/ResetSession", reset, sessions_pb2.ResetSessionResponse),
            ]
            assert [detail.reason for detail in refused] == [Reason.STORE_UNAVAILABLE] * 3
            server.host.durability.health.worked()
            answer = await stream.step(HISTORY, [handle], [1], [[2]])
            assert not answer.errors
            assert array(answer.outputs[0]).tolist() == [[12]]

    asyncio.run(check())


def test_handed_over_sessions_are_written_as_the_new_models(tmp_path: Path) -> None:
    """Idle sessions that a new version has adopted are in the store as that version's, though nobody steps them."""

    def put(version: str, adopts: list[str]) -> None:
        built = history_in(10)
        contract = built.contract()
        contract.name = "history"
        contract.adopts.extend(adopts)
        write_model(tmp_path / "models", "history", version, built.model(contract))

    async def check() -> None:
        put("1", [])
        state = _state(tmp_path, checkpoint_seconds=0.02)
        config = configure(tmp_path / "models", repository={"poll_seconds": 0.0}, state=state)
        async with serve(config) as server, server.stream() as stream:
            opened = await stream.open("history")
            handles = np.frombuffer(opened.handles, "<u8")
            await stream.step(HISTORY, handles.tolist(), [0], [[1]])
            for version in ("2", "3"):
                rows = server.host.table.rows_of(handles)
                await until(lambda rows=rows: server.host.table.durable_position[rows] == [1])
                put(version, [str(int(version) - 1)])
                await server.host.watcher.poll()
                await server.host.watcher.poll()
                new = server.host.catalog.ready("history", version)
                await until(lambda new=new: new.num_sessions == 1)
                durability = server.host.durability
                assert durability is not None

                async def version_there(durability: Durability = durability) -> str:
                    read = durability.store.call(lambda store: store.read(opened.session_ids))
                    (record,) = await read
                    assert record is not None
                    return decode(record).model.version

                async with asyncio.timeout(PATIENCE_SECONDS):
                    while await version_there() != version:  # noqa: ASYNC110  it has no event
                        await asyncio.sleep(0)

    asyncio.run(check())
