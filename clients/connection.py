"""One stream to the server, shared by all sessions of a client.

Owns the call, the tags, and whose an answer is: what waits is put into messages whenever the wire is free. Must not
know arrays beyond their bytes, what callers do with results, nor what becomes of sessions when the stream ends: `link`
does.

Ordering rules: requests are sent in the order they were asked for, and so are steps of one session; at most
`MAX_MESSAGES` messages of steps are unanswered, and while they are, what comes gathers for the next one. What an answer
changes takes effect when it comes, whether or not somebody still waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import numpy as np

from eddy.clients.errors import Disconnected, EddyError, can_pass, from_detail, from_rpc
from eddy.clients.group import END, Group, PendingStep, Steppable
from eddy.clients.results import read_results
from eddy.v1 import inference_pb2

_LOG = logging.getLogger(__name__)

# Told the response to a request when it comes, or why there is none: it was refused, or the stream ended.
OnAnswer = Callable[[inference_pb2.StreamResponse | EddyError], None]

# Two: one is under way while the server answers the other.
MAX_MESSAGES = 2

_DRAINING = "DRAINING"


class Listener(Protocol):
    """Whom a connection tells what nobody asked for."""

    def ended(self, handle: int, error: EddyError) -> None:
        """The server ended a session by itself."""

    def lost(self, connection: Connection, error: EddyError, *, is_final: bool) -> None:
        """The stream has ended; `is_final`: not because of the network or the server, so that another would, too.

        Steps that were not answered are forgotten; requests were told.
        """


@dataclass(slots=True)
class _PendingRequest:
    """A request, not a step of one session, that waits to be sent or answered.

    Attributes:
        is_wanted: asked before it is sent.
    """

    request: inference_pb2.StreamRequest
    on_answer: OnAnswer
    is_wanted: Callable[[], bool]


class Connection:
    """The stream.

    Args:
        channel: an open `grpc.aio` channel.
        moves: what a draining server refuses is not told to whoever asked: the stream ends instead, once everything
            that the server has accepted is answered.
    """

    def __init__(self, channel: Any, listener: Listener, *, moves: bool) -> None:
        self._listener = listener
        self._moves = moves
        self._call = channel.stream_stream("/eddy.v1.InferenceService/Stream")()
        # Changed only on the event loop. Steps that wait, in the order they were asked for, of every group that has
        # any; whose turn is next comes first.
        self._queues: dict[Group, deque[PendingStep]] = {}
        self._others: deque[_PendingRequest] = deque()
        self._waiting: dict[int, _PendingRequest | tuple[Group, list[PendingStep]]] = {}
        self._num_messages = 0
        self._next_tag = 1
        self._wake = asyncio.Event()
        self._failure: EddyError | None = None
        # The server is going: nothing more is sent.
        self.is_leaving = False
        # Something was answered; something beyond the taking back of sessions.
        self.has_answered = False
        self.has_progressed = False
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    async def close(self) -> None:
        """Ends the stream; what waits fails with `Disconnected`."""
        self._fail(Disconnected("the client was closed", "CLOSED"), is_final=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def failure(self) -> EddyError | None:
        """Why the stream ended, None while it lives."""
        return self._failure

    @property
    def is_over(self) -> bool:
        """It has ended, and nothing of it is left."""
        return all(task.done() for task in self._tasks)

    # Asking

    def step(self, group: Group, step: PendingStep) -> None:
        """Queues one session's step, or the end of its stream."""
        if self._failure is not None:
            return  # Whoever has the session has been told.
        queue = self._queues.get(group)
        if queue is None:
            queue = self._queues[group] = deque()
        queue.append(step)
        self._wake.set()

    def withdraw(self, group: Group, session: Steppable) -> None:
        """Forgets a session's steps that wait here: they are given anew."""
        queue = self._queues.pop(group, None)
        rest = deque([step for step in queue or () if step.session is not session])
        if rest:
            self._queues[group] = rest

    def post(
        self, request: inference_pb2.StreamRequest, on_answer: OnAnswer, is_wanted: Callable[[], bool] = lambda: True
    ) -> None:
        """Queues any request; `on_answer` is called once."""
        if self._failure is not None:
            on_answer(self._failure)
            return
        self._others.append(_PendingRequest(request, on_answer, is_wanted))
        self._wake.set()

    async def request(
        self, request: inference_pb2.StreamRequest, on_answer: OnAnswer | None = None
    ) -> inference_pb2.StreamResponse:
        """As `post`, and returns the response; sessions that were opened for nobody are closed.

        Raises:
            EddyError: the request was refused, or the stream ended.
        """
        done: asyncio.Future[inference_pb2.StreamResponse] = asyncio.get_running_loop().create_future()

        def answered(answer: inference_pb2.StreamResponse | EddyError) -> None:
            if on_answer is not None:
                on_answer(answer)
            if done.done():
                if not isinstance(answer, EddyError):
                    self._close_opened(answer)
            elif isinstance(answer, EddyError):
                done.set_exception(answer)
            else:
                done.set_result(answer)

        self.post(request, answered, lambda: not done.cancelled())
        try:
            return await done
        except asyncio.CancelledError:
            if done.done() and not done.cancelled() and done.exception() is None:  # It came at the same moment.
                self._close_opened(done.result())
            raise

    def _close_opened(self, answer: inference_pb2.StreamResponse) -> None:
        if answer.HasField("opened"):
            self.discard(answer.opened.handles)

    def discard(self, handles: bytes) -> None:
        """Closes sessions that nobody got, without waiting."""
        request = inference_pb2.StreamRequest(close=inference_pb2.CloseSessions(handles=handles))
        self.post(request, lambda _: None)

    # Writing

    async def _write(self) -> None:
        try:
            while self._failure is None:
                await self._wake.wait()
                self._wake.clear()
                while self._others and not self.is_leaving:
                    pending = self._others.popleft()
                    if not pending.is_wanted():
                        pending.on_answer(_unwanted())
                        continue
                    pending.request.tag = self._take_tag()
                    self._waiting[pending.request.tag] = pending
                    await self._call.write(pending.request.SerializeToString())
                while self._queues and self._num_messages < MAX_MESSAGES and not self.is_leaving:
                    message = self._pack()
                    if message is not None:
                        self._num_messages += 1
                        await self._call.write(message)
        except grpc.RpcError as error:
            self._fail_by(error)
        except asyncio.InvalidStateError:
            return  # The call has ended; the reader learns why.
        except asyncio.CancelledError:
            self._fail(_cancelled(), is_final=True)
            raise
        except Exception as error:  # noqa: BLE001  the task's root: whoever waits is told
            self._fail(_bug(error), is_final=True)

    def _take_tag(self) -> int:
        tag = self._next_tag
        self._next_tag += 1
        return tag

    def _pack(self) -> bytes | None:
        """One message of the group whose turn it is."""
        group = next(iter(self._queues))
        taken = group.take(self._queues.pop(group))
        if taken.rest:
            self._queues[group] = taken.rest
        for step in taken.unsent:  # Before positions are given: it says where its session stands.
            step.session.unsent(step)
        if not taken.steps:
            return None
        for step in taken.steps:
            step.session.place(step)
        request = inference_pb2.StreamRequest(tag=self._take_tag())
        group.write_steps(request.step, taken.steps)
        self._waiting[request.tag] = (group, taken.steps)
        return request.SerializeToString()

    # Reading

    async def _read(self) -> None:
        try:
            while (data := await self._call.read()) is not grpc.aio.EOF:
                if self._failure is not None:
                    return
                self._receive(inference_pb2.StreamResponse.FromString(data))
            code = await self._call.code()
            text = await self._call.details()
            self._fail(Disconnected(f"the server ended the stream: {code.name} {text}", code.name))
        except grpc.RpcError as error:
            self._fail_by(error)
        except asyncio.CancelledError:
            self._fail(_cancelled(), is_final=True)
            raise
        except Exception as error:  # noqa: BLE001  the task's root: whoever waits is told
            self._fail(_bug(error), is_final=True)

    def _receive(self, response: inference_pb2.StreamResponse) -> None:
        if not response.tag:
            self._receive_notice(response)
            return
        waiting = self._waiting.pop(response.tag)
        refused = from_detail(response.error) if response.WhichOneof("event") == "error" else None
        if refused is not None and refused.reason == _DRAINING and self._moves:
            self.leave()
            if isinstance(waiting, _PendingRequest):  # Whoever asked for steps still has them.
                waiting.on_answer(refused)
        elif isinstance(waiting, _PendingRequest):
            self.has_answered = True
            self.has_progressed = self.has_progressed or not waiting.request.HasField("attach")
            waiting.on_answer(response if refused is None else refused)
        else:
            self._receive_steps(*waiting, response, refused)
        if self.is_leaving:
            self._go_if_done()

    def _receive_steps(
        self, group: Group, steps: list[PendingStep], response: inference_pb2.StreamResponse, refused: EddyError | None
    ) -> None:
        self.has_answered = self.has_progressed = True
        self._num_messages -= 1
        if self._queues:
            self._wake.set()
        if refused is not None:
            for step in steps:
                step.session.refuse(step, from_detail(response.error))
            return
        answer = response.step
        errors = {error.row: error.error for error in answer.errors}
        results = None
        if len(errors) < len(steps):
            results = read_results(group.signature, answer, is_end=steps[0].num_steps == END)
        durable = np.frombuffer(answer.durable_positions, "<i8").tolist() or None
        for row, step in enumerate(steps):
            if results is None or row in errors:
                step.session.refuse(step, from_detail(errors[row]))
            else:
                step.session.answer(step, results.row(row), None if durable is None else durable[row])

    def _receive_notice(self, response: inference_pb2.StreamResponse) -> None:
        event = response.WhichOneof("event")
        if event == "ended":
            error = from_detail(response.ended.error)
            for handle in np.frombuffer(response.ended.handles, "<u8").tolist():
                self._listener.ended(handle, error)
        elif event == "draining" and self._moves:
            self.leave()
            self._go_if_done()
        elif event == "error":  # The server could not tell which request it was.
            self._fail(from_detail(response.error), is_final=True)

    # Ending

    def leave(self) -> None:
        """Sends nothing more; the stream ends once everything that was sent is answered."""
        self.is_leaving = True

    def _go_if_done(self) -> None:
        if not self._waiting:
            self._fail(Disconnected("the server is shutting down", _DRAINING))

    def _fail_by(self, error: grpc.RpcError) -> None:
        failure = from_rpc(error)
        # Anything else is an answer, and the next stream would get the same.
        self._fail(failure, is_final=not can_pass(failure))

    def _fail(self, error: EddyError, *, is_final: bool = False) -> None:
        """Ends the stream for everybody who waits, and both tasks with it."""
        if self._failure is not None:
            return
        self._failure = error
        waiting, self._waiting = self._waiting, {}
        others, self._others = self._others, deque()
        self._queues.clear()
        self._listener.lost(self, error, is_final=is_final)
        for item in (*waiting.values(), *others):
            if isinstance(item, _PendingRequest):
                item.on_answer(error)
        self._wake.set()
        self._call.cancel()


def _cancelled() -> Disconnected:
    """Somebody cancelled every task of the event loop; nothing may wait for a reply that nobody reads."""
    return Disconnected("the client's tasks were cancelled", "CANCELLED")


def _unwanted() -> Disconnected:
    return Disconnected("nobody waits for it any more", "CANCELLED")


def _bug(error: Exception) -> Disconnected:
    _LOG.error("the stream ended on an unexpected error", exc_info=error)
    return Disconnected(f"the client ended the stream: {type(error).__name__}: {error}", "INTERNAL")
