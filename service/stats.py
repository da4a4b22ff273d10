"""Counters and histograms that are kept while serving, and read when somebody asks.

Owns what is counted for one model and for calls, and the bounds of the histograms. Must not know who reads them. All
of it is changed on the event loop only; other threads may read (see `histogram`).

What a tick costs here is paid by everybody who waits for its answers: nothing is done a row, and what is done a chunk
is two binary searches.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from eddy.service.chunk import Chunk
from eddy.service.histogram import Histogram
from eddy.service.lifecycle import Event
from eddy.service.pages import PageMoves

# Powers of two: batches grow by doubling load, and 1024 is the default of `model.max_rows`.
ROW_BOUNDS = tuple(float(1 << power) for power in range(11))
# A lone step is answered within 100 to 300 us and a tick lasts 10 ms at most by default, so the low end is fine enough
# to show one from the other; 10 s is where clients have given up. Three bounds a decade: a quantile read off them is
# at most a factor of 2.5 wide.
DELAY_BOUNDS = (50e-6, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# One step of a small model takes 15 us; `model.max_tick_seconds` cuts ticks at 10 ms, and only a model whose one step
# is longer than that goes beyond.
RUN_BOUNDS = (1e-5, 2.5e-5, 50e-6, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
# A prompt of one token takes as long as a step, one of thousands is sliced into ticks that others share.
FIRST_TOKEN_BOUNDS = (5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(slots=True)
class PrefixStats:
    """What came of looking: prompts found and not found, tokens that were not fed, entries that went for others."""

    num_hits: int = 0
    num_misses: int = 0
    num_cached_tokens: int = 0
    num_evictions: int = 0


class ModelStats:
    """What one model has done.

    Attributes:
        tick_rows: B of each tick.
        queue_delay: seconds from a chunk's arrival to the start of its (first) tick, a chunk.
        latency: seconds from a chunk's arrival until its answer is handed to its connection, a chunk that ran.
        run_time: seconds inside ONNX Runtime, a tick.
        page_time: seconds of copying states out of slots and into them, a tick that had to.
        num_page_ins, num_page_outs: sessions whose states came into a slot, and left one.
        time_to_first_token: seconds from a request to generate until its first token, a request.
        num_generated_tokens: tokens that were sampled by the server.
        rows_run: B -> ticks of so many rows and their seconds inside ONNX Runtime.
        last_answered: when a request was last answered after a run, monotonic seconds; 0 before the first.
        begun_seconds: of `queue_delay`, what belongs to chunks that are begun and not answered yet.
        num_whole_requests, whole_seconds: requests that ran through the whole graph, and their time from arrival to
            answer.
        num_failed_requests, failure_seconds: the same of requests of that protocol that were answered with an error.
        num_restarted_sequences: live sequences of the Open Inference Protocol that a START began anew.
        num_opened_sessions: sessions that were opened; num_ended_sessions: sessions that ended, by CLOSE, EXPIRE,
            FAIL, RETIRE, QUARANTINE or FENCE; num_adopted_sessions: that came from another version, or other files.
    """

    __slots__ = (
        "_alone",
        "begun_seconds",
        "failure_seconds",
        "last_answered",
        "latency",
        "num_adopted_sessions",
        "num_ended_sessions",
        "num_failed_requests",
        "num_generated_tokens",
        "num_opened_sessions",
        "num_page_ins",
        "num_page_outs",
        "num_restarted_sequences",
        "num_whole_requests",
        "page_time",
        "prefixes",
        "queue_delay",
        "rows_run",
        "run_time",
        "tick_rows",
        "time_to_first_token",
        "whole_seconds",
    )

    def __init__(self) -> None:
        # Changed by the dispatcher, the served model and generation, on the event loop.
        self.tick_rows = Histogram(ROW_BOUNDS)
        self.queue_delay = Histogram(DELAY_BOUNDS)
        self.latency = Histogram(DELAY_BOUNDS)
        self.run_time = Histogram(RUN_BOUNDS)
        self.page_time = Histogram(RUN_BOUNDS)
        self.num_page_ins = 0
        self.num_page_outs = 0
        self.time_to_first_token = Histogram(FIRST_TOKEN_BOUNDS)
        self.num_generated_tokens = 0
        self.num_opened_sessions = 0
        self.num_restarted_sequences = 0
        self.num_failed_requests = 0
        self.failure_seconds = 0.0
        self.begun_seconds = 0.0
        self.num_whole_requests = 0
        self.whole_seconds = 0.0
        self.last_answered = 0.0
        self._alone: list[float] = [0, 0.0]
        self.rows_run: dict[int, list[float]] = {1: self._alone}
        self.num_adopted_sessions = 0
        self.prefixes = PrefixStats()
        self.num_ended_sessions = dict.fromkeys(
            (Event.CLOSE, Event.EXPIRE, Event.FAIL, Event.RETIRE, Event.QUARANTINE, Event.FENCE), 0
        )

    def observe_lone(self, arrival: float, started: float, answered: float, run_seconds: float) -> None:
        """A tick of one chunk of one row ran, `run_seconds` of it inside ONNX Runtime; monotonic times.

        Written out, because whoever is alone waits for every call: `observe` four times costs twice as much.
        """
        rows, delays, latencies, runs = self.tick_rows, self.queue_delay, self.latency, self.run_time
        rows.counts[0] += 1
        rows.total += 1.0
        delay = started - arrival
        delays.counts[bisect_left(DELAY_BOUNDS, delay)] += 1
        delays.total += delay
        latency = answered - arrival
        latencies.counts[bisect_left(DELAY_BOUNDS, latency)] += 1
        latencies.total += latency
        runs.counts[bisect_left(RUN_BOUNDS, run_seconds)] += 1
        runs.total += run_seconds
        alone = self._alone
        alone[0] += 1
        alone[1] += run_seconds
        self.last_answered = answered

    def observe_moves(self, moves: PageMoves) -> None:
        """Page moves were carried out."""
        self.page_time.observe(moves.seconds)
        self.num_page_ins += len(moves.in_rows)
        self.num_page_outs += len(moves.out_rows)

    def observe_tick(self, num_rows: int, run_seconds: float) -> None:
        """A tick of B = `num_rows` ran, `run_seconds` of it inside ONNX Runtime."""
        self.tick_rows.observe(num_rows)
        self.run_time.observe(run_seconds)
        ran = self.rows_run.setdefault(num_rows, [0, 0.0])
        ran[0] += 1
        ran[1] += run_seconds

    def observe_chunks(self, chunks: Sequence[Chunk], started: float, answered: float) -> None:
        """Each of `chunks` was carried out by one tick, which began at `started` and is answered; monotonic seconds."""
        delays, latencies, bounds, search = self.queue_delay.counts, self.latency.counts, DELAY_BOUNDS, bisect_left
        waited, num_requests = 0.0, 0
        self.last_answered = answered
        for chunk in chunks:
            arrival = chunk.arrival
            delay = started - arrival
            count = chunk.num_requests
            delays[search(bounds, delay)] += count
            latencies[search(bounds, answered - arrival)] += count
            waited += delay * count
            num_requests += count
        self.queue_delay.total += waited
        self.latency.total += waited + (answered - started) * num_requests

    def observe_slices(self, chunks: Sequence[Chunk], num_steps: int, started: float, answered: float) -> None:
        """A tick of T = `num_steps` that was not the only one of some of `chunks` is through.

        A chunk waits until its first slice, and is answered with its last.
        """
        for chunk in chunks:
            count = _num_run(chunk)
            if chunk.done_steps == num_steps:
                chunk.waited_seconds = (started - chunk.arrival) * count
                self.queue_delay.observe(started - chunk.arrival, count)
                self.begun_seconds += chunk.waited_seconds
            if chunk.is_answered:
                self.last_answered = answered
                self.latency.observe(answered - chunk.arrival, count)
                self.begun_seconds -= chunk.waited_seconds

    def observe_whole(self, seconds: float, answered: float) -> None:
        """A request for whole sequences was answered at `answered`, monotonic, `seconds` after it came."""
        self.num_whole_requests += 1
        self.whole_seconds += seconds
        self.last_answered = answered


def _num_run(chunk: Chunk) -> int:
    """How many of the requests of a chunk ran: of a chunk of one row a request, those that were not refused."""
    if chunk.num_requests == chunk.num_rows:
        return chunk.num_requests - len(chunk.errors)
    return chunk.num_requests


class ModelHistory:
    """What one version of a model has done under all the files that it has had, so that no counter ever goes back.

    Attributes:
        stats: of all of its models, one after the other.
        num_loads, num_failed_loads: models that were loaded; files that were refused.
        num_ticks, num_row_steps, num_replayed, num_forgotten: of models that are freed.
    """

    __slots__ = (
        "num_failed_loads",
        "num_forgotten",
        "num_loads",
        "num_replayed",
        "num_row_steps",
        "num_ticks",
        "stats",
    )

    def __init__(self) -> None:
        # Changed by the catalog, on the event loop.
        self.stats = ModelStats()
        self.num_loads = 0
        self.num_failed_loads = 0
        self.num_ticks = 0
        self.num_row_steps = 0
        self.num_replayed = 0
        self.num_forgotten = 0

    def add(self, num_ticks: int, num_row_steps: int, num_replayed: int, num_forgotten: int) -> None:
        """A model that has done so much is freed."""
        self.num_ticks += num_ticks
        self.num_row_steps += num_row_steps
        self.num_replayed += num_replayed
        self.num_forgotten += num_forgotten


class CallStats:
    """Calls of the front door, by method and, once they have ended, status code.

    Attributes:
        started: method -> calls; finished: (method, status code's name) -> calls.
    """

    __slots__ = ("finished", "started")

    def __init__(self) -> None:
        # Changed by whoever serves calls, on the event loop.
        self.started: dict[str, int] = {}
        self.finished: dict[tuple[str, str], int] = {}

    def start(self, method: str) -> None:
        """A call has come."""
        self.started[method] = self.started.get(method, 0) + 1

    def finish(self, method: str, code: str) -> None:
        """A call has ended."""
        key = (method, code)
        self.finished[key] = self.finished.get(key, 0) + 1
