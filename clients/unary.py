"""Calls that need no stream: what is served, who is there, and whole sequences.

Owns the channel, the calls over it, and what is known of the server's models. Must not know sessions that are stepped.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message

from eddy.clients.addresses import Addresses
from eddy.clients.backoff import MAX_REPLAY_BYTES, RECONNECT_SECONDS, Backoff, Contact, Patience
from eddy.clients.catalog import Catalog
from eddy.clients.errors import InvalidInput, NotFound, can_pass, from_rpc
from eddy.clients.sequences import SequenceBatch
from eddy.clients.start import Primes, States
from eddy.clients.tensors import Sequences, Signature
from eddy.clients.tls import Tls, open_channel
from eddy.v1 import contract_pb2, inference_pb2, models_pb2, sessions_pb2

_Response = TypeVar("_Response", bound=Message)

_OPTIONS = (
    # The service's limits decide; the channel only has to let its replies through.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # When to try again is the client's to say (`backoff`); gRPC's own delays, of up to two minutes, would hide it.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Clients of one process share nothing: one that waits between its attempts would have a new one wait with it.
    ("grpc.use_local_subchannel_pool", 1),
    # How long a connection may take to be made.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # A peer that has gone without a word is noticed while calls are open.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)


class CommonOptions(TypedDict, total=False):
    """What any client may be told; see `Client`."""

    tls: Tls | None
    reconnect_seconds: float
    max_replay_bytes: int
    patience: Patience | None


class ClientOptions(CommonOptions, total=False):
    """What an asyncio client may be told."""

    channel: Any


class UnaryCalls:
    """The part of a client that has no sessions of its own; arguments are `Client`'s."""

    def __init__(
        self,
        target: str = "127.0.0.1:8500",
        *,
        tls: Tls | None = None,
        channel: Any = None,
        reconnect_seconds: float = RECONNECT_SECONDS,
        max_replay_bytes: int = MAX_REPLAY_BYTES,
        patience: Patience | None = None,
    ) -> None:
        self._targets = [each.strip() for each in target.split(",")]
        self._tls = tls
        self._patience = patience or Patience(reconnect_seconds=reconnect_seconds, max_replay_bytes=max_replay_bytes)
        self._own_channel = channel is None
        self._addresses = Addresses([] if channel is None else [channel])
        self._contact = Contact()
        self._catalog = Catalog(self._get_model)

    async def __aenter__(self) -> Self:
        if not len(self._addresses):
            self._addresses.open([open_channel(target, self._tls, _OPTIONS) for target in self._targets])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the channel."""
        if self._own_channel:
            await self._addresses.close()

    # Models

    async def models(self) -> list[models_pb2.ModelStatus]:
        """Every model version in the server's repository, and why those that are not ready are not."""
        response = await self._unary(
            "ModelService/ListModels", models_pb2.ListModelsRequest(), models_pb2.ListModelsResponse
        )
        return list(response.models)

    async def load_model(self, model: str) -> list[models_pb2.ModelStatus]:
        """Has the server load what lies in a model's folder and is not served; returns when every version is ready.

        Raises:
            NotFound: the repository has no such model; ModelUnavailable: a version cannot be served; NotAllowed.
        """
        request = models_pb2.LoadModelRequest(name=model)
        return list((await self._unary("ModelService/LoadModel", request, models_pb2.LoadModelResponse)).models)

    async def unload_model(self, model: str) -> list[models_pb2.ModelStatus]:
        """Has the server open no more sessions of a model; those that are open go on.

        Raises:
            NotFound: no such model; NotAllowed.
        """
        request = models_pb2.UnloadModelRequest(name=model)
        return list((await self._unary("ModelService/UnloadModel", request, models_pb2.UnloadModelResponse)).models)

    async def contract(self, model: str, version: str = "") -> contract_pb2.ModelContract:
        """A model's contract: inputs, outputs, states, vocabulary, figures.

        Raises:
            NotFound: no such model or version.
        """
        return (await self._get_model(model, version, "")).contract

    async def _get_model(self, model: str, version: str, package: str) -> models_pb2.GetModelResponse:
        request = models_pb2.GetModelRequest(name=model, version=version, package_digest=package)
        return await self._unary("ModelService/GetModel", request, models_pb2.GetModelResponse)

    # Sessions of anybody

    async def sessions(self, model: str = "", page_size: int = 100) -> AsyncIterator[sessions_pb2.Session]:
        """Every open session of the server, or of one model; ids are not told."""
        token = ""
        while True:
            request = sessions_pb2.ListSessionsRequest(model=model, page_size=page_size, page_token=token)
            response = await self._unary("SessionService/ListSessions", request, sessions_pb2.ListSessionsResponse)
            for session in response.sessions:
                yield session
            token = response.next_page_token
            if not token:
                return

    async def find_session(self, session_id: bytes) -> sessions_pb2.Session:
        """What the server knows of a session, which stays with whoever has it.

        Of one that is not open there it is what the state store has.

        Raises:
            SessionEnded: no such session is open.
        """
        request = sessions_pb2.GetSessionRequest(session_id=session_id)
        response = await self._unary(
            "SessionService/GetSession", request, sessions_pb2.GetSessionResponse, session_id=session_id
        )
        return response.session

    async def close_session(self, session_id: bytes) -> None:
        """Ends a session by its id, whoever has it.

        Raises:
            SessionEnded: no such session is open.
        """
        request = sessions_pb2.CloseSessionRequest(session_id=session_id)
        await self._unary(
            "SessionService/CloseSession", request, sessions_pb2.CloseSessionResponse, session_id=session_id
        )

    # Whole sequences

    async def infer(
        self,
        model: str,
        sequences: Sequences,
        version: str = "",
        *,
        timeout_seconds: float | None = None,
        prime: Primes | None = None,
        initial_states: States | None = None,
    ) -> list[np.ndarray]:
        """The outputs of whole sequences, each from the model's initial state; no session stays.

        Args:
            sequences: one array [T, ...] each, of any lengths; a mapping by name of such lists for several inputs.
            version: the latest that is ready by default; naming it saves a call.
            timeout_seconds: how long the server may take, no limit by default.
            prime: as for `open_batch`, a list of one a sequence; initial_states: likewise.

        Returns:
            One array [T, ...] a sequence.

        Raises:
            InvalidInput, NotFound, ServerBusy, ModelUnavailable, Disconnected: see `eddy.errors`.
        """
        outputs = await self._infer(model, sequences, version, timeout_seconds, prime, initial_states, is_single=True)
        (output,) = outputs.values()
        return output

    async def infer_outputs(
        self,
        model: str,
        sequences: Sequences,
        version: str = "",
        *,
        timeout_seconds: float | None = None,
        prime: Primes | None = None,
        initial_states: States | None = None,
    ) -> dict[str, list[np.ndarray]]:
        """As `infer`, for models with any number of outputs: each one's arrays by its name."""
        return await self._infer(model, sequences, version, timeout_seconds, prime, initial_states, is_single=False)

    # Inner

    async def _infer(
        self,
        model: str,
        sequences: Sequences,
        version: str,
        timeout_seconds: float | None,
        prime: Primes | None,
        initial_states: States | None,
        *,
        is_single: bool,
    ) -> dict[str, list[np.ndarray]]:
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        served = await self._catalog.served(model, version)
        try:
            return await self._infer_by(served, model, sequences, deadline, prime, initial_states, is_single=is_single)
        except (NotFound, InvalidInput):
            fresh = await self._catalog.latest(model, version)
            if fresh.status.package_digest == served.status.package_digest:
                raise
        # The version's files were replaced, and its contract may be another.
        return await self._infer_by(fresh, model, sequences, deadline, prime, initial_states, is_single=is_single)

    async def _infer_by(
        self,
        served: models_pb2.GetModelResponse,
        model: str,
        sequences: Sequences,
        deadline: float | None,
        prime: Primes | None,
        initial_states: States | None,
        *,
        is_single: bool,
    ) -> dict[str, list[np.ndarray]]:
        signature = Signature(served.contract)
        if is_single:
            signature.check_single_output("infer")
        batch = SequenceBatch(signature, sequences, served.limits, prime, initial_states)
        responses = []
        for request in batch.requests(model, served.status.version):
            request.package_digest = served.status.package_digest
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            responses.append(
                await self._unary("InferenceService/Infer", request, inference_pb2.InferResponse, remaining)
            )
        return batch.outputs(responses)

    async def _channel_of(self, session_id: bytes) -> Any:
        """To the server to ask about a session, once it may be asked; without an id, about anything."""
        return self._addresses.channel

    async def _unary(
        self,
        method: str,
        request: Message,
        response_type: type[_Response],
        timeout_seconds: float | None = None,
        *,
        session_id: bytes = b"",
    ) -> _Response:
        """Asks until there is an answer: every call may be carried out twice.

        Args:
            session_id: of the session that it is about.
        """
        clock, backoff = self._patience.clock, Backoff(self._patience)
        deadline = None if timeout_seconds is None else clock() + timeout_seconds
        while True:
            left = None if deadline is None else max(0.0, deadline - clock())
            channel = await self._channel_of(session_id)
            call = channel.unary_unary(f"/eddy.v1.{method}")
            try:
                data = await call(request.SerializeToString(), timeout=left)
            except grpc.RpcError as error:
                failure = from_rpc(error)
                backoff.failed()
                delay = self._delay_seconds(backoff) if can_pass(failure) else None
                if delay is None or (deadline is not None and clock() + delay >= deadline):
                    raise failure from error
                self._addresses.leave(channel)
                if delay:
                    await self._patience.sleep(delay)
            else:
                self._contact.is_made = True
                return response_type.FromString(data)

    async def _wait_to_retry(self, backoff: Backoff, channel: Any) -> bool:
        """A call over `channel` has failed: waits before the next attempt, elsewhere; False: there is none."""
        backoff.failed()
        delay = self._delay_seconds(backoff)
        if delay is None:
            return False
        self._addresses.leave(channel)
        if delay:
            await self._patience.sleep(delay)
        return True

    def _has_answered(self) -> None:
        self._contact.is_made = True

    def _delay_seconds(self, backoff: Backoff) -> float | None:
        """Before the next attempt; None: there is none. What never answered is not waited for."""
        if self._contact.is_made and self._patience.is_any:
            return backoff.delay_seconds()
        return 0.0 if backoff.num_failures < len(self._addresses) else None
