"""Sessions go on with a new version that adopts them, while they are stepped.

Two models of one name spell the history of a session in different bases, so that every answer says which of them gave
it, and which steps it has seen: a base of 10 until some step, of 7 from there, with one state through all of it.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import Family, family, history_in
from loopback import (
    PATIENCE_SECONDS,
    Loopback,
    StreamClient,
    array,
    attach_request,
    chunk,
    column,
    configure,
    serve,
    until,
)

from eddy.service import handover
from eddy.service.adoption import disagreement, names_version
from eddy.service.contract import Contract, read_contract
from eddy.service.engine import Engine
from eddy.service.errors import ModelError, Reason
from eddy.service.record import decode
from eddy.v1 import contract_pb2, errors_pb2, inference_pb2

HISTORY = family("history")
# No step may overflow int64: 7**20 and 10**17 fit.
_NUM_STEPS = 12


def _put(
    repository: Path, base: int, version: str = "1", adopts: Sequence[str] = (), model: Family | None = None
) -> None:
    """A model in a version's folder, in place of what was there, in one move."""
    built = model or history_in(base)
    contract = built.contract()
    contract.name = "history"
    contract.adopts.extend(adopts)
    folder = repository / "history" / version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".new").write_bytes(built.model(contract).SerializeToString())
    (folder / ".new").rename(folder / "model.onnx")


async def _settle(running: Loopback) -> None:
    """Two looks at the folder: what has changed is loaded."""
    await running.host.watcher.poll()
    await running.host.watcher.poll()


def _config(folder: Path, **settings: Any) -> Any:
    return configure(folder, **({"repository": {"poll_seconds": 0.0}} | settings))


def _versions_of(answers: list[int], digits: Sequence[int]) -> list[int]:
    """The base that gave each answer; the state goes through all of them."""
    state, bases = 0, []
    for answer, digit in zip(answers, digits, strict=True):
        [base] = [base for base in (10, 7) if base * state + digit == answer] if state else [0]
        bases.append(base)
        state = answer
    return bases


async def _step(stream: StreamClient, handles: list[int], position: int, digit: int) -> list[int]:
    result = await stream.step(HISTORY, handles, [position] * len(handles), [[digit]] * len(handles))
    assert not result.errors, result.errors
    values: list[int] = array(result.outputs[0])[:, 0].tolist()
    return values


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_live_exchange_under_load(tmp_path: Path, version: str) -> None:
    """Every session of several streams: old answers up to some step, new ones from there, nothing lost or twice.

    New files of the same version, and a higher version.
    """
    _put(tmp_path, 10)

    async def check() -> None:
        async with serve(_config(tmp_path)) as running:
            running.host.watcher.start()
            is_moved = asyncio.Event()

            async def load(number: int) -> None:
                async with running.stream() as stream:
                    handles = await stream.handles("history", 1 + 7 * number, max_in_flight=1 + number % 2)
                    answers = []
                    for position in range(_NUM_STEPS):
                        if position == _NUM_STEPS - 2:
                            await asyncio.wait_for(is_moved.wait(), PATIENCE_SECONDS)
                        answers.append(await _step(stream, handles, position, 1 + position % 3))
                        if position == 1:
                            started[number].set()
                    digits = [1 + position % 3 for position in range(_NUM_STEPS)]
                    for row in zip(*answers, strict=True):
                        bases = _versions_of(list(row), digits)[1:]
                        assert bases[0] == 10
                        assert bases[-1] == 7
                        assert bases == sorted(bases, reverse=True)
                    # The last chunk again: from its kept reply, though another model has it.
                    again = await stream.step(
                        HISTORY, handles, [_NUM_STEPS - 1] * len(handles), [[digits[-1]]] * len(handles)
                    )
                    assert array(again.outputs[0])[:, 0].tolist() == answers[-1]
                    assert len(again.replayed_rows) == 4 * len(handles)
                    assert not stream.notices

            started = [asyncio.Event() for _ in range(5)]
            loads = [asyncio.create_task(load(number)) for number in range(5)]
            for each in started:
                await asyncio.wait_for(each.wait(), PATIENCE_SECONDS)
            _put(tmp_path, 7, version, ["1"])
            await _settle(running)
            new = running.host.catalog.ready("history", version)
            await until(lambda: new.num_sessions == 5 + 7 * 10)
            is_moved.set()
            await asyncio.gather(*loads)
            assert new.stats.num_adopted_sessions == 75

    asyncio.run(check())


