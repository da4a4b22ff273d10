"""The record: one session of one model as bytes, for the state store and for snapshots on the wire.

Owns the writing of many records at once and the reading of one. Must not know stores, the session table or the wire. A
checksum tells damage, not intent: nothing is allocated for which a record brings no bytes, and whoever takes one
compares its model (`record_model.check_fits`).

Dimension key: B sessions, E kept replies of all of them.
"""

from __future__ import annotations

from math import isfinite

import numpy as np
from zlib_ng.zlib_ng import crc32

from eddy.service import alignment
from eddy.service.errors import ClientError, Detail, Reason, invalid
from eddy.service.kept import StoredReply
from eddy.service.record_format import (
    CHECKSUM_BYTES,
    HAS_OWN_START,
    HEAD,
    IS_INITIAL,
    MAGIC,
    MAX_BYTES,
    REPLY,
    VERSION,
    Batch,
    Checkpoint,
    Record,
)
from eddy.service.record_model import Damaged, Model, read_model

__all__ = ["HEAD", "VERSION", "Batch", "Checkpoint", "Record", "as_snapshot", "decode", "encode"]


def encode(checkpoint: Checkpoint) -> Batch:
    """Records of all sessions of a checkpoint, in its order.

    Raises:
        ClientError: SNAPSHOT_CORRUPT: a session is too large for the format, 4 GiB.
    """
    model = np.frombuffer(checkpoint.model.pack(), np.uint8)
    replies = checkpoint.replies
    # 1. How long each part of each record is.
    num_sessions = len(checkpoint.epochs)
    row_bytes = sum(state.nbytes for state in checkpoint.states) // max(1, num_sessions)
    state_bytes = np.where(checkpoint.is_initial, 0, row_bytes)
    reply_ends = np.cumsum(replies.counts)
    byte_ends = np.concatenate([[0], np.cumsum(replies.num_bytes)])
    data_starts, data_ends = byte_ends[reply_ends - replies.counts], byte_ends[reply_ends]
    table_bytes, data_bytes = replies.counts * REPLY.itemsize, data_ends - data_starts
    sizes = HEAD.itemsize + len(model) + state_bytes + table_bytes + data_bytes + CHECKSUM_BYTES
    if num_sessions and sizes.max() > MAX_BYTES:
        raise invalid(Reason.SNAPSHOT_CORRUPT, "snapshot", f"{sizes.max()} bytes", f"at most {MAX_BYTES}")
    offsets = np.cumsum(sizes) - sizes
    # 2. The parts, each for all sessions.
    heads = _heads(checkpoint, sizes, len(model), state_bytes)
    states = [state.reshape(num_sessions, -1).view(np.uint8) for state in map(np.ascontiguousarray, checkpoint.states)]
    table = np.empty(len(replies.positions), REPLY)
    table["position"], table["num_steps"], table["num_bytes"] = replies.positions, replies.num_steps, replies.num_bytes
    tables, kept = table.view(np.uint8), replies.gather()
    # 3. Records whose parts are equally long are the rows of one array.
    data = alignment.empty(int(sizes.sum()))
    shapes = np.stack([state_bytes, table_bytes, data_bytes], axis=1)
    groups = _alike(shapes)
    for rows in groups:
        first = rows[0]
        # All of them are taken where they lie.
        mine = rows if len(groups) > 1 else slice(None)
        parts = [heads[mine], np.broadcast_to(model, (len(rows), len(model)))]
        if state_bytes[first]:
            parts += [state[mine] for state in states]
        parts.append(_spans(tables, (reply_ends[rows] - replies.counts[rows]) * REPLY.itemsize, table_bytes[first]))
        parts.append(_spans(kept, data_starts[rows], data_bytes[first]))
        _place(data, offsets, sizes, rows, parts)
    _seal(data, offsets, sizes)
    return Batch(
        checkpoint.session_ids,
        checkpoint.epochs,
        checkpoint.expected_epochs,
        checkpoint.writer,
        checkpoint.expires_at,
        data,
        offsets,
        sizes,
    )


