"""Calls that copy sessions and take them elsewhere: fork, snapshot, restore, and a reset to given states.

Owns these calls, by the sessions' ids and without a stream. Must not know sessions that are stepped: `Client` sees to
it that nothing of theirs is under way.
"""

from __future__ import annotations

from dataclasses import dataclass

from eddy.clients.start import States, write_states
from eddy.clients.tensors import Signature
from eddy.clients.unary import UnaryCalls
from eddy.v1 import sessions_pb2


@dataclass(frozen=True, slots=True)
class Moved:
    """A session that was begun from another one, or from a snapshot, and that nobody has attached to yet.

    Attributes:
        session_id, resume_token: 16 bytes each, what attaches to it.
        position: where it stands.
        notes: what is other on the server than where the snapshot was taken, so that last bits may differ.
    """

    session_id: bytes
    resume_token: bytes
    model: str
    version: str
    position: int
    notes: tuple[str, ...] = ()


class MoveCalls(UnaryCalls):
    """The part of a client that moves sessions by their ids."""

    async def fork_session(self, session_id: bytes) -> Moved:
        """A new session that stands where another one stands, by its id; `Client.fork` also attaches to it.

        Raises:
            SessionEnded: no such session is open; ServerBusy: no room.
        """
        request = sessions_pb2.ForkSessionRequest(session_id=session_id)
        response = await self._unary(
            "SessionService/ForkSession", request, sessions_pb2.ForkSessionResponse, session_id=session_id
        )
        return _moved(response.session)

    async def snapshot_session(self, session_id: bytes) -> bytes:
        """All that a session is, as bytes, after the steps sent for it before; it goes on.

        Raises:
            SessionEnded: no such session is open; InvalidInput: it is larger than a message.
        """
        return (await self._snapshot(session_id)).snapshot

    async def _snapshot(self, session_id: bytes) -> sessions_pb2.SnapshotSessionResponse:
        request = sessions_pb2.SnapshotSessionRequest(session_id=session_id)
        return await self._unary(
            "SessionService/SnapshotSession", request, sessions_pb2.SnapshotSessionResponse, session_id=session_id
        )

    async def restore_session(
        self,
        snapshot: bytes,
        model: str = "",
        version: str = "",
        *,
        max_in_flight: int = 0,
        idle_timeout_seconds: float = 0.0,
    ) -> Moved:
        """A new session made of a snapshot; arguments as for `Client.restore`, which also attaches to it."""
        request = sessions_pb2.RestoreSessionRequest(
            snapshot=snapshot,
            model=model,
            version=version,
            max_in_flight=max_in_flight,
            idle_timeout_seconds=idle_timeout_seconds,
        )
        response = await self._unary("SessionService/RestoreSession", request, sessions_pb2.RestoreSessionResponse)
        return _moved(response.session, tuple(response.notes))

    async def reset_session(self, session_id: bytes, initial_states: States | None = None) -> sessions_pb2.Session:
        """Sets a session back to position 0, by its id; a new epoch begins, which fences whoever steps it.

        Args:
            initial_states: states to begin again with instead of the model's, by name, each of the state's shape; all
                of them, of a model that reads a source first.

        Raises:
            SessionEnded: no such session is open.
            InvalidInput: the states do not fit; or none are given, and the session began with states of its own.
        """
        request = sessions_pb2.ResetSessionRequest(session_id=session_id)
        if initial_states is not None:
            found = await self.find_session(session_id)
            served = await self._get_model(found.model, found.version, found.package_digest)
            write_states(request, Signature(served.contract), initial_states)
        response = await self._unary(
            "SessionService/ResetSession", request, sessions_pb2.ResetSessionResponse, session_id=session_id
        )
        return response.session


def _moved(session: sessions_pb2.Session, notes: tuple[str, ...] = ()) -> Moved:
    return Moved(session.session_id, session.resume_token, session.model, session.version, session.next_position, notes)