def test_kept_replies_move(tmp_path: Path) -> None:
    """A chunk that was answered before the exchange is answered from its kept reply after it."""
    _put(tmp_path, 10)

    async def check() -> None:
        async with serve(_config(tmp_path)) as running, running.stream() as stream:
            handles = await stream.handles("history", 3, max_in_flight=2)
            lone = await stream.handles("history", 2)
            for position, digit in enumerate((1, 2)):
                await _step(stream, handles, position, digit)
            await _step(stream, lone, 0, 5)
            _put(tmp_path, 7, "1", ["*"])
            await _settle(running)
            new = running.host.catalog.ready("history", "")
            await until(lambda: new.num_sessions == 5)
            for position, digit, wanted in ((0, 1, 1), (1, 2, 12)):
                again = await stream.step(HISTORY, handles, [position] * 3, [[digit]] * 3)
                assert array(again.outputs[0])[:, 0].tolist() == [wanted] * 3
                assert len(again.replayed_rows) == 12
            assert await _step(stream, handles, 2, 3) == [7 * 12 + 3] * 3
            assert await _step(stream, [lone[1]], 1, 1) == [36]
            await until(lambda: len(running.host.catalog.served) == 1 or running.host.release_models())

    asyncio.run(check())


class Paused(Engine):
    """An engine that reads states once it may, on the engine's thread."""

    may_read: threading.Event

    def read_states(self, slots: np.ndarray, home_slots: np.ndarray | None = None) -> list[np.ndarray]:
        """As `Engine.read_states`, when `may_read` is set."""
        assert self.may_read.wait(PATIENCE_SECONDS)
        return super().read_states(slots, home_slots)


def test_what_waits_goes_along(tmp_path: Path) -> None:
    """Steps, a close, a reset and a takeover that were sent while sessions moved are carried out, in their order."""
    _put(tmp_path, 10)

    async def check() -> None:
        config = _config(tmp_path, server={"inline_tick_seconds": 0.0})
        async with serve(config) as running, running.stream() as stream, running.stream() as other:
            opened = await stream.open("history", 4)
            handles = np.frombuffer(opened.handles, "<u8").tolist()
            await _step(stream, handles, 0, 1)
            old: Any = running.host.catalog.ready("history", "")
            old.engine.__class__, old.engine.may_read = Paused, threading.Event()
            _put(tmp_path, 7, "1", ["1"])
            await _settle(running)
            new = running.host.catalog.ready("history", "")
            assert new is not old
            await until(lambda: bool(running.host.table.is_busy.any()))
            # 1. Two rows of one message, the same ones by a message each, and an end.
            posts = [
                await stream.post(step=chunk(HISTORY, handles[:2], [1, 1], [[2], [2]])),
                await stream.post(step=chunk(HISTORY, handles[:1], [2], [[3]])),
                await stream.post(close=inference_pb2.CloseSessions(handles=column(handles[:1]))),
                await stream.post(reset=inference_pb2.ResetSessions(handles=column(handles[1:2]))),
                await stream.post(step=chunk(HISTORY, handles[2:3], [1], [[2]])),
            ]
            taken = await other.post(attach=attach_request(opened, 3))
            await until(lambda: len(old.scheduler.queue) >= 6)
            assert not any(each.done() for each in (*posts, taken))
            old.engine.may_read.set()
            both, third, closed, reset, apart = [await asyncio.wait_for(each, PATIENCE_SECONDS) for each in posts]
            assert array(both.step.outputs[0])[:, 0].tolist() == [9, 9]
            assert array(third.step.outputs[0])[:, 0].tolist() == [66]
            assert not closed.closed.errors
            assert not reset.reset.errors
            assert array(apart.step.outputs[0])[:, 0].tolist() == [9]
            [fresh] = np.frombuffer(reset.reset.handles, "<u8").tolist()
            assert await _step(stream, [fresh], 0, 4) == [4]
            assert await _step(stream, [fresh], 1, 4) == [32]
            attached = (await taken).attached
            assert (attached.next_position, attached.package_digest) == (1, new.file.package)
            assert await _step(other, [attached.handle], 1, 5) == [12]
            await until(lambda: new.num_sessions == 3)
            await until(lambda: not old.num_sessions)

    asyncio.run(check())