def as_snapshot(data: bytes, *, has_replies: bool = True) -> bytes:
    """A whole record without what names its session, its owner and its place in a store.

    Args:
        has_replies: with the kept replies that it has; without, it is shorter.
    """
    raw = np.frombuffer(data, np.uint8).copy()
    head = raw[: HEAD.itemsize].view(HEAD)
    for name in ("epoch", "writer", "session_id", "resume_token", "expires_at", "holder"):
        head[name] = np.zeros((), HEAD[name])
    if not has_replies:
        size = HEAD.itemsize + int(head["model_bytes"][0]) + int(head["state_bytes"][0]) + CHECKSUM_BYTES
        head["num_replies"], head["size"] = 0, size
        raw = raw[:size]
    _seal(raw, np.zeros(1, np.int64), np.array([len(raw)]))
    return raw.tobytes()


def _heads(checkpoint: Checkpoint, sizes: np.ndarray, model_bytes: int, state_bytes: np.ndarray) -> np.ndarray:
    """The fixed part of each record, uint8 [B, head]."""
    heads = np.zeros(len(sizes), HEAD)
    heads["magic"], heads["version"] = np.void(MAGIC), VERSION
    heads["flags"] = checkpoint.has_own_start * HAS_OWN_START + checkpoint.is_initial * IS_INITIAL
    heads["size"], heads["model_bytes"], heads["state_bytes"] = sizes, model_bytes, state_bytes
    heads["session_id"] = np.ascontiguousarray(checkpoint.session_ids).view("V16")[:, 0]
    heads["resume_token"] = np.ascontiguousarray(checkpoint.resume_tokens).view("V16")[:, 0]
    heads["epoch"], heads["writer"] = checkpoint.epochs, checkpoint.writer
    heads["next_position"], heads["max_in_flight"] = checkpoint.next_positions, checkpoint.max_in_flight
    heads["idle_timeout_seconds"] = checkpoint.idle_timeout_seconds
    heads["expires_at"], heads["written_at"] = checkpoint.expires_at, checkpoint.written_at
    heads["holder"] = checkpoint.holders
    heads["num_replies"] = checkpoint.replies.counts
    return heads.view(np.uint8).reshape(len(sizes), HEAD.itemsize)


def _alike(shapes: np.ndarray) -> list[np.ndarray]:
    """Rows of `shapes` int64 [B, n] that are equal, together; one group, as a rule."""
    if not len(shapes):
        return []
    if (shapes == shapes[0]).all():
        return [np.arange(len(shapes))]
    _, groups = np.unique(shapes, axis=0, return_inverse=True)
    order = np.argsort(groups.reshape(-1), kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups.reshape(-1)[order])) + 1)


