"""Sessions as a caller sees them: one session, or an array of them.

Owns positions on the client's side and the limit of steps in flight. Must not know messages.

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
from eddy.clients.errors import BatchError, EddyError, InvalidInput, SessionEnded, from_detail
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
        self._connection = connection
        self._group = group
        self._forget = forget
        self._num_in_flight = 0
        self._turns: deque[asyncio.Future[None]] = deque()
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
            raise InvalidInput("inputs: got T = 0 steps, expected at least 1", "ZERO_STEPS")
        if self._num_in_flight >= self.max_in_flight:
            await self._turn()
        self._num_in_flight += 1
        done: asyncio.Future[list[np.ndarray]] = asyncio.get_running_loop().create_future()
        try:
            self._connection.step(self._group, PendingStep(self, arrays, num_steps, done))
            outputs = await done
        finally:
            self._num_in_flight -= 1
            while self._turns:
                turn = self._turns.popleft()
                if not turn.done():
                    turn.set_result(None)
                    break
        return [output[0] for output in outputs] if is_single else outputs

    async def _turn(self) -> None:
        while self._num_in_flight >= self.max_in_flight:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._turns.append(turn)
            await turn

    async def reset(self) -> None:
        """Back to position 0 and the model's initial state, after the steps before it."""
        request = inference_pb2.StreamRequest(reset=inference_pb2.ResetSessions(handles=self.handle))
        response = await self._connection.request(request)
        for error in response.reset.errors:
            raise from_detail(error.error)
        self._forget(self)
        self.handle = response.reset.handles
        self._forget(self, renewed=True)
        self.sent_position = 0

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
            EddyError: the whole call failed.
        """
        self._group.signature.check_single_output()
        (output,) = (await self.step_outputs(inputs, rows)).values()
        return output

    async def step_outputs(self, inputs: Inputs, rows: ArrayLike | None = None) -> Outputs:
        """As `step`, for models with any number of outputs: each by its name."""
        arrays, is_single = self._group.signature.arrays(inputs, 1)
        chosen = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        if len(arrays[0]) != len(chosen):
            raise InvalidInput(f"inputs: got {len(arrays[0])} rows, expected {len(chosen)}", "INVALID_SHAPE")
        num_steps = 1 if is_single else arrays[0].shape[1]
        if not num_steps or not len(chosen):
            raise InvalidInput(
                f"inputs: got {len(chosen)} rows of {num_steps} steps, expected at least one of each",
                "ZERO_STEPS" if len(chosen) else "EMPTY_BATCH",
            )
        row_bytes = self._group.signature.row_bytes(num_steps)
        size = max(1, min(self._group.max_rows, self._group.max_bytes // row_bytes))
        spans = [slice(start, start + size) for start in range(0, len(chosen), size)]
        results = await asyncio.gather(*(self._step_rows(arrays, chosen, span, num_steps) for span in spans))
        outputs = [np.concatenate(parts) for parts in zip(*(part for part, _ in results), strict=True)]
        errors = {
            span.start + row: error
            for span, (_, failed) in zip(spans, results, strict=True)
            for row, error in failed.items()
        }
        if is_single:
            outputs = [output[:, 0] for output in outputs]
        by_name = self._group.signature.by_name(outputs)
        if errors:
            raise BatchError(errors, by_name)
        return by_name

    async def _step_rows(
        self, arrays: Sequence[np.ndarray], chosen: np.ndarray, span: slice, num_steps: int
    ) -> tuple[list[np.ndarray], dict[int, EddyError]]:
        rows = chosen[span]
        raw = [array[span].tobytes() for array in arrays]
        message = Rows(self.handles[rows].tobytes(), self.positions[rows].tobytes(), num_steps, raw)
        result = await self._connection.step_rows(self._group, message)
        errors = {error.row: from_detail(error.error) for error in result.errors}
        done = np.ones(len(rows), np.bool_)
        done[list(errors)] = False
        self.positions[rows[done]] += np.uint64(num_steps)
        if not result.outputs:  # Every row was refused before the model was known.
            shapes = [(len(rows), num_steps, *spec.shape) for spec in self._group.signature.outputs]
            specs = self._group.signature.outputs
            return [np.zeros(shape, spec.dtype) for shape, spec in zip(shapes, specs, strict=True)], errors
        return self._group.signature.read(result.outputs), errors

    async def reset(self) -> None:
        """Every session back to position 0 and the initial state."""
        request = inference_pb2.StreamRequest(reset=inference_pb2.ResetSessions(handles=self.handles.tobytes()))
        response = await self._connection.request(request)
        for error in response.reset.errors:
            raise from_detail(error.error)
        self.handles = np.frombuffer(response.reset.handles, "<u8").copy()
        self.positions[:] = 0

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
