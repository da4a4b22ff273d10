"""One stream to the server, shared by all sessions of a client.

Owns the call, the tags, and the packing: steps that wait are put into one message, by model and number of steps,
whenever the wire is free. Must not know arrays beyond their bytes, nor what callers do with results.

Ordering rules: steps of one session are sent in the order they were asked for; at most `max_messages` messages are
unanswered, and while they are, what comes gathers for the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import numpy as np

from eddy.clients.errors import Disconnected, EddyError, from_detail, from_rpc
from eddy.clients.tensors import Signature
from eddy.v1 import inference_pb2

# Two: one is under way while the server answers the other.
MAX_MESSAGES = 2

# Somebody cancelled every task of the event loop; nothing may wait for a reply that nobody reads.
_CANCELLED = Disconnected("the client's tasks were cancelled", "CANCELLED")


class Steppable(Protocol):
    """What the connection knows of a session."""

    handle: bytes
    sent_position: int


@dataclass(slots=True)
class PendingStep:
    """A step of one session that waits to be sent or answered.

    Attributes:
        inputs: one contiguous array an input, [T, ...] or without T.
        done: resolves to one array an output, [T, ...].
        position: where it was sent to; None until then.
    """

    session: Steppable
    inputs: Sequence[np.ndarray]
    num_steps: int
    done: asyncio.Future[list[np.ndarray]]
    position: int | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """A message of many rows at once, for the array interface.

    Attributes:
        handles, positions: uint64 [B] raw; inputs: [B, T, ...] raw, an input each.
    """

    handles: bytes
    positions: bytes
    num_steps: int
    inputs: Sequence[bytes]


class Group:
    """Sessions of one model share messages: a queue of steps for each number of steps."""

    def __init__(self, signature: Signature, max_rows: int, max_bytes: int) -> None:
        self.signature = signature
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        # Changed only by the connection. Steps in the order they were asked for.
        self.pending: deque[PendingStep] = deque()


class Connection:
    """The stream.

    Args:
        channel: an open `grpc.aio` channel.
        on_ended: told the handle and the reason when the server ends a session by itself.
    """

    def __init__(self, channel: Any, on_ended: Any) -> None:
        self._on_ended = on_ended
        self._call = channel.stream_stream("/eddy.v1.InferenceService/Stream")()
        # Changed only on the event loop.
        self._groups: deque[Group] = deque()
        self._others: deque[tuple[inference_pb2.StreamRequest, asyncio.Future[Any]]] = deque()
        self._waiting: dict[int, asyncio.Future[Any] | tuple[Group, list[PendingStep]]] = {}
        self._num_messages = 0
        self._next_tag = 1
        self._wake = asyncio.Event()
        self._failure: EddyError | None = None
        self.is_draining = False
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    async def close(self) -> None:
        """Ends the stream; what waits fails with `Disconnected`."""
        self._fail(Disconnected("the client was closed", "CLOSED"))
        self._call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def failure(self) -> EddyError | None:
        """Why the stream ended, None while it lives."""
        return self._failure

    # Asking

    def step(self, group: Group, step: PendingStep) -> None:
        """Queues one session's step."""
        if self._failure is not None:
            raise self._failure
        if not group.pending:
            self._groups.append(group)
        group.pending.append(step)
        self._wake.set()

    async def step_rows(self, group: Group, rows: Rows) -> inference_pb2.StepResult:
        """Sends a message of many rows and returns its result, row errors included."""
        request = inference_pb2.StreamRequest()
        step = request.step
        step.handles, step.positions, step.num_steps = rows.handles, rows.positions, rows.num_steps
        group.signature.write(step, rows.inputs, len(rows.handles) // 8, rows.num_steps)
        response = await self.request(request)
        return response.step

    async def request(self, request: inference_pb2.StreamRequest) -> inference_pb2.StreamResponse:
        """Sends any request and returns its response.

        Raises:
            EddyError: the request was refused, or the stream ended.
        """
        if self._failure is not None:
            raise self._failure
        done: asyncio.Future[inference_pb2.StreamResponse] = asyncio.get_running_loop().create_future()
        self._others.append((request, done))
        self._wake.set()
        return await done

    # Writing

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._others:
                    request, done = self._others.popleft()
                    request.tag = self._take_tag()
                    self._waiting[request.tag] = done
                    await self._call.write(request.SerializeToString())
                while self._groups and self._num_messages < MAX_MESSAGES:
                    message = self._pack()
                    if message is not None:
                        self._num_messages += 1
                        await self._call.write(message)
        except grpc.RpcError as error:
            self._fail(from_rpc(error))
        except asyncio.InvalidStateError:
            return  # The call has ended; the reader learns why.
        except asyncio.CancelledError:
            self._fail(_CANCELLED)
            raise

    def _take_tag(self) -> int:
        tag = self._next_tag
        self._next_tag += 1
        return tag

    def _pack(self) -> bytes | None:
        """One message of the group whose turn it is: its oldest step and all others of the same T that fit.

        A session's later step never overtakes an earlier one: once a session is left out, it stays out.
        """
        group = self._groups.popleft()
        steps: list[PendingStep] = []
        rest: deque[PendingStep] = deque()
        left_out: set[int] = set()
        num_steps = group.pending[0].num_steps
        max_rows = max(1, min(group.max_rows, group.max_bytes // group.signature.row_bytes(num_steps)))
        for step in group.pending:
            if step.done.done():  # Cancelled before it was sent.
                continue
            key = id(step.session)
            if step.num_steps != num_steps or len(steps) >= max_rows or key in left_out:
                left_out.add(key)
                rest.append(step)
                continue
            steps.append(step)
            left_out.add(key)  # Each session at most once in a message.
        group.pending = rest
        if rest:
            self._groups.append(group)
        if not steps:
            return None
        request = inference_pb2.StreamRequest(tag=self._take_tag())
        chunk = request.step
        chunk.handles = b"".join([step.session.handle for step in steps])
        chunk.positions = np.array([step.session.sent_position for step in steps], "<u8").tobytes()
        chunk.num_steps = num_steps
        raw = [b"".join(arrays) for arrays in zip(*[step.inputs for step in steps], strict=True)]
        group.signature.write(chunk, raw, len(steps), num_steps)
        for step in steps:
            step.position = step.session.sent_position
            step.session.sent_position += num_steps
        self._waiting[request.tag] = (group, steps)
        return request.SerializeToString()

    # Reading

    async def _read(self) -> None:
        try:
            while (data := await self._call.read()) is not grpc.aio.EOF:
                self._receive(inference_pb2.StreamResponse.FromString(data))
            code = await self._call.code()
            text = await self._call.details()
            self._fail(Disconnected(f"the server ended the stream: {code.name} {text}", code.name))
        except grpc.RpcError as error:
            self._fail(from_rpc(error))
        except asyncio.CancelledError:
            self._fail(_CANCELLED)
            raise

    def _receive(self, response: inference_pb2.StreamResponse) -> None:
        if not response.tag:
            self._receive_notice(response)
            return
        waiting = self._waiting.pop(response.tag)
        if isinstance(waiting, asyncio.Future):
            if waiting.done():
                return
            if response.WhichOneof("event") == "error":
                waiting.set_exception(from_detail(response.error))
            else:
                waiting.set_result(response)
            return
        self._num_messages -= 1
        if self._groups:
            self._wake.set()
        group, steps = waiting
        if response.WhichOneof("event") == "error":
            for step in steps:
                _fail_step(step, from_detail(response.error))
            return
        errors = {error.row: error.error for error in response.step.errors}
        arrays = [] if len(errors) == len(steps) else group.signature.read(response.step.outputs)
        single = arrays[0] if len(arrays) == 1 else None
        for row, step in enumerate(steps):
            if row in errors:
                _fail_step(step, from_detail(errors[row]))
            elif not step.done.done():
                step.done.set_result([single[row]] if single is not None else [array[row] for array in arrays])

    def _receive_notice(self, response: inference_pb2.StreamResponse) -> None:
        event = response.WhichOneof("event")
        if event == "ended":
            error = from_detail(response.ended.error)
            for handle in np.frombuffer(response.ended.handles, "<u8").tolist():
                self._on_ended(handle, error)
        elif event == "draining":
            self.is_draining = True
        elif event == "error":  # The server could not tell which request it was.
            self._fail(from_detail(response.error))

    def _fail(self, error: EddyError) -> None:
        if self._failure is None:
            self._failure = error
        waiting, self._waiting = self._waiting, {}
        for item in waiting.values():
            if isinstance(item, asyncio.Future):
                _fail_future(item, error)
            else:
                for step in item[1]:
                    _fail_step(step, error)
        for _, done in self._others:
            _fail_future(done, error)
        self._others.clear()
        for group in self._groups:
            for step in group.pending:
                _fail_step(step, error)
            group.pending.clear()
        self._groups.clear()


def _fail_future(future: asyncio.Future[Any], error: EddyError) -> None:
    if not future.done():
        future.set_exception(error)


def _fail_step(step: PendingStep, error: EddyError) -> None:
    """The step was not applied: the session goes on from where it was (later steps in flight fail likewise)."""
    if step.position is not None:
        step.session.sent_position = min(step.session.sent_position, step.position)
    _fail_future(step.done, error)
