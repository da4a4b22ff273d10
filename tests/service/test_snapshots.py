"""Snapshots: sessions as bytes and back, here and elsewhere; what is wrong with one is said, and nothing is opened."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import family
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Loopback, array, configure, serve, tensor, until, write_model
from schedule import plain_graph

from eddy.service.errors import Reason
from eddy.service.record import decode
from eddy.service.record_format import HEAD
from eddy.v1 import inference_pb2, sessions_pb2

LSTM, COUNTED = family("lstm"), family("look-ahead")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of floats, one with counts, one that is cut small, one with integers of any value."""
    root = tmp_path_factory.mktemp("models")
    for name in ("lstm", "gru", "look-ahead", "history"):
        write_model(root, name)
    return root


async def _open(running: Loopback, model: str, **fields: Any) -> sessions_pb2.Session:
    request = sessions_pb2.OpenSessionRequest(model=model, **fields)
    return (await running.unary("SessionService/OpenSession", request, sessions_pb2.OpenSessionResponse)).session


async def _step(running: Loopback, session: sessions_pb2.Session, inputs: np.ndarray) -> np.ndarray:
    """Steps by `inputs` [T, ...] from where `session` stands, which moves on."""
    request = inference_pb2.StepRequest(
        session_id=session.session_id, epoch=session.epoch, position=session.next_position, num_steps=len(inputs)
    )
    request.inputs.append(tensor("x", inputs[None]))
    response = await running.unary("InferenceService/Step", request, inference_pb2.StepResponse)
    session.next_position = response.next_position
    return array(response.outputs[0])[0]


async def _snapshot(running: Loopback, session: sessions_pb2.Session) -> bytes:
    request = sessions_pb2.SnapshotSessionRequest(session_id=session.session_id)
    response = await running.unary("SessionService/SnapshotSession", request, sessions_pb2.SnapshotSessionResponse)
    snapshot: bytes = response.snapshot
    return snapshot


async def _restore(running: Loopback, snapshot: bytes, **fields: Any) -> sessions_pb2.RestoreSessionResponse:
    request = sessions_pb2.RestoreSessionRequest(snapshot=snapshot, **fields)
    response: sessions_pb2.RestoreSessionResponse = await running.unary(
        "SessionService/RestoreSession", request, sessions_pb2.RestoreSessionResponse
    )
    return response


async def _refusal(running: Loopback, snapshot: bytes, **fields: Any) -> Any:
    request = sessions_pb2.RestoreSessionRequest(snapshot=snapshot, **fields)
    return await running.refusal("SessionService/RestoreSession", request, sessions_pb2.RestoreSessionResponse)


@asynccontextmanager
async def _taken(running: Loopback, model: str = "lstm") -> AsyncIterator[bytes]:
    """The snapshot of a session that has taken some steps; nothing else is open."""
    session = await _open(running, model)
    spec = family(model)
    await _step(running, session, spec.example(np.random.default_rng(1), 5)[0])
    snapshot = await _snapshot(running, session)
    request = sessions_pb2.CloseSessionRequest(session_id=session.session_id)
    await running.unary("SessionService/CloseSession", request, sessions_pb2.CloseSessionResponse)
    yield snapshot
    assert running.host.table.num_sessions == 0, "something was opened"


def _forged(snapshot: bytes, change: Callable[[bytearray], None]) -> bytes:
    """A snapshot with something else in it and a checksum that is right."""
    body = bytearray(snapshot[:-4])
    change(body)
    return bytes(body) + zlib.crc32(body).to_bytes(4, "little")


def _with_head(snapshot: bytes, **values: Any) -> bytes:
    def change(body: bytearray) -> None:
        head = np.frombuffer(body, HEAD, 1)
        for name, value in values.items():
            head[name] = value

    return _forged(snapshot, change)


