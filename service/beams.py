"""Beam search: several continuations of one session at once, of which the most likely is kept.

Owns the beams and their sessions. It is a chunk's source, as a generation is. Must not know the wire or text.

Every beam is a session of its own, all stepped by one chunk, so beams share ticks with everything else. A step keeps
the best continuations of all beams: where they come from is where the sessions' next step reads its states, so that
nothing is copied. What the prompt wrote and no step writes (an encoder's memory) stays with the first session, and all
read it there.

Ordering rules: one chunk at a time; all beams move in one chunk, so a state is read before another beam overwrites it.

Dimension key: K beams, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eddy.service.chunk import Chunk, ChunkResult
from eddy.service.errors import EddyError, ModelError, Reason, ServerBug
from eddy.service.generation import FinishReason, Plan, Token, max_prompt_steps
from eddy.service.host import Host
from eddy.service.model import ServedModel
from eddy.service.sampling import log_probabilities
from eddy.service.sessions import ANY_ROUTE, NO_STREAM

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Node:
    """One symbol of a beam, behind the symbols before it.

    Attributes:
        total: log-probability of all of them.
    """

    before: _Node | None
    token: Token
    total: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished beam.

    Attributes:
        total: log-probability of all tokens, the end included; score: that, by the length penalty.
    """

    tokens: tuple[Token, ...]
    total: float
    score: float


