"""The session table: every open session of every model is one row of a few arrays.

Owns identity (ids, handles, epochs), ownership, positions and idle time. Must not know states, replies, queues or the
wire; slot numbers pass through as plain integers. All methods take and return arrays of rows: a tick checks and
advances thousands of sessions with a few vector operations.

A **handle** is `epoch << 32 | row`. An epoch is never reused for a row: opening, taking over, resetting and ending a
session each begin a new one, so that a handle is good exactly while `handle[row] == handle`, and an old writer is
fenced without a lookup. Row 0 is never a session; handles that point outside the table resolve to it.

Dimension key: N rows of the table, B rows of a call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hmac import compare_digest

import numpy as np

from eddy.service.errors import CapacityError, ClientError, Detail, EddyError, ModelError, Reason, invalid
from eddy.service.index import IdIndex
from eddy.service.lifecycle import Event, Status, Tier, transition

ROW_MASK = 0xFFFFFFFF
EPOCH_SHIFT = np.uint64(32)
SESSION_ID_BYTES = 16
NO_STREAM = 0
# Of `durable_position`: nothing of the session is in the state store.
NOT_STORED = -1
# Of `slot` and `cell`: the session has none. Of `read_slot`: its states are in none.
NOWHERE = -1

# A stream's number and a model's index share one column, so that one comparison checks both.
MODEL_BITS = 16
MODEL_MASK = (1 << MODEL_BITS) - 1
_FIRST_ROWS = 1024
# Above every row's number.
_FIRST_MARK = 1 << 32

_END_REASONS = {
    Event.CLOSE: Reason.SESSION_CLOSED,
    Event.EXPIRE: Reason.SESSION_EXPIRED,
    Event.FAIL: Reason.MODEL_FAILED,
    Event.RETIRE: Reason.MODEL_RETIRED,
    Event.QUARANTINE: Reason.QUARANTINED,
    Event.FENCE: Reason.FENCED,
}
_END_TEXTS = {
    Reason.SESSION_CLOSED: "the session was closed",
    Reason.SESSION_EXPIRED: "the session was idle for longer than its timeout and has ended",
    Reason.MODEL_FAILED: "the session ended because its model failed",
    Reason.FENCED: "the session was taken over on another server, and goes on there",
    Reason.MODEL_RETIRED: "the session's model was replaced or unloaded, and the time to finish is over: open another",
    Reason.QUARANTINED: "the session ended because values of it were not finite numbers",
}


def _ended(reason: Reason) -> EddyError:
    kind = ModelError if reason in (Reason.MODEL_FAILED, Reason.QUARANTINED) else ClientError
    return kind(reason, _END_TEXTS[reason], Detail(field="handles"))


# Of chunks whose sender showed the session's id and epoch: whichever stream owns it, and whatever becomes of that.
ANY_ROUTE = -2


def route(stream: int, model: int) -> int:
    """The owner column's value for sessions of `model` owned by `stream`."""
    return stream << MODEL_BITS | model


def of_another_epoch(epoch: int, present: int, prefix: str) -> ClientError:
    """FENCED, for a writer that shows `epoch` of a session that is in `present`."""
    return ClientError(
        Reason.FENCED,
        f"{prefix}epoch: got {epoch}, the session is in epoch {present}",
        Detail(f"{prefix}epoch", str(epoch), str(present), epoch=present),
    )


def wrong_token(token: bytes) -> ClientError:
    """WRONG_RESUME_TOKEN, for whoever shows `token`."""
    return ClientError(
        Reason.WRONG_RESUME_TOKEN,
        "resume_token: it is not the session's; it came with the answer that opened it",
        Detail("resume_token", f"{len(token)} bytes", "the token that came with the session's id"),
    )


def is_taken(last: int, holder: int, *, resumes: bool) -> bool:
    """Whether somebody else has taken a session since: `holder` `resumes` it, and whoever had it `last` is another."""
    return resumes and last not in (0, holder)


