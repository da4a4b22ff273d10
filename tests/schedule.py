"""Random schedules: what clients, the network and the engine may do to one model, in any order.

Owns the actions and their effect on a rig. Every action is legal for a client to do; what the service does with it is
judged by the oracle in `simulation`.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from graphs import Family, FileFamily, PlainGraph, Start
from hypothesis import strategies as st
from simulation import STREAM, Mailbox, Rig, Sent, Writer, assert_same, check_writer

from eddy.service.errors import EddyError, ServerBug
from eddy.service.forks import fork_of_model

Action = tuple[Any, ...]

_pick = st.integers(0, 11)
_STEPS = st.tuples(st.just("step"), st.lists(_pick, min_size=1, max_size=5, unique=True), st.integers(1, 9))
_OPEN = st.tuples(st.just("open"), st.integers(1, 3), st.integers(1, 3))
_TICKS = st.sampled_from([("tick",), ("form",), ("form",), ("commit",)])
_CONTROLS = st.tuples(st.sampled_from(["close", "reset", "attach"]), _pick)
_ENDS = st.tuples(st.just("end"), _pick)
_RETRIES = st.tuples(st.just("retry"), _pick, st.integers(0, 3))
_ABUSE = st.tuples(st.sampled_from(["poison", "ahead", "overlap", "changed", "stale"]), _pick)
_FAILURES = st.one_of(st.just(("fail",)), st.tuples(st.just("cancel"), _pick))

# Everybody behaves, and nothing fails.
CALM = st.lists(st.one_of(_STEPS, _STEPS, _OPEN, _TICKS, _CONTROLS, _ENDS), min_size=4, max_size=40)
# Retries, abuse and failures on top.
STORMY = st.lists(
    st.one_of(_STEPS, _STEPS, _STEPS, _OPEN, _TICKS, _CONTROLS, _ENDS, _RETRIES, _ABUSE, _FAILURES),
    min_size=12,
    max_size=60,
)


# The same where there are more sessions than slots: time passes, sessions are forked, states are read and put back, and
# page moves fail.
_PAGES = st.one_of(
    st.just(("wait",)),
    st.tuples(st.just("keep"), _pick),
    st.tuples(st.just("fork"), _pick),
    st.tuples(st.just("quarantine"), _pick),
    st.just(("put",)),
    st.tuples(st.just("fail_moves"), st.booleans()),
)
CROWDED = st.lists(
    st.one_of(_STEPS, _STEPS, _STEPS, _OPEN, _TICKS, _TICKS, _CONTROLS, _ENDS, _RETRIES, _ABUSE, _FAILURES, _PAGES),
    min_size=12,
    max_size=60,
)


# The same with a state store that answers late, and now and then fails.
_SHELF = st.one_of(
    st.sampled_from([("answer",), ("answer",), ("checkpoint",)]), st.tuples(st.just("go_away"), st.booleans())
)
SHELVED = st.lists(
    st.one_of(
        _STEPS, _STEPS, _STEPS, _OPEN, _OPEN, _TICKS, _TICKS, _CONTROLS, _ENDS, _RETRIES, _FAILURES, _PAGES, _SHELF
    ),
    min_size=12,
    max_size=60,
)


# A crowd that is written as soon as it has changed, so that all who leave the host's memory are in the store only.
_FEW_STEPS = st.tuples(st.just("step"), st.lists(_pick, min_size=1, max_size=2, unique=True), st.integers(1, 2))
TIERED = st.lists(
    st.one_of(
        _FEW_STEPS,
        _FEW_STEPS,
        _TICKS,
        st.sampled_from([("wait",), ("checkpoint",), ("checkpoint",), ("answer",), ("settle",), ("settle",)]),
        st.tuples(st.sampled_from(["reset", "fork", "fork", "keep", "close", "attach", "fail_moves"]), _pick),
    ),
    min_size=20,
    max_size=80,
)


class Schedule:
    """Carries out actions on a rig.

    Args:
        seed: of the inputs; marker: scales the floating-point inputs of every other session, to show cross-talk.
    """

    def __init__(self, rig: Rig, *, seed: int = 0, marker: float = 1.0) -> None:
        self.rig = rig
        self.writers: list[Writer] = []
        self.finished: list[Writer] = []
        self._generator = np.random.default_rng(seed)
        self._marker = marker
        self._abused: set[int] = set()
        self._must_fail: list[int] = []
        self._gone = Mailbox()
        self._num_forking = 0
        # What was read of a session: its writer, handle, position and states.
        self._kept: tuple[Writer, int, int, list[np.ndarray]] | None = None
        # All that was read: what the session had been sent until then, how it began, its position and its states.
        self._reads: list[tuple[list[Sent], Start | None, int, list[np.ndarray]]] = []

    def run(self, actions: list[Action], num_sessions: int = 2) -> None:
        """Carries out all actions on `num_sessions` and those that are opened, then lets everything finish."""
        self._open(num_sessions, 1)
        for name, *arguments in actions:
            perform: Callable[..., None] = getattr(self, f"_{name}")
            perform(*arguments)
            self.rig.check_places()
        self.rig.run_all()
        self.rig.check_places(is_quiet=True)

    def check(self, plain: PlainGraph) -> int:
        """Judges every session that ever was, and all that was read; returns the number of steps compared."""
        if self.rig.shelf is not None:
            self.rig.shelf.is_away = False
        self._notice_ends()
        for sents, start, position, states in self._reads:
            self._check_read(plain, sents, start, position, states)
        return sum(check_writer(self.rig, plain, writer) for writer in (*self.writers, *self.finished))

    def _check_read(
        self, plain: PlainGraph, sents: list[Sent], start: Start | None, position: int, states: list[np.ndarray]
    ) -> None:
        """What was read of a session is what the plain graph gives for the steps before."""
        if position:
            inputs = [np.concatenate(values) for values in zip(*[sent.inputs for sent in sents], strict=True)]
            _, expected = plain.whole([values[:position] for values in inputs], start)
        elif start is None:
            expected = [state.initial for state in self.rig.model.contract.states]
        else:
            return
        for state, wanted in zip(states, expected, strict=True):
            assert_same(state, wanted, self.rig.family.tolerance)

    def refused(self) -> list[str]:
        """Reasons of all chunks and rows that were refused, but for those that were meant to be."""
        reasons = []
        for tag, result in self.rig.mailbox.results.items():
            errors = [result.failure] if result.failure else list(result.errors.values())
            if tag not in self._abused:
                reasons += [error.message for error in errors]
        return reasons

    # Clients

    def _writer(self, pick: int) -> Writer | None:
        self._notice_ends()
        return self.writers[pick % len(self.writers)] if self.writers else None

    def _notice_ends(self) -> None:
        """The server said which sessions ended because their model failed."""
        ended = {handle for _, handles, _ in self.rig.ended for handle in handles}
        for writer in [writer for writer in self.writers if writer.handle in ended]:
            self._finish(writer)

    def _finish(self, writer: Writer) -> None:
        writer.is_open = False
        self.writers.remove(writer)
        self.finished.append(writer)

    def _outstanding(self, writer: Writer) -> int:
        results = self.rig.mailbox.results
        return sum(tag not in results for sent in writer.sent for tag, _ in sent.tags)

    def _resync(self, writer: Writer) -> None:
        """A client that has nothing under way asks where its session is."""
        if not self._outstanding(writer):
            writer.position = int(self.rig.table.next_position[writer.row])

    def _open(self, num_sessions: int, max_in_flight: int) -> None:
        if len(self.writers) + num_sessions > 12:
            return
        for row in self.rig.open(num_sessions, max_in_flight=max_in_flight).tolist():
            start = self.rig.family.start(self._generator)
            if start is not None:
                self.rig.begin(row, start)
            self.writers.append(Writer(row, int(self.rig.table.handle[row]), max_in_flight, start))

    def _step(self, picks: list[int], num_steps: int) -> None:
        chosen: list[Writer] = []
        for pick in picks:
            writer = self._writer(pick)
            if writer is None or writer in chosen:
                continue
            self._resync(writer)
            if self._outstanding(writer) < writer.max_in_flight:
                chosen.append(writer)
        if not chosen:
            return
        sents = []
        for writer in chosen:
            sent = Sent(writer.position, self._inputs(writer, num_steps))
            writer.sent.append(sent)
            writer.position += num_steps
            sents.append(sent)
        self._send(chosen, sents)

    def _inputs(self, writer: Writer, num_steps: int) -> list[np.ndarray]:
        values = self.rig.family.example(self._generator, num_steps)
        if writer.row % 2:
            for port, array in zip(self.rig.family.inputs, values, strict=True):
                if np.dtype(port.dtype).kind == "f":
                    array *= port.dtype(self._marker)
        return self.rig.family.feeds(values)

    def _end(self, pick: int) -> None:
        """The stream of a session ends, where its model has ends; what follows is a new one."""
        writer = self._writer(pick)
        if writer is None or self.rig.family.ends is None:
            return
        self._resync(writer)
        if self._outstanding(writer) < writer.max_in_flight:
            sent = Sent(writer.position, self.rig.family.end())
            writer.sent.append(sent)
            writer.position += 1
            self._send([writer], [sent])

    def _feeds(self, num_steps: int) -> list[np.ndarray]:
        return self.rig.family.feeds(self.rig.family.example(self._generator, num_steps))

    def _send(self, writers: list[Writer], sents: list[Sent]) -> int:
        inputs = [np.stack(values) for values in zip(*[sent.inputs for sent in sents], strict=True)]
        handles = np.array([writer.handle for writer in writers], np.uint64)
        chunk = self.rig.chunk(handles, [sent.position for sent in sents], inputs)
        for index, sent in enumerate(sents):
            sent.tags.append((chunk.tag, index))
        self.rig.scheduler.queue.submit(chunk)
        return chunk.tag

    def _retry(self, pick: int, age: int) -> None:
        """The same chunk again: its reply may have been lost."""
        writer = self._writer(pick)
        if writer is not None and writer.sent:
            tag = self._send([writer], [writer.sent[-1 - age % len(writer.sent)]])
            self._abused.add(tag)
            # Refused or not, it is answered.

    # Operations that keep their place among the chunks, as the host submits them

    def _control(self, writer: Writer, apply: Callable[[np.ndarray], None]) -> None:
        rows, handle = np.array([writer.row]), writer.handle

        def run() -> None:
            if int(self.rig.table.handle[writer.row]) == handle:
                apply(rows)

        self.rig.scheduler.queue.submit_control(rows, run)

    def _close(self, pick: int) -> None:
        writer = self._writer(pick)
        if writer is not None:
            self._control(writer, self.rig.model.close_sessions)
            self._finish(writer)

    def _reset(self, pick: int) -> None:
        if self.rig.family.prime is None:  # Of others the server refuses it: what they began with is not kept.
            self._in_new_epoch(pick, self.rig.model.reset_sessions, restarts=True)

    def _attach(self, pick: int) -> None:
        """The same stream takes the session over: only the epoch changes."""
        self._in_new_epoch(pick, lambda rows: self.rig.table.attach(int(rows[0]), STREAM), restarts=False)

    def _in_new_epoch(self, pick: int, apply: Callable[[np.ndarray], None], *, restarts: bool) -> None:
        writer = self._writer(pick)
        if writer is None:
            return
        handles: list[int] = []

        def run(rows: np.ndarray) -> None:
            apply(rows)
            handles.append(int(self.rig.table.handle[writer.row]))

        self._control(writer, run)
        self.rig.run_all()  # The client waits for its new handle.
        self._notice_ends()
        if not handles:
            return
        if restarts:
            past = Writer(writer.row, writer.handle, writer.max_in_flight, writer.start)
            past.sent, past.is_open = writer.sent, False
            self.finished.append(past)
            writer.restart(handles[0])
        else:
            writer.handle = handles[0]

    # Abuse: each is refused, and changes nothing

    def _abuse(self, writer: Writer, position: int, inputs: list[np.ndarray], handle: int | None = None) -> None:
        chunk = self.rig.chunk(
            [writer.handle if handle is None else handle], [position], [values[None] for values in inputs]
        )
        self._abused.add(chunk.tag)
        self.rig.scheduler.queue.submit(chunk)
        # Refused in every case: checked when the schedule has ended.
        self._must_fail.append(chunk.tag)

    def check_refusals(self) -> None:
        """Every abuse was answered with an error."""
        for tag in self._must_fail:
            result = self.rig.mailbox.results[tag]
            error: EddyError | None = result.failure or result.errors.get(0)
            assert error is not None, "abuse was carried out"
        assert not self._gone.results, "a client that is gone was answered"

    def _poison(self, pick: int) -> None:
        """Values that are not allowed, in a session of their own chunk."""
        writer = self._writer(pick)
        if writer is None:
            return
        self._resync(writer)
        inputs = self._feeds(2)
        port = self.rig.family.inputs[0]
        if np.dtype(port.dtype).kind == "f":
            inputs[0].flat[-1] = np.nan
        elif port.values is not None:
            inputs[0].flat[-1] = int(port.values[1]) + 1
        else:
            return
        self._abuse(writer, writer.position, inputs)

    def _ahead(self, pick: int) -> None:
        writer = self._writer(pick)
        if writer is not None:
            self._abuse(writer, writer.position + 1000, self._feeds(1))

    def _overlap(self, pick: int) -> None:
        """Begins inside of a chunk that was sent."""
        writer = self._writer(pick)
        longer = [sent for sent in writer.sent if sent.num_steps > 1] if writer is not None else []
        if writer is not None and longer and not self._outstanding(writer) and self._was_applied(longer[-1]):
            inputs = [values[1:] for values in longer[-1].inputs]
            self._abuse(writer, longer[-1].position + 1, inputs)

    def _changed(self, pick: int) -> None:
        """An applied chunk again, with other inputs."""
        writer = self._writer(pick)
        if writer is None or not writer.sent or self._outstanding(writer) or not self._was_applied(writer.sent[-1]):
            return
        sent = writer.sent[-1]
        inputs = self._feeds(sent.num_steps)
        if any((ours != theirs).any() for ours, theirs in zip(inputs, sent.inputs, strict=True)):
            self._abuse(writer, sent.position, inputs)

    def _was_applied(self, sent: Sent) -> bool:
        results = self.rig.mailbox.results
        return any(
            tag in results and results[tag].failure is None and index not in results[tag].errors
            for tag, index in sent.tags
        )

    def _stale(self, pick: int) -> None:
        """A handle of an epoch before."""
        writer = self._writer(pick)
        if writer is not None:
            self._resync(writer)
            inputs = self._feeds(1)
            self._abuse(writer, writer.position, inputs, writer.handle - (1 << 32))

    # The engine

    def _tick(self) -> None:
        if not self.rig.away:
            self.rig.run_tick()

    def _form(self) -> None:
        if len(self.rig.away) < 2:
            self.rig.form_tick()

    def _commit(self) -> None:
        self.rig.commit_tick()

    def _fail(self) -> None:
        self.rig.fail_tick()

    # Pages

    def _wait(self) -> None:
        self.rig.clock.advance(1.0)

    def _settle(self) -> None:
        """All that was asked for is done before more is."""
        self.rig.run_all()
        self.rig.check_places(is_quiet=True)

    def _answer(self) -> None:
        assert self.rig.shelf is not None
        self.rig.shelf.work()

    def _go_away(self, is_away: bool) -> None:
        assert self.rig.shelf is not None
        self.rig.shelf.is_away = is_away

    def _checkpoint(self) -> None:
        assert self.rig.shelf is not None
        self.rig.shelf.checkpoint(self.rig.model)

    def _fork(self, pick: int) -> None:
        """A session goes on beside another one from where that stands. Nobody waits for it."""
        writer = self._writer(pick)
        if writer is None or len(self.writers) + self._num_forking >= 12:
            return
        table = self.rig.table

        def run(rows: np.ndarray) -> None:
            past, start, position = self._applied(writer), writer.start, int(table.next_position[writer.row])

            def done(outcome: np.ndarray | EddyError) -> None:
                self._num_forking -= 1
                if isinstance(outcome, EddyError):
                    assert not isinstance(outcome, ServerBug), outcome
                    return
                row = int(outcome[0])
                table.is_durable[row] = self.rig.shelf is not None
                child = Writer(row, int(table.handle[row]), writer.max_in_flight, start)
                child.sent, child.position = list(past), position
                assert int(table.next_position[row]) == position, "a fork stands elsewhere"
                self.writers.append(child)

            self._num_forking += 1
            fork_of_model(self.rig.model, rows, STREAM, lambda _: None, done)

        self._control(writer, run)

    def _quarantine(self, pick: int) -> None:
        writer = self._writer(pick)
        if writer is not None:
            self._control(writer, self.rig.model.quarantine_sessions)

    def _applied(self, writer: Writer) -> list[Sent]:
        """What a session has taken by now, in order."""
        return sorted((sent for sent in writer.sent if self._was_applied(sent)), key=lambda sent: sent.position)

    def _keep(self, pick: int) -> None:
        """Reads a session's states, as a checkpoint does."""
        writer = self._writer(pick)
        if writer is None:
            return
        row, handle = writer.row, writer.handle

        def done(states: list[np.ndarray] | EddyError) -> None:
            if isinstance(states, EddyError):
                assert self.rig.shelf is not None and not isinstance(states, ServerBug), states
                return
            if int(self.rig.table.handle[row]) == handle:
                position = int(self.rig.table.next_position[row])
                self._kept = writer, handle, position, states
                first = [values[0] for values in states]
                self._reads.append((self._applied(writer), writer.start, position, first))

        self.rig.model.read_states(np.array([row]), done)

    def _put(self) -> None:
        """Gives a session the states that it has: as if it were restored. Ticks of others may be under way."""
        if self._kept is None:
            return
        writer, handle, position, states = self._kept
        table, row = self.rig.table, np.array([writer.row])
        is_same = int(table.handle[writer.row]) == handle and int(table.next_position[writer.row]) == position
        if is_same and not table.is_busy[writer.row]:
            self.rig.model.place_states(row, states)

    def _fail_moves(self, gets_out: int) -> None:
        if len(self.rig.away) < 2:
            self.rig.fail_moves(gets_out=gets_out % 2 == 1)

    def _cancel(self, pick: int) -> None:
        """A client goes away before its chunk has begun: it is neither carried out nor answered."""
        writer = self._writer(pick)
        if writer is None:
            return
        inputs = [values[None] for values in self._feeds(3)]
        self._gone.is_gone = True
        self.rig.scheduler.queue.submit(self.rig.chunk([writer.handle], [writer.position], inputs, source=self._gone))


_plain: dict[tuple[str, Path | None], PlainGraph] = {}


def plain_graph(family: Family) -> PlainGraph:
    """The plain graph of a family, loaded once. A file's model may be called as another file's, or as a built one."""
    key = family.name, family.path if isinstance(family, FileFamily) else None
    if key not in _plain:
        _plain[key] = PlainGraph(family)
    return _plain[key]