class BeamSearch:
    """One search over one new session.

    Args:
        host: sessions and models; model: the session's, checked by `generation.check_task`.
        row: the session's row, at its beginning; plan: what to generate.
        num_beams: K, at least 2; length_penalty: the power of the number of tokens that totals are divided by.
        notify: called when there is an end. Must not raise.
    """

    def __init__(
        self,
        host: Host,
        model: ServedModel,
        row: int,
        plan: Plan,
        num_beams: int,
        length_penalty: float,
        notify: Callable[[], None],
    ) -> None:
        self._host = host
        self._model = model
        self._plan = plan
        self._num_beams = num_beams
        self._length_penalty = length_penalty
        self._notify = notify
        self._dtype = model.contract.inputs[0].dtype
        # Changed only on the event loop. `is_gone`: nobody waits any more (`chunk.Source`).
        self.is_gone = False
        self.position = int(host.table.next_position[row])
        self.finish: FinishReason | None = None
        self.failure: EddyError | None = None
        self.hypotheses: list[Hypothesis] = []
        self._rows = np.array([row])
        self._handles = host.table.handle[self._rows]
        self._num_prompt_fed = 0
        self._arrival = host.clock()
        # Unfinished beams, one a session; empty while the prompt is fed.
        self._open: list[_Node] = []
        self._is_told = False

    @property
    def num_tokens(self) -> int:
        """Tokens of the best beam."""
        return len(self.hypotheses[0].tokens) if self.hypotheses else 0

    def start(self) -> None:
        """Queues the prompt.

        Raises:
            EddyError: nothing was queued: draining, a full queue.
        """
        self._feed_prompt()

    def take(self) -> list[Token]:
        """The best beam's tokens, once there are any."""
        if self._is_told or not self.hypotheses:
            return []
        self._is_told = True
        return list(self.hypotheses[0].tokens)

    def cancel(self) -> None:
        """Nobody waits any more: a step that has not begun is dropped, and the beams' own sessions end."""
        self.is_gone = True
        self._close()

    def deliver(self, chunk: Chunk, result: ChunkResult) -> None:
        """Takes the scores of a chunk (`chunk.Source`)."""
        if self.is_gone:
            return
        if result.failure is not None or result.errors:
            self._fail(result.failure or next(iter(result.errors.values())))
            return
        self.position += chunk.num_steps
        try:
            if self._num_prompt_fed < len(self._plan.prompt):
                self._feed_prompt()
            else:
                self._extend(self._last_steps(chunk, result))
        except EddyError as error:
            self._fail(error)
        except Exception:  # noqa: BLE001  the task's root: this search fails, those that share its tick go on
            _LOG.exception("model %s: a beam search failed after position %d", self._model.file.name, self.position)
            self._fail(ServerBug(Reason.INTERNAL, "the server failed to carry out this search"))

    # Inner

    def _last_steps(self, chunk: Chunk, result: ChunkResult) -> list[np.ndarray]:
        """Each output's last step, [K, ...]."""
        contract = self._model.contract
        return [
            port.view(block, chunk.num_rows, chunk.num_steps)[:, -1]
            for port, block in zip(contract.outputs, result.outputs, strict=True)
        ]

    def _extend(self, outputs: list[np.ndarray]) -> None:
        """Adds a symbol to the best beams, and steps them."""
        scores = outputs[0]
        if not np.isfinite(scores).all():
            raise ModelError(
                Reason.MODEL_FAILED, f"the model's scores after position {self.position} are not finite numbers"
            )
        plan, vocabulary = self._plan, scores.shape[1]
        logs = np.stack([log_probabilities(row) for row in scores])
        totals = logs + np.array([[node.total] for node in self._open] or [[0.0]])
        totals[:, list(plan.banned)] = -np.inf
        # Twice as many as are kept: of each beam only one can end.
        best = _largest(totals.reshape(-1), 2 * self._num_beams)
        grown: list[_Node] = []
        parents: list[int] = []
        for place in best.tolist():
            beam, token = divmod(place, vocabulary)
            total = float(totals[beam, token])
            if total == -np.inf:
                break
            before = self._open[beam] if self._open else None
            if token == plan.end:
                self._finish_beam(before, total)
            elif len(grown) < self._num_beams:
                extras = tuple(outputs[number][beam].tobytes() for number in plan.outputs)
                log = float(logs[beam, token]) if plan.wants_log_probabilities else None
                num_tokens = 1 if before is None else before.num_tokens + 1
                grown.append(_Node(before, Token(token, log, (), extras), total, num_tokens))
                parents.append(beam)
        if not self._open:
            self._model.stats.time_to_first_token.observe(self._host.clock() - self._arrival)
        self._open = grown
        self._go_on(parents)

    def _go_on(self, parents: list[int]) -> None:
        """Ends, or steps the beams, which continue `parents`."""
        if len(self.hypotheses) >= self._num_beams or not self._open:
            self._end(FinishReason.END)
        elif self._host.gate.is_draining:
            self._end(FinishReason.DRAINING)
        elif self._open[0].num_tokens >= self._plan.max_tokens:
            self._end(FinishReason.END if self.hypotheses else FinishReason.MAX_TOKENS)
        else:
            self._move(parents)
            ids = np.array([node.token.id for node in self._open], self._dtype)
            self._submit(ids, len(self._open))

    def _move(self, parents: list[int]) -> None:
        """The sessions of the beams go on from their parents' states."""
        missing = len(parents) - len(self._rows)
        if missing > 0:
            added = self._model.open_sessions(missing, NO_STREAM, 1, self._host.config.session.idle_timeout_seconds)
            self._host.table.is_bound[added] = True
            self._rows = np.concatenate([self._rows, added])
            self._handles = self._host.table.handle[self._rows]
        self._host.table.fork(self._rows[: len(parents)], self._rows[parents])

    def _feed_prompt(self) -> None:
        begin = self._num_prompt_fed
        part = self._plan.prompt[begin : begin + max_prompt_steps(self._model)]
        self._num_prompt_fed += len(part)
        self._submit(np.array(part, self._dtype), 1)

    def _submit(self, ids: np.ndarray, num_rows: int) -> None:
        """Queues `ids` int [K] as one step of K beams, or int [T] as T steps of one."""
        table = self._host.table
        if (table.handle[self._rows] != self._handles).any():
            ended = int(self._handles[table.handle[self._rows] != self._handles][0])
            raise table.explain(ended)
        contract, num_steps = self._model.contract, len(ids) // num_rows
        chunk = Chunk(
            self._handles[:num_rows].astype("<u8").tobytes(),
            np.full(num_rows, self.position, "<u8").tobytes(),
            num_steps,
            contract.feed((ids.tobytes(),), num_rows, num_steps),
            ANY_ROUTE,
            self,
            0,
            contract,
            self._host.clock(),
        )
        self._host.submit(self._model, chunk)

    def _finish_beam(self, node: _Node | None, total: float) -> None:
        num_tokens = 1 if node is None else node.num_tokens + 1  # With the end.
        self.hypotheses.append(Hypothesis(_tokens(node), total, total / num_tokens**self._length_penalty))

    def _end(self, reason: FinishReason) -> None:
        if not self.hypotheses:
            self.hypotheses = [
                Hypothesis(_tokens(node), node.total, node.total / node.num_tokens**self._length_penalty)
                for node in self._open
            ]
        self.hypotheses.sort(key=lambda found: -found.score)
        self._model.stats.num_generated_tokens += self.num_tokens
        self.finish = reason
        self._close()
        self._notify()

    def _fail(self, error: EddyError) -> None:
        self.failure = error
        self._close()
        self._notify()

    def _close(self) -> None:
        """Ends the sessions of all beams but the first, which is the caller's."""
        rows, handles = self._rows[1:], self._handles[1:]
        self._rows, self._handles = self._rows[:1], self._handles[:1]
        table = self._host.table
        mine = self._rows[table.handle[self._rows] == self._handles]
        table.is_bound[mine] = False
        table.part(mine)
        present = rows[table.handle[rows] == handles]
        if len(present):
            self._host.endings.close(present, lambda _: None)


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest of `values` [N], largest first, of equal ones the first; without sorting all."""
    if count < len(values):
        least = np.partition(values, len(values) - count)[len(values) - count]
        candidates = np.flatnonzero(values >= least)
    else:
        candidates = np.arange(len(values))
    return np.asarray(candidates[np.argsort(-values[candidates], kind="stable")][:count])


def _tokens(node: _Node | None) -> tuple[Token, ...]:
    found: list[Token] = []
    while node is not None:
        found.append(node.token)
        node = node.before
    return tuple(reversed(found))
