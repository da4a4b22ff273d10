"""The calls of `SessionService`: open, get, list, close, reset, fork, snapshot and restore without a stream.

Owns their pages and their waiting. Must not know gRPC.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import numpy as np

from eddy.service import codec, snapshots
from eddy.service.errors import EddyError, Reason, invalid
from eddy.service.forks import Forked, fork
from eddy.service.host import Host
from eddy.service.lifecycle import Tier
from eddy.service.recall import Stored
from eddy.service.restarts import check_complete, reset, restart
from eddy.service.sessions import NO_STREAM, SessionInfo, cannot_reset, check_id
from eddy.service.start import Start, read_start, read_states
from eddy.v1 import inference_pb2, sessions_pb2

_Outcome = TypeVar("_Outcome")

_TIERS = {
    Tier.DEVICE: sessions_pb2.TIER_DEVICE,
    Tier.HOST: sessions_pb2.TIER_HOST,
    Tier.STORE: sessions_pb2.TIER_STORE,
    Tier.INITIAL: sessions_pb2.TIER_INITIAL,
}
_MAX_PAGE = 1000
_DEFAULT_PAGE = 100


class SessionCalls:
    """Answers requests about sessions of `host`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._max_message_bytes = host.config.server.max_message_bytes

    async def open(self, request: sessions_pb2.OpenSessionRequest) -> sessions_pb2.OpenSessionResponse:
        """Opens one that no stream owns."""
        model = self._host.catalog.ready(request.model, request.version)
        start = read_start(model.contract, request.prime, request.initial_states, 1)
        opened = self._host.opening.open(
            request.model,
            request.version,
            1,
            request.max_in_flight,
            request.idle_timeout_seconds,
            NO_STREAM,
            start,
            is_durable=True,
        )
        await opened.begun()
        info = self._host.table.info(int(opened.rows[0]))
        return sessions_pb2.OpenSessionResponse(
            session=self._session(info, with_id=True, resume_token=opened.resume_tokens[0]),
            limits=codec.limits_message(opened.model.config, self._max_message_bytes),
        )

    async def get(self, request: sessions_pb2.GetSessionRequest) -> sessions_pb2.GetSessionResponse:
        """One by its id."""
        check_id(request.session_id, "session_id")
        found = await self._host.persistence.look(request.session_id)
        known = found if isinstance(found, Stored) else self._host.table.info(found)
        return sessions_pb2.GetSessionResponse(session=self._told(known))

    async def list(self, request: sessions_pb2.ListSessionsRequest) -> sessions_pb2.ListSessionsResponse:
        """A page of those that are open; ids stay with those who opened them."""
        size = request.page_size or _DEFAULT_PAGE
        if size > _MAX_PAGE:
            raise invalid(Reason.OUT_OF_RANGE, "page_size", size, f"at most {_MAX_PAGE}")
        try:
            after = int(request.page_token or "0")
        except ValueError:
            raise invalid(
                Reason.OUT_OF_RANGE, "page_token", repr(request.page_token), "a token of the previous page"
            ) from None
        rows = self._rows_of_model(request.model)
        page = rows[rows > after][: size + 1]
        more = len(page) > size
        sessions = [self._session(self._host.table.info(row), with_id=False) for row in page[:size].tolist()]
        token = str(int(page[size - 1])) if more else ""
        return sessions_pb2.ListSessionsResponse(sessions=sessions, next_page_token=token, total=len(rows))

    def _rows_of_model(self, name: str) -> np.ndarray:
        if not name:
            return self._host.table.open_rows()
        self._host.catalog.find(name, "")
        indices = [model.index for model in self._host.catalog.served if model.file.name == name]
        rows = [self._host.table.open_rows(index) for index in indices]
        return np.sort(np.concatenate([np.empty(0, np.int64), *rows]))

    async def close(self, request: sessions_pb2.CloseSessionRequest) -> sessions_pb2.CloseSessionResponse:
        """Ends one, behind the chunks that wait for it."""
        await self._control(self._host.endings.close, request.session_id)
        return sessions_pb2.CloseSessionResponse()

    async def reset(self, request: sessions_pb2.ResetSessionRequest) -> sessions_pb2.ResetSessionResponse:
        """Takes one back to its initial state or sets it to others, behind the chunks that wait for it."""
        session_id = request.session_id
        check_id(session_id, "session_id")
        if request.initial_states:
            return await self._restart(session_id, request.initial_states)
        if self._host.table.has_own_start[await self._host.persistence.recall_latest(session_id)]:
            raise cannot_reset("session_id")
        await self._control(partial(reset, self._host), session_id)
        row = self._host.table.row_of_id(session_id)
        return sessions_pb2.ResetSessionResponse(session=self._session(self._host.table.info(row), with_id=True))

    async def _restart(
        self, session_id: bytes, states: Sequence[inference_pb2.Tensor]
    ) -> sessions_pb2.ResetSessionResponse:
        host, is_done = self._host, False
        while not is_done:  # Until nobody took it over while this waited.
            row = await host.persistence.recall_latest(session_id)
            model = host.catalog.served[host.table.model_of(row)]
            start = Start(states=read_states(model.contract, states, 1, "initial_states"))
            check_complete(model, start)
            is_done = await restart(host, row, start)
        info = host.table.info(host.table.row_of_id(session_id))
        return sessions_pb2.ResetSessionResponse(session=self._session(info, with_id=True))

    async def snapshot(self, request: sessions_pb2.SnapshotSessionRequest) -> sessions_pb2.SnapshotSessionResponse:
        """All that one is, as bytes, after the chunks that wait for it."""
        check_id(request.session_id, "session_id")
        data, known = await snapshots.take(self._host, request.session_id)
        return sessions_pb2.SnapshotSessionResponse(snapshot=data, session=self._told(known))

    async def restore(self, request: sessions_pb2.RestoreSessionRequest) -> sessions_pb2.RestoreSessionResponse:
        """Opens one that stands where a snapshot was taken."""
        restored = await snapshots.restore(
            self._host,
            request.snapshot,
            request.model,
            request.version,
            request.max_in_flight,
            request.idle_timeout_seconds,
        )
        session, limits = self._new_session(restored.row)
        return sessions_pb2.RestoreSessionResponse(session=session, limits=limits, notes=restored.notes)

    async def fork(self, request: sessions_pb2.ForkSessionRequest) -> sessions_pb2.ForkSessionResponse:
        """Opens one that stands where another stands, behind the chunks that wait for that."""
        session_id = request.session_id
        check_id(session_id, "session_id")
        row = 0
        while not row:  # Until nobody took it over while this waited.
            parent = await self._host.persistence.look(session_id)
            if isinstance(parent, Stored):
                row = await snapshots.fork_stored(self._host, parent)
                break
            done: asyncio.Future[Forked] = asyncio.get_running_loop().create_future()
            fork(self._host, np.array([parent]), NO_STREAM, partial(_resolve, done))
            forked = await done
            for error in forked.errors.values():
                raise error
            row = int(forked.rows[0])
        session, limits = self._new_session(row)
        return sessions_pb2.ForkSessionResponse(session=session, limits=limits)

    def _new_session(self, row: int) -> tuple[sessions_pb2.Session, inference_pb2.Limits]:
        """What whoever began the session in `row` is told of it."""
        table = self._host.table
        info = table.info(row)
        limits = codec.limits_message(self._host.catalog.served[info.model].config, self._max_message_bytes)
        return self._session(info, with_id=True, resume_token=table.tokens_of(np.array([row]))[0]), limits

    async def _control(
        self, apply: Callable[[np.ndarray, Callable[[np.ndarray], None]], None], session_id: bytes
    ) -> None:
        """Applies `apply` to a session, again if it was taken over while this waited."""
        check_id(session_id, "session_id")
        is_missed = True
        while is_missed:
            row = await self._host.persistence.recall_latest(session_id)
            done: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
            apply(np.array([row]), partial(_resolve, done))
            is_missed = len(await done) > 0

    def _told(self, known: SessionInfo | Stored) -> sessions_pb2.Session:
        """A session that is open here, or elsewhere, with its id."""
        return self._stored_session(known) if isinstance(known, Stored) else self._session(known, with_id=True)

    def _stored_session(self, stored: Stored) -> sessions_pb2.Session:
        """One as the state store has it, with the model that it would go on with here.

        Who is attached to it elsewhere is not known.
        """
        record = stored.record
        model, version, package = record.model.name, record.model.version, ""
        with suppress(EddyError):  # It is not served here.
            file = self._host.persistence.model_for(stored).file
            model, version, package = file.name, file.version, file.package
        left_seconds = max(0.0, record.expires_at - time.time())
        return sessions_pb2.Session(
            session_id=record.session_id,
            fingerprint=_fingerprint(record.session_id),
            model=model,
            version=version,
            package_digest=package,
            epoch=record.epoch,
            next_position=record.next_position,
            max_in_flight=record.max_in_flight,
            idle_seconds=max(0.0, record.idle_timeout_seconds - left_seconds),
            idle_timeout_seconds=record.idle_timeout_seconds,
            durable_position=record.next_position,
            durable=True,
            tier=sessions_pb2.TIER_INITIAL if record.is_initial else sessions_pb2.TIER_STORE,
        )

    def _session(self, info: SessionInfo, *, with_id: bool, resume_token: bytes = b"") -> sessions_pb2.Session:
        file = self._host.catalog.served[info.model].file
        return sessions_pb2.Session(
            session_id=info.session_id if with_id else b"",
            fingerprint=_fingerprint(info.session_id),
            model=file.name,
            version=file.version,
            epoch=info.epoch,
            next_position=info.next_position,
            max_in_flight=info.max_in_flight,
            idle_seconds=info.idle_seconds,
            idle_timeout_seconds=info.idle_timeout_seconds,
            attached=info.is_attached,
            package_digest=file.package,
            resume_token=resume_token,
            durable_position=info.durable_position,
            durable=self._host.persistence.are_stored(np.array([info.handle], np.uint64)),
            tier=_TIERS[info.tier],
        )


def _fingerprint(session_id: bytes) -> str:
    return hashlib.sha256(session_id).hexdigest()[:8]


def _resolve(future: asyncio.Future[_Outcome], outcome: _Outcome) -> None:
    if not future.done():  # Its caller has given up.
        future.set_result(outcome)