def _spans(data: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
    """`size` bytes of `data` from each of `starts`, uint8 [len(starts), size]."""
    if len(starts) and size and (starts == starts[0] + np.arange(len(starts)) * size).all():
        return data[starts[0] : starts[0] + len(starts) * size].reshape(-1, size)
    out = np.empty((len(starts), size), np.uint8)
    for row, start in zip(out, starts.tolist() if size else (), strict=False):
        row[:] = data[start : start + size]
    return out


def _place(data: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, rows: np.ndarray, parts: list[np.ndarray]) -> None:
    """Puts `parts`, uint8 [len(rows), ...] each, side by side into the records of `rows`, without their checksums."""
    size = sizes.item(rows[0])
    is_all = len(rows) == len(sizes)
    records = data.reshape(-1, size) if is_all else np.empty((len(rows), size), np.uint8)
    at = 0
    for part in parts:
        records[:, at : at + part.shape[1]] = part
        at += part.shape[1]
    if not is_all:
        for offset, record in zip(offsets[rows].tolist(), records, strict=True):
            data[offset : offset + size] = record


def _seal(data: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> None:
    """Writes every record's checksum into its last bytes."""
    ends = offsets + sizes - CHECKSUM_BYTES
    bodies = map(data.data.__getitem__, map(slice, offsets.tolist(), ends.tolist()))
    sums = np.fromiter(map(crc32, bodies), "<u4", len(sizes))
    data[ends[:, None] + np.arange(CHECKSUM_BYTES)] = sums.view(np.uint8).reshape(-1, CHECKSUM_BYTES)


def decode(data: bytes, field: str = "snapshot") -> Record:
    """Reads one record.

    Args:
        field: the field that brought it, for errors.

    Raises:
        ClientError: SNAPSHOT_CORRUPT, SNAPSHOT_VERSION, with the reason.
    """
    try:
        return _decode(data, field)
    except Damaged as error:
        message = f"{field}: no whole record of a session: {error}"
        detail = Detail(field, f"{len(data)} bytes", "a record as it was given out")
        raise ClientError(Reason.SNAPSHOT_CORRUPT, message, detail) from error


def _decode(data: bytes, field: str) -> Record:
    # 1. What every version has.
    if data[: len(MAGIC)] != MAGIC:
        raise Damaged(f"it does not begin with {MAGIC.decode()}")
    if len(data) < HEAD.itemsize + CHECKSUM_BYTES:
        raise Damaged(f"it has {len(data)} bytes, at least {HEAD.itemsize + CHECKSUM_BYTES} are needed")
    head = np.frombuffer(data, HEAD, 1)[0]
    if int(head["size"]) != len(data):
        raise Damaged(f"it has {len(data)} bytes, its head says {head['size']}")
    body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if crc32(body) != int.from_bytes(checksum, "little"):
        raise Damaged("its checksum is another")
    if int(head["version"]) != VERSION:
        raise invalid(Reason.SNAPSHOT_VERSION, field, f"format version {head['version']}", f"version {VERSION}")
    # 2. Parts whose lengths agree.
    model_end = HEAD.itemsize + int(head["model_bytes"])
    table_start = model_end + int(head["state_bytes"])
    data_start = table_start + int(head["num_replies"]) * REPLY.itemsize
    if data_start > len(body):
        raise Damaged("its parts are longer than the whole")
    table = np.frombuffer(body, REPLY, int(head["num_replies"]), table_start)
    if int(table["num_bytes"].sum(dtype=np.uint64)) != len(body) - data_start:
        raise Damaged("its replies are not as long as it says")
    # 3. Values that a session can have.
    flags = int(head["flags"])
    times = [float(head[name]) for name in ("idle_timeout_seconds", "expires_at", "written_at")]
    if flags & ~(HAS_OWN_START | IS_INITIAL) or head["reserved"]:
        raise Damaged("it has flags that its version does not know")
    if not all(map(isfinite, times)) or times[0] < 0 or head["next_position"] < 0 or head["max_in_flight"] < 1:
        raise Damaged("it has values that no session has")
    model = read_model(body[HEAD.itemsize : model_end])
    is_initial = bool(flags & IS_INITIAL)
    return Record(
        model=model,
        session_id=head["session_id"].tobytes(),
        resume_token=head["resume_token"].tobytes(),
        writer=int(head["writer"]),
        epoch=int(head["epoch"]),
        next_position=int(head["next_position"]),
        max_in_flight=int(head["max_in_flight"]),
        idle_timeout_seconds=times[0],
        expires_at=times[1],
        written_at=times[2],
        holder=int(head["holder"]),
        has_own_start=bool(flags & HAS_OWN_START),
        is_initial=is_initial,
        states=_read_states(model, body[model_end:table_start], is_initial=is_initial),
        replies=_read_replies(table, body[data_start:], int(head["next_position"])),
    )


def _read_states(model: Model, raw: bytes, *, is_initial: bool) -> tuple[np.ndarray, ...]:
    layouts = () if is_initial else model.states
    if sum(layout.num_bytes for layout in layouts) != len(raw):
        raise Damaged(f"it has {len(raw)} bytes of states, its layout says otherwise")
    states, at = [], 0
    for layout in layouts:
        piece = raw[at : at + layout.num_bytes]
        try:
            states.append(np.frombuffer(piece, layout.dtype).reshape(layout.shape).copy())
        except ValueError as error:  # More than 64 axes.
            raise Damaged(f"the state {layout.name!r} has a shape that no array has") from error
        if layout.dtype == np.bool_ and any(byte > 1 for byte in piece):
            raise Damaged(f"the state {layout.name!r} has values that are neither true nor false")
        at += layout.num_bytes
    return tuple(states)


def _read_replies(table: np.ndarray, raw: bytes, next_position: int) -> tuple[StoredReply, ...]:
    ends = np.cumsum(table["num_bytes"], dtype=np.int64)
    replies = tuple(
        StoredReply(position, num_steps, raw[end - num_bytes : end])
        for (position, num_steps, num_bytes), end in zip(table.tolist(), ends.tolist(), strict=True)
    )
    positions = [reply.position for reply in replies]
    if any(reply.num_steps < 1 or reply.position < 0 for reply in replies) or sorted(set(positions)) != positions:
        raise Damaged("its replies are out of order")
    if replies and replies[-1].position + replies[-1].num_steps > next_position:
        raise Damaged("it has replies to steps that it has not taken")
    return replies
