"""The steps of many sessions of one model: sent as arrays, and again when a stream was lost.

Owns the sessions' positions and handles on the client's side, what is under way, and what would have to be sent again.
Everything is done by arrays of rows: no row costs Python but one that fails, and each where a stream was lost. Must
not know what callers see of it.

Ordering rules: chunks take effect in the order they were asked for; a chunk waits until each of its rows may have one
more under way, and those behind it wait with it. What a lost stream left unanswered is sent again, at the same
positions, before anything new.

Dimension key: B sessions, N rows of a chunk, T steps, E outputs emitted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from eddy.clients.connection import Connection
from eddy.clients.errors import EddyError, Fenced, ServerBusy, SessionEnded, from_detail
from eddy.clients.group import END, Group
from eddy.clients.link import Link
from eddy.clients.log import diverged
from eddy.clients.results import Results, expanded, no_results, read_results
from eddy.clients.room import Room
from eddy.clients.rows_log import RowChunk, RowLog
from eddy.v1 import inference_pb2

_TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of a chunk.

    Attributes:
        results: of all its rows, those in `errors` zero; errors: by row of the chunk.
    """

    results: Results
    errors: dict[int, EddyError]


@dataclass(slots=True, eq=False)
class _Pause:
    """Something that needs the sessions to itself: it goes on when everything before it is answered."""

    may_go: asyncio.Future[None]