def test_a_session_goes_on_elsewhere(models: Path) -> None:
    """On another server what is restored goes on with the same bits, while the old one goes on by itself."""

    async def scenario() -> None:
        inputs = LSTM.example(np.random.default_rng(3), 9)[0]
        wanted = plain_graph(LSTM).whole([inputs])[0][0]
        async with serve(configure(models)) as here, serve(configure(models)) as there:
            session = await _open(here, "lstm", max_in_flight=3, idle_timeout_seconds=20)
            first = await _step(here, session, inputs[:4])
            snapshot = await _snapshot(here, session)
            restored = await _restore(there, snapshot)
            assert not restored.notes and restored.limits.max_rows == 64
            other = restored.session
            assert other.session_id != session.session_id and other.resume_token != session.resume_token
            assert (other.next_position, other.max_in_flight, other.idle_timeout_seconds) == (4, 3, 20)
            for running, each in ((there, other), (here, session)):
                rest = await _step(running, each, inputs[4:])
                np.testing.assert_array_equal(np.concatenate((first, rest)), wanted)

    asyncio.run(scenario())


def test_a_snapshot_waits_for_what_was_sent_before(models: Path) -> None:
    """Chunks that are queued or under way are in it."""

    async def scenario() -> None:
        inputs = LSTM.example(np.random.default_rng(3), 40)[0]
        async with serve(configure(models, server={"inline_tick_seconds": 0.0})) as running, running.stream() as client:
            opened = await client.open("lstm", max_in_flight=2)
            step = inference_pb2.StepChunk(handles=opened.handles, positions=bytes(8), num_steps=40)
            step.inputs.append(tensor("x", inputs[None]))
            answer = await client.post(step=step)
            queue = running.host.catalog.find("lstm", "").model.scheduler.queue
            await until(lambda: not queue.is_idle)
            request = sessions_pb2.SnapshotSessionRequest(session_id=opened.session_ids[0])
            response = await running.unary(
                "SessionService/SnapshotSession", request, sessions_pb2.SnapshotSessionResponse
            )
            record = decode(response.snapshot)
            await answer
            assert record.next_position == 40 and not record.is_initial
            for found, wanted in zip(record.states, plain_graph(LSTM).whole([inputs])[1], strict=True):
                np.testing.assert_array_equal(found, wanted)

    asyncio.run(scenario())


def test_limits_are_the_snapshots_or_those_asked_for(models: Path) -> None:
    """What this server does not allow is cut, what the request asks for goes before the snapshot's."""

    async def scenario() -> None:
        async with serve(configure(models)) as here:
            session = await _open(here, "lstm", max_in_flight=8, idle_timeout_seconds=50)
            snapshot = await _snapshot(here, session)
        small = configure(
            models, model={"max_in_flight": 4}, session={"idle_timeout_seconds": 30, "max_idle_timeout_seconds": 30}
        )
        async with serve(small) as there:
            restored = (await _restore(there, snapshot)).session
            assert (restored.max_in_flight, restored.idle_timeout_seconds) == (4, 30)
            restored = (await _restore(there, snapshot, max_in_flight=2, idle_timeout_seconds=5)).session
            assert (restored.max_in_flight, restored.idle_timeout_seconds) == (2, 5)
            detail = await _refusal(there, snapshot, max_in_flight=5)
            assert (detail.reason, detail.field) == (Reason.OUT_OF_RANGE, "max_in_flight")

    asyncio.run(scenario())


def test_the_right_version_takes_it(models: Path, tmp_path: Path) -> None:
    """Of several versions the one with the snapshot's files, under whatever number or name; others are refused."""
    write_model(tmp_path, "lstm", "1", family("gru").model())
    write_model(tmp_path, "lstm", "2")
    write_model(tmp_path, "lstm", "3", family("lstm-stacked").model())
    write_model(tmp_path, "mine", "7", LSTM.model())

    async def scenario() -> None:
        async with serve(configure(models)) as here, _taken(here) as snapshot, serve(configure(tmp_path)) as there:
            restored = (await _restore(there, snapshot)).session
            assert (restored.model, restored.version) == ("lstm", "2")
            assert (await _restore(there, snapshot, model="mine")).session.model == "mine"
            for fields in ({"version": "1"}, {"version": "3"}):
                detail = await _refusal(there, snapshot, **fields)
                assert (detail.reason, detail.field) == (Reason.SNAPSHOT_MISMATCH, "snapshot")
                assert "digest" in detail.message
            assert (await _refusal(there, snapshot, version="9")).reason == Reason.UNKNOWN_VERSION
            assert (await _refusal(there, snapshot, model="nobody")).reason == Reason.UNKNOWN_MODEL
            assert (await _refusal(here, snapshot, model="gru")).reason == Reason.SNAPSHOT_MISMATCH

    asyncio.run(scenario())


