"""Many sessions of one model, stepped together by arrays.

Owns their positions on the client's side. Must not know messages but for what an answer says of rows.

Ordering rules: steps and resets take effect in the order they were asked for, without waiting for each other; a row
whose step fails is set back, and the steps of that row asked for meanwhile fail likewise.

Dimension key: B sessions, T steps, E outputs emitted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike

from eddy.clients.connection import END, Connection, Group, Rows
from eddy.clients.errors import BatchError, EddyError, from_detail, invalid
from eddy.clients.results import Results, no_results, read_results
from eddy.clients.tensors import Inputs, Outputs, RaggedOutputs
from eddy.v1 import inference_pb2

_TOKEN_BYTES = 16


class SessionBatch:
    """B sessions of one model, stepped together by arrays. Made by `Client.batch` or `Client.open_batch`."""

    def __init__(
        self, connection: Connection, group: Group, opened: inference_pb2.SessionsOpened, start: int = 0
    ) -> None:
        self.ids: list[bytes] = list(opened.session_ids)
        tokens = opened.resume_tokens
        self.resume_tokens = [tokens[at : at + _TOKEN_BYTES] for at in range(0, len(tokens), _TOKEN_BYTES)]
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
        messages = [self._step_rows(arrays, chosen[span], span, num_steps) for span in spans]
        answers = await asyncio.gather(*messages, return_exceptions=True)
        signature = self._group.signature
        parts: list[Results] = []
        errors: dict[int, EddyError] = {}
        refused: list[EddyError] = []
        for span, answer in zip(spans, answers, strict=True):
            count = len(chosen[span])
            if isinstance(answer, EddyError):  # The whole message.
                refused.append(answer)
                parts.append(no_results(signature, count, num_steps))
                errors |= {span.start + row: answer for row in range(count)}
            elif isinstance(answer, BaseException):
                raise answer
            else:
                step = answer.step
                errors |= {span.start + error.row: from_detail(error.error) for error in step.errors}
                if step.outputs:
                    parts.append(read_results(signature, step, is_end=num_steps == END))
                else:  # Every row was refused before the model was known.
                    parts.append(no_results(signature, count, num_steps))
        if len(refused) == len(spans):
            raise refused[0]
        return parts, errors

    def _step_rows(
        self, arrays: Sequence[np.ndarray], rows: np.ndarray, span: slice, num_steps: int
    ) -> asyncio.Future[inference_pb2.StreamResponse]:
        """Queues one message for `rows`, whose inputs are those in `span`, or for the end of their streams."""
        raw = [array[span].tobytes() for array in arrays]
        positions, rewinds = self.positions[rows], self._num_rewinds[rows]
        message = Rows(self.handles[rows].tobytes(), positions.tobytes(), num_steps, raw)
        # The next step may be asked for before this one is answered; rows that fail are set back then.
        self.positions[rows] += np.uint64(num_steps or 1)

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
