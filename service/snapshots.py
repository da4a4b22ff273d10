"""Snapshots: sessions as bytes that their clients take away, and sessions made of such bytes.

Owns what a snapshot holds (the format is `record`'s; no ids, no secrets), everything that is checked before one is
believed, and the choice of the model that goes on with it. Must not know the wire.

A record's checksum tells damage, not intent: whoever has a snapshot may have written it himself. So its values are
checked as those are that clients begin sessions with.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

import numpy as np

from eddy.service.adoption import choose
from eddy.service.contract import Contract
from eddy.service.errors import ClientError, Detail, EddyError, Reason, invalid
from eddy.service.finite import quarantined
from eddy.service.host import Host
from eddy.service.instruction_set import instruction_set
from eddy.service.kept import StoredReply
from eddy.service.model import ServedModel
from eddy.service.recall import Stored, open_record
from eddy.service.record import Checkpoint, Record, as_snapshot, decode, encode
from eddy.service.record_model import Model, check_fits, model_of
from eddy.service.runtime import runtime_version
from eddy.service.sessions import SESSION_ID_BYTES, SessionInfo
from eddy.service.values import check_rows

_FIELD = "snapshot"
# What a message needs beside the snapshot in it.
_OVERHEAD_BYTES = 4096
# Positions count up from here for as long as anybody lives.
_MAX_POSITION = 1 << 62


@dataclass(frozen=True, slots=True)
class Restored:
    """A session made of a snapshot, by its table row; `notes` say what is other than where the snapshot was taken."""

    row: int
    notes: tuple[str, ...]


def served_model(model: ServedModel) -> Model:
    """A served model as records name it."""
    file = model.file
    return model_of(file.name, file.version, file.digest, model.contract, runtime_version(), instruction_set())


# Taking


async def take(host: Host, session_id: bytes) -> tuple[bytes, SessionInfo | Stored]:
    """A snapshot of a session, and what is known of it at that moment.

    Of one that is open here after the chunks sent for it before; of another one as the state store has it.

    Raises:
        EddyError: UNKNOWN_SESSION; QUEUE_FULL; MESSAGE_TOO_LARGE: its states alone fill more than a message;
            QUARANTINED: they are not finite, and the session has ended; what keeps the store from being read.
    """
    data, told = await _take(host, session_id)
    most = host.config.server.max_message_bytes - _OVERHEAD_BYTES
    if len(data) > most:  # Without the replies it may still fit.
        data = as_snapshot(data, has_replies=False)
    if len(data) > most:
        raise invalid(Reason.MESSAGE_TOO_LARGE, "session_id", f"a session of {len(data)} bytes", f"at most {most}")
    return data, told


async def _take(host: Host, session_id: bytes) -> tuple[bytes, SessionInfo | Stored]:
    table = host.table
    while True:  # Until it is not taken over, reset or ended while this waits.
        found = await host.persistence.look(session_id)
        if isinstance(found, Stored):
            return as_snapshot(found.data), found
        await host.turns.settle(found)
        row = table.find(session_id)
        read = await _read(host, host.catalog.served[table.model_of(row)], row) if row else None
        if read is not None:
            checkpoint, info = read
            return (await asyncio.to_thread(encode, checkpoint)).record(0), info


async def _read(host: Host, model: ServedModel, row: int) -> tuple[Checkpoint, SessionInfo] | None:
    """What the session in `row` is, at one moment; None where it is in another epoch by then, or not there."""
    table, rows = host.table, np.array([row])
    handle = table.handle.item(row)
    read: asyncio.Future[tuple[Checkpoint, SessionInfo] | EddyError | None] = asyncio.get_running_loop().create_future()

    def found(states: list[np.ndarray] | EddyError) -> None:
        if read.done():  # Its caller has given up.
            return
        if isinstance(states, EddyError):
            read.set_result(states)
        elif table.handle.item(row) != handle:
            read.set_result(None)
        elif not model.finite_rows(states, 1).all():
            host.turns.by_model(rows, lambda each, mine: each.quarantine_sessions(mine), lambda _: None)
            read.set_result(quarantined("states"))
        else:  # States, position and replies agree now.
            read.set_result((_checkpoint(host, model, row, states), table.info(row)))

    model.read_states(rows, found)
    host.dispatcher.notify(model)
    outcome = await read
    if isinstance(outcome, EddyError):
        raise outcome
    return outcome


def _checkpoint(host: Host, model: ServedModel, row: int, states: list[np.ndarray]) -> Checkpoint:
    table, rows, nobody = host.table, np.array([row]), np.zeros((1, SESSION_ID_BYTES), np.uint8)
    nothing = np.zeros(1, np.uint32)
    sizes = table.ring_size[rows]
    return Checkpoint(
        model=served_model(model),
        session_ids=nobody,
        resume_tokens=nobody,
        writer=0,
        epochs=nothing,
        expected_epochs=nothing,
        next_positions=table.next_position[rows],
        max_in_flight=sizes.astype(np.uint32),
        idle_timeout_seconds=table.idle_timeouts_of(rows).astype(np.float64),
        expires_at=np.zeros(1),
        written_at=time.time(),
        holders=np.zeros(1, np.uint64),
        has_own_start=table.has_own_start[rows],
        is_initial=model.is_initial(rows),
        states=tuple(states),
        replies=model.replies.export_rings(table.ring_start[rows], sizes),
    )


# Restoring


async def restore(
    host: Host, data: bytes, name: str = "", version: str = "", max_in_flight: int = 0, idle_timeout_seconds: float = 0
) -> Restored:
    """Opens a session, owned by nobody, that stands where the one stood that `data` was taken of.

    Args:
        name, version: of the model; empty: the snapshot's name, and whichever of its versions can take the snapshot.
        max_in_flight, idle_timeout_seconds: 0 for the snapshot's, as far as this server allows them.

    Raises:
        EddyError: the snapshot is damaged, of another format or another model, or holds values that are refused; the
            model is not served; no room; draining. Nothing is open then.
    """
    host.gate.refuse_if_draining()
    host.persistence.refuse_without_store()
    record = decode(data, _FIELD)
    model = _model_for(host, record, name, version)
    contract = model.contract
    _check_values(model, record)
    mine = served_model(model)
    has_same_ports = mine.ports == record.model.ports
    replies = record.replies if has_same_ports else ()
    _check_replies(contract, replies)
    limits = host.config
    in_flight = max_in_flight or min(record.max_in_flight, limits.model.max_in_flight)
    idle = idle_timeout_seconds or min(record.idle_timeout_seconds, limits.session.max_idle_timeout_seconds)
    idle = idle or host.opening.usual_idle_timeout(model)
    host.opening.check_limits(in_flight, idle)

    row = await _open(host, model, replace(record, replies=replies), in_flight, idle, has_same_ports=has_same_ports)
    return Restored(row, _notes(record.model, mine))


async def fork_stored(host: Host, stored: Stored) -> int:
    """Opens a session, owned by nobody, beside one that the state store has; returns its row.

    Raises:
        EddyError: the record's model is not served, or another one by now; no room; draining.
    """
    host.gate.refuse_if_draining()
    host.persistence.refuse_without_store()
    record, model = stored.record, host.persistence.model_for(stored)
    is_same = served_model(model).ports == record.model.ports
    return await _open(host, model, record, record.max_in_flight, record.idle_timeout_seconds, has_same_ports=is_same)


async def _open(
    host: Host, model: ServedModel, record: Record, in_flight: int, idle: float, *, has_same_ports: bool
) -> int:
    """Opens a session of its own from a record that was checked; its row, once it is durable."""

    async def begin() -> int:
        row = await open_record(
            host.table, host.dispatcher.notify, model, record, in_flight, idle, has_same_ports=has_same_ports
        )
        rows = np.array([row])
        await host.persistence.make_durable(rows, host.table.handle[rows])
        return row

    # Shielded: what has begun is finished, whoever waits for it.
    return await asyncio.shield(asyncio.ensure_future(begin()))


def _model_for(host: Host, record: Record, name: str, version: str) -> ServedModel:
    """The model that goes on with a record.

    Raises:
        EddyError: there is none, none is ready, or SNAPSHOT_MISMATCH with what differs.
    """
    theirs = record.model
    name = name or theirs.name
    # The same files may be served under another name, if that is asked for.
    renamed = replace(theirs, name=name)
    if version:
        candidates = [host.catalog.ready(name, version)]
    else:
        versions = host.catalog.versions(name)
        ready = [entry.model for entry in reversed(versions.values()) if entry.model is not None]
        candidates = sorted(ready, key=lambda model: model.file.version != theirs.version)
        candidates = candidates or [host.catalog.ready(name, "")]
    for model in candidates:
        model.refuse_unless_streamable()
    fitting = [model for model in candidates if model.file.digest == theirs.digest]
    adopting = None if fitting else choose(renamed, candidates)
    model = adopting or (fitting or candidates)[0]
    check_fits(renamed, served_model(model), is_adopted=adopting is not None, field=_FIELD)
    return model


def _check_values(model: ServedModel, record: Record) -> None:
    """Raises ClientError NON_FINITE or OUT_OF_RANGE for what no session of the model holds."""
    if record.next_position > _MAX_POSITION:
        raise invalid(Reason.OUT_OF_RANGE, f"{_FIELD}.next_position", record.next_position, f"at most {_MAX_POSITION}")
    if record.is_initial and model.contract.is_primed:
        expected = "the states that the model's prime graph writes"
        raise invalid(Reason.SNAPSHOT_CORRUPT, f"{_FIELD}.states", "none", expected)
    if record.is_initial:
        return
    for state, values in zip(model.contract.states, record.states, strict=True):
        where = f"{_FIELD}.states[{state.name}]"
        if state.dtype.kind == "f" and not model.is_checked(state):
            continue  # Of this model such values are no fault.
        if state.dtype.kind in "iu" and state.minimum is None:
            raise invalid(Reason.OUT_OF_RANGE, where, "values", "none: the contract gives no range for integers")
        check_rows(state, values[None], where)


def _check_replies(contract: Contract, replies: tuple[StoredReply, ...]) -> None:
    """Raises ClientError SNAPSHOT_CORRUPT for replies that this model cannot have given."""
    ports = (*contract.feeds, *contract.results)
    for reply in replies:
        sizes = [port.row_bytes(min(reply.num_steps, 1 << 31)) for port in ports]
        is_good = reply.num_steps < 1 << 31 and len(reply.data) in (0, sum(sizes))
        if is_good and reply.data and contract.emits:
            emitted = int.from_bytes(reply.data[-sizes[-1] :], "little", signed=True)
            is_good = 0 <= emitted <= reply.num_steps + contract.outputs[0].extra_steps
        if not is_good:
            message = f"{_FIELD}: its reply to position {reply.position} is none that the model gives"
            detail = Detail(_FIELD, f"{len(reply.data)} bytes", "inputs and outputs of a chunk")
            raise ClientError(Reason.SNAPSHOT_CORRUPT, message, detail)


def _notes(theirs: Model, mine: Model) -> tuple[str, ...]:
    """What is other here than where a snapshot was taken, so that outputs may differ in their last bits."""
    told = []
    if theirs.runtime != mine.runtime:
        told.append(f"taken with ONNX Runtime {theirs.runtime}, this server has {mine.runtime}")
    if theirs.instruction_set != mine.instruction_set:
        told.append(f"taken on {theirs.instruction_set}, this server's CPU is {mine.instruction_set}")
    if told:
        told.append("outputs may differ in their last bits from those of the session that the snapshot was taken of")
    return tuple(told)
