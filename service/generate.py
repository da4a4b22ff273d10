"""One `Generate` call: reads the request, runs a generation, writes its events.

Owns the session of the call (opened here, or continued), the making of text from tokens, and the writing. Must not know
how tokens are drawn or chunks are run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from eddy.service.beams import BeamSearch
from eddy.service.errors import ClientError, Detail, EddyError, Reason, invalid
from eddy.service.generation import FinishReason, Generation, Plan, Token, check_task
from eddy.service.host import Host
from eddy.service.model import ServedModel
from eddy.service.opening import Opened
from eddy.service.prefixes import Prefix, PrefixCache
from eddy.service.sampling import Sampling
from eddy.service.sessions import NO_STREAM, NOT_STORED
from eddy.service.start import Start, read_start
from eddy.service.stops import StopMatcher
from eddy.service.vocabulary import Vocabulary
from eddy.v1 import contract_pb2, inference_pb2
from eddy.v1 import generation_pb2 as wire

_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 256
_MAX_ALTERNATIVES = 20
_MAX_BEAMS = 16
_MAX_PENALTY = 10
# What all beams of a call may keep beside their tokens, in messages' limits.
_MAX_BEAM_MESSAGES = 4
# Tokens, or bytes of text: turning a prompt into a chunk holds up everybody else, 0.2 s for a million.
_MAX_PROMPT = 1 << 20
_FINISH = {
    FinishReason.END: wire.GenerationFinished.REASON_END,
    FinishReason.MAX_TOKENS: wire.GenerationFinished.REASON_MAX_TOKENS,
    FinishReason.STOP: wire.GenerationFinished.REASON_STOP,
    FinishReason.DRAINING: wire.GenerationFinished.REASON_DRAINING,
}


class GenerateCall:
    """One call, from request to last event.

    Args:
        host: sessions and models; context: the call's `grpc.aio.ServicerContext`; request: what was asked for.

    Raises:
        EddyError: the request is refused; nothing was opened or fed.
    """

    def __init__(self, host: Host, context: Any, request: wire.GenerateRequest) -> None:
        self._host = host
        self._context = context
        self._is_new = request.WhichOneof("session") != "existing"
        self._keeps_session = request.keep_session or not self._is_new
        # Everything is checked before a session is opened.
        row = None if self._is_new else self._existing_row(request.existing)
        self._model = self._model_of(request, row)
        self._model.refuse_unless_streamable()
        check_task(self._model)
        self._vocabulary = Vocabulary(self._model.contract.message.vocabulary)
        self._num_beams = self._read_beams(request)
        plan = self._read_plan(request)
        self._length_penalty = request.length_penalty if request.HasField("length_penalty") else 1.0
        self._wants_logs = plan.wants_log_probabilities
        self._stops = StopMatcher(request.stop)
        self._opened: Opened | None = None
        # Of a new session: where states after known prompts are, and the one that it begins with.
        self._prefixes: PrefixCache | None = None
        self._known: Prefix | None = None
        if row is None:
            start = self._read_start(request.open)
            host.gate.refuse_if_draining()
            if start is None and self._num_beams <= 1:
                self._prefixes = host.prefixes.of(self._model)
            if self._prefixes is not None:
                # A session that stays has the reply to its last chunk, as it has where nothing is known.
                self._known = self._prefixes.find(plan.prompt, takes_all=not self._keeps_session)
            if self._known is not None:
                start = Start(states={name: values[None] for name, values in self._known.states.items()})
            file, idle = self._model.file, request.open.idle_timeout_seconds
            self._opened = host.opening.open(
                file.name, file.version, 1, 1, idle, NO_STREAM, start, is_durable=request.keep_session
            )
            row = int(self._opened.rows[0])
            # It stands as if it had been fed.
            host.table.next_position[row] = self._num_cached
            host.table.is_bound[row] = self._num_beams > 1  # Beams are sessions of one model.
        self._row = row
        self._plan = plan
        self._asked_position = request.existing.position if request.existing.HasField("position") else None
        self._info = host.table.info(row)
        # The writer waits on it; set by the generation.
        self._changed = asyncio.Event()
        self._text: list[str] = []

    async def serve(self) -> None:
        """Runs the generation; returns when everything is written.

        Raises:
            EddyError: the generation failed; what was written before stands.
        """
        if not self._is_new:
            await self._settle()
        generation = self._generation()
        is_told = False
        try:
            if self._opened is not None:
                await self._opened.begun()
            if self._known is not None and self._host.table.handle.item(self._row) == self._info.handle:
                # What it began with is the model's own; what was fed since is only known already.
                self._host.table.has_own_start[self._row] = False
            generation.start()
            await self._write(started=self._started())
            is_told = True
            while True:
                await self._changed.wait()
                self._changed.clear()
                tokens = generation.take()
                # Read together with the tokens: more may come while this writes.
                failure, finish = generation.failure, generation.finish
                if isinstance(generation, BeamSearch):
                    self._text.extend(self._vocabulary.decode((token.id,)) for token in tokens)
                if failure is not None or finish is not None:
                    self._text.append(self._stops.flush())
                text = "".join(self._text)
                self._text.clear()
                if tokens or text:
                    await self._write(tokens=wire.GeneratedTokens(tokens=map(self._token, tokens), text=text))
                if failure is not None:
                    raise failure
                if finish is not None:
                    break
            if not self._keeps_session:
                self._close()
            await self._write(finished=self._finished(finish, generation))
        finally:
            generation.cancel()
            # Nobody could go on with a new session whose id was not told.
            if not self._keeps_session or (self._is_new and not is_told):
                self._close()

    def _generation(self) -> Generation | BeamSearch:
        host, model, row, plan = self._host, self._model, self._row, self._plan
        if self._num_beams > 1:
            return BeamSearch(host, model, row, plan, self._num_beams, self._length_penalty, self._changed.set)
        return Generation(host, model, row, plan, self._take_token, self._changed.set, self._prefixes, self._known)

    @property
    def _num_cached(self) -> int:
        """Tokens of the prompt that are not fed."""
        return 0 if self._known is None else self._known.num_tokens

    async def _settle(self) -> None:
        """Waits for what was sent for the session before, and looks where it stands then.

        A call that was cancelled just now may still have a step under way.
        """
        await self._host.turns.settle(self._row)
        row = self._host.table.row_in_epoch(self._info.session_id, self._info.epoch, "existing.")
        info = self._host.table.info(row)
        asked, stands = self._asked_position, info.next_position
        if asked is not None and asked != stands:
            raise ClientError(
                Reason.POSITION_AHEAD if asked > stands else Reason.POSITION_BEHIND,
                f"existing.position: got {asked}, the session expects {stands} next",
                Detail("existing.position", str(asked), str(stands), next_position=stands),
            )
        self._info = info

    async def _write(self, **event: Any) -> None:
        await self._context.write(wire.GenerateResponse(**event).SerializeToString())

    # Request

    def _existing_row(self, existing: wire.ExistingSession) -> int:
        return self._host.table.row_in_epoch(existing.session_id, existing.epoch, "existing.")

    def _model_of(self, request: wire.GenerateRequest, row: int | None) -> ServedModel:
        if row is not None:
            return self._host.catalog.served[self._host.table.model_of(row)]
        if request.WhichOneof("session") is None:
            raise invalid(Reason.MISSING_FIELD, "session", "none", "one of open, existing")
        new = request.open
        return self._host.catalog.ready(new.model, new.version, new.package_digest)

    def _read_plan(self, request: wire.GenerateRequest) -> Plan:
        outputs = self._read_outputs(request.outputs)
        limit = self._most_tokens(outputs)
        if request.max_tokens > limit:
            raise invalid(Reason.OUT_OF_RANGE, "max_tokens", request.max_tokens, f"at most {limit}")
        if request.num_alternatives > _MAX_ALTERNATIVES:
            raise invalid(
                Reason.OUT_OF_RANGE, "num_alternatives", request.num_alternatives, f"at most {_MAX_ALTERNATIVES}"
            )
        self._check_stops(request.stop)
        prompt = self._prompt(request)
        start_id, end_id = self._vocabulary.start_id, self._vocabulary.end_id
        if not prompt and self._is_new and start_id is not None:
            prompt = [start_id]
        if not prompt and self._is_new:
            raise invalid(Reason.MISSING_FIELD, "prompt", "none", "at least one token for a new session")
        asked = request.sampling
        return Plan(
            prompt,
            Sampling(
                asked.seed if asked.HasField("seed") else int.from_bytes(self._host.random_bytes(8), "little"),
                asked.temperature if asked.HasField("temperature") else self._usual_temperature(),
                asked.top_k,
                asked.top_p if asked.HasField("top_p") else 1.0,
            ),
            request.max_tokens or limit,
            # What begins may be what ends, too.
            tuple(each for each in (self._vocabulary.unknown_id, start_id) if each is not None and each != end_id),
            end_id,
            request.log_probabilities,
            request.num_alternatives,
            outputs,
        )

    def _most_tokens(self, outputs: Sequence[int]) -> int:
        """Tokens of one call at most; beams keep what is asked for beside theirs until the end."""
        most = self._model.config.max_generated_tokens
        token_bytes = sum(self._model.contract.outputs[number].step_bytes for number in outputs)
        if self._num_beams > 1 and token_bytes:
            kept_bytes = _MAX_BEAM_MESSAGES * self._host.config.server.max_message_bytes
            most = max(1, min(most, kept_bytes // (self._num_beams * token_bytes)))
        return most

    def _usual_temperature(self) -> float:
        """A translator is asked for what its source means, other models for something that they might go on with."""
        return 0.0 if self._model.contract.message.task == contract_pb2.TASK_TRANSLATION else 1.0

    def _read_outputs(self, names: Sequence[str]) -> tuple[int, ...]:
        """The numbers of further outputs to send."""
        known = [port.name for port in self._model.contract.outputs]
        for name in names:
            if name not in known:
                raise invalid(Reason.OUT_OF_RANGE, "outputs", repr(name), f"some of {', '.join(known)}")
        return tuple(known.index(name) for name in dict.fromkeys(names))

    def _read_beams(self, request: wire.GenerateRequest) -> int:
        """K; what does not go with several beams is refused."""
        num_beams, most = request.num_beams, min(_MAX_BEAMS, self._model.config.max_rows)
        if num_beams > most:
            raise invalid(Reason.OUT_OF_RANGE, "num_beams", num_beams, f"at most {most}")
        if request.HasField("length_penalty") and not -_MAX_PENALTY <= request.length_penalty <= _MAX_PENALTY:
            expected = f"a number from {-_MAX_PENALTY} to {_MAX_PENALTY}"
            raise invalid(Reason.OUT_OF_RANGE, "length_penalty", request.length_penalty, expected)
        if num_beams > 1:
            for field, is_given in (
                ("keep_session", self._keeps_session),
                ("sampling", request.HasField("sampling")),
                ("stop", bool(request.stop)),
                ("num_alternatives", bool(request.num_alternatives)),
            ):
                if is_given:
                    raise invalid(Reason.OUT_OF_RANGE, field, "it with num_beams", "a new session and nothing of it")
        return num_beams

    def _read_start(self, request: wire.NewSession) -> Start | None:
        """What a new session begins with."""
        contract = self._model.contract
        prime = request.prime
        if request.WhichOneof("source") == "source_text":
            if not contract.is_primed:
                raise invalid(Reason.UNKNOWN_INPUT, "open.source_text", "one", "none: the model has no prime graph")
            vocabulary = Vocabulary(contract.message.source_vocabulary)
            if len(request.source_text) > _MAX_PROMPT:
                raise invalid(
                    Reason.OUT_OF_RANGE,
                    "open.source_text",
                    f"{len(request.source_text)} bytes",
                    f"at most {_MAX_PROMPT}",
                )
            ids = vocabulary.encode(request.source_text, "open.source_text")
            if not 1 <= len(ids) <= contract.max_prime_steps:
                expected = f"1 to {contract.max_prime_steps}"
                raise invalid(Reason.OUT_OF_RANGE, "open.source_text", f"{len(ids)} tokens", expected)
            port = contract.prime_inputs[0]
            tensor = inference_pb2.Tensor(name=port.name, shape=[1, len(ids)])
            tensor.dtype, tensor.data = port.wire_dtype, np.array(ids, port.dtype).tobytes()  # type: ignore[assignment]
            prime = inference_pb2.Prime(inputs=[tensor])
        return read_start(contract, prime, request.initial_states, 1, "open.")

    def _check_stops(self, stops: Sequence[str]) -> None:
        if not stops:
            return
        self._vocabulary.check_text("stop")
        if len(stops) > _MAX_STOPS:
            raise invalid(Reason.OUT_OF_RANGE, "stop", f"{len(stops)} strings", f"at most {_MAX_STOPS}")
        for stop in stops:
            if not 1 <= len(stop) <= _MAX_STOP_CHARACTERS:
                raise invalid(
                    Reason.OUT_OF_RANGE, "stop", f"a string of {len(stop)} characters", f"1 to {_MAX_STOP_CHARACTERS}"
                )

    def _prompt(self, request: wire.GenerateRequest) -> list[int]:
        if request.WhichOneof("prompt") == "text":
            if len(request.text) > _MAX_PROMPT:
                raise invalid(Reason.OUT_OF_RANGE, "text", f"{len(request.text)} bytes", f"at most {_MAX_PROMPT}")
            return self._vocabulary.encode(request.text, "text")
        if len(request.tokens.ids) > _MAX_PROMPT:
            raise invalid(Reason.OUT_OF_RANGE, "tokens", f"{len(request.tokens.ids)} tokens", f"at most {_MAX_PROMPT}")
        ids = np.array(request.tokens.ids, np.int64)
        count = self._model.contract.outputs[0].shape[0]
        wrong = np.flatnonzero(ids >= count)
        if len(wrong):
            raise invalid(Reason.OUT_OF_RANGE, "tokens", f"{ids[wrong[0]]} at {wrong[0]}", f"ids from 0 to {count - 1}")
        return [int(number) for number in ids]

    # Events

    def _take_token(self, token: int) -> bool:
        self._text.append(self._stops.feed(self._vocabulary.decode((token,))))
        return bool(self._stops.found)

    def _token(self, token: Token) -> wire.GeneratedToken:
        return wire.GeneratedToken(
            id=token.id,
            log_probability=token.log_probability if self._wants_logs else None,
            alternatives=[wire.Alternative(id=each, log_probability=log) for each, log in token.alternatives],
            outputs=[self._output(number, raw) for number, raw in zip(self._plan.outputs, token.outputs, strict=True)],
        )

    def _output(self, number: int, raw: bytes) -> inference_pb2.Tensor:
        """One step of one session of a further output."""
        port = self._model.contract.outputs[number]
        tensor = inference_pb2.Tensor(name=port.name, shape=[1, 1, *port.shape], data=raw)
        tensor.dtype = port.wire_dtype  # type: ignore[assignment]  # the stub wants its own enum type
        return tensor

    def _started(self) -> wire.GenerationStarted:
        return wire.GenerationStarted(
            session_id=self._info.session_id,
            epoch=self._info.epoch,
            model=self._model.file.name,
            version=self._model.file.version,
            seed=self._plan.sampling.seed,
            num_prompt_tokens=len(self._plan.prompt),
            position=self._info.next_position - self._num_cached,
            num_cached_tokens=self._num_cached,
            resume_token=b"" if self._opened is None else self._opened.resume_tokens[0],
        )

    def _finished(self, reason: FinishReason, generation: Generation | BeamSearch) -> wire.GenerationFinished:
        found = generation.hypotheses if isinstance(generation, BeamSearch) else []
        return wire.GenerationFinished(
            hypotheses=[
                wire.Hypothesis(
                    ids=[token.id for token in each.tokens],
                    text=self._vocabulary.decode(token.id for token in each.tokens),
                    log_probability=each.total,
                )
                for each in found
            ],
            reason=_FINISH[reason],
            stop=self._stops.found,
            num_tokens=generation.num_tokens,
            next_position=generation.position,
            session_kept=self._keeps_session,
            durable_position=self._host.table.durable_position.item(self._row) if self._keeps_session else NOT_STORED,
        )

    def _close(self) -> None:
        """Ends the call's own session, unless it has ended or was taken over."""
        try:
            row = self._host.table.row_of_id(self._info.session_id)
        except EddyError:
            return
        if int(self._host.table.handle[row]) == self._info.handle:
            self._host.endings.close(np.array([row]), lambda _: None)
