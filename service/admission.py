"""Admission: which rows of a chunk may run, which are answered from kept replies, and why the others are refused.

Owns the rules of ownership, values, positions and repeats, row by row: only chunks that are not fine as a whole come
here, and in them only the rows that are suspect are looked at one by one. Must not know queues, ticks or slots.

Dimension key: B rows of a chunk, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eddy.service.chunk import Chunk
from eddy.service.contract import Contract
from eddy.service.errors import ClientError, Detail, EddyError, Reason
from eddy.service.replies import ReplyStore
from eddy.service.sessions import ANY_ROUTE, MODEL_BITS, SessionTable
from eddy.service.values import bad_rows, value_error


class Admission:
    """The checks of one model's chunks.

    Args:
        contract: the model's; table: sessions; replies: kept replies of this model.
    """

    def __init__(self, contract: Contract, table: SessionTable, replies: ReplyStore) -> None:
        self._contract = contract
        self._table = table
        self._replies = replies

    def check(self, chunk: Chunk, rows: np.ndarray) -> tuple[dict[int, EddyError], dict[int, tuple[bytes, ...]]]:
        """Refused rows and rows to answer from kept replies, by row of the chunk.

        Cases in order: not this stream's session; twice in the message; bad values; a repeat; out of order.
        """
        table = self._table
        handles = np.frombuffer(chunk.handles, "<u8")
        positions = np.frombuffer(chunk.positions, "<u8")
        arrays = input_arrays(self._contract, chunk)
        is_good = table.handle[rows] == handles
        routes = np.frombuffer(chunk.route, np.int64) if isinstance(chunk.route, bytes) else chunk.route
        if chunk.route != ANY_ROUTE:
            is_good &= table.route[rows] == routes
        wanted = np.broadcast_to(routes, chunk.num_rows)
        unique, counts = np.unique(handles, return_counts=True)
        repeated = set(unique[counts > 1].tolist())
        bad_values = np.zeros(chunk.num_rows, np.bool_)
        for port, values in zip(self._contract.feeds, arrays, strict=True):
            bad_values |= bad_rows(port, values)
        expected = table.next_position[rows].astype(np.uint64)
        suspects = ~is_good | bad_values | (positions != expected)
        if repeated:
            suspects |= np.isin(handles, unique[counts > 1])
        errors: dict[int, EddyError] = {}
        replays: dict[int, tuple[bytes, ...]] = {}
        for row in np.flatnonzero(suspects).tolist():
            handle = int(handles[row])
            if not is_good[row]:
                errors[row] = self._not_yours(int(rows[row]), handle, int(wanted[row]))
            elif handle in repeated:
                errors[row] = ClientError(
                    Reason.DUPLICATE_HANDLE,
                    "handles: the same session is in this message more than once",
                    Detail("handles", str(handle), "each session at most once in a message"),
                )
            elif bad_values[row]:
                errors[row] = self._bad_value(arrays, row)
            else:
                kept = self._repeat(chunk, int(rows[row]), row, int(positions[row]), arrays)
                if isinstance(kept, EddyError):
                    errors[row] = kept
                else:
                    replays[row] = kept
        return errors, replays

    def _not_yours(self, row: int, handle: int, wanted_route: int) -> EddyError:
        stream = wanted_route >> MODEL_BITS
        if int(self._table.handle[row]) == handle and int(self._table.route[row]) >> MODEL_BITS == stream:
            return ClientError(
                Reason.MIXED_MODELS,
                "handles: this session is of another model than the message's first",
                Detail("handles", "sessions of several models", "one model a message"),
            )
        return self._table.explain(handle)

    def _bad_value(self, arrays: Sequence[np.ndarray], row: int) -> EddyError:
        for port, values in zip(self._contract.feeds, arrays, strict=True):
            if bad_rows(port, values[row : row + 1])[0]:
                return value_error(port, values[row], f"inputs[{port.name}]")
        raise AssertionError("a row was refused for its values, and none is bad")

    def _repeat(
        self, chunk: Chunk, table_row: int, row: int, position: int, arrays: Sequence[np.ndarray]
    ) -> EddyError | tuple[bytes, ...]:
        """The kept reply for a chunk that comes again, or why there is none."""
        table = self._table
        expected = int(table.next_position[table_row])
        detail = Detail("positions", str(position), str(expected), next_position=expected)
        if position > expected:
            return ClientError(
                Reason.POSITION_AHEAD, f"positions: got {position}, the session expects {expected} next", detail
            )
        kept = self._replies.find(int(table.ring_start[table_row]), int(table.ring_size[table_row]), position)
        if kept is None:
            return ClientError(
                Reason.POSITION_BEHIND,
                f"positions: got {position}, the session expects {expected} next and keeps no reply for that chunk",
                detail,
            )
        inputs = tuple(values[row].tobytes() for values in arrays)
        if not kept.is_forgotten and (kept.num_steps != chunk.num_steps or kept.inputs != inputs):
            return ClientError(
                Reason.REPEAT_MISMATCH,
                f"positions: the chunk at {position} was applied with other inputs; "
                f"the session expects {expected} next",
                detail,
            )
        if kept.is_forgotten:
            return ClientError(
                Reason.REPLY_NOT_KEPT,
                f"positions: the chunk at {position} was applied and its reply is no longer kept; "
                f"the session expects {expected} next",
                detail,
            )
        return kept.outputs


def input_arrays(contract: Contract, chunk: Chunk) -> list[np.ndarray]:
    """The chunk's inputs, [B, T, ...] a feed."""
    return [
        np.frombuffer(raw, port.dtype).reshape(chunk.num_rows, chunk.num_steps, *port.shape)
        for port, raw in zip(contract.feeds, chunk.inputs, strict=True)
    ]