def taken_by_another(present: int) -> ClientError:
    """FENCED, for a holder that comes back to a session of another, which is in epoch `present`."""
    return ClientError(
        Reason.FENCED,
        f"holder: another client has taken the session over, which is in epoch {present} now",
        Detail("holder", "the holder of before", "the session's present holder", epoch=present),
    )


def check_id(session_id: bytes, where: str) -> None:
    """Raises ClientError INVALID_BYTE_LENGTH, of the field `where`, for what has not the length of an id."""
    if len(session_id) != SESSION_ID_BYTES:
        raise invalid(Reason.INVALID_BYTE_LENGTH, where, f"{len(session_id)} bytes", f"{SESSION_ID_BYTES} bytes")


def cannot_reset(field: str) -> ClientError:
    """The error for resetting a session that began with states of its own, and that `field` names."""
    return ClientError(
        Reason.OWN_START,
        f"{field}: the session began with states of its own, which are not kept; give it states, or open another one",
        Detail(field, "a session opened with a prime input or initial states", "one that began with the model's"),
    )


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What is known of one session."""

    session_id: bytes
    handle: int
    epoch: int
    model: int
    next_position: int
    max_in_flight: int
    idle_seconds: float
    idle_timeout_seconds: float
    is_attached: bool
    durable_position: int
    tier: Tier


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sessions are that were open elsewhere or before.

    Attributes:
        session_ids, resume_tokens: uint8 [B, 16]; epochs: uint32 [B], those that they had; the new ones lie beyond.
        holders: uint64 [B], see `SessionTable.attach`; 0 without.
    """

    session_ids: np.ndarray
    resume_tokens: np.ndarray
    epochs: np.ndarray
    holders: np.ndarray | None = None


