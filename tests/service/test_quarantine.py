"""Sessions whose outputs are not finite end, alone, and leave nothing behind."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import Family, PortSpec, family
from loopback import Loopback, StreamClient, array, attach_request, chunk, configure, serve, tensor, until, write_model
from onnx import helper

from eddy.service.arena import INITIAL_SLOT, NUM_RESERVED_SLOTS
from eddy.service.engine import Engine
from eddy.service.lifecycle import Event
from eddy.v1 import errors_pb2, inference_pb2, sessions_pb2

SUM = family("two-inputs")
HUGE = 3e38
_QUARANTINED = errors_pb2.ERROR_REASON_QUARANTINED


def _feeds(values: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """`values` [B][T] as both features of the sum, which nothing restarts."""
    steps = np.repeat(np.array(values, np.float32)[:, :, None], 2, axis=2)
    return steps, np.zeros(steps.shape[:2], np.bool_)


def _totals(result: inference_pb2.StepResult) -> list[list[float]]:
    """The first feature of the sum, [B][T]."""
    totals: list[list[float]] = array(result.outputs[0])[:, :, 0].tolist()
    return totals


async def _is_gone(running: Loopback, stream: StreamClient, handle: int) -> None:
    """The session of `handle` has ended with notice, its slot is clean, and its user is told why."""
    notice = await stream.notice("ended")
    assert np.frombuffer(notice.handles, "<u8").tolist() == [handle]
    assert notice.error.reason == _QUARANTINED
    error = await stream.refusal(step=chunk(SUM, [handle], [2], *_feeds([[1.0]])))
    assert error.reason == _QUARANTINED
    model = running.host.catalog.ready("two-inputs", "")
    await until(lambda: model.slots.num_slots - model.slots.num_free == running.host.table.num_sessions)
    every = np.arange(NUM_RESERVED_SLOTS + model.slots.num_slots)
    held = model.engine.read_states(every)[0]
    initial = model.engine.read_states(np.array([INITIAL_SLOT]))[0]
    assert np.isfinite(held).all()
    slot = int(running.host.table.slot[handle & 0xFFFFFFFF])
    assert held[slot].tolist() == initial[0].tolist()
    assert model.stats.num_ended_sessions[Event.QUARANTINE] == 1


@pytest.mark.parametrize("num_others", [0, 2, 40])
def test_a_session_ends_alone(tmp_path: Path, num_others: int) -> None:
    """The row that is not finite fails, blank; the others of its message have their answers and go on."""
    write_model(tmp_path, "two-inputs")

    async def check() -> None:
        async with serve(configure(tmp_path)) as running, running.stream() as stream:
            handles = await stream.handles("two-inputs", 1 + num_others)
            bad = num_others // 2
            first = [[float(row)] for row in range(1 + num_others)]
            first[bad] = [HUGE]
            result = await stream.step(SUM, handles, [0] * len(handles), *_feeds(first))
            assert not result.errors
            result = await stream.step(SUM, handles, [1] * len(handles), *_feeds(first))
            assert [(each.row, each.error.reason) for each in result.errors] == [(bad, _QUARANTINED)]
            wanted = [[2.0 * row + 0.25] for row in range(1 + num_others)]
            wanted[bad] = [0.0]
            assert _totals(result) == wanted
            await _is_gone(running, stream, handles[bad])
            others = [handle for handle in handles if handle != handles[bad]]
            if others:
                result = await stream.step(SUM, others, [2] * len(others), *_feeds([[0.0]] * len(others)))
                assert _totals(result) == [wanted[row] for row in range(len(handles)) if row != bad]

    asyncio.run(check())


def test_several_chunks_of_one_tick(tmp_path: Path) -> None:
    """Messages of several streams that share a tick: only the sender of the bad row is told."""
    write_model(tmp_path, "two-inputs")

    async def check() -> None:
        async with serve(configure(tmp_path)) as running, running.stream() as one, running.stream() as other:
            mine, theirs = await one.handles("two-inputs", 2), await other.handles("two-inputs", 2)
            for position in range(3):
                answers = await asyncio.gather(
                    one.step(SUM, mine, [position] * 2, *_feeds([[1.0], [1.0]])),
                    other.step(SUM, theirs, [position] * 2, *_feeds([[HUGE if position < 2 else 0.0], [1.0]])),
                )
                assert not answers[0].errors
                if position:
                    assert [(each.row, each.error.reason) for each in answers[1].errors] == [(0, _QUARANTINED)]
            assert _totals(answers[0]) == [[3.25], [3.25]]
            assert _totals(answers[1])[1] == [3.25]
            await _is_gone(running, other, theirs[0])

    asyncio.run(check())


def test_a_sliced_chunk(tmp_path: Path) -> None:
    """A chunk that takes several ticks fails in the row whose outputs were not finite in any of them."""
    write_model(tmp_path, "two-inputs")

    async def check() -> None:
        config = configure(tmp_path, model={"max_tick_seconds": 1e-6})
        async with serve(config) as running, running.stream() as stream:
            handles = await stream.handles("two-inputs", 2)
            steps = [[1.0] * 300, [HUGE, HUGE, *[0.0] * 298]]
            result = await stream.step(SUM, handles, [0, 0], *_feeds(steps))
            assert running.host.catalog.ready("two-inputs", "").scheduler.num_ticks > 1
            assert [(each.row, each.error.reason) for each in result.errors] == [(1, _QUARANTINED)]
            assert _totals(result) == [[n + 1.25 for n in range(300)], [0.0] * 300]
            await _is_gone(running, stream, handles[1])

    asyncio.run(check())


def test_unary_steps_and_sequences(tmp_path: Path) -> None:
    """A unary step fails with the reason, and `Infer` names the sequence."""
    write_model(tmp_path, "two-inputs")

    async def check() -> None:
        async with serve(configure(tmp_path)) as running:
            opened = await running.unary(
                "SessionService/OpenSession",
                sessions_pb2.OpenSessionRequest(model="two-inputs"),
                sessions_pb2.OpenSessionResponse,
            )
            request = inference_pb2.StepRequest(
                session_id=opened.session.session_id,
                epoch=opened.session.epoch,
                num_steps=2,
                inputs=[tensor("value", _feeds([[HUGE, HUGE]])[0]), tensor("restart", np.zeros((1, 2), np.bool_))],
            )
            error = await running.refusal("InferenceService/Step", request, inference_pb2.StepResponse)
            assert error.reason == _QUARANTINED
            values, restart = _feeds([[1.0, 1.0, HUGE, HUGE]])
            whole = inference_pb2.InferRequest(
                model="two-inputs",
                lengths=np.array([2, 2], "<u4").tobytes(),
                inputs=[tensor("value", values[0]), tensor("restart", restart[0])],
            )
            error = await running.refusal("InferenceService/Infer", whole, inference_pb2.InferResponse)
            assert error.reason == _QUARANTINED
            assert "sequence 1" in error.message
            await until(lambda: not running.host.table.num_sessions)
            await until(lambda: not running.host.catalog.ready("two-inputs", "").num_sessions)

    asyncio.run(check())


def test_the_largest_numbers_are_fine(tmp_path: Path) -> None:
    """Outputs whose sum would overflow are numbers, each of them."""
    write_model(tmp_path, "two-inputs")

    async def check() -> None:
        async with serve(configure(tmp_path)) as running, running.stream() as stream:
            handles = await stream.handles("two-inputs", 2)
            for rows in (handles[:1], handles[1:]):
                result = await stream.step(SUM, rows, [0], *_feeds([[HUGE, 0.0, 0.0]]))
                assert not result.errors
                assert np.isfinite(array(result.outputs[0])).all()

    asyncio.run(check())


def _masking() -> Family:
    """The sum, with one output more, whose values are infinite for half of its inputs."""
    nodes = (
        *SUM.body,
        helper.make_node("Sign", ["value"], ["sign"]),
        helper.make_node("Relu", ["sign"], ["one_or_zero"]),
        helper.make_node("Log", ["one_or_zero"], ["mask"]),
    )
    return replace(SUM, body=nodes, outputs=(*SUM.outputs, PortSpec("mask", np.float32, (2,))))


def test_an_output_that_may_be_infinite(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is not finite for examples is no failure, and the server says so at load; other outputs are checked."""
    model = _masking()
    write_model(tmp_path, "two-inputs", model=model.model())

    async def check() -> None:
        with caplog.at_level(logging.WARNING):
            async with serve(configure(tmp_path)) as running, running.stream() as stream:
                assert "mask: not finite for examples of inputs" in caplog.text
                (handle,) = await stream.handles("two-inputs")
                result = await stream.step(model, [handle], [0], *_feeds([[-1.0]]))
                assert not result.errors
                assert array(result.outputs[2]).tolist() == [[[-np.inf, -np.inf]]]
                result = await stream.step(model, [handle], [1], *_feeds([[HUGE, HUGE]]))
                assert [each.error.reason for each in result.errors] == [_QUARANTINED]

    asyncio.run(check())


