"""Many sessions of one model, stepped together by arrays.

Owns what callers say and see of them; `rows` sends it. Must not know messages but for those of resets and closing.

Ordering rules: steps and resets take effect in the order they were asked for; a row whose step fails is set back, and
the steps of that row that are under way behind it fail likewise; a reset has the sessions to itself.

Dimension key: B sessions, T steps, E outputs emitted.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike

from eddy.clients.connection import Connection
from eddy.clients.errors import BatchError, Disconnected, EddyError, InvalidInput, SessionEnded, from_detail, invalid
from eddy.clients.group import END, Group
from eddy.clients.link import Link
from eddy.clients.results import Results, no_results
from eddy.clients.room import Room
from eddy.clients.rows import Answered, RowFlow
from eddy.clients.tensors import Inputs, Outputs, RaggedOutputs
from eddy.v1 import inference_pb2


class SessionBatch:
    """B sessions of one model, stepped together by arrays. Made by `Client.batch` or `Client.open_batch`."""

    def __init__(self, link: Link, room: Room, group: Group, opened: inference_pb2.SessionsOpened, holder: int) -> None:
        self.model = opened.model
        self.version = opened.version
        self._link = link
        self._group = group
        # It has the positions and handles; changed only by the methods below.
        self._flow = RowFlow(link, room, group, opened, holder)
        self._is_open = True

    @property
    def ids(self) -> list[bytes]:
        """The sessions' ids."""
        return self._flow.ids

    @property
    def resume_tokens(self) -> list[bytes]:
        """What `Client.attach` asks for beside an id, in the order of `ids`."""
        return self._flow.resume_tokens

    @property
    def handles(self) -> np.ndarray:
        """As the present stream knows the sessions, uint64 [B]."""
        return self._flow.handles

    @property
    def positions(self) -> np.ndarray:
        """Of the next steps to send, int64 [B]."""
        return self._flow.positions

    def begin(self, connection: Connection) -> None:
        """The sessions were opened on this stream (called by the client)."""
        self._link.add(self._flow, connection)

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
            InvalidInput: also where the model looks ahead, whose rows have different numbers of outputs: `step_ragged`.
            BatchError: some rows failed; it carries their errors and everybody's outputs.
            EddyError: the whole call failed; nothing was applied.
        """
        self._group.signature.check_single_output()
        (output,) = (await self.step_outputs(inputs, rows)).values()
        return output

    async def step_outputs(self, inputs: Inputs, rows: ArrayLike | None = None) -> Outputs:
        """As `step`, for models with any number of outputs: each by its name."""
        signature = self._group.signature
        signature.check_every_step("step")
        arrays, chosen, num_steps, is_single = self._read(inputs, rows)
        parts, errors = await self._send(arrays, chosen, num_steps)
        outputs = [np.concatenate(arrays) for arrays in zip(*[part.arrays for part in parts], strict=True)]
        if is_single:
            outputs = [output[:, 0] for output in outputs]
        by_name = signature.by_name(outputs)
        if errors:
            raise BatchError(errors, by_name)
        return by_name

    async def step_ragged(self, inputs: Inputs, rows: ArrayLike | None = None) -> list[np.ndarray]:
        """As `step`, for every model: each row's outputs by themselves.

        Returns:
            An array a row: of a model that looks ahead what the row has emitted by now, [E, ...], where E may be 0;
            of any other [T, ...], where T is 1 for one step.

        Raises:
            BatchError: some rows failed; `ragged` has everybody's outputs.
            EddyError: the whole call failed; nothing was applied.
        """
        self._group.signature.check_single_output("step_ragged")
        (output,) = (await self.step_ragged_outputs(inputs, rows)).values()
        return output

    async def step_ragged_outputs(self, inputs: Inputs, rows: ArrayLike | None = None) -> RaggedOutputs:
        """As `step_ragged`, for models with any number of outputs: each one's arrays by its name."""
        arrays, chosen, num_steps, _ = self._read(inputs, rows)
        return await self._send_ragged(arrays, chosen, num_steps)

    async def flush(self, rows: ArrayLike | None = None) -> list[np.ndarray]:
        """Ends the streams of every session, or of those in `rows`; see `Session.flush`.

        Returns:
            What each row held back, [E, ...] each, where E may be 0.

        Raises:
            InvalidInput: the model holds nothing back.
            BatchError: some rows failed; `ragged` has everybody's outputs.
            EddyError: the whole call failed; nothing was applied.
        """
        self._group.signature.check_single_output("flush")
        (output,) = (await self.flush_outputs(rows)).values()
        return output

    async def flush_outputs(self, rows: ArrayLike | None = None) -> RaggedOutputs:
        """As `flush`, for models with any number of outputs: each one's arrays by its name."""
        self._group.signature.check_flush()
        chosen = self._chosen(rows)
        if not len(chosen):
            raise invalid("EMPTY_BATCH", "rows", "no rows", "at least one")
        return await self._send_ragged([], chosen, END)

    def _read(self, inputs: Inputs, rows: ArrayLike | None) -> tuple[list[np.ndarray], np.ndarray, int, bool]:
        """The checked inputs, whose rows they are, T, and whether it was left out."""
        arrays, is_single = self._group.signature.arrays(inputs, 1)
        chosen = self._chosen(rows)
        if len(arrays[0]) != len(chosen):
            raise invalid("INVALID_SHAPE", "inputs", f"{len(arrays[0])} rows", f"{len(chosen)}")
        num_steps = 1 if is_single else arrays[0].shape[1]
        if not num_steps or not len(chosen):
            reason = "ZERO_STEPS" if len(chosen) else "EMPTY_BATCH"
            raise invalid(reason, "inputs", f"{len(chosen)} rows of {num_steps} steps", "at least one of each")
        self._group.check_size(num_steps)
        return arrays, chosen, num_steps, is_single

    async def _send_ragged(self, arrays: list[np.ndarray], chosen: np.ndarray, num_steps: int) -> RaggedOutputs:
        parts, errors = await self._send(arrays, chosen, num_steps)
        rows = [part.row(row) for part in parts for row in range(len(part))]
        names = [spec.name for spec in self._group.signature.outputs]
        by_name = {
            name: [row[place][:0] if number in errors else row[place] for number, row in enumerate(rows)]
            for place, name in enumerate(names)
        }
        if errors:
            raise BatchError(errors, {}, by_name)
        return by_name

    async def _send(
        self, arrays: list[np.ndarray], chosen: np.ndarray, num_steps: int
    ) -> tuple[list[Results], dict[int, EddyError]]:
        """What became of `chosen`: in as many messages as hold them, and the rows that failed.

        Raises:
            EddyError: every message failed.
        """
        size = self._group.rows_of_message(num_steps)
        spans = [slice(start, start + size) for start in range(0, len(chosen), size)]
        flow = self._flow
        await flow.room()
        chunks = [flow.send(chosen[span], [array[span].tobytes() for array in arrays], num_steps) for span in spans]
        answers = await asyncio.gather(*chunks, return_exceptions=True)
        parts: list[Results] = []
        errors: dict[int, EddyError] = {}
        refused: list[EddyError] = []
        for span, answer in zip(spans, answers, strict=True):
            count = len(chosen[span])
            if isinstance(answer, Answered):
                parts.append(answer.results)
                errors |= {span.start + row: error for row, error in answer.errors.items()}
            elif isinstance(answer, EddyError):  # The whole message.
                refused.append(answer)
                parts.append(no_results(self._group.signature, count, num_steps))
                errors |= {span.start + row: answer for row in range(count)}
            else:
                raise answer
        if len(refused) == len(spans):
            raise refused[0]
        return parts, errors

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

    async def reset(self) -> None:
        """Every session back to position 0 and the initial state, after the steps before it."""
        flow = self._flow
        await flow.alone()
        # Carried out whether or not its caller waits for it.
        await asyncio.shield(self._link.begin(self._reset()))

    async def _reset(self) -> None:
        flow = self._flow

        def build() -> inference_pb2.StreamRequest:
            if flow.end_error is not None:
                raise flow.end_error
            return inference_pb2.StreamRequest(reset=inference_pb2.ResetSessions(handles=flow.handles.tobytes()))

        try:
            response, _ = await self._link.request(build, flow, self._reset_done)
        finally:
            flow.go_on()
        for error in response.reset.errors:
            raise from_detail(error.error)

    def _reset_done(self, response: inference_pb2.StreamResponse) -> None:
        """The sessions that were reset have new handles; those that were not keep the old ones."""
        done = np.ones(len(self), np.bool_)
        done[[error.row for error in response.reset.errors]] = False
        self._flow.started_anew(np.frombuffer(response.reset.handles, "<u8"), done)

    async def close(self) -> None:
        """Ends every session; ending them twice is fine. While there is no stream, they end once there is."""
        if not self._is_open or self._flow.end_error is not None:
            return
        self._is_open = False
        closing = self._link.begin(self._close())
        if not self._link.is_away(self._flow):
            await asyncio.shield(closing)

    async def _close(self) -> None:
        flow = self._flow

        def build() -> inference_pb2.StreamRequest:
            return inference_pb2.StreamRequest(close=inference_pb2.CloseSessions(handles=flow.live_handles()))

        try:
            await self._link.request(build, flow)
        except Disconnected:
            pass  # They end once they are idle for too long.
        except InvalidInput:
            if flow.live_handles():
                raise
            # None is left: they were closed before, and only the answer was lost.
        finally:
            flow.end(SessionEnded("the sessions were closed", "SESSION_CLOSED"))

    async def __aenter__(self) -> SessionBatch:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
