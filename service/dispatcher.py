"""The dispatcher: runs ticks, small ones on the event loop, large ones on the engine thread.

Owns the engine thread and the hand-over. Must not know what is in a tick, or the wire. No batching delay: a pass over
the models happens once the event loop has read what has arrived, and while a tick runs the next one gathers itself.

A hand-over between threads costs 50 to 100 us, so ticks expected to be shorter than `inline_tick_seconds` run where
they are formed. More ticks are formed while one runs, so that the engine thread does not wait for the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from eddy.service.errors import EddyError, Reason, ServerBug
from eddy.service.model import ServedModel
from eddy.service.polling import BusyPoll
from eddy.service.tick import AnyTick, Job, SingleTick

_LOG = logging.getLogger(__name__)

# One running and two waiting: with one, the engine thread is busy for 0.83 of the time under four streams of 256
# sessions, with two for 0.90. More would only fix the order of later chunks too early.
_MAX_TICKS_AWAY = 3


class Dispatcher:
    """Runs the ticks of all models.

    Args:
        loop: the server's event loop; all methods are called on it.
        clock: monotonic seconds.
        inline_tick_seconds: longest expected tick to run on the loop.
        busy_poll_seconds: how long the loop looks for the next step of a session alone before it sleeps.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        inline_tick_seconds: float,
        busy_poll_seconds: float = 0.0,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._inline_tick_seconds = inline_tick_seconds
        self._busy_poll = BusyPoll(loop, clock, busy_poll_seconds)
        # Changed only on the loop.
        self._pending: dict[ServedModel, None] = {}
        self._ticks_away: dict[ServedModel, int] = {}
        self._before_pass: list[Callable[[], None]] = []
        # A pass is to come.
        self.is_scheduled = False
        self.num_inline_ticks = 0
        self.num_thread_ticks = 0
        self._jobs: SimpleQueue[tuple[ServedModel, AnyTick] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="eddy-engine", daemon=True)
        self._thread.start()

    def notify(self, model: ServedModel) -> None:
        """Something was queued for `model`."""
        self._pending[model] = None
        self._schedule()

    def call_before_pass(self, submit: Callable[[], None]) -> None:
        """`submit` has something to queue, and is called when the event loop has read what has arrived."""
        self._before_pass.append(submit)
        self._schedule()

    def _schedule(self) -> None:
        if not self.is_scheduled:
            self.is_scheduled = True
            self._loop.call_soon(self._pass)

    def close(self) -> None:
        """Ends the engine thread after what it has been given."""
        self._jobs.put(None)
        self._thread.join()

    @property
    def is_idle(self) -> bool:
        """No tick runs and none is about to be formed."""
        return not self._pending and not self._before_pass and not any(self._ticks_away.values())

    def is_unused(self, model: ServedModel) -> bool:
        """Nothing of `model` waits or runs."""
        return model not in self._pending and not self._ticks_away.get(model) and model.scheduler.queue.is_idle

    def forget(self, model: ServedModel) -> None:
        """`model`, which is unused, is freed."""
        self._ticks_away.pop(model, None)

    def _pass(self) -> None:
        """One tick a model at most, then back to the event loop."""
        submits, self._before_pass = self._before_pass, []
        for submit in submits:
            submit()
        self.is_scheduled = False
        models = list(self._pending)
        self._pending.clear()
        for model in models:
            self._advance(model)

    def _advance(self, model: ServedModel) -> None:
        away = self._ticks_away.get(model, 0)
        if away >= _MAX_TICKS_AWAY:
            return  # `_finish` comes back to it.
        tick = self._next_tick(model)
        if tick is None:
            return
        expected = model.cost.seconds(tick.num_rows, tick.num_steps)
        if away == 0 and expected <= self._inline_tick_seconds:
            self.num_inline_ticks += 1
            self._complete(model, tick, self._run(model, tick), was_begun=False)
        else:
            self.num_thread_ticks += 1
            self._ticks_away[model] = away + 1
            model.scheduler.begin(tick)
            self._jobs.put((model, tick))
        if len(model.scheduler.queue):
            self.notify(model)

    def _next_tick(self, model: ServedModel) -> AnyTick | None:
        try:
            return model.scheduler.next_tick(self._clock())
        except Exception:  # noqa: BLE001  the task's root: what waits for this model fails, the server goes on
            _LOG.exception("model %s version %s: no tick could be formed", model.file.name, model.file.version)
            model.scheduler.fail_queue(_bug())
            return None

    def _complete(
        self, model: ServedModel, tick: AnyTick, outcome: list[bytes] | EddyError, *, was_begun: bool
    ) -> None:
        if isinstance(outcome, EddyError):
            model.scheduler.abort(tick, outcome, was_begun=was_begun)
            return
        try:
            model.scheduler.commit(tick, outcome, self._clock(), was_begun=was_begun)
        except Exception:  # noqa: BLE001  the task's root: the tick's sessions fail, the server goes on
            _LOG.exception("model %s version %s: a tick was not committed", model.file.name, model.file.version)
            model.scheduler.abort(tick, _bug(), was_begun=was_begun)
            return
        now = self._clock()
        _observe(model, tick, now)
        if isinstance(tick, SingleTick):
            self._busy_poll.stepped(now)

    def _finish(self, model: ServedModel, tick: AnyTick, outcome: list[bytes] | EddyError) -> None:
        self._ticks_away[model] -= 1
        self._complete(model, tick, outcome, was_begun=True)
        if len(model.scheduler.queue):
            self.notify(model)

    def _run(self, model: ServedModel, tick: AnyTick) -> list[bytes] | EddyError:
        tick.started = self._clock()
        try:
            if isinstance(tick, Job):
                outputs = tick.run()
            else:
                if tick.moves is not None:
                    tick.moves.carry_out()
                outputs = model.engine.run(
                    tick.inputs, tick.read_slots, tick.write_slots, tick.num_rows, tick.num_steps, tick.home_slots
                )
        except EddyError as error:
            _LOG.error("model %s version %s: %s", model.file.name, model.file.version, error.message)
            return error
        except Exception:  # noqa: BLE001  the task's root: the tick's sessions fail, the server goes on
            _LOG.exception("model %s version %s: a tick failed", model.file.name, model.file.version)
            return _bug()
        tick.run_seconds = model.engine.run_seconds
        return outputs

    def _work(self) -> None:
        """The engine thread."""
        while (job := self._jobs.get()) is not None:
            model, tick = job
            outcome = self._run(model, tick)
            self._loop.call_soon_threadsafe(self._finish, model, tick, outcome)
            # While it waits it must not keep a model that is freed.
            del job, model, tick, outcome


def _observe(model: ServedModel, tick: AnyTick, now: float) -> None:
    """Counts a tick whose chunks have just been answered."""
    stats = model.stats
    if isinstance(tick, SingleTick):
        stats.observe_lone(tick.chunk.arrival, tick.started, now, tick.run_seconds)
        return
    if isinstance(tick, Job):
        if tick.is_run:
            stats.observe_tick(tick.num_rows, tick.run_seconds)
        return
    stats.observe_tick(tick.num_rows, tick.run_seconds)
    if tick.positions is not None:
        stats.observe_chunks(tick.chunks, tick.started, now)
    else:
        stats.observe_slices(tick.chunks, tick.num_steps, tick.started, now)


def _bug() -> ServerBug:
    return ServerBug(Reason.INTERNAL, "the server failed to carry out this chunk; sessions whose state it touched end")
