"""Sessions as a caller sees them: one session, or an array of them.

Owns positions on the client's side and the limit of steps in flight. Must not know messages.

Ordering rules: whoever asks first goes first; a step is in flight until it is answered, also when nobody waits for it
any more; when a pipelined step fails, those asked for before its failure was known fail likewise; a reset has the
session to itself.

Dimension key: B sessions, T steps.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eddy.clients.connection import Connection, Group, PendingStep, Rows
from eddy.clients.errors import BatchError, EddyError, SessionEnded, from_detail, invalid
from eddy.clients.tensors import Inputs, Outputs
from eddy.v1 import inference_pb2


@dataclass(frozen=True, slots=True)
class SessionGrant:
    """What the server gave for one session: its id, its handle on this stream, and its limits."""

    session_id: bytes
    handle: int
    position: int
    model: str
    version: str
    max_in_flight: int


class Session:
    """One session. Made by `Client.session`, `Client.open` or `Client.attach`, not directly."""

    def __init__(self, connection: Connection, group: Group, grant: SessionGrant, forget: Any) -> None:
        self.id = grant.session_id
        self.model = grant.model
        self.version = grant.version
        self.max_in_flight = grant.max_in_flight
        # Changed only by this session and, in flight, by the connection.
        self.handle = grant.handle.to_bytes(8, "little")
        self.sent_position = grant.position
        self.num_rewinds = 0
        self._connection = connection
        self._group = group
        self._forget = forget
        self._num_in_flight = 0
        # Who waits for room in flight, and for how much of it, in the order of asking.
        self._turns: deque[tuple[asyncio.Future[None], int]] = deque()
        self._end: EddyError | None = None

    @property
    def position(self) -> int:
        """The position of the next step to send."""
        return self.sent_position

    @property
    def is_open(self) -> bool:
        """Neither closed here nor ended by the server, as far as is known."""
        return self._end is None

    async def step(self, inputs: Inputs) -> np.ndarray:
        """Steps the session and returns the output of a model that has one.

        Args:
            inputs: for a model with one input its values: one step, [F], or T steps, [T, F]; scalars where the
                contract's shape is empty. Otherwise a mapping by input name.

        Returns:
            [...] for one step, [T, ...] for T.

        Raises:
            InvalidInput: refused here or by the server; nothing was applied and the session goes on.
            SessionEnded, Fenced, OutOfOrder, ServerBusy, ModelUnavailable, Disconnected: see `eddy.errors`.
        """
        self._group.signature.check_single_output()
        return (await self._step(inputs))[0]

    async def step_outputs(self, inputs: Inputs) -> Outputs:
        """As `step`, for models with any number of outputs: each by its name."""
        return self._group.signature.by_name(await self._step(inputs))

    async def _step(self, inputs: Inputs) -> Sequence[np.ndarray]:
        if self._end is not None:
            raise self._end
        arrays, is_single = self._group.signature.arrays(inputs, 0)
        num_steps = 1 if is_single else len(arrays[0])
        if not num_steps:
            raise invalid("ZERO_STEPS", "inputs", "T = 0 steps", "at least 1")
        self._group.check_size(num_steps)
        num_rewinds = self.num_rewinds
        await self._take(1)
        if self.max_in_flight == 1:
            num_rewinds = self.num_rewinds  # Without pipelining whoever waited does not build on the step before.
        done: asyncio.Future[list[np.ndarray]] = asyncio.get_running_loop().create_future()
        try:
            if self._end is not None:  # While this waited.
                raise self._end
            self._connection.step(self._group, PendingStep(self, arrays, num_steps, done, num_rewinds))
        except EddyError:
            self.release()
            raise
        outputs = await done
        return [output[0] for output in outputs] if is_single else outputs

    async def _take(self, room: int) -> None:
        """Takes room in flight, in the order of asking; `release` hands it on."""
        if not self._turns and self._num_in_flight + room <= self.max_in_flight:
            self._num_in_flight += room
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.append((turn, room))
        try:
            await turn
        except asyncio.CancelledError:
            # It may have been this one's turn already; if not, others may have waited behind it only.
            self.release(0 if turn.cancelled() else room)
            raise

    def release(self, room: int = 1) -> None:
        """Gives room back (called by the connection for each step): whoever has waited longest gets it."""
        self._num_in_flight -= room
        while self._turns:
            turn, wanted = self._turns[0]
            if not turn.cancelled():
                if self._num_in_flight + wanted > self.max_in_flight:
                    return
                self._num_in_flight += wanted
                turn.set_result(None)
            self._turns.popleft()

    async def reset(self) -> None:
        """Back to position 0 and the model's initial state, after the steps before it."""
        if self._end is not None:
            raise self._end
        await self._take(self.max_in_flight)
        request = inference_pb2.StreamRequest(reset=inference_pb2.ResetSessions(handles=self.handle))
        response = await self._connection.request(request, self._reset_done)
        for error in response.reset.errors:
            raise from_detail(error.error)

    def _reset_done(self, response: inference_pb2.StreamResponse | None) -> None:
        if response is not None and not response.reset.errors:
            self._forget(self)
            self.handle = response.reset.handles
            self.sent_position = 0
            if self._end is None:
                self._forget(self, renewed=True)
        self.release(self.max_in_flight)

    async def close(self) -> None:
        """Ends the session; ending it twice is fine."""
        if self._end is not None:
            return
        self._end = SessionEnded("the session was closed", "SESSION_CLOSED")
        self._forget(self)
        request = inference_pb2.StreamRequest(close=inference_pb2.CloseSessions(handles=self.handle))
        if self._connection.failure is None:
            await self._connection.request(request)

    def end(self, error: EddyError) -> None:
        """The server ended it (called by the client)."""
        self._end = error

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class SessionBatch:
    """B sessions of one model, stepped together by arrays. Made by `Client.batch` or `Client.open_batch`."""

    def __init__(
        self, connection: Connection, group: Group, opened: inference_pb2.SessionsOpened, start: int = 0
    ) -> None:
        self.ids: list[bytes] = list(opened.session_ids)
        self.model = opened.model
        self.version = opened.version
        # Changed only by `step`, `reset` and `close`; uint64 [B] each.
        self.handles = np.frombuffer(opened.handles, "<u8").copy()
        self.positions = np.full(len(self.ids), start, np.uint64)
        # How often a position was set back, as in `Session`.
        self._num_rewinds = np.zeros(len(self.ids), np.int64)
        self._connection = connection
        self._group = group
        self._is_open = True

    def __len__(self) -> int:
        return len(self.ids)

    async def step(self, inputs: Inputs, rows: ArrayLike | None = None) -> np.ndarray:
        """Steps every session, or those in `rows`, and returns the output of a model that has one.

        Args:
            inputs: [B, ...] for one step of each or [B, T, ...]; a mapping by name for several inputs.
            rows: indices of the sessions to step, int [B]; all of them by default.

        Returns:
            [B, ...] for one step, [B, T, ...] for T.

        Raises:
            BatchError: some rows failed; it carries their errors and everybody's outputs.
            EddyError: the whole call failed; nothing was applied.
        """
        self._group.signature.check_single_output()
        (output,) = (await self.step_outputs(inputs, rows)).values()
        return output

    async def step_outputs(self, inputs: Inputs, rows: ArrayLike | None = None) -> Outputs:
        """As `step`, for models with any number of outputs: each by its name."""
        arrays, is_single = self._group.signature.arrays(inputs, 1)
        chosen = self._chosen(rows)
        if len(arrays[0]) != len(chosen):
            raise invalid("INVALID_SHAPE", "inputs", f"{len(arrays[0])} rows", f"{len(chosen)}")
        num_steps = 1 if is_single else arrays[0].shape[1]
        if not num_steps or not len(chosen):
            reason = "ZERO_STEPS" if len(chosen) else "EMPTY_BATCH"
            raise invalid(reason, "inputs", f"{len(chosen)} rows of {num_steps} steps", "at least one of each")
        self._group.check_size(num_steps)
        size = self._group.rows_of_message(num_steps)
        spans = [slice(start, start + size) for start in range(0, len(chosen), size)]
        messages = [self._step_rows(arrays, chosen[span], span, num_steps) for span in spans]
        results = await asyncio.gather(*messages, return_exceptions=True)
        parts: list[list[np.ndarray]] = []
        errors: dict[int, EddyError] = {}
        refused: list[EddyError] = []
        for span, result in zip(spans, results, strict=True):
            if isinstance(result, EddyError):  # The whole message.
                count = len(chosen[span])
                refused.append(result)
                parts.append(self._zeros(count, num_steps))
                errors |= {span.start + row: result for row in range(count)}
            elif isinstance(result, BaseException):
                raise result
            else:
                step = result.step
                errors |= {span.start + error.row: from_detail(error.error) for error in step.errors}
                # No outputs: every row was refused before the model was known.
                signature = self._group.signature
                parts.append(
                    signature.read(step.outputs) if step.outputs else self._zeros(len(chosen[span]), num_steps)
                )
        if len(refused) == len(spans):
            raise refused[0]
        outputs = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        if is_single:
            outputs = [output[:, 0] for output in outputs]
        by_name = self._group.signature.by_name(outputs)
        if errors:
            raise BatchError(errors, by_name)
        return by_name

    def _step_rows(
        self, arrays: Sequence[np.ndarray], rows: np.ndarray, span: slice, num_steps: int
    ) -> asyncio.Future[inference_pb2.StreamResponse]:
        """Queues one message for `rows`, whose inputs are those in `span`."""
        raw = [array[span].tobytes() for array in arrays]
        positions, rewinds = self.positions[rows], self._num_rewinds[rows]
        message = Rows(self.handles[rows].tobytes(), positions.tobytes(), num_steps, raw)
        # The next step may be asked for before this one is answered; rows that fail are set back then.
        self.positions[rows] += np.uint64(num_steps)

        def answered(response: inference_pb2.StreamResponse | None) -> None:
            failed = dict(enumerate(positions.tolist())) if response is None else {}
            for error in response.step.errors if response is not None else ():
                detail = error.error
                failed[error.row] = detail.next_position if detail.HasField("next_position") else positions[error.row]
            for row, position in failed.items():
                if self._num_rewinds[rows[row]] == rewinds[row]:
                    self.positions[rows[row]] = position
                    self._num_rewinds[rows[row]] += 1

        return self._connection.step_rows(self._group, message, answered)

    def _chosen(self, rows: ArrayLike | None) -> np.ndarray:
        """Indices of the rows to step, int64 [B]."""
        if rows is None:
            return np.arange(len(self))
        chosen = np.asarray(rows)
        if not chosen.size:
            return np.empty(0, np.int64)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
            raise invalid("INVALID_SHAPE", "rows", f"{chosen.dtype} {list(chosen.shape)}", "indices, int [B]")
        chosen = chosen.astype(np.int64)
        if chosen.min() < 0 or chosen.max() >= len(self):
            wrong = chosen.min() if chosen.min() < 0 else chosen.max()
            raise invalid("OUT_OF_RANGE", "rows", wrong, f"0 to {len(self) - 1}")
        if len(np.unique(chosen)) != len(chosen):
            raise invalid("DUPLICATE_HANDLE", "rows", "a row twice", "each session at most once in a call")
        return chosen

    def _zeros(self, num_rows: int, num_steps: int) -> list[np.ndarray]:
        """Outputs of rows that have none, [B, T, ...] each."""
        return [np.zeros((num_rows, num_steps, *spec.shape), spec.dtype) for spec in self._group.signature.outputs]

    async def reset(self) -> None:
        """Every session back to position 0 and the initial state, after the steps before it.

        Steps that are asked for before it is through are fenced.
        """
        request = inference_pb2.StreamRequest(reset=inference_pb2.ResetSessions(handles=self.handles.tobytes()))
        response = await self._connection.request(request, self._reset_done)
        for error in response.reset.errors:
            raise from_detail(error.error)

    def _reset_done(self, response: inference_pb2.StreamResponse | None) -> None:
        """The sessions that were reset have new handles; those that were not keep the old ones."""
        if response is None:
            return
        done = np.ones(len(self), np.bool_)
        done[[error.row for error in response.reset.errors]] = False
        self.handles[done] = np.frombuffer(response.reset.handles, "<u8")[done]
        self.positions[done] = 0
        self._num_rewinds[done] += 1

    async def close(self) -> None:
        """Ends every session; ending them twice is fine."""
        if self._is_open and self._connection.failure is None:
            self._is_open = False
            request = inference_pb2.StreamRequest(close=inference_pb2.CloseSessions(handles=self.handles.tobytes()))
            await self._connection.request(request)

    async def __aenter__(self) -> SessionBatch:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