def test_another_place_is_said(models: Path) -> None:
    """Where runtime or CPU are other ones the session is restored, and the answer says that bits may differ."""

    async def scenario() -> None:
        async with serve(configure(models)) as running, _taken(running) as snapshot:
            record = decode(snapshot)
            old = record.model.runtime.encode()
            other = _forged(snapshot, lambda body: _replace(body, old, old[:-1] + bytes((old[-1] ^ 1,))))
            notes = (await _restore(running, other)).notes
            assert any("ONNX Runtime" in note for note in notes) and any("last bits" in note for note in notes)
            await _close_all(running)

    asyncio.run(scenario())


def _replace(body: bytearray, old: bytes, new: bytes) -> None:
    assert body.count(old) == 1
    at = body.index(old)
    body[at : at + len(old)] = new


async def _close_all(running: Loopback) -> None:
    for session_id in running.host.table.ids_of(running.host.table.open_rows()):
        request = sessions_pb2.CloseSessionRequest(session_id=session_id)
        await running.unary("SessionService/CloseSession", request, sessions_pb2.CloseSessionResponse)


def test_hostile_values_are_refused(models: Path) -> None:
    """With a right checksum, too: what no session of the model holds is named, and nothing is opened."""

    async def scenario() -> None:
        async with serve(configure(models)) as running:
            async with _taken(running) as snapshot:
                record = decode(snapshot)
                state = record.states[0].tobytes()
                nan = np.full(record.states[0].shape, np.nan, np.float32).tobytes()
                cases: list[tuple[bytes, Reason, str]] = [
                    (_forged(snapshot, lambda body: _replace(body, state, nan)), Reason.NON_FINITE, "snapshot.states["),
                    (_with_head(snapshot, version=2), Reason.SNAPSHOT_VERSION, "snapshot"),
                    (_with_head(snapshot, next_position=-1), Reason.SNAPSHOT_CORRUPT, "snapshot"),
                    (_with_head(snapshot, next_position=(1 << 63) - 1), Reason.OUT_OF_RANGE, "snapshot.next_position"),
                    (_with_head(snapshot, max_in_flight=0), Reason.SNAPSHOT_CORRUPT, "snapshot"),
                    (_with_head(snapshot, idle_timeout_seconds=np.inf), Reason.SNAPSHOT_CORRUPT, "snapshot"),
                    (_with_head(snapshot, num_replies=1 << 31), Reason.SNAPSHOT_CORRUPT, "snapshot"),
                    (_with_head(snapshot, state_bytes=8), Reason.SNAPSHOT_CORRUPT, "snapshot"),
                    (b"", Reason.SNAPSHOT_CORRUPT, "snapshot"),
                    (bytes(5000), Reason.SNAPSHOT_CORRUPT, "snapshot"),
                    (snapshot + b"\0", Reason.SNAPSHOT_CORRUPT, "snapshot"),
                ]
                for hostile, reason, field in cases:
                    detail = await _refusal(running, hostile)
                    assert detail.reason == reason, detail
                    assert detail.field.startswith(field), detail
            async with _taken(running, "look-ahead") as snapshot:
                counted = decode(snapshot)
                held, count = (np.zeros_like(values) for values in counted.states)
                raw = b"".join(values.tobytes() for values in counted.states)
                bad = held.tobytes() + (count + 99).tobytes()
                detail = await _refusal(running, _forged(snapshot, lambda body: _replace(body, raw, bad)))
                assert (detail.reason, "count" in detail.field) == (Reason.OUT_OF_RANGE, True), detail
            async with _taken(running, "history") as snapshot:
                detail = await _refusal(running, snapshot)
                assert detail.reason == Reason.OUT_OF_RANGE and "no range for integers" in detail.expected

    asyncio.run(scenario())