def test_without_leave_sessions_stay(tmp_path: Path) -> None:
    """A contract that names nobody, or somebody else, adopts nobody."""
    _put(tmp_path, 10)

    async def check() -> None:
        async with serve(_config(tmp_path)) as running, running.stream() as stream:
            handles = await stream.handles("history", 2)
            await _step(stream, handles, 0, 1)
            for version, adopts in (("2", []), ("3", ["2"]), ("1", ["2", "3"])):
                _put(tmp_path, 7, version, adopts)
                await _settle(running)
            assert await _step(stream, handles, 1, 2) == [12, 12]

    asyncio.run(check())


def test_no_room_no_move(tmp_path: Path) -> None:
    """Where the heir has not slots for all, all stay and go on; they move once it has."""
    _put(tmp_path, 10)
    _put(tmp_path, 7, "2", ["1"])

    async def check() -> None:
        async with serve(_config(tmp_path, model={"max_slots": 4})) as running, running.stream() as stream:
            staying = await stream.handles("history", 2, version="1")
            there = await stream.handles("history", 3)
            await _step(stream, staying, 0, 1)
            old = running.host.catalog.ready("history", "1")
            shutil.rmtree(tmp_path / "history" / "1")
            await _settle(running)
            assert await _step(stream, staying, 1, 2) == [12, 12]
            assert old.num_sessions == 2
            await stream.send(close=inference_pb2.CloseSessions(handles=column(there)))
            running.host.adopt_sessions()
            await until(lambda: not old.num_sessions)
            assert await _step(stream, staying, 2, 3) == [7 * 12 + 3] * 2

    asyncio.run(check())


