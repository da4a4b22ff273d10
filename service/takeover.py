"""Takeover: a stream becomes the owner of a session, which begins a new epoch.

Owns the order of what happens to such a session: behind its chunks, brought back from the state store where it is not
here, told only once the store has its new epoch. Must not know the wire.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from hmac import compare_digest

import numpy as np

from eddy.service.errors import EddyError, Reason, ServerBug
from eddy.service.gate import Gate
from eddy.service.persistence import Persistence
from eddy.service.record import Record
from eddy.service.sessions import SessionTable, check_id, is_taken, taken_by_another, wrong_token
from eddy.service.streams import Streams
from eddy.service.turns import Turns

_LOG = logging.getLogger(__name__)


class Takeover:
    """Gives sessions to streams.

    Args:
        table: sessions; streams: who may own them; turns: behind which chunks; persistence: what the store has.
        gate: nobody takes over while it is shut.
    """

    def __init__(
        self, table: SessionTable, streams: Streams, turns: Turns, persistence: Persistence, gate: Gate
    ) -> None:
        self._table = table
        self._streams = streams
        self._turns = turns
        self._persistence = persistence
        self._gate = gate
        # Sessions on their way back; changed on the event loop only.
        self._tasks: set[asyncio.Task[None]] = set()

    def attach(
        self,
        session_id: bytes,
        resume_token: bytes,
        stream: int,
        done: Callable[[int | EddyError], None],
        holder: int = 0,
        *,
        resumes: bool = False,
    ) -> None:
        """`stream` takes over a session once the chunks before it are through; `done` is told its row.

        A session that the state store has is brought back first; where sessions are kept there, `done` is told once
        the store has the new epoch. `done` is told an error if the session or the stream has ended by then, or if
        `holder` comes back to what is another's (see `SessionTable.attach`).

        Raises:
            EddyError: unknown session, another's token, draining.
        """
        self._gate.refuse_if_draining()
        check_id(session_id, "session_id")
        if self._persistence.is_present(session_id):
            self._attach(session_id, resume_token, stream, done, holder, resumes=resumes)
            return

        self._in_background(self._bring_back(session_id, resume_token, stream, done, holder, resumes=resumes))

    def _attach(
        self,
        session_id: bytes,
        resume_token: bytes,
        stream: int,
        done: Callable[[int | EddyError], None],
        holder: int,
        *,
        resumes: bool,
        is_copy_known: bool = False,
    ) -> None:
        """`attach` for a session that is open here.

        What is open here may be a copy from which the session has gone to another server since: the store tells, the
        copy ends, and the session is brought back. `is_copy_known`: it was brought back just now.
        """
        row = self._table.row_of_id(session_id)
        self._table.check_token(row, resume_token)

        def take_over() -> None:
            try:
                found = self._table.row_of_id(session_id)
                if stream not in self._streams:
                    return
                if self._table.is_durable[found]:  # Before its owner is fenced.
                    self._persistence.refuse_without_store()
                self._table.attach(found, stream, holder, resumes=resumes)
            except EddyError as error:
                is_gone = self._persistence.is_durable and not self._table.find(session_id)
                if is_gone and not is_copy_known:
                    again()  # The copy has ended meanwhile; the store knows whether the session has.
                else:
                    done(error)
                return
            handle = self._table.handle.item(found)
            if not self._persistence.is_durable:
                done(found)
            else:
                self._persistence.persist(np.array([found])).add_done_callback(partial(written, found, handle))

        def written(found: int, handle: int, persisted: asyncio.Future[None]) -> None:
            error = persisted.exception()
            if error is None:
                done(found if self._table.handle.item(found) == handle else self._table.explain(handle))
                return
            assert isinstance(error, EddyError), "whoever writes tells typed errors"
            is_ours = self._table.handle.item(found) == handle or self._table.find(session_id) != found
            if error.reason is Reason.FENCED and is_ours and not is_copy_known:
                # Behind the end of the copy.
                self._turns.wait_in(model, found, again)
            else:
                done(error)

        def again() -> None:
            self._in_background(self._bring_back(session_id, resume_token, stream, done, holder, resumes=resumes))

        model = self._turns.model_of(row)
        self._turns.wait_in(model, row, take_over)

    async def _bring_back(
        self,
        session_id: bytes,
        resume_token: bytes,
        stream: int,
        done: Callable[[int | EddyError], None],
        holder: int,
        *,
        resumes: bool,
    ) -> None:
        """`attach` for a session that the store has, which is taken only from there for whoever may take it over."""
        refusal: list[EddyError] = []

        def is_wanted(record: Record) -> bool:
            refusal.clear()
            if not compare_digest(record.resume_token, resume_token):
                refusal.append(wrong_token(resume_token))
            elif is_taken(record.holder, holder, resumes=resumes):
                refusal.append(taken_by_another(record.epoch))
            return not refusal and self._streams.has(stream)

        try:
            await self._persistence.recall(session_id, is_wanted)
            self._attach(session_id, resume_token, stream, done, holder, resumes=resumes, is_copy_known=True)
        except EddyError as error:
            if self._streams.has(stream):
                done(refusal[0] if refusal else error)
        except Exception:  # noqa: BLE001  the task's root: one request fails, with its traceback in the log
            _LOG.exception("a session could not be brought back")
            done(ServerBug(Reason.INTERNAL, "the server failed to bring this session back"))

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        """Has `work`, which handles its own errors, done beside the caller."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