class RowFlow:
    """B sessions of one model.

    Args:
        opened: what the server gave; holder: the number by which it knows who has them.
    """

    def __init__(self, link: Link, room: Room, group: Group, opened: inference_pb2.SessionsOpened, holder: int) -> None:
        self.ids: list[bytes] = list(opened.session_ids)
        tokens = opened.resume_tokens
        self.resume_tokens = [tokens[at : at + _TOKEN_BYTES] for at in range(0, len(tokens), _TOKEN_BYTES)]
        count = len(self.ids)
        self.group = group
        self._link = link
        self._room = room
        room.join(self)
        self._holder = holder
        self._max_in_flight = opened.max_in_flight
        # Changed only by the methods below, on one event loop. Handles as the present stream has them; positions of
        # the next steps to send, int64 [B]; how often a position was set back, as in `Session`.
        self.handles = np.frombuffer(opened.handles, "<u8").copy()
        self.positions = np.zeros(count, np.int64)
        self._num_rewinds = np.zeros(count, np.int64)
        # Rows that have ended, and why.
        self._ended: dict[int, EddyError] = {}
        self._num_given = np.zeros(count, np.int64)
        self._log = RowLog(room.bytes, count, is_durable=opened.durable, compares=_compares(group))
        # To be sent again, what waits behind that, and whether something has the sessions to itself.
        self._again: deque[tuple[RowChunk, np.ndarray | None]] = deque()
        self._waiting: deque[RowChunk | _Pause] = deque()
        self._is_paused = False
        self._is_unchecked = False
        self._connection: Connection | None = None
        # How often they were away: what was asked for before the last time is asked for again.
        self._num_losses = 0
        self._end: EddyError | None = None
        self._stands = self.positions.copy()

    @property
    def end_error(self) -> EddyError | None:
        """Why none of the sessions is of use any more."""
        return self._end

    # Asking

    async def room(self) -> None:
        """Returns once there is room to keep another chunk.

        Raises:
            ReplayFull: there was none in time.
        """
        if self._log.is_durable and self._room.is_full:
            await self._room.wait(self)

    def send(self, rows: np.ndarray, inputs: Sequence[bytes], num_steps: int) -> asyncio.Future[Answered]:
        """Steps `rows` int64 [N], `inputs` [N, T, ...] raw an input, or ends their streams.

        Raises:
            EddyError: the sessions are over.
        """
        self._check()
        done: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._waiting.append(RowChunk(rows, inputs, num_steps, done))
        self._give()
        return done

    async def alone(self) -> None:
        """Waits until everything asked for before is answered; what is asked for later waits until `go_on`."""
        self._check()
        pause = _Pause(asyncio.get_running_loop().create_future())
        self._waiting.append(pause)
        self._give()
        try:
            await pause.may_go
        except asyncio.CancelledError:
            if pause.may_go.cancelled():
                self._give()
            else:
                self.go_on()
            raise

    def go_on(self) -> None:
        """What had the sessions to itself is through."""
        self._is_paused = False
        if self._is_unchecked and self._end is None:  # Taken back meanwhile, and then not all were reset.
            self._link.recover(self)
        self._give()

    def started_anew(self, handles: np.ndarray, done: np.ndarray) -> None:
        """Rows where `done` bool [B] are at position 0 and have these handles uint64 [B]."""
        self.handles[done] = handles[done]
        self.positions[done] = 0
        self._num_rewinds[done] += 1
        self._is_unchecked = self._is_unchecked and not done.all()
        self._log.begin(np.flatnonzero(done))

    def live_handles(self) -> bytes:
        """The handles of those that have not ended, uint64 raw."""
        live: np.ndarray = self.handles[self._live(np.arange(len(self.ids)))]
        return live.tobytes()

    def _check(self) -> None:
        if self._end is not None:
            raise self._end

    # Sending

    def _give(self) -> None:
        """Gives the stream as much as may be under way."""
        connection = self._connection
        while connection is not None and connection is self._connection and not self._is_paused:
            if self._again:
                chunk, picks = self._again[0]
                if not self._has_room(chunk.rows if picks is None else chunk.rows[picks]):
                    return
                self._again.popleft()
                self._post(connection, chunk, picks)
            elif not self._waiting or not self._give_new(connection, self._waiting[0]):
                return

    def _give_new(self, connection: Connection, item: RowChunk | _Pause) -> bool:
        if isinstance(item, _Pause):
            if self._num_given.any():
                return False
            self._waiting.popleft()
            if not item.may_go.cancelled():
                self._is_paused = True
                item.may_go.set_result(None)
            return True
        if item.done.cancelled():  # Before it was sent.
            self._waiting.popleft()
            return True
        if not self._has_room(item.rows):
            return False
        self._waiting.popleft()
        item.positions, item.rewinds = self.positions[item.rows], self._num_rewinds[item.rows]
        self.positions[item.rows] += item.num_positions
        self._log.add(item)
        picks = np.flatnonzero(self._live(item.rows)) if self._ended else None
        if picks is not None and not len(picks):
            self._told(item, None, {})
            return True
        self._post(connection, item, None if picks is None or len(picks) == len(item.rows) else picks)
        return True

    def _has_room(self, rows: np.ndarray) -> bool:
        return bool((self._num_given[rows] < self._max_in_flight).all())

    def _live(self, rows: np.ndarray) -> np.ndarray:
        """Which of `rows` have not ended, bool [N]."""
        if not self._ended:
            return np.ones(len(rows), np.bool_)
        return ~np.isin(rows, list(self._ended))

    def _post(self, connection: Connection, chunk: RowChunk, picks: np.ndarray | None) -> None:
        """One message, of all rows of a chunk or of some."""
        rows, positions, inputs = chunk.picked(picks)
        request = inference_pb2.StreamRequest()
        step = request.step
        step.handles, step.positions = self.handles[rows].tobytes(), positions.astype("<u8").tobytes()
        self.group.write(step, len(rows), chunk.num_steps, inputs)
        self._num_given[rows] += 1
        connection.post(request, partial(self._answer, connection, self._num_losses, chunk, picks))

    def _answer(
        self,
        connection: Connection,
        num_losses: int,
        chunk: RowChunk,
        picks: np.ndarray | None,
        answer: inference_pb2.StreamResponse | EddyError,
    ) -> None:
        if self._end is not None:
            return
        if self._num_losses != num_losses or (connection.is_leaving and isinstance(answer, ServerBusy)):
            return  # It is sent again on the next stream.
        rows = chunk.rows if picks is None else chunk.rows[picks]
        self._num_given[rows] -= 1
        places = np.arange(len(chunk.rows)) if picks is None else picks
        if isinstance(answer, EddyError):
            errors = dict.fromkeys(places.tolist(), answer)
            step = None
        else:
            step = answer.step
            errors = {int(places[error.row]): from_detail(error.error) for error in step.errors}
            if step.durable_positions:
                self._log.durable(rows, np.frombuffer(step.durable_positions, "<i8"))
                self._room.tell()
        if any(isinstance(error, Fenced) for error in errors.values()) and self._link.is_fence_own(self):
            return  # As above, with what the other rows were answered.
        if chunk.is_answered:
            self._told_again(chunk, picks, step, errors)
        elif isinstance(answer, EddyError):
            self._set_back(chunk, errors)
            self._log.remove(chunk)
            if not chunk.done.done():
                chunk.done.set_exception(answer)
        else:
            results = None
            if step is not None and step.outputs:  # Otherwise every row was refused before the model was known.
                results = read_results(self.group.signature, step, is_end=chunk.num_steps == END)
                if picks is not None:
                    results = expanded(results, picks, len(chunk.rows))
                if picks is None and self._log.compares:
                    chunk.digest = _digest_of(step)
            self._told(chunk, results, errors)
        self._give()

    def _told(self, chunk: RowChunk, results: Results | None, errors: dict[int, EddyError]) -> None:
        """A chunk is done; rows that have ended say why."""
        for place in np.flatnonzero(~self._live(chunk.rows)).tolist():
            errors[place] = self._ended[int(chunk.rows[place])]
        self._set_back(chunk, errors)
        self._log.ended(list(self._ended))
        self._log.answered(chunk, errors)
        self._room.tell()
        if results is None:
            results = no_results(self.group.signature, len(chunk.rows), chunk.num_steps)
        if not chunk.done.done():
            chunk.done.set_result(Answered(results, errors))

    def _told_again(
        self,
        chunk: RowChunk,
        picks: np.ndarray | None,
        step: inference_pb2.StepResult | None,
        errors: dict[int, EddyError],
    ) -> None:
        """What the server had lost was run again, or what it has was asked for."""
        is_whole = picks is None and not errors
        if chunk.is_asked:  # Replies that are not kept any more are nothing to go by.
            chunk.is_asked = False
            errors = {place: error for place, error in errors.items() if isinstance(error, SessionEnded | Fenced)}
        if any(isinstance(error, ServerBusy) for error in errors.values()):
            self._link.recover(self)
            return
        for place, error in errors.items():
            self._ended.setdefault(int(chunk.rows[place]), error)
        if step is not None and is_whole and chunk.digest not in (None, _digest_of(step)):
            for row in chunk.rows.tolist():
                self._ended.setdefault(row, diverged(int(chunk.positions[0])))
        self._log.ended(list(self._ended))
        self._log.trim()
        self._room.tell()

    def _set_back(self, chunk: RowChunk, errors: dict[int, EddyError]) -> None:
        """Rows that failed are where they were; those that have ended stay so."""
        for place, error in errors.items():
            row = int(chunk.rows[place])
            if isinstance(error, SessionEnded | Fenced):
                self._ended.setdefault(row, error)
            if self._num_rewinds[row] == chunk.rewinds[place]:
                position = error.next_position
                self.positions[row] = chunk.positions[place] if position is None else position
                self._num_rewinds[row] += 1

    def ask_durable(self) -> bool:
        """As `room.Keeper`: each row's last chunk again, whose reply the server keeps."""
        # While they are away: the server says it when it has them again, and what is sent again then goes first.
        if self._connection is None or self._is_paused or self._num_given.any() or self._again:
            return False
        asked = [(chunk, picks) for chunk, picks in self._log.last_of_rows() if chunk.is_answered]
        for chunk, picks in asked:
            chunk.is_asked = True
            self._again.append((chunk, None if len(picks) == len(chunk.rows) else picks))
        self._give()
        return bool(asked)

    # Taken back after a stream was lost (`link.Resumable`)

    def attachments(self) -> list[tuple[int, inference_pb2.AttachSession]]:
        """As `link.Resumable`."""
        return [
            (
                row,
                inference_pb2.AttachSession(
                    session_id=self.ids[row], resume_token=self.resume_tokens[row], holder=self._holder, resumes=True
                ),
            )
            for row in range(len(self.ids))
            if row not in self._ended
        ]

    def attached(self, number: int, answer: inference_pb2.SessionAttached) -> None:
        """As `link.Resumable`."""
        self.handles[number] = answer.handle
        self._stands[number] = answer.next_position
        if answer.durable:
            self._log.durable(np.array([number]), np.array([answer.durable_position]))

    def refused(self, number: int, error: EddyError) -> None:
        """As `link.Resumable`."""
        self._ended[number] = error

    def resume(self, connection: Connection) -> None:
        """As `link.Resumable`: what must be sent again comes before what waits."""
        self._is_unchecked = self._is_paused
        if self._connection is None and not self._is_paused:
            again, errors = self._log.resent(self._stands, self.positions, self._num_rewinds, self._ended)
            self._ended |= errors
            for chunk, picks in again:
                if picks is not None and not len(picks):
                    if not chunk.is_answered:
                        self._told(chunk, None, {})
                    continue
                chunk.is_asked = False
                self._again.append((chunk, picks))
        self._connection = connection
        self._give()

    def lost(self) -> None:
        """As `link.Resumable`."""
        self._connection = None
        self._num_losses += 1
        self._num_given[:] = 0
        self._again.clear()

    def give_up(self, error: EddyError) -> None:
        """As `link.Resumable`."""
        self.end(error)

    def end(self, error: EddyError) -> None:
        """The sessions are over: whoever waits is told, and so is whoever steps them from now on."""
        self._end = self._end or error
        self._connection = None
        self._link.remove(self)
        waiting: list[asyncio.Future[Answered] | asyncio.Future[None]] = [each.done for each in self._log.open_chunks()]
        waiting += [each.may_go if isinstance(each, _Pause) else each.done for each in self._waiting]
        self._log.clear()
        self._again.clear()
        self._waiting.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(error)
        self._room.tell()


def _compares(group: Group) -> bool:
    """What is run again must give the same bits."""
    return bool(group.signature.contract.numerics.bitwise)


def _digest_of(step: inference_pb2.StepResult) -> int:
    """64 bits that tell outputs apart, within this process."""
    return hash((step.emitted, *[tensor.data for tensor in step.outputs]))