@pytest.mark.parametrize("has_store", [False, True])
def test_in_parts_where_memory_is_short(tmp_path: Path, has_store: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a crowd moves while some of it is stepped, within the memory that there is; none misses a step.

    Without a state store it has room for one more session; with one half of the crowd is in the store only.
    """
    num_slots, num_sessions, state_bytes = 6, 64, 8
    num_cells = 32 if has_store else num_sessions + 1
    monkeypatch.setattr(handover, "_ROWS_OF_A_PART", 7)
    _put(tmp_path / "models", 10)
    state: dict[str, Any] = {"host_bytes": num_cells * state_bytes, "checkpoint_seconds": 0.02}
    if has_store:
        state["store"] = f"sqlite:{tmp_path}/store"

    async def check() -> None:
        config = _config(tmp_path / "models", model={"max_slots": num_slots, "max_rows": num_slots}, state=state)
        async with serve(config) as running, running.stream() as stream:
            catalog = running.host.catalog
            handles = await stream.handles("history", num_sessions, max_in_flight=1)
            groups = [handles[start : start + 3] for start in range(0, num_sessions, 3)]
            answers: dict[int, list[int]] = {handle: [] for handle in handles}

            async def step(group: list[int], digit: int) -> None:
                for handle, answer in zip(
                    group, await _step(stream, group, len(answers[group[0]]), digit), strict=True
                ):
                    answers[handle].append(answer)

            for digit in (1, 2):
                for group in groups:
                    await step(group, digit)
            old = catalog.ready("history", "")
            if not has_store:
                assert catalog.host_memory.free_bytes == state_bytes
            most_bytes = catalog.host_memory.limit_bytes + 7 * state_bytes * has_store
            _put(tmp_path / "models", 7, "1", ["*"])
            await _settle(running)
            new = catalog.ready("history", "")
            used = []
            deadline = time.monotonic() + PATIENCE_SECONDS
            while old.num_sessions and time.monotonic() < deadline:
                await asyncio.sleep(0.005)  # Some are written to the store meanwhile.
                await step(groups[0], 0)
                await step(groups[-1], 0)
                used.append(sum(model.residence.cells.used_bytes for model in (old, new)))
                running.host.adopt_sessions()
            assert new.num_sessions == num_sessions
            assert new.stats.num_adopted_sessions == num_sessions
            assert max(used) <= most_bytes
            for group in groups:
                await step(group, 4)
            for history in answers.values():
                digits = [1, 2, *[0] * (len(history) - 3), 4]
                bases = _versions_of(history, digits)[1:]
                assert (bases[0], bases[-1]) == (10, 7)
                assert bases == sorted(bases, reverse=True)
            assert not stream.notices
            assert catalog.host_memory.reserved_bytes <= catalog.host_memory.limit_bytes

    asyncio.run(check())


def test_in_the_store_before_the_new_model_answers(tmp_path: Path) -> None:
    """After a crash only what the new model has answered itself is run again by it: the record is where it began."""
    _put(tmp_path / "models", 10)
    state = {"store": f"sqlite:{tmp_path}/store", "checkpoint_seconds": 1000.0, "max_lag_seconds": 1e6}

    async def check() -> None:
        async with serve(_config(tmp_path / "models", state=state)) as running, running.stream() as stream:
            opened = await stream.open("history", 3)
            handles = np.frombuffer(opened.handles, "<u8").tolist()
            for position, digit in enumerate((1, 2)):
                await _step(stream, handles, position, digit)
            table = running.host.table
            rows = table.rows_of(np.array(handles, np.uint64))
            assert table.durable_position[rows].tolist() == [0] * 3
            _put(tmp_path / "models", 7, "2", ["1"])
            await _settle(running)
            assert await _step(stream, handles, 2, 3) == [7 * 12 + 3] * 3
            assert table.durable_position[rows].tolist() == [2] * 3
            assert running.host.durability is not None
            records = await running.host.durability.store.call(lambda store: store.read(list(opened.session_ids)))
            told = [decode(data) for data in records if data is not None]
            assert [(record.model.version, record.next_position) for record in told] == [("2", 2)] * 3

    asyncio.run(check())


class Rationed(Engine):
    """An engine that reads states as often as it may, on the engine's thread; then it fails if it is to."""

    may_read: threading.Semaphore
    is_broken: bool

    def read_states(self, slots: np.ndarray, home_slots: np.ndarray | None = None) -> list[np.ndarray]:
        """As `Engine.read_states`, when `may_read` lets it."""
        assert self.may_read.acquire(timeout=PATIENCE_SECONDS)
        if self.is_broken:
            raise ModelError(Reason.MODEL_FAILED, "the states cannot be read")
        return super().read_states(slots, home_slots)


@pytest.mark.parametrize("fails", [False, True])
def test_slots_that_are_promised_are_waited_for(tmp_path: Path, fails: bool) -> None:
    """A message for sessions that have moved already waits for the last part, which has all slots before it is there.

    Also where that part does not come after all.
    """
    _put(tmp_path, 10)

    async def check() -> None:
        settings = {"state": {"host_bytes": 1 << 10}, "session": {"sweep_seconds": 3600.0}}
        sizes = {"max_slots": 4, "max_rows": 4}
        config = _config(tmp_path, model=sizes, server={"inline_tick_seconds": 0.0}, **settings)
        async with serve(config) as running, running.stream() as stream:
            handles = await stream.handles("history", 8)
            first, last = handles[:4], handles[4:]
            for group in (first, last):
                await _step(stream, group, 0, 1)
            old: Any = running.host.catalog.ready("history", "")
            old.engine.__class__, old.engine.is_broken = Rationed, False
            old.engine.may_read = threading.Semaphore(1)
            _put(tmp_path, 7, "1", ["*"])
            await _settle(running)
            new = running.host.catalog.ready("history", "")
            await until(lambda: new.stats.num_adopted_sessions == 4 and not new.residence.slots.num_free)
            post = await stream.post(step=chunk(HISTORY, first, [1] * 4, [[2]] * 4))
            queue, dispatcher = new.scheduler.queue, running.host.dispatcher
            await until(lambda: post.done() or (queue.has_chunks and not dispatcher.is_scheduled))
            assert not post.done()
            old.engine.is_broken = fails
            old.engine.may_read.release()
            answer = (await asyncio.wait_for(post, PATIENCE_SECONDS)).step
            assert not answer.errors
            assert array(answer.outputs[0])[:, 0].tolist() == [9] * 4
            assert await _step(stream, last, 1, 2) == [12 if fails else 9] * 4
            assert new.stats.num_adopted_sessions == (4 if fails else 8)

    asyncio.run(check())


@pytest.mark.parametrize("is_changed", [False, True])
def test_versions_of_one_load_come_together(tmp_path: Path, is_changed: bool) -> None:
    """Sessions wait until all versions of a load are ready: none goes to an earlier one on its way to the latest."""
    _put(tmp_path, 10, "3", ["*"])
    _put(tmp_path, 7, "4", ["*"])

    async def check() -> None:
        async with serve(_config(tmp_path)) as running, running.stream() as stream:
            host = running.host
            handles = await stream.handles("history", 3)
            await _step(stream, handles, 0, 1)
            await host.unload_model("history")
            if is_changed:
                _put(tmp_path, 7, "4", ["3", "4"])
            host.on_models_changed(host.adopt_sessions)  # Whenever anything happens, as the sweep may.
            await host.load_model("history")
            latest = host.catalog.ready("history", "4")
            await until(lambda: latest.num_sessions == 3)
            assert await _step(stream, handles, 1, 2) == [9] * 3
            assert host.catalog.ready("history", "3").stats.num_adopted_sessions == 0
            assert latest.stats.num_adopted_sessions == 3 * is_changed

    asyncio.run(check())


def test_they_go_on_to_a_version_that_comes_back(tmp_path: Path) -> None:
    """Sessions that an earlier version took while theirs was away; those that were opened on the earlier one stay."""
    _put(tmp_path, 10, "3", ["*"])
    _put(tmp_path, 7, "4", ["*"])

    async def check() -> None:
        async with serve(_config(tmp_path)) as running, running.stream() as stream:
            host, folder = running.host, tmp_path / "history" / "4"
            handles = await stream.handles("history", 3)
            await _step(stream, handles, 0, 1)
            staying = await stream.handles("history", 2, version="3")
            await _step(stream, staying, 0, 1)
            # Version 4 is not freed: as a sequence of the other protocol, this one stays.
            bound = await stream.handles("history", 1)
            host.table.is_bound[host.table.rows_of(np.array(bound, np.uint64))] = True
            await host.unload_model("history")
            folder.rename(tmp_path / "later")
            with pytest.raises(ModelError, match="version '4'"):
                await host.load_model("history")
            earlier = host.catalog.ready("history", "3")
            await until(lambda: earlier.num_sessions == 5)
            assert await _step(stream, handles, 1, 2) == [12] * 3
            (tmp_path / "later").rename(folder)
            await host.load_model("history")
            await until(lambda: earlier.num_sessions == 2)
            assert await _step(stream, handles, 2, 3) == [12 * 7 + 3] * 3
            host.adopt_sessions()
            assert await _step(stream, staying, 1, 2) == [12] * 2

    asyncio.run(check())


@pytest.mark.parametrize("num_slots", [4, 8])
def test_a_later_version_comes_while_they_move(tmp_path: Path, num_slots: int) -> None:
    """Those that are on their way to an earlier version go on to the later one from there, the others go at once."""
    _put(tmp_path, 10, "3", ["*"])
    _put(tmp_path, 7, "4", ["*"])

    async def check() -> None:
        settings = {"state": {"host_bytes": 1 << 10}, "session": {"sweep_seconds": 3600.0}}
        sizes = {"max_slots": num_slots, "max_rows": 4}
        config = _config(tmp_path, model=sizes, server={"inline_tick_seconds": 0.0}, **settings)
        async with serve(config) as running, running.stream() as stream:
            host, folder = running.host, tmp_path / "history" / "4"
            handles = await stream.handles("history", 8)
            for group in (handles[:4], handles[4:]):
                await _step(stream, group, 0, 1)
            latest: Any = host.catalog.ready("history", "4")
            latest.engine.__class__, latest.engine.is_broken = Rationed, False
            latest.engine.may_read = threading.Semaphore(0)
            await host.unload_model("history")
            folder.rename(tmp_path / "later")
            with pytest.raises(ModelError, match="version '4'"):
                await host.load_model("history")
            await until(lambda: bool(running.host.table.is_busy.any()))
            (tmp_path / "later").rename(folder)
            await host.load_model("history")
            assert host.catalog.ready("history", "4") is latest
            latest.engine.may_read.release(1 << 10)
            earlier = host.catalog.ready("history", "3")
            await until(lambda: earlier.stats.num_adopted_sessions and not earlier.num_sessions)
            for group in (handles[:4], handles[4:]):
                assert await _step(stream, group, 1, 2) == [9] * 4
            assert earlier.stats.num_adopted_sessions == latest.stats.num_adopted_sessions == num_slots

    asyncio.run(check())


def test_a_session_that_is_asked_for_by_version_stays(tmp_path: Path) -> None:
    """Sessions that are opened on a version which is served, after its heir came, are its own."""
    _put(tmp_path, 10)
    _put(tmp_path, 7, "2", ["1"])

    async def check() -> None:
        async with serve(_config(tmp_path)) as running, running.stream() as stream:
            handles = await stream.handles("history", 1, version="1")
            await _step(stream, handles, 0, 1)
            running.host.adopt_sessions()
            assert await _step(stream, handles, 1, 2) == [12]

    asyncio.run(check())


def _contract(change: Any = None) -> Contract:
    message = HISTORY.contract()
    if change is not None:
        change(message)
    return read_contract(HISTORY.model(message))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (None, ""),
        (lambda message: message.ClearField("task"), ""),
        (lambda message: setattr(message.states[0], "name", "other"), "states differ"),
        (lambda message: setattr(message.states[0], "dtype", contract_pb2.DATA_TYPE_INT32), "states differ"),
        (lambda message: message.states[0].shape.append(2), "states differ"),
        (lambda message: setattr(message.inputs[0], "name", "other"), "inputs or outputs"),
        (lambda message: message.outputs[0].shape.append(2), "inputs or outputs"),
        (lambda message: setattr(message.outputs[0], "dtype", contract_pb2.DATA_TYPE_INT32), "inputs or outputs"),
    ],
)
def test_what_must_agree(change: Any, why: str) -> None:
    """States, inputs and outputs agree in names, dtypes and shapes, or sessions stay."""
    found = disagreement(_contract(change), _contract())
    assert why in found
    assert bool(found) == bool(why)