class SessionTable:
    """All sessions of a server.

    Args:
        max_sessions: sessions that may be open at once.
        clock: monotonic seconds.
        random_bytes: n -> n random bytes, for ids.
    """

    def __init__(self, max_sessions: int, clock: Callable[[], float], random_bytes: Callable[[int], bytes]) -> None:
        self.max_sessions = max_sessions
        self._clock = clock
        self._random_bytes = random_bytes
        # Changed only by the methods below, all called on the server's event loop. Columns grow by doubling.
        rows = min(max_sessions + 1, _FIRST_ROWS)
        self.handle = np.arange(rows, dtype=np.uint64)
        self.next_position = np.zeros(rows, np.int64)
        self.route = np.full(rows, -1, np.int64)
        # Where the next step reads the state (the initial slot, at first) and where it writes it.
        self.read_slot = np.zeros(rows, np.int32)
        self.slot = np.zeros(rows, np.int32)
        # Where its states lie in the host's memory while they are in no slot.
        self.cell = np.full(rows, NOWHERE, np.int32)
        # Its states are in the state store only. Changed by its model's residence.
        self.is_stored = np.zeros(rows, np.bool_)
        # Reading jobs that are to find its states: it keeps its cell. They outlive a session that ends meanwhile.
        self.num_readers = np.zeros(rows, np.int32)
        # Other sessions read its slot, or it reads theirs: it keeps it.
        self.is_pinned = np.zeros(rows, np.bool_)
        # Where its immutable states are: its own slot, another session's (beams share them), or the initial slot.
        self.home_slot = np.zeros(rows, np.int32)
        self.last_used = np.zeros(rows, np.float64)
        # It began with states of its own, which its slot no longer holds.
        self.has_own_start = np.zeros(rows, np.bool_)
        # Whoever steps it holds its model: it is not handed over to another.
        self.is_bound = np.zeros(rows, np.bool_)
        # A chunk of the session is running, or begun and not finished.
        self.is_busy = np.zeros(rows, np.bool_)
        self.ring_start = np.zeros(rows, np.int32)
        self.ring_size = np.zeros(rows, np.int32)
        self.ring_next = np.zeros(rows, np.int32)
        # Scratch for the scheduler: whoever writes a row's number here owns the row in this pass.
        self.mark = np.zeros(rows, np.int64)
        self._last_mark = _FIRST_MARK
        self._idle_timeout = np.zeros(rows, np.float32)
        self._status = np.zeros(rows, np.int8)
        self._ids = np.zeros((rows, SESSION_ID_BYTES), np.uint8)
        self._tokens = np.zeros((rows, SESSION_ID_BYTES), np.uint8)
        # What its client calls itself, so that it is known when it comes back; 0: it has not said.
        self.holder = np.zeros(rows, np.uint64)
        # What the state store has: steps before this position (-1: nothing), under this epoch (0: nothing).
        self.durable_position = np.full(rows, NOT_STORED, np.int64)
        self.stored_epoch = np.zeros(rows, np.uint32)
        # Its durable position is another than its stream was told last.
        self.has_news = np.zeros(rows, np.bool_)
        # It is kept in the state store; told of such that end: rows and why, before they do.
        self.is_durable = np.zeros(rows, np.bool_)
        self.on_ended: Callable[[np.ndarray, Event], None] | None = None
        # The epoch at which the row's present (or last) session was opened, and why the last one ended.
        self._first_epoch = np.zeros(rows, np.uint32)
        # The epoch that it was in before it was brought back; 0: it was opened here.
        self._epoch_before = np.zeros(rows, np.uint32)
        self._end_reason = np.zeros(rows, np.uint8)
        self.num_pinned = 0
        self._free_rows = np.arange(rows - 1, 0, -1, dtype=np.int32)
        self._num_free = rows - 1
        self._index = IdIndex()
        # Nobody owns row 0 and no handle equals its own.
        self.handle[0] = ~np.uint64(0)

    # Sizes

    @property
    def num_sessions(self) -> int:
        """Sessions that are open."""
        return self._index.num_rows

    @property
    def num_rows(self) -> int:
        """N: rows that exist, used or not."""
        return len(self.handle)

    # Finding

    def rows_of(self, handles: np.ndarray) -> np.ndarray:
        """The rows that `handles` uint64 [B] point to, int64 [B]; 0 for those outside the table. No validity check."""
        rows = (handles & ROW_MASK).astype(np.int64)
        if len(rows) and rows.max() >= self.num_rows:
            rows[rows >= self.num_rows] = 0
        return rows

    def find(self, session_id: bytes) -> int:
        """The row of an open session, 0 where there is none."""
        return self._index.find(session_id, self._ids)

    def row_of_id(self, session_id: bytes) -> int:
        """The row of an open session.

        Raises:
            ClientError: UNKNOWN_SESSION.
        """
        row = self.find(session_id)
        if not row:
            raise ClientError(
                Reason.UNKNOWN_SESSION,
                "session_id: no such session is open (never opened here, closed, expired, or the server restarted)",
                Detail("session_id", f"{len(session_id)} bytes", "the id of an open session"),
            )
        return row

    def row_in_epoch(self, session_id: bytes, epoch: int, prefix: str = "") -> int:
        """The row of an open session whose writer is of its present epoch; the fields' names begin with `prefix`.

        The epoch that a session had when it was brought back here is as good as the one that this began, as long as
        nobody begins another: whoever wrote under it before goes on.

        Raises:
            ClientError: INVALID_BYTE_LENGTH, UNKNOWN_SESSION, FENCED.
        """
        check_id(session_id, f"{prefix}session_id")
        row = self.row_of_id(session_id)
        present = self.epoch_of(row)
        is_before = epoch > 0 and epoch == self._epoch_before[row] and present == self._first_epoch[row]
        if epoch != present and not is_before:
            raise of_another_epoch(epoch, present, prefix)
        return row

    def info(self, row: int) -> SessionInfo:
        """What is known of the open session in `row`."""
        handle = int(self.handle[row])
        return SessionInfo(
            session_id=self._ids[row].tobytes(),
            handle=handle,
            epoch=handle >> 32,
            model=self.model_of(row),
            next_position=int(self.next_position[row]),
            max_in_flight=int(self.ring_size[row]),
            idle_seconds=max(0.0, self._clock() - float(self.last_used[row])),
            idle_timeout_seconds=float(self._idle_timeout[row]),
            is_attached=bool(self._status[row] == Status.ATTACHED),
            durable_position=int(self.durable_position[row]),
            tier=Tier(self.tiers_of(np.array([row])).item(0)),
        )

    def epoch_of(self, row: int) -> int:
        """The epoch of the open session in `row`."""
        return int(self.handle[row]) >> 32

    def model_of(self, row: int) -> int:
        """The model index of the open session in `row`."""
        return int(self.route[row]) & MODEL_MASK

    def models_of(self, rows: np.ndarray) -> np.ndarray:
        """The model indices of the open sessions in `rows`, int64 [n]."""
        return np.asarray(self.route[rows] & MODEL_MASK)

    def ids_of(self, rows: np.ndarray) -> list[bytes]:
        """The ids of the open sessions in `rows`."""
        raw = self._ids[rows].tobytes()
        return [raw[start : start + SESSION_ID_BYTES] for start in range(0, len(raw), SESSION_ID_BYTES)]

    def raw_ids(self, rows: np.ndarray) -> np.ndarray:
        """The ids of the open sessions in `rows`, uint8 [n, 16]."""
        return np.asarray(self._ids[rows])

    def raw_tokens(self, rows: np.ndarray) -> np.ndarray:
        """The resume tokens of the open sessions in `rows`, uint8 [n, 16]."""
        return np.asarray(self._tokens[rows])

    def idle_timeouts_of(self, rows: np.ndarray) -> np.ndarray:
        """After how many seconds without a step the open sessions in `rows` end, float32 [n]."""
        return np.asarray(self._idle_timeout[rows])

    def seconds_left(self, rows: np.ndarray) -> np.ndarray:
        """In how many seconds the open sessions in `rows` end unless they are used, float64 [n]."""
        return np.asarray(self.last_used[rows] + self._idle_timeout[rows] - self._clock())

    def tokens_of(self, rows: np.ndarray) -> list[bytes]:
        """The resume tokens of the open sessions in `rows`."""
        raw = self._tokens[rows].tobytes()
        return [raw[start : start + SESSION_ID_BYTES] for start in range(0, len(raw), SESSION_ID_BYTES)]

    def check_token(self, row: int, token: bytes) -> None:
        """Raises ClientError WRONG_RESUME_TOKEN unless `token` is that of the open session in `row`."""
        if not compare_digest(self._tokens[row].tobytes(), token):
            raise wrong_token(token)

    def next_mark(self) -> int:
        """A number that nobody has written into `mark` yet: rows go from one model's queue to another's."""
        self._last_mark += 1
        return self._last_mark

    @property
    def first_epochs(self) -> np.ndarray:
        """The epochs in which each row's present session was opened, uint32 [N]: another one has another."""
        return self._first_epoch

    def tiers_of(self, rows: np.ndarray) -> np.ndarray:
        """Where the states of the open sessions in `rows` int64 [B] are, `Tier` int8 [B]."""
        elsewhere = np.where(self.is_stored[rows], Tier.STORE, Tier.INITIAL)
        without = np.where(self.cell[rows] != NOWHERE, Tier.HOST, elsewhere)
        return np.where(self.slot[rows] != NOWHERE, Tier.DEVICE, without).astype(np.int8)

    def open_rows(self, model: int | None = None) -> np.ndarray:
        """Rows of open sessions, of all models or of one, ascending, int64 [n]."""
        is_open = self._status != Status.FREE
        if model is not None:
            is_open &= (self.route & MODEL_MASK) == model
        return np.flatnonzero(is_open)

    def count_by_model(self, num_models: int) -> np.ndarray:
        """Open sessions of models 0 .. M - 1 by status, int64 [M, len(Status)]; FREE is not counted.

        Any thread may ask: what changes meanwhile is counted as it was or as it is.
        """
        owners, statuses = self.route, self._status
        size = min(len(owners), len(statuses))  # One of them may just have grown.
        models, statuses = owners[:size] & MODEL_MASK, statuses[:size]
        is_open = (statuses != Status.FREE) & (models < num_models)
        keys = models[is_open] * len(Status) + statuses[is_open]
        return np.bincount(keys, minlength=num_models * len(Status)).reshape(num_models, len(Status))

    def rows_of_stream(self, stream: int) -> np.ndarray:
        """Rows that `stream` owns, int64 [n]."""
        return np.flatnonzero((self._status == Status.ATTACHED) & (self.route >> MODEL_BITS == stream))

    def explain(self, handle: int) -> EddyError:
        """Why `handle` may not be used by whoever sent it, as a typed error."""
        row, epoch = handle & 0xFFFFFFFF, handle >> 32
        unknown = ClientError(
            Reason.UNKNOWN_SESSION,
            "handle: it belongs to no session of this stream",
            Detail(field="handles", received=str(handle), expected="a handle that this stream was given"),
        )
        if row == 0 or row >= self.num_rows or epoch >= int(self.handle[row]) >> 32:
            return unknown  # Also a good handle of another stream: its owner's business is not told.
        if epoch >= int(self._first_epoch[row]) and self._status[row] != Status.FREE:
            present = int(self.handle[row]) >> 32
            return ClientError(
                Reason.FENCED,
                f"handle: the session was taken over or reset in epoch {present}, this handle is of epoch {epoch}",
                Detail(field="handles", received=str(epoch), expected=str(present), epoch=present),
            )
        if epoch >= int(self._first_epoch[row]) and self._end_reason[row]:
            return _ended(Reason(int(self._end_reason[row])))
        return unknown

    @staticmethod
    def ended_by(event: Event) -> EddyError:
        """The error that tells a client that its session has ended by one of the events that end it."""
        return _ended(_END_REASONS[event])

    # Changing

    def open(
        self,
        slots: np.ndarray,
        *,
        model: int,
        stream: int,
        initial_slot: int,
        ring_starts: np.ndarray,
        ring_size: int,
        idle_timeout_seconds: float | np.ndarray,
        identity: Identity | None = None,
    ) -> np.ndarray:
        """Opens one session a slot, `slots` int32 [B], and returns their rows, int64 [B].

        Args:
            slots: the session's own, or `NOWHERE`: it is given one with its first step.
            identity: of sessions that were open elsewhere or before; new ones without.

        Raises:
            CapacityError: TOO_MANY_SESSIONS; nothing was opened.
        """
        count = len(slots)
        if self.num_sessions + count > self.max_sessions:
            raise CapacityError(
                Reason.TOO_MANY_SESSIONS,
                f"{count} sessions asked for, {self.num_sessions} of at most {self.max_sessions} are open",
                Detail(field="count", received=str(count), expected=f"at most {self.max_sessions - self.num_sessions}"),
            )
        while self._num_free < count:
            self._grow()
        self._num_free -= count
        rows = self._free_rows[self._num_free : self._num_free + count][::-1].astype(np.int64)
        event = Event.OPEN_DETACHED if stream == NO_STREAM else Event.OPEN_ATTACHED
        self._status[rows] = transition(self._status[rows], event)
        self._new_epoch(rows)
        self._first_epoch[rows] = self.handle[rows] >> EPOCH_SHIFT
        self._end_reason[rows] = 0
        self.route[rows] = route(stream, model)
        self.next_position[rows] = 0
        self.stand_at_start(rows, initial_slot)
        self.slot[rows] = slots
        self.cell[rows] = NOWHERE
        self.is_stored[rows] = False
        self.is_pinned[rows] = False
        self.has_own_start[rows] = False
        self.last_used[rows] = self._clock()
        self.is_bound[rows] = False
        self.is_busy[rows] = False
        self.ring_start[rows] = ring_starts
        self.ring_size[rows] = ring_size
        self.ring_next[rows] = 0
        self._idle_timeout[rows] = idle_timeout_seconds
        self.set_durable(rows, NOT_STORED)
        self.stored_epoch[rows] = 0
        self.is_durable[rows] = False
        self.holder[rows] = 0
        if identity is None:
            secrets = np.frombuffer(self._random_bytes(2 * SESSION_ID_BYTES * count), np.uint8)
            self._ids[rows], self._tokens[rows] = secrets.reshape(2, count, SESSION_ID_BYTES)
            self._epoch_before[rows] = 0
        else:
            self._ids[rows], self._tokens[rows] = identity.session_ids, identity.resume_tokens
            if identity.holders is not None:
                self.holder[rows] = identity.holders
            self._raise_epochs(rows, identity.epochs)
            self._first_epoch[rows] = self.handle[rows] >> EPOCH_SHIFT
            self._epoch_before[rows] = identity.epochs
        self._index.add(rows, self._ids)
        return rows

    def _raise_epochs(self, rows: np.ndarray, epochs: np.ndarray) -> None:
        """Epochs of `rows` that lie beyond `epochs` uint32 [B]: whoever wrote under those is fenced."""
        present = self.handle[rows] >> EPOCH_SHIFT
        after = np.maximum(present, epochs.astype(np.uint64) + np.uint64(1))
        self.handle[rows] = after << EPOCH_SHIFT | rows.astype(np.uint64)

    def attach(self, row: int, stream: int, holder: int = 0, *, resumes: bool = False) -> None:
        """`stream` takes over the open session in `row`: a new epoch fences every older handle.

        Args:
            holder: the client, by a number of its own; resumes: it had the session, and takes it back only where
                nobody else has taken it since.

        Raises:
            ClientError: FENCED; nothing has changed.
        """
        if is_taken(int(self.holder[row]), holder, resumes=resumes):
            raise taken_by_another(self.epoch_of(row))
        self.holder[row] = holder
        self._apply(np.array([row]), Event.ATTACH)
        self._new_epoch(np.array([row]))
        self.route[row] = route(stream, self.model_of(row))
        self.last_used[row] = self._clock()

    def detach(self, rows: np.ndarray) -> None:
        """The stream that owned `rows` has ended; the sessions stay open until they are idle for too long."""
        self._apply(rows, Event.DETACH)
        self.route[rows] &= MODEL_MASK

    def stand_at_start(self, rows: np.ndarray, initial_slot: int) -> None:
        """All states of the sessions in `rows` int64 [B] are the initial ones, wherever they had others."""
        self.read_slot[rows] = initial_slot
        self.home_slot[rows] = initial_slot

    def begin_at(self, rows: np.ndarray, slots: np.ndarray) -> None:
        """Sessions that have taken no step begin with the states in `slots` int [B] instead of the initial ones."""
        self.read_slot[rows] = slots
        self.home_slot[rows] = slots
        self.last_used[rows] = self._clock()

    def resume(self, rows: np.ndarray, positions: np.ndarray, stored_epochs: np.ndarray) -> None:
        """Sessions in `rows`, just opened, that the store has at `positions` int64 [B] under `stored_epochs`."""
        self.next_position[rows] = positions
        self.set_durable(rows, positions)
        self.stored_epoch[rows] = stored_epochs

    def set_durable(self, rows: np.ndarray, positions: np.ndarray | int) -> None:
        """Steps of the sessions in `rows` int64 [B] before `positions`, int64 [B] or one, are in the state store."""
        self.durable_position[rows] = positions
        self.has_news[rows] = True

    def fork(self, rows: np.ndarray, parents: np.ndarray) -> None:
        """Sessions in `rows` go on from where those in `parents` int64 [B] stand; a session may be its own parent.

        Their next chunk must be one and the same: it reads all states before it writes any. From now on all of them
        keep the slots that they have, because others may read there.
        """
        pinned = np.union1d(rows, parents)
        self.num_pinned += int(np.count_nonzero(~self.is_pinned[pinned]))
        self.is_pinned[pinned] = True
        self.read_slot[rows] = self.read_slot[parents]
        self.home_slot[rows] = self.home_slot[parents]
        self.next_position[rows] = self.next_position[parents]

    def clone(self, rows: np.ndarray, parents: np.ndarray, initial_slot: int) -> None:
        """Sessions in `rows`, just opened, stand where those in `parents` int64 [B] do, with states in their own slots.

        One that has no states but the initial ones goes on reading those. One that has no slot has its states nowhere,
        until it is given a cell.
        """
        for column in (self.next_position, self.has_own_start, self.ring_next, self.holder):
            column[rows] = column[parents]
        for column in (self.read_slot, self.home_slot):
            column[rows] = np.where(column[parents] == initial_slot, initial_slot, self.slot[rows])

    def hand_over(
        self,
        rows: np.ndarray,
        model: int,
        slots: np.ndarray,
        cells: np.ndarray,
        ring_starts: np.ndarray,
        initial_slot: int,
    ) -> None:
        """Sessions go on with another model, in its `slots`, `cells` and rings, int [B] each.

        Those that have written no state go on with the initial one. What the state store has of them is the other
        model's: it is to be written anew, because a model that adopts from this one may not adopt from that.
        """
        self.set_durable(rows, NOT_STORED)
        is_initial = self.read_slot[rows] == initial_slot
        self.route[rows] = self.route[rows] & ~MODEL_MASK | model
        self.slot[rows] = slots
        self.cell[rows] = cells
        self.read_slot[rows] = np.where(is_initial, initial_slot, slots)
        self.home_slot[rows] = self.read_slot[rows]
        self.ring_start[rows] = ring_starts

    def part(self, rows: np.ndarray) -> None:
        """The sessions in `rows` int64 [B] were continued, and are by themselves again: their slots are as others'."""
        self._unpin(rows[self.read_slot[rows] == self.slot[rows]])

    def _unpin(self, rows: np.ndarray) -> None:
        self.num_pinned -= int(np.count_nonzero(self.is_pinned[rows]))
        self.is_pinned[rows] = False

    def reset(self, rows: np.ndarray, initial_slot: int) -> None:
        """Back to position 0 and the initial states, in a new epoch; cells are for the caller."""
        self._apply(rows, Event.RESET)
        self._new_epoch(rows)
        self.next_position[rows] = 0
        self.set_durable(rows, NOT_STORED)
        self.stand_at_start(rows, initial_slot)
        self.last_used[rows] = self._clock()

    def end(self, rows: np.ndarray, event: Event) -> None:
        """Ends the sessions in `rows` by one of the events that end them; slots and cells are for the caller."""
        if self.on_ended is not None:
            self.on_ended(rows, event)
        self._apply(rows, event)
        self.is_durable[rows] = False
        self._end_reason[rows] = _END_REASONS[event]
        self._new_epoch(rows)
        self.route[rows] = -1
        self.is_busy[rows] = False
        if self.num_pinned:
            self._unpin(rows)
        self._index.remove(rows, self._ids)
        count = len(rows)
        self._free_rows[self._num_free : self._num_free + count] = rows
        self._num_free += count

    def idle_rows(self) -> np.ndarray:
        """Rows of open sessions that have been idle for longer than their timeout, int64 [n]."""
        overdue = self.last_used + self._idle_timeout < self._clock()
        return np.flatnonzero(overdue & (self._status != Status.FREE) & ~self.is_busy)

    def _apply(self, rows: np.ndarray, event: Event) -> None:
        self._status[rows] = transition(self._status[rows], event)

    def _new_epoch(self, rows: np.ndarray) -> None:
        self.handle[rows] += np.uint64(1) << EPOCH_SHIFT

    def _grow(self) -> None:
        """Doubles every column."""
        old = self.num_rows
        new = min(old * 2, self.max_sessions + 1)
        for name, column in vars(self).items():
            if isinstance(column, np.ndarray) and len(column) == old:
                grown = np.zeros((new, *column.shape[1:]), column.dtype)
                grown[:old] = column
                setattr(self, name, grown)
        self.handle[old:] = np.arange(old, new, dtype=np.uint64)
        self.route[old:] = -1
        self.cell[old:] = NOWHERE
        free = np.arange(new - 1, old - 1, -1, dtype=np.int32)
        self._free_rows = np.concatenate([free, self._free_rows[: self._num_free], np.zeros(old, np.int32)])[:new]
        self._num_free += new - old