class Spoiling(Engine):
    """An engine whose states turn bad by themselves, as a recurrent layer hides it from its outputs."""

    bad_slot = 0

    def read_states(self, slots: np.ndarray, home_slots: np.ndarray | None = None) -> list[np.ndarray]:
        """As `Engine.read_states`, with a NaN where `bad_slot` is read."""
        states = super().read_states(slots, home_slots)
        if self.bad_slot:
            states[0][slots == self.bad_slot] = np.nan
        return states


@pytest.mark.parametrize("spoils", [False, True])
def test_the_last_good_checkpoint_is_kept(tmp_path: Path, spoils: bool) -> None:
    """The store keeps what it has; who attaches again stands at the durable position, with its good state.

    Found in an output, and in a state that a checkpoint reads.
    """
    write_model(tmp_path / "models", "two-inputs")
    store = f"sqlite:{tmp_path}/store"

    async def check() -> None:
        config = configure(tmp_path / "models", state={"store": store, "checkpoint_seconds": 0.05})
        async with serve(config) as running, running.stream() as stream:
            opened = await stream.open("two-inputs", 2)
            handles = np.frombuffer(opened.handles, "<u8").tolist()
            await stream.step(SUM, handles, [0, 0], *_feeds([[HUGE], [1.0]]))
            table = running.host.table
            await until(lambda: bool((table.durable_position[table.open_rows()] == 1).all()))
            if spoils:
                engine: Any = running.host.catalog.ready("two-inputs", "").engine
                engine.bad_slot = int(table.slot[handles[0] & 0xFFFFFFFF])
                engine.__class__ = Spoiling
            result = await stream.step(SUM, handles, [1, 1], *_feeds([[0.0 if spoils else HUGE], [1.0]]))
            assert len(result.errors) == (not spoils)
            notice = await stream.notice("ended")
            assert np.frombuffer(notice.handles, "<u8").tolist() == handles[:1]
            assert notice.error.reason == _QUARANTINED
            if spoils:
                engine.__class__ = Engine
            attached = (await stream.send(attach=attach_request(opened, 0))).attached
            assert (attached.next_position, attached.durable_position) == (1, 1)
            result = await stream.step(SUM, [attached.handle, handles[1]], [1, 2], *_feeds([[-HUGE], [1.0]]))
            assert _totals(result) == [[0.0], [3.25]]

    asyncio.run(check())