def test_what_a_contract_names() -> None:
    """Versions by their name, or all."""
    assert names_version(["1", "2"], "2")
    assert not names_version(["1", "2"], "3")
    assert names_version(["*"], "anything")
    assert not names_version([], "1")


@pytest.mark.parametrize("adopts", ["1", "2"])
def test_after_a_restart(tmp_path: Path, adopts: str) -> None:
    """A stored session whose version is gone goes on with the one that adopts it; without that it is refused."""
    _put(tmp_path / "models", 10)
    state = {"store": f"sqlite:{tmp_path}/store", "checkpoint_seconds": 0.05}

    async def first() -> Any:
        async with serve(_config(tmp_path / "models", state=state)) as running, running.stream() as stream:
            opened = await stream.open("history")
            handles = np.frombuffer(opened.handles, "<u8").tolist()
            await _step(stream, handles, 0, 1)
            await _step(stream, handles, 1, 2)
            return opened

    async def second(opened: Any) -> None:
        async with serve(_config(tmp_path / "models", state=state)) as running, running.stream() as stream:
            if adopts == "2":
                error = await stream.refusal(attach=attach_request(opened))
                assert error.reason == errors_pb2.ERROR_REASON_SNAPSHOT_MISMATCH
                return
            attached = (await stream.send(attach=attach_request(opened))).attached
            assert (attached.version, attached.next_position) == ("3", 2)
            again = await stream.step(HISTORY, [attached.handle], [1], [[2]])
            assert (array(again.outputs[0])[0].tolist(), len(again.replayed_rows)) == ([12], 4)
            assert await _step(stream, [attached.handle], 2, 3) == [7 * 12 + 3]

    opened = asyncio.run(first())
    shutil.rmtree(tmp_path / "models" / "history" / "1")
    _put(tmp_path / "models", 7, "3", [adopts])
    asyncio.run(second(opened))


