"""Durable sessions: a real server process that is killed at once after what it answered, and the next one on its store.

The model is `history`: its answers spell what was applied.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from graphs import family
from loopback import StreamClient, array, attach_request, chunk, detail_of
from target import READY

from eddy.service.errors import Reason
from eddy.service.record import HEAD, Batch
from eddy.service.stores import open_store
from eddy.v1 import inference_pb2, sessions_pb2

HISTORY = family("history")


class Life:
    """One life of a server process, and a client's stream to it."""

    def __init__(self, process: "subprocess.Popen[str]", channel: Any, http_port: int) -> None:
        self.process = process
        self.channel = channel
        self.http_port = http_port
        self.stream = StreamClient(channel)

    async def unary(self, method: str, request: Any, response_type: Any) -> Any:
        """Calls `service/method`."""
        call = self.channel.unary_unary(f"/eddy.v1.{method}", None, response_type.FromString)
        return await asyncio.wait_for(call(request.SerializeToString()), 30)

    async def step(self, handle: int, position: int, digits: Sequence[int]) -> inference_pb2.StepResult:
        """Steps one session."""
        return (await self.stream.send(step=chunk(HISTORY, [handle], [position], [list(digits)]))).step

    def kill(self) -> None:
        """SIGKILL: nothing is written any more."""
        self.process.kill()
        self.process.wait()

    def end(self) -> tuple[int, str]:
        """SIGTERM; exit code and log."""
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=30)
        return self.process.returncode, log