def test_a_huge_one_is_refused_before_it_is_read(models: Path) -> None:
    """One that is larger than a message is refused by its size."""

    async def scenario() -> None:
        async with serve(configure(models, server={"max_message_bytes": 1 << 16})) as running:
            detail = await _refusal(running, bytes((1 << 16) + 1))
            assert detail.reason == Reason.MESSAGE_TOO_LARGE

    asyncio.run(scenario())


def test_replies_that_do_not_fit_are_left_out(models: Path) -> None:
    """A snapshot is no larger than a message: kept replies go before the session does."""

    async def scenario() -> None:
        config = configure(models, server={"max_message_bytes": 1 << 14}, model={"max_steps": 4000})
        async with serve(config) as running:
            session = await _open(running, "lstm")
            inputs = LSTM.example(np.random.default_rng(3), 700)[0]
            await _step(running, session, inputs[:500])
            record = decode(await _snapshot(running, session))
            assert not record.replies and record.next_position == 500
            await _step(running, session, inputs[500:520])
            assert len(decode(await _snapshot(running, session)).replies) == 1

    asyncio.run(scenario())


@settings(max_examples=20)
@given(data=st.data())
def test_damage_is_found(models: Path, data: st.DataObject) -> None:
    """Whatever is flipped or cut: SNAPSHOT_CORRUPT or SNAPSHOT_VERSION."""

    async def scenario() -> None:
        async with serve(configure(models)) as running, _taken(running) as snapshot:
            for _ in range(25):
                damaged = bytearray(snapshot)
                if data.draw(st.booleans()):
                    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
                else:
                    del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
                detail = await _refusal(running, bytes(damaged))
                assert detail.reason in (Reason.SNAPSHOT_CORRUPT, Reason.SNAPSHOT_VERSION), detail

    asyncio.run(scenario())


@settings(max_examples=20)
@given(data=st.data())
def test_forgeries_harm_nobody(models: Path, data: st.DataObject) -> None:
    """Any bytes with a right checksum: a typed error, or a session that can be stepped; never a fault of the server."""
    faults = {Reason.INTERNAL, Reason.MODEL_FAILED}

    async def scenario() -> None:
        async with serve(configure(models)) as running:
            bystander = await _open(running, "look-ahead")
            session = await _open(running, "look-ahead", max_in_flight=3)
            for part in COUNTED.example(np.random.default_rng(1), 4)[0]:
                await _step(running, session, part[None])
            snapshot = await _snapshot(running, session)
            for number in range(25):
                places = data.draw(
                    st.lists(st.tuples(st.integers(8, len(snapshot) - 5), st.integers(0, 255)), min_size=1, max_size=4)
                )

                def change(body: bytearray, places: list[tuple[int, int]] = places) -> None:
                    for place, value in places:
                        body[place] = value

                request = sessions_pb2.RestoreSessionRequest(snapshot=_forged(snapshot, change))
                refused = await running.answer(
                    "SessionService/RestoreSession", request, sessions_pb2.RestoreSessionResponse
                )
                if isinstance(refused, sessions_pb2.RestoreSessionResponse):
                    restored = refused.session
                    await _step(running, restored, np.array([number % 10]))
                    again = inference_pb2.StepRequest(
                        session_id=restored.session_id, epoch=restored.epoch, position=3, num_steps=1
                    )
                    again.inputs.append(tensor("x", COUNTED.example(np.random.default_rng(1), 4)[0][None, 3:4]))
                    answer = await running.answer("InferenceService/Step", again, inference_pb2.StepResponse)
                    assert getattr(answer, "reason", None) not in faults, answer
                else:
                    assert refused.reason not in faults, refused
                await _step(running, bystander, np.array([1]))

    asyncio.run(scenario())