def test_moved_sessions_share_messages_with_those_that_stay(tmp_path: Path) -> None:
    """A session opened later on the old version, and moved ones, in one message: each is stepped by its own model."""
    _put(tmp_path, 10)

    async def check() -> None:
        async with serve(_config(tmp_path)) as running, running.stream() as stream:
            handles = await stream.handles("history", 3, max_in_flight=2)
            await _step(stream, handles, 0, 1)
            _put(tmp_path, 7, "2", ["1"])
            await _settle(running)
            new = running.host.catalog.ready("history", "2")
            await until(lambda: new.num_sessions == 3)
            later = await stream.handles("history", 2, version="1", max_in_flight=2)
            await _step(stream, later, 0, 1)
            # Two messages at once, one of which begins with the old model's; a row of no session fails alone.
            mixed = [handles[0], later[0], handles[1], later[1], 12345 << 32 | 7]
            posts = [
                await stream.post(step=chunk(HISTORY, mixed, [1] * 5, [[2], [3], [4], [5], [6]])),
                await stream.post(step=chunk(HISTORY, mixed[1::-1], [2] * 2, [[6], [7]])),
            ]
            first, second = [(await asyncio.wait_for(each, PATIENCE_SECONDS)).step for each in posts]
            assert array(first.outputs[0])[:, 0].tolist() == [9, 13, 11, 15, 0]
            assert [(error.row, error.error.reason) for error in first.errors] == [(4, Reason.UNKNOWN_SESSION)]
            assert array(second.outputs[0])[:, 0].tolist() == [136, 70]
            # And again: kept replies of both.
            again = await stream.step(HISTORY, mixed[1::-1], [2] * 2, [[6], [7]])
            assert array(again.outputs[0])[:, 0].tolist() == [136, 70]
            assert np.frombuffer(again.replayed_rows, "<u4").tolist() == [0, 1]

    asyncio.run(check())
