"""One stream to the server, shared by all sessions of a client.

Owns the call, the tags, and the packing: steps that wait are put into one message, by model and number of steps,
whenever the wire is free. Ends of streams share messages with each other. Must not know arrays beyond their bytes, nor
what callers do with results.

Ordering rules: steps of one session are sent in the order they were asked for; at most `max_messages` messages are
unanswered, and while they are, what comes gathers for the next one. What an answer changes takes effect when it
comes, whether or not somebody still waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import numpy as np

from eddy.clients.errors import Disconnected, EddyError, from_detail, from_rpc, invalid
from eddy.clients.results import read_results
from eddy.clients.tensors import MESSAGE_OVERHEAD_BYTES, Signature
from eddy.v1 import errors_pb2, inference_pb2

_LOG = logging.getLogger(__name__)

# Told the response to a request when it comes; None: it was refused or dropped, or the stream ended.
OnAnswer = Callable[[inference_pb2.StreamResponse | None], None]

# Two: one is under way while the server answers the other.
MAX_MESSAGES = 2

# The number of steps of a stream's end, which takes one position all the same.
END = 0

# Somebody cancelled every task of the event loop; nothing may wait for a reply that nobody reads.
_CANCELLED = Disconnected("the client's tasks were cancelled", "CANCELLED")


class Steppable(Protocol):
    """What the connection knows of a session.

    Attributes:
        num_rewinds: how often `sent_position` was set back. A step that was sent before the last time fails because
            an earlier one did, and says nothing about where the session is.
    """

    handle: bytes
    sent_position: int
    num_rewinds: int

    def release(self) -> None:
        """A step is no longer under way: answered, failed, or dropped unsent. Called once a step."""


@dataclass(slots=True)
class PendingStep:
    """A step of one session, or the end of its stream, that waits to be sent or answered.

    Attributes:
        inputs: one contiguous array an input, [T, ...] or without T; none for the end.
        num_steps: T; END for the end.
        done: resolves to one array an output: [T, ...], or [E, ...] of those that a model emitted that looks ahead.
        num_rewinds: the session's when this was asked for; if it has grown since, an earlier step has failed.
        position: where it was sent to; None until then.
    """

    session: Steppable
    inputs: Sequence[np.ndarray]
    num_steps: int
    done: asyncio.Future[list[np.ndarray]]
    num_rewinds: int
    position: int | None = None

    @property
    def num_positions(self) -> int:
        """How far it moves its session."""
        return self.num_steps or 1


@dataclass(slots=True)
class _PendingRequest:
    """Any other request that waits to be sent or answered."""

    request: inference_pb2.StreamRequest
    done: asyncio.Future[inference_pb2.StreamResponse]
    on_answer: OnAnswer | None


@dataclass(frozen=True, slots=True)
class Rows:
    """A message of many rows at once, for the array interface.

    Attributes:
        handles, positions: uint64 [B] raw; inputs: [B, T, ...] raw, an input each; num_steps: T, or END.
    """

    handles: bytes
    positions: bytes
    num_steps: int
    inputs: Sequence[bytes]


class Group:
    """Sessions of one model share messages: a queue of steps for each number of steps."""

    def __init__(self, signature: Signature, max_rows: int, max_message_bytes: int) -> None:
        self.signature = signature
        self.max_rows = max_rows
        self.max_message_bytes = max_message_bytes
        self.max_bytes = max(1, max_message_bytes - MESSAGE_OVERHEAD_BYTES)
        # Changed only by the connection. Steps in the order they were asked for.
        self.pending: deque[PendingStep] = deque()

    def check_size(self, num_steps: int) -> None:
        """Refuses steps that no message can hold: the server would end the stream, and with it everybody's.

        Raises:
            InvalidInput: MESSAGE_TOO_LARGE.
        """
        size = self.signature.row_bytes(num_steps)
        if size > self.max_message_bytes:
            received = f"{num_steps} steps, {size} bytes"
            raise invalid("MESSAGE_TOO_LARGE", "inputs", received, f"at most {self.max_message_bytes} bytes a session")

    def rows_of_message(self, num_steps: int) -> int:
        """Most rows of a message, at least one."""
        return max(1, min(self.max_rows, self.max_bytes // self.signature.row_bytes(num_steps)))

    def write(
        self, chunk: inference_pb2.StepChunk, num_rows: int, num_steps: int, raw: Sequence[bytes]
    ) -> inference_pb2.StepChunk:
        """Puts B rows of T steps, `raw` [B, T, ...] an input, or the end of B streams, into a message."""
        chunk.num_steps = num_steps
        if num_steps == END:
            chunk.flush = True
        else:
            self.signature.write(chunk, raw, num_rows, num_steps)
        return chunk


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
        self._others: deque[_PendingRequest] = deque()
        self._waiting: dict[int, _PendingRequest | tuple[Group, list[PendingStep]]] = {}
        self._num_messages = 0
        self._next_tag = 1
        self._wake = asyncio.Event()
        self._failure: EddyError | None = None
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    async def close(self) -> None:
        """Ends the stream; what waits fails with `Disconnected`."""
        self._fail(Disconnected("the client was closed", "CLOSED"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def failure(self) -> EddyError | None:
        """Why the stream ended, None while it lives."""
        return self._failure

    # Asking

    def step(self, group: Group, step: PendingStep) -> None:
        """Queues one session's step, or the end of its stream."""
        if self._failure is not None:
            raise self._failure
        if not group.pending:
            self._groups.append(group)
        group.pending.append(step)
        self._wake.set()

    def step_rows(self, group: Group, rows: Rows, on_answer: OnAnswer) -> asyncio.Future[inference_pb2.StreamResponse]:
        """Queues a message of many rows; its result has the errors of rows."""
        request = inference_pb2.StreamRequest()
        step = request.step
        step.handles, step.positions = rows.handles, rows.positions
        group.write(step, len(rows.handles) // 8, rows.num_steps, rows.inputs)
        return self.post(request, on_answer)

    async def request(
        self, request: inference_pb2.StreamRequest, on_answer: OnAnswer | None = None
    ) -> inference_pb2.StreamResponse:
        """As `post`, and returns the response.

        Raises:
            EddyError: the request was refused, or the stream ended.
        """
        return await self.post(request, on_answer)

    def post(
        self, request: inference_pb2.StreamRequest, on_answer: OnAnswer | None = None
    ) -> asyncio.Future[inference_pb2.StreamResponse]:
        """Queues any request; requests are sent in this order.

        Args:
            on_answer: called once, also when nobody waits any more.

        Raises:
            EddyError: the stream has ended.
        """
        pending = _PendingRequest(request, asyncio.get_running_loop().create_future(), on_answer)
        if self._failure is not None:
            _answer(pending, None)
            raise self._failure
        self._others.append(pending)
        self._wake.set()
        return pending.done

    def discard(self, handles: bytes) -> None:
        """Closes sessions that nobody got, without waiting."""
        request = inference_pb2.StreamRequest(close=inference_pb2.CloseSessions(handles=handles))
        done: asyncio.Future[inference_pb2.StreamResponse] = asyncio.get_running_loop().create_future()
        done.cancel()
        if self._failure is None:
            self._others.append(_PendingRequest(request, done, None))
            self._wake.set()

    # Writing

    async def _write(self) -> None:
        try:
            while self._failure is None:
                await self._wake.wait()
                self._wake.clear()
                while self._others:
                    pending = self._others.popleft()
                    if pending.done.cancelled() and not pending.request.HasField("close"):
                        _answer(pending, None)  # Nobody wants it any more.
                        continue
                    pending.request.tag = self._take_tag()
                    self._waiting[pending.request.tag] = pending
                    await self._call.write(pending.request.SerializeToString())
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
        except Exception as error:  # noqa: BLE001  the task's root: whoever waits is told
            self._fail(_bug(error))

    def _take_tag(self) -> int:
        tag = self._next_tag
        self._next_tag += 1
        return tag

    def _pack(self) -> bytes | None:
        """One message of the group whose turn it is: its oldest step and all others of the same T that fit, or ends.

        A session's later step never overtakes an earlier one: once a session is left out, it stays out.
        """
        group = self._groups.popleft()
        steps: list[PendingStep] = []
        rest: deque[PendingStep] = deque()
        left_out: set[int] = set()
        num_steps = group.pending[0].num_steps
        max_rows = group.rows_of_message(num_steps)
        for step in group.pending:
            if step.done.done():  # Cancelled before it was sent.
                step.session.release()
                continue
            if step.num_rewinds != step.session.num_rewinds:
                _fail_step(step, _behind_failure(step.session))
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
        raw = [b"".join(arrays) for arrays in zip(*[step.inputs for step in steps], strict=True)]
        group.write(chunk, len(steps), num_steps, raw)
        for step in steps:
            step.position = step.session.sent_position
            step.session.sent_position += step.num_positions
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
        except Exception as error:  # noqa: BLE001  the task's root: whoever waits is told
            self._fail(_bug(error))

    def _receive(self, response: inference_pb2.StreamResponse) -> None:
        if not response.tag:
            self._receive_notice(response)
            return
        waiting = self._waiting.pop(response.tag)
        if isinstance(waiting, _PendingRequest):
            self._receive_answer(waiting, response)
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
        results = None
        if len(errors) < len(steps):
            results = read_results(group.signature, response.step, is_end=steps[0].num_steps == END)
        for row, step in enumerate(steps):
            if results is None or row in errors:
                _fail_step(step, from_detail(errors[row]))
            elif not step.done.done():
                step.done.set_result(results.row(row))
                step.session.release()
            else:  # Cancelled after it was sent.
                step.session.release()

    def _receive_answer(self, pending: _PendingRequest, response: inference_pb2.StreamResponse) -> None:
        event = response.WhichOneof("event")
        _answer(pending, None if event == "error" else response)
        if pending.done.done():
            if event == "opened":
                self.discard(response.opened.handles)
        elif event == "error":
            pending.done.set_exception(from_detail(response.error))
        else:
            pending.done.set_result(response)

    def _receive_notice(self, response: inference_pb2.StreamResponse) -> None:
        event = response.WhichOneof("event")
        if event == "ended":
            error = from_detail(response.ended.error)
            for handle in np.frombuffer(response.ended.handles, "<u8").tolist():
                self._on_ended(handle, error)
        elif event == "error":  # The server could not tell which request it was.
            self._fail(from_detail(response.error))

    def _fail(self, error: EddyError) -> None:
        """Ends the stream for everybody who waits, and both tasks with it."""
        if self._failure is None:
            self._failure = error
        waiting, self._waiting = self._waiting, {}
        others, self._others = self._others, deque()
        groups, self._groups = self._groups, deque()
        for item in (*waiting.values(), *others):
            if isinstance(item, _PendingRequest):
                _answer(item, None)
                _fail_future(item.done, error)
            else:
                for step in item[1]:
                    _fail_step(step, error)
        for group in groups:
            steps, group.pending = group.pending, deque()
            for step in steps:
                _fail_step(step, error)
        self._wake.set()
        self._call.cancel()


def _bug(error: Exception) -> Disconnected:
    _LOG.error("the stream ended on an unexpected error", exc_info=error)
    return Disconnected(f"the client ended the stream: {type(error).__name__}: {error}", "INTERNAL")


def _behind_failure(session: Steppable) -> EddyError:
    detail = errors_pb2.ErrorDetail(
        reason=errors_pb2.ERROR_REASON_POSITION_AHEAD,
        message="an earlier step of this session failed; this one was not sent",
        next_position=session.sent_position,
    )
    return from_detail(detail)


def _answer(pending: _PendingRequest, response: inference_pb2.StreamResponse | None) -> None:
    if pending.on_answer is not None:
        pending.on_answer(response)


def _fail_future(future: asyncio.Future[Any], error: EddyError) -> None:
    if not future.done():
        future.set_exception(error)


def _fail_step(step: PendingStep, error: EddyError) -> None:
    """The step was not applied: the session goes on from where it was (later steps in flight fail likewise)."""
    session = step.session
    if step.position is not None and step.num_rewinds == session.num_rewinds:
        session.sent_position = step.position if error.next_position is None else error.next_position
        session.num_rewinds += 1
    _fail_future(step.done, error)
    session.release()
