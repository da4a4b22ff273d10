"""Material: valid requests of every call, about sessions that exist.

Owns what an attacker knows: sessions with their ids, handles and positions, as far as answers told. Must not know
damage, connections or judgement.

Dimension key: B rows, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from google.protobuf.message import Message
from graphs import family
from grpc_health.v1 import health_pb2
from loopback import tensor
from target import FAMILIES, SHIPPED

from eddy.v1 import generation_pb2, inference_pb2, models_pb2, sessions_pb2

# Inputs of each model: name, dtype, shape of a step, largest value.
_PORTS: dict[str, list[tuple[str, Any, tuple[int, ...], int]]] = {
    name: [(port.name, port.dtype, port.shape, int((port.values or (0, 9))[1])) for port in family(name).inputs]
    for name in FAMILIES
} | {SHIPPED: [("tokens", np.int64, (), 40)]}
MODELS = tuple(_PORTS)
_LOOKS_AHEAD, _PRIMED = "look-ahead", "primed"
_MAX_SOURCE = 5
_MAX_SHARED = 64


@dataclass
class Session:
    """A session, as an attacker remembers it."""

    session_id: bytes
    handle: int
    model: str
    position: int
    resume_token: bytes = b""


class Builder:
    """Makes requests.

    Args:
        random: where all choices come from; shared: sessions of all attackers, for taking over and for mixing up.
    """

    def __init__(self, random: Random, shared: list[Session]) -> None:
        self._random = random
        self._shared = shared
        self._own: list[Session] = []
        self._last: inference_pb2.StreamRequest | None = None

    def share(self, session: Session) -> None:
        """Tells the others of a session."""
        if len(self._shared) < _MAX_SHARED:
            self._shared.append(session)
        else:
            self._shared[self._random.randrange(_MAX_SHARED)] = session

    # Requests of a stream

    def stream_request(self) -> inference_pb2.StreamRequest:
        """The next request."""
        random = self._random
        request = inference_pb2.StreamRequest(tag=self._tag())
        kind = random.random()
        if not self._own or kind < 0.08:
            request.open.model = random.choice(MODELS)
            request.open.count = random.choice((1, 1, 2, 5, 30, 600))
            request.open.max_in_flight = random.choice((0, 0, 1, 2, 8))
            request.open.idle_timeout_seconds = random.choice((0.0, 1.0, 2.5))
            self._begin(request.open, request.open.count)
        elif kind < 0.12 and self._shared:
            other = random.choice(self._shared)
            request.attach.session_id, request.attach.resume_token = other.session_id, other.resume_token
        elif kind < 0.20:
            request.close.handles = self._handles()
        elif kind < 0.25:
            request.reset.handles = self._handles()
        elif kind < 0.35 and self._last is not None:
            request.step.CopyFrom(self._last.step)  # Again, or late.
        else:
            self._step(request.step)
            self._last = request
        return request

    def _begin(self, request: Any, count: int) -> None:
        """What the sessions of an opening begin with, where the model wants it, and sometimes where it does not."""
        random = self._random
        if request.model == _PRIMED and count <= _MAX_SHARED:
            steps = random.randint(1, _MAX_SOURCE)
            sources = np.random.default_rng(random.getrandbits(64)).integers(1, 10, (count, steps))
            request.prime.inputs.append(tensor("source", sources))
            if random.random() < 0.7:
                lengths = [random.randint(1, steps) for _ in range(count)]
                request.prime.lengths = np.array(lengths, "<u4").tobytes()
        if random.random() < 0.2 and count <= _MAX_SHARED:
            name = random.choice(("total", "history", "count", "h"))
            request.initial_states.append(tensor(name, np.full(count, random.randrange(9))))

    def _tag(self) -> int:
        bits = self._random.choice((0, 3, 7, 8, 14, 15, 28, 32, 64))
        return self._random.getrandbits(bits) if bits else 0

    def _handles(self) -> bytes:
        group = self._random.sample(self._own, min(len(self._own), self._random.choice((1, 1, 2, 20))))
        handles = [session.handle for session in group]
        if self._random.random() < 0.1 and self._shared:
            handles.append(self._random.choice(self._shared).handle)
        return np.array(handles, "<u8").tobytes()

    def _step(self, step: inference_pb2.StepChunk) -> None:
        random = self._random
        model = random.choice(self._own).model
        group = [session for session in self._own if session.model == model]
        group = random.sample(group, min(len(group), random.choice((1, 1, 2, 8, 64))))
        if random.random() < 0.05:
            group.append(random.choice(self._own))
        num_steps = random.choice((1, 1, 1, 1, 2, 3, 17, 96))
        if random.random() < (0.2 if model == _LOOKS_AHEAD else 0.01):
            num_steps, step.flush = 1, True
        step.handles = np.array([session.handle for session in group], "<u8").tobytes()
        step.positions = np.array([session.position for session in group], "<u8").tobytes()
        step.num_steps = 0 if step.flush else num_steps
        step.timeout_milliseconds = random.choice((0, 0, 0, 0, 1, 5000))
        if not step.flush:
            step.inputs.extend(self._inputs(model, (len(group), num_steps)))
        for session in group:  # As if it were applied; the answer corrects it.
            session.position += num_steps

    def _inputs(self, model: str, lead: tuple[int, ...]) -> list[inference_pb2.Tensor]:
        generator = np.random.default_rng(self._random.getrandbits(64))
        tensors = []
        for name, dtype, shape, top in _PORTS[model]:
            kind = np.dtype(dtype).kind
            full = (*lead, *shape)
            values = (
                generator.normal(size=full)
                if kind == "f"
                else generator.integers(0, 2 if kind == "b" else top + 1, full)
            )
            tensors.append(tensor(name, values.astype(dtype)))
        if self._random.random() < 0.1:
            tensors.reverse()
        return tensors

    def learn(self, request: inference_pb2.StreamRequest, response: inference_pb2.StreamResponse) -> None:
        """Takes the answer to a valid request."""
        kind = response.WhichOneof("event")
        if kind == "opened":
            handles = np.frombuffer(response.opened.handles, "<u8").tolist()
            tokens = response.opened.resume_tokens
            for number, session_id in enumerate(response.opened.session_ids):
                token = tokens[16 * number : 16 * number + 16]
                session = Session(session_id, handles[number], response.opened.model, 0, token)
                self._own.append(session)
                if self._random.random() < 0.2:
                    self.share(session)
            del self._own[: max(0, len(self._own) - 200)]
        elif kind == "attached":
            attached = response.attached
            asked = request.attach
            session = Session(
                asked.session_id, attached.handle, attached.model, attached.next_position, asked.resume_token
            )
            self._own.append(session)
        elif kind == "reset":
            old = np.frombuffer(request.reset.handles, "<u8").tolist()
            fresh = dict(zip(old, np.frombuffer(response.reset.handles, "<u8").tolist(), strict=True))
            for session in self._own:
                if fresh.get(session.handle):
                    session.handle, session.position = fresh[session.handle], 0
        elif kind == "step":
            handles = np.frombuffer(request.step.handles, "<u8").tolist()
            wrong = {handles[error.row]: error.error for error in response.step.errors}
            for session in list(self._own):
                if (error := wrong.get(session.handle)) is not None:
                    if error.HasField("next_position"):
                        session.position = error.next_position
                    elif self._random.random() < 0.5:
                        self._own.remove(session)

    # Calls

    def call_request(self) -> tuple[str, Message, Any]:
        """Method, request and type of the response of the next call."""
        random = self._random
        makers = (self._open, self._of_session, self._list, self._unary_step, self._unary_step, self._infer)
        return random.choice((*makers, self._infer, self._generate, self._generate, self._models, self._health))()

    def learn_call(self, request: Message, response: Message) -> None:
        """Takes the answer to a call."""
        if isinstance(response, sessions_pb2.OpenSessionResponse | sessions_pb2.ResetSessionResponse):
            session = response.session
            handle, position = session.epoch << 32, session.next_position
            self.share(Session(session.session_id, handle, session.model, position, session.resume_token))

    def _session(self) -> Session:
        if not self._shared:
            return Session(bytes(16), 1 << 32, "history", 0)
        return self._random.choice(self._shared)

    def _open(self) -> tuple[str, Message, Any]:
        request = sessions_pb2.OpenSessionRequest(
            model=self._random.choice(MODELS), idle_timeout_seconds=self._random.choice((0.0, 0.5, 2.0))
        )
        self._begin(request, 1)
        return "/eddy.v1.SessionService/OpenSession", request, sessions_pb2.OpenSessionResponse

    def _of_session(self) -> tuple[str, Message, Any]:
        name = self._random.choice(("GetSession", "CloseSession", "ResetSession"))
        request = getattr(sessions_pb2, f"{name}Request")(session_id=self._session().session_id)
        return f"/eddy.v1.SessionService/{name}", request, getattr(sessions_pb2, f"{name}Response")

    def _list(self) -> tuple[str, Message, Any]:
        request = sessions_pb2.ListSessionsRequest(
            model=self._random.choice(("", *MODELS)), page_size=self._random.choice((0, 1, 1000))
        )
        request.page_token = str(self._random.choice((0, 5)))
        return "/eddy.v1.SessionService/ListSessions", request, sessions_pb2.ListSessionsResponse

    def _unary_step(self) -> tuple[str, Message, Any]:
        session = self._session()
        num_steps = self._random.choice((1, 1, 2, 96))
        request = inference_pb2.StepRequest(
            session_id=session.session_id,
            epoch=session.handle >> 32,
            position=session.position,
            num_steps=num_steps,
            inputs=self._inputs(session.model, (1, num_steps)),
        )
        if session.model == _LOOKS_AHEAD and self._random.random() < 0.3:
            request.flush, request.num_steps, num_steps = True, 0, 1
            del request.inputs[:]
        session.position += num_steps
        return "/eddy.v1.InferenceService/Step", request, inference_pb2.StepResponse

    def _infer(self) -> tuple[str, Message, Any]:
        random = self._random
        model = random.choice(MODELS)
        lengths = [random.choice((1, 2, 5, 30, 150)) for _ in range(random.choice((1, 2, 8, 64)))]
        lengths = lengths[: max(1, 3000 // max(lengths))]
        request = inference_pb2.InferRequest(
            model=model, lengths=np.array(lengths, "<u4").tobytes(), inputs=self._inputs(model, (sum(lengths),))
        )
        self._begin(request, len(lengths))
        return "/eddy.v1.InferenceService/Infer", request, inference_pb2.InferResponse

    def _generate(self) -> tuple[str, Message, Any]:
        random = self._random
        request = generation_pb2.GenerateRequest(
            max_tokens=random.choice((1, 5, 100, 200)),
            log_probabilities=random.random() < 0.3,
            num_alternatives=random.choice((0, 0, 3, 20)),
            keep_session=random.random() < 0.3,
            stop=random.choice(([], ["e"], ["the ", "\n"])),
        )
        if random.random() < 0.6:
            request.open.model = SHIPPED
        else:
            session = self._session()
            request.existing.session_id, request.existing.epoch = session.session_id, session.handle >> 32
        if random.random() < 0.7:
            request.text = random.choice((b"def f(", "naïve é".encode(), b"x" * 300))
        else:
            request.tokens.ids.extend(random.randrange(40) for _ in range(random.choice((1, 9, 200))))
        if random.random() < 0.3:
            request.num_beams, request.length_penalty = random.choice((1, 2, 5, 16, 17)), random.choice((0.0, 1.0))
            request.outputs.extend(random.choice(((), ("logits",), ("logits", "logits"), ("nothing",))))
            if random.random() < 0.8:
                del request.stop[:]
                request.num_alternatives, request.keep_session = 0, False
                return "/eddy.v1.GenerationService/Generate", request, generation_pb2.GenerateResponse
        sampling = request.sampling
        sampling.temperature, sampling.top_k = random.choice((0.0, 0.7, 1.0, 5.0)), random.choice((0, 1, 20))
        sampling.top_p = random.choice((1.0, 0.9))
        sampling.seed = random.getrandbits(64)
        return "/eddy.v1.GenerationService/Generate", request, generation_pb2.GenerateResponse

    def _models(self) -> tuple[str, Message, Any]:
        if self._random.random() < 0.5:
            return "/eddy.v1.ModelService/ListModels", models_pb2.ListModelsRequest(), models_pb2.ListModelsResponse
        request = models_pb2.GetModelRequest(name=self._random.choice(MODELS))
        return "/eddy.v1.ModelService/GetModel", request, models_pb2.GetModelResponse

    def _health(self) -> tuple[str, Message, Any]:
        return "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse
