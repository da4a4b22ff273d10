"""A generation: one session whose model samples its own next inputs.

Owns the loop from scores to token to next step. It is a chunk's source: the scheduler delivers scores to it, it draws
and queues the next step at once, so that no token waits for a task or the wire. Must not know the wire or text.

Ordering rules: one chunk at a time. Every token that is told is fed, the last one too, so that the session's state is
that of all tokens told; only a generation that is broken off (cancelled, failed) may end between the two, and then the
session stands before the token, which is drawn again by whoever goes on with the same seed.

Dimension key: T steps, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from eddy.service.chunk import Chunk, ChunkResult
from eddy.service.errors import ClientError, Detail, EddyError, ModelError, Reason, ServerBug, invalid
from eddy.service.host import Host
from eddy.service.model import ServedModel
from eddy.service.prefixes import BLOCK_TOKENS, Prefix, PrefixCache
from eddy.service.sampling import Sampling, draw, log_probabilities
from eddy.service.sessions import ANY_ROUTE, ROW_MASK
from eddy.v1 import contract_pb2

_LOG = logging.getLogger(__name__)

# Scores of a prompt are computed for every step of a chunk, and only the last is used.
_MAX_PROMPT_CHUNK_BYTES = 1 << 20
# Tokens told and not taken; a reader that is slower than the model stops the model.
_MAX_WAITING_TOKENS = 64


class FinishReason(Enum):
    """Why a generation ended by itself."""

    END = "end"
    MAX_TOKENS = "max_tokens"
    STOP = "stop"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    Attributes:
        log_probability: in the model's own distribution, natural logarithm; None unless asked for.
        alternatives: the most likely tokens with theirs, best first.
        outputs: raw bytes of further outputs of the step that it was drawn from, those that the plan names.
    """

    id: int
    log_probability: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    outputs: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to generate.

    Attributes:
        prompt: token ids, may be empty for a session that has taken a step.
        max_tokens: at least 1.
        banned: tokens that are never drawn; end: the one that ends the text and is no part of it.
        wants_log_probabilities, num_alternatives, outputs: what to tell beside each token; outputs by their number.
    """

    prompt: Sequence[int]
    sampling: Sampling
    max_tokens: int
    banned: tuple[int, ...] = ()
    end: int | None = None
    wants_log_probabilities: bool = False
    num_alternatives: int = 0
    outputs: tuple[int, ...] = ()


def check_task(model: ServedModel) -> None:
    """The model can generate: its task is next-token or translation, one integer goes in, scores come out first.

    Raises:
        ClientError: WRONG_TASK.
    """
    contract = model.contract
    fits = (
        contract.message.task in (contract_pb2.TASK_NEXT_TOKEN, contract_pb2.TASK_TRANSLATION)
        and len(contract.inputs) == 1
        and not contract.emits
        and contract.inputs[0].dtype.kind in "iu"
        and contract.inputs[0].shape == ()
        and len(contract.outputs[0].shape) == 1
        and contract.outputs[0].dtype.kind == "f"
    )
    if not fits:
        task = contract_pb2.Task.Name(contract.message.task).removeprefix("TASK_")
        raise ClientError(
            Reason.WRONG_TASK,
            f"model: {model.file.name!r} has the task {task}, expected NEXT_TOKEN or TRANSLATION with token ids in "
            "and scores out",
            Detail("model", task, "NEXT_TOKEN or TRANSLATION"),
        )


def max_prompt_steps(model: ServedModel) -> int:
    """The most tokens of a prompt in one chunk."""
    return max(1, min(model.config.max_steps, _MAX_PROMPT_CHUNK_BYTES // model.contract.answer_step_bytes))


class Generation:
    """One run over one session.

    Args:
        host: sessions and models; model: the session's, checked by `check_task`.
        row: the session's row; it may be ended or taken over meanwhile, which fails the generation.
        plan: what to generate.
        is_last: told each token as it is drawn; True ends the generation after it (a stop string).
        notify: called when there is something to take, or an end. Must not raise.
        prefixes: where states after pieces of the prompt are kept, of a session that begins with it, as long as `model`
            alone feeds it; known: the one that the session stands at, whose tokens are not fed.
    """

    def __init__(
        self,
        host: Host,
        model: ServedModel,
        row: int,
        plan: Plan,
        is_last: Callable[[int], bool],
        notify: Callable[[], None],
        prefixes: PrefixCache | None = None,
        known: Prefix | None = None,
    ) -> None:
        self._host = host
        self._model = model
        self._prefixes = prefixes
        self._known = known
        self._plan = plan
        self._is_last = is_last
        self._notify = notify
        self._handle = int(host.table.handle[row])
        port = model.contract.inputs[0]
        self._dtype = port.dtype
        # Changed only on the event loop. `is_gone`: nobody waits any more (`chunk.Source`).
        self.is_gone = False
        self.position = int(host.table.next_position[row])
        self.num_tokens = 0
        self.finish: FinishReason | None = None
        self.failure: EddyError | None = None
        self._num_prompt_fed = 0 if known is None else known.num_tokens
        self._arrival = host.clock()
        self._tokens: list[Token] = []
        # The end that follows once the last token is fed.
        self._ending: FinishReason | None = None
        # Outputs that wait for the reader to catch up.
        self._paused: Sequence[bytes] | None = None

    def start(self) -> None:
        """Queues the prompt, or goes on from the session's last scores.

        Raises:
            EddyError: nothing was queued: an empty prompt without kept scores, draining, a full queue.
        """
        self._follow()
        if self._num_prompt_fed < len(self._plan.prompt):
            self._feed_prompt()
            return
        if self._known is not None:
            self._go_on(self._known.outputs)
            return
        if self.position == 0:
            raise invalid(Reason.MISSING_FIELD, "prompt", "none", "at least one token: the session has taken no step")
        kept = self._model.last_reply(self._handle & 0xFFFFFFFF)
        if kept is None:
            raise ClientError(
                Reason.REPLY_NOT_KEPT,
                "prompt: none, and the scores of the session's last step are no longer kept; send at least one token",
                Detail("prompt", "none", "at least one token", next_position=self.position),
            )
        self._go_on(kept)

    def take(self) -> list[Token]:
        """The tokens drawn since the last time; a generation that waited for this goes on."""
        tokens, self._tokens = self._tokens, []
        if self._paused is not None and not self.is_gone:
            paused, self._paused = self._paused, None
            self._guarded(lambda: self._go_on(paused))
        return tokens

    def cancel(self) -> None:
        """Nobody waits any more: a step that has not begun is dropped."""
        self.is_gone = True

    def deliver(self, chunk: Chunk, result: ChunkResult) -> None:
        """Takes the scores of a chunk (`chunk.Source`)."""
        if self.is_gone:
            return
        if result.failure is not None or result.errors:
            self._fail(result.failure or result.errors[0])
            return
        self.position += chunk.num_steps
        outputs = result.outputs
        prompt = self._plan.prompt
        is_prompt = self.position <= len(prompt)
        if is_prompt and self._prefixes is not None:
            self._follow()  # A chunk that waited goes along with its session, and was the other model's then.
        if is_prompt and self._prefixes is not None and self._prefixes.wants(prompt, self.position):
            self._guarded(lambda: self._keep_prefix(outputs))
        else:
            self._fed(outputs)

    def _fed(self, outputs: Sequence[bytes]) -> None:
        """A chunk is through, with these outputs."""
        if self._num_prompt_fed < len(self._plan.prompt):
            self._guarded(self._feed_prompt)
        else:
            self._guarded(lambda: self._go_on(outputs))

    def _keep_prefix(self, outputs: Sequence[bytes]) -> None:
        """Copies the state after the tokens so far before the next ones are fed."""
        table, model, prefixes, position = self._host.table, self._model, self._prefixes, self.position
        assert prefixes is not None, "asked for with it"
        row = self._handle & 0xFFFFFFFF

        def read(states: list[np.ndarray] | EddyError) -> None:
            stands = (
                table.handle.item(row) == self._handle
                and table.next_position.item(row) == position
                and self._host.catalog.served[table.model_of(row)] is model
            )
            if stands and not isinstance(states, EddyError) and model.finite_rows(states, 1).all():
                named = {
                    state.name: values[0].copy() for state, values in zip(model.contract.states, states, strict=True)
                }
                last = [self._last_step(outputs, number) for number in range(len(model.contract.outputs))]
                prefixes.add(self._plan.prompt[:position], named, last)
            if not self.is_gone:
                self._fed(outputs)

        model.read_states(np.array([row]), read)
        self._host.dispatcher.notify(model)

    # Inner

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except EddyError as error:
            self._fail(error)
        except Exception:  # noqa: BLE001  the task's root: this generation fails, those that share its tick go on
            _LOG.exception("model %s: a generation failed after position %d", self._model.file.name, self.position)
            self._fail(ServerBug(Reason.INTERNAL, "the server failed to carry out this generation"))

    def _go_on(self, outputs: Sequence[bytes]) -> None:
        """Ends, waits for the reader, or draws the next token and feeds it; `outputs`: of the last chunk, raw."""
        if self._ending is not None:
            self._end(self._ending)
        elif self._host.gate.is_draining:
            self._end(FinishReason.DRAINING)
        elif len(self._tokens) >= _MAX_WAITING_TOKENS:
            self._paused = outputs
        else:
            self._draw(outputs)

    def _draw(self, outputs: Sequence[bytes]) -> None:
        scores = np.frombuffer(self._last_step(outputs, 0), self._model.contract.outputs[0].dtype)
        token = draw(scores, self._plan.sampling, self.position, self._plan.banned)
        if token is None:
            raise ModelError(
                Reason.MODEL_FAILED, f"the model's scores after position {self.position} are not finite numbers"
            )
        if token == self._plan.end:
            self._end(FinishReason.END)
            return
        if not self.num_tokens:
            self._model.stats.time_to_first_token.observe(self._host.clock() - self._arrival)
        self._model.stats.num_generated_tokens += 1
        self.num_tokens += 1
        extras = tuple([self._last_step(outputs, number) for number in self._plan.outputs])
        self._tokens.append(self._describe(token, scores, extras))
        if self._is_last(token):
            self._ending = FinishReason.STOP
        elif self.num_tokens >= self._plan.max_tokens:
            self._ending = FinishReason.MAX_TOKENS
        self._notify()
        self._submit(np.array([token], self._dtype))

    def _describe(self, token: int, scores: np.ndarray, extras: tuple[bytes, ...]) -> Token:
        plan = self._plan
        if not (plan.wants_log_probabilities or plan.num_alternatives):
            return Token(token, outputs=extras)
        logs = log_probabilities(scores)
        best = np.argsort(-logs, kind="stable")[: plan.num_alternatives]
        return Token(token, float(logs[token]), tuple((int(each), float(logs[each])) for each in best), extras)

    def _feed_prompt(self) -> None:
        begin = self._num_prompt_fed
        most = max_prompt_steps(self._model)
        if self._prefixes is not None:  # To where the state is copied.
            most = min(most, BLOCK_TOKENS - begin % BLOCK_TOKENS)
        part = self._plan.prompt[begin : begin + most]
        self._submit(np.array(part, self._dtype))
        self._num_prompt_fed += len(part)

    def _submit(self, ids: np.ndarray) -> None:
        self._follow()
        chunk = Chunk(
            self._handle.to_bytes(8, "little"),
            self.position.to_bytes(8, "little"),
            len(ids),
            self._model.contract.feed((ids.tobytes(),), 1, len(ids)),
            ANY_ROUTE,
            self,
            0,
            self._model.contract,
            self._host.clock(),
        )
        self._host.submit(self._model, chunk)

    def _follow(self) -> None:
        """The session may go on with another version of its model by now, which has the same ports.

        Its states are of both then, and are kept for neither.
        """
        table, row = self._host.table, self._handle & ROW_MASK
        if table.handle.item(row) != self._handle:
            return
        model = self._host.catalog.served[table.model_of(row)]
        if model is not self._model:
            self._model, self._prefixes = model, None

    def _last_step(self, outputs: Sequence[bytes], number: int) -> bytes:
        """One output's last step, raw."""
        return outputs[number][-self._model.contract.outputs[number].step_bytes :]

    def _end(self, reason: FinishReason) -> None:
        self.finish = reason
        self._notify()

    def _fail(self, error: EddyError) -> None:
        self.failure = error
        self._notify()