@asynccontextmanager
async def life(repository: Path, store: str, *arguments: str) -> AsyncIterator[Life]:
    """A server process on `store`, killed at the end if it still lives."""
    command = [sys.executable, "-m", "eddy.cli", "serve", "--model-repository", str(repository)]
    ports = ["--grpc-port", "0", "--http-port", "0", "--state-store", store]
    process = subprocess.Popen(  # noqa: ASYNC220, S603  our own command
        [*command, *ports, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = READY.search(line)
        assert match, f"the server said {line!r}"
        async with grpc.aio.insecure_channel(f"127.0.0.1:{match[3]}") as channel:
            yield Life(process, channel, int(match[4]))
    finally:
        process.kill()
        process.communicate()


async def durable(server: Life, handle: int, position: int) -> int:
    """Repeats the session's last chunk until it is durable; returns how often its answer came."""
    count, found = 0, -1
    while found < position:
        last = await server.step(handle, position - 1, [3])
        (found,) = np.frombuffer(last.durable_positions, "<i8").tolist()
        count += 1
    return count


async def taken(server: Life, opened: inference_pb2.SessionsOpened, number: int = 0) -> inference_pb2.SessionAttached:
    """The session, taken over by id and token."""
    return (await server.stream.send(attach=attach_request(opened, number))).attached


def spelled(result: inference_pb2.StepResult) -> int:
    """The history that the answer's last step spells."""
    return int(array(result.outputs[0]).reshape(-1)[-1])


def test_killed_after_a_step_that_was_durable(repository: Path, tmp_path: Path) -> None:
    """Killed once an answer says so, the session stands at its durable position, and goes on from its state."""
    store = f"sqlite:{tmp_path}/store"

    async def scenario() -> None:
        async with life(repository, store, "--set", "state.checkpoint_seconds=0.05") as first:
            opened = await first.stream.open("history")
            assert opened.durable
            (handle,) = np.frombuffer(opened.handles, "<u8").tolist()
            for position, digit in enumerate([1, 2, 3]):
                await first.step(handle, position, [digit])
            await durable(first, handle, 3)
            first.kill()
        async with life(repository, store) as second:
            attached = await taken(second, opened)
            assert (attached.next_position, attached.durable_position, attached.durable) == (3, 3, True)
            assert attached.epoch > np.frombuffer(opened.epochs, "<u4")[0]
            # The reply that was kept is kept, and the state is that of three steps.
            assert spelled(await second.step(attached.handle, 2, [3])) == 123
            assert spelled(await second.step(attached.handle, 3, [4])) == 1234

    asyncio.run(scenario())


def test_killed_at_once_after_an_open(repository: Path, tmp_path: Path) -> None:
    """Whoever was told that sessions are open finds them in the next process, however soon the first one died."""
    store = f"sqlite:{tmp_path}/store"

    async def scenario() -> None:
        async with life(repository, store, "--set", "state.checkpoint_seconds=3600") as first:
            opened = await first.stream.open("history", 50, idle_timeout_seconds=77, max_in_flight=3)
            first.kill()
        async with life(repository, store) as second:
            for number in (0, 49):
                attached = await taken(second, opened, number)
                assert (attached.next_position, attached.durable_position, attached.max_in_flight) == (0, 0, 3)
                assert spelled(await second.step(attached.handle, 0, [7])) == 7

    asyncio.run(scenario())


def test_killed_after_a_step_that_was_not_durable(repository: Path, tmp_path: Path) -> None:
    """What was answered and is not durable is not there; sent again from the position that is told, it comes again."""
    store = f"sqlite:{tmp_path}/store"

    async def scenario() -> None:
        async with life(repository, store, "--set", "state.checkpoint_seconds=3600") as first:
            opened = await first.stream.open("history")
            (handle,) = np.frombuffer(opened.handles, "<u8").tolist()
            for position, digit in enumerate([1, 2, 3]):
                result = await first.step(handle, position, [digit])
                # Told once: it stands still.
                assert np.frombuffer(result.durable_positions, "<i8").tolist() == [0][position:]
            first.kill()
        async with life(repository, store) as second:
            attached = await taken(second, opened)
            assert (attached.next_position, attached.durable_position) == (0, 0)
            answers = [spelled(await second.step(attached.handle, at, [digit])) for at, digit in enumerate([1, 2, 3])]
            assert answers == [1, 12, 123]

    asyncio.run(scenario())


def test_the_end_of_a_process_is_no_end_of_its_sessions(repository: Path, tmp_path: Path) -> None:
    """SIGTERM writes every session; the next process has them where they stood, and those closed before are gone."""
    store = f"sqlite:{tmp_path}/store"

    async def scenario() -> None:
        async with life(repository, store, "--set", "state.checkpoint_seconds=3600") as first:
            opened = await first.stream.open("history", 40)
            handles = np.frombuffer(opened.handles, "<u8").tolist()
            await first.stream.step(HISTORY, handles, [0] * 40, [[digit % 10, 5] for digit in range(40)])
            close = inference_pb2.CloseSessions(handles=np.array(handles[39:], "<u8").tobytes())
            await first.stream.send(close=close)
            code, log = first.end()
            assert code == 0, log
        async with life(repository, store) as second:
            for number in (3, 38):
                attached = await taken(second, opened, number)
                assert (attached.next_position, attached.durable_position) == (2, 2)
                assert spelled(await second.step(attached.handle, 2, [7])) == 100 * (number % 10) + 57
            detail = await second.stream.refusal(attach=attach_request(opened, 39))
            assert detail.reason == Reason.UNKNOWN_SESSION

    asyncio.run(scenario())


def test_unary_calls_bring_sessions_back(repository: Path, tmp_path: Path) -> None:
    """A step with the epoch of before the crash is fenced and told the present one; reset and close find it."""
    store = f"sqlite:{tmp_path}/store"

    async def scenario() -> None:
        async with life(repository, store) as first:
            request = sessions_pb2.OpenSessionRequest(model="history")
            opened = await first.unary("SessionService/OpenSession", request, sessions_pb2.OpenSessionResponse)
            session = opened.session
            assert (session.durable, session.durable_position) == (True, 0)
            first.kill()

        def step(epoch: int, digit: int) -> inference_pb2.StepRequest:
            row = chunk(HISTORY, [0], [0], [[digit]])
            tensor = row.inputs[0]
            return inference_pb2.StepRequest(
                session_id=session.session_id, epoch=epoch, position=0, num_steps=1, inputs=[tensor]
            )

        async with life(repository, store) as second:
            # Of an epoch in which nobody knows it: it is not even brought back.
            try:
                await second.unary("InferenceService/Step", step(session.epoch + 1, 4), inference_pb2.StepResponse)
                raise AssertionError("a step of another epoch was carried out")
            except grpc.aio.AioRpcError as error:
                detail = detail_of(error)
            assert (detail.reason, detail.epoch) == (Reason.FENCED, session.epoch)
            listing = await second.unary(
                "SessionService/ListSessions", sessions_pb2.ListSessionsRequest(), sessions_pb2.ListSessionsResponse
            )
            assert not listing.total
            # Who knows it goes on, and goes on in the epoch that it is told, or in the one before.
            for epoch in (session.epoch, session.epoch):
                response = await second.unary("InferenceService/Step", step(epoch, 4), inference_pb2.StepResponse)
                assert array(response.outputs[0]).tolist() == [[4]]
                assert response.epoch > session.epoch
            response = await second.unary("InferenceService/Step", step(response.epoch, 4), inference_pb2.StepResponse)
            assert response.replayed
            second.end()
        async with life(repository, store) as third:
            reset = sessions_pb2.ResetSessionRequest(session_id=session.session_id)
            fresh = await third.unary("SessionService/ResetSession", reset, sessions_pb2.ResetSessionResponse)
            assert (fresh.session.next_position, fresh.session.durable) == (0, True)
            third.kill()
        async with life(repository, store) as fourth:
            found = await fourth.unary(
                "SessionService/GetSession",
                sessions_pb2.GetSessionRequest(session_id=session.session_id),
                sessions_pb2.GetSessionResponse,
            )
            assert found.session.next_position == 0
            closing = sessions_pb2.CloseSessionRequest(session_id=session.session_id)
            await fourth.unary("SessionService/CloseSession", closing, sessions_pb2.CloseSessionResponse)

    asyncio.run(scenario())


def test_a_record_that_does_not_fit_leaves_no_session(repository: Path, tmp_path: Path) -> None:
    """A kept reply a byte too short, under a right checksum: attaching is refused each time, and takes no room."""
    url = f"sqlite:{tmp_path}/store"

    async def scenario() -> None:
        async with life(repository, url, "--set", "state.checkpoint_seconds=0.05") as first:
            opened = await first.stream.open("history")
            (handle,) = np.frombuffer(opened.handles, "<u8").tolist()
            await first.step(handle, 0, [1, 2, 3])
            first.end()
        store = open_store(url)
        assert store is not None
        (record,) = store.read([opened.session_ids[0]])
        assert record is not None
        body = bytearray(record[:-5])
        (head,) = np.frombuffer(record, HEAD, 1)
        table = HEAD.itemsize + int(head["model_bytes"]) + int(head["state_bytes"])
        for at in (12, table + 12):  # The record's size, and the reply's.
            body[at : at + 4] = (int.from_bytes(body[at : at + 4], "little") - 1).to_bytes(4, "little")
        forged = bytes(body) + zlib.crc32(body).to_bytes(4, "little")
        epoch = np.array([head["epoch"]], np.uint32)
        ids = np.frombuffer(opened.session_ids[0], np.uint8)[None]
        data, sizes = np.frombuffer(forged, np.uint8), np.array([len(forged)])
        store.write(Batch(ids, epoch, epoch, 1, np.array([4e9]), data, np.zeros(1, np.int64), sizes))
        store.close()
        # Room for one: what is left behind would keep the next session out.
        async with life(repository, url, "--set", "session.max_sessions=1") as second:
            for _ in range(2):
                refused = await second.stream.send(attach=attach_request(opened))
                assert refused.error.reason == Reason.SNAPSHOT_CORRUPT
            assert (await second.stream.open("history")).durable

    asyncio.run(scenario())


def test_killed_between_the_store_and_the_answer(repository: Path, tmp_path: Path) -> None:
    """Killed the moment that a checkpoint is counted, life after life: every digit takes effect once.

    The last chunk of a life may be in the store or not, and may have been answered or not: sent again from the position
    that is told, it is answered from its kept reply, or runs.
    """
    store = f"sqlite:{tmp_path}/store"

    def written(server: Life) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/metrics", timeout=10) as response:
            page = response.read().decode()
        return float(page.partition("\neddy_stored_sessions_total ")[2].partition("\n")[0])

    async def scenario() -> None:
        opened, position, answers = None, 0, []
        for number in range(6):
            async with life(repository, store, "--set", "state.checkpoint_seconds=0.02") as server:
                if opened is None:
                    opened = await server.stream.open("history")
                    (handle,) = np.frombuffer(opened.handles, "<u8").tolist()
                else:
                    attached = await taken(server, opened)
                    handle = attached.handle
                    assert attached.next_position in (position - 1, position)
                    answers.append(spelled(await server.step(handle, position - 1, [position])))
                count = await asyncio.to_thread(written, server)
                step = chunk(HISTORY, [handle], [position], [[position + 1]])
                sending = asyncio.ensure_future(server.stream.send(step=step))
                deadline = time.monotonic() + 30
                while number and await asyncio.to_thread(written, server) == count:
                    assert time.monotonic() < deadline
                server.kill()
                sending.cancel()
                position += 1
        assert answers == [int("123456"[:length]) for length in range(1, 6)]

    asyncio.run(scenario())
