"""Histograms and the observation of ticks, in arithmetic that can be checked by hand."""

import numpy as np
import pytest
from graphs import family
from hypothesis import given
from hypothesis import strategies as st
from simulation import Mailbox

from eddy.service.chunk import Chunk
from eddy.service.contract import read_contract
from eddy.service.histogram import Histogram
from eddy.service.stats import DELAY_BOUNDS, FIRST_TOKEN_BOUNDS, ROW_BOUNDS, RUN_BOUNDS, CallStats, ModelStats

HISTORY = read_contract(family("history").model())


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20, unique=True).map(sorted),
    st.lists(st.tuples(st.floats(-2e6, 2e6), st.integers(1, 5)), max_size=50),
)
def test_a_histogram_counts_values_up_to_each_bound(bounds: list[float], values: list[tuple[float, int]]) -> None:
    """Each cumulative count is the number of values that are not above its bound; the last one is of all."""
    histogram = Histogram(tuple(bounds))
    for value, count in values:
        histogram.observe(value, count)
    expected = [sum(count for value, count in values if value <= bound) for bound in bounds]
    assert histogram.cumulative() == [*expected, sum(count for _, count in values)]
    assert histogram.total == pytest.approx(sum(value * count for value, count in values), abs=1e-3)


@pytest.mark.parametrize("bounds", [(), (1.0, 1.0), (2.0, 1.0)])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    """A histogram without bounds, or with bounds out of order, is refused."""
    with pytest.raises(ValueError, match="bounds: got"):
        Histogram(bounds)


def test_shipped_bounds_are_good() -> None:
    """The bounds of all histograms ascend, and a lone step, a long tick and a wait that fails clients differ."""
    for bounds in (ROW_BOUNDS, DELAY_BOUNDS, RUN_BOUNDS, FIRST_TOKEN_BOUNDS):
        assert list(bounds) == sorted(set(bounds))
    assert ROW_BOUNDS[0] == 1.0
    assert ROW_BOUNDS[-1] == 1024.0
    histogram = Histogram(DELAY_BOUNDS)
    for seconds in (150e-6, 10e-3, 12.0):
        histogram.observe(seconds)
    assert sorted(histogram.counts)[-3:] == [1, 1, 1]


def _chunk(arrival: float, num_steps: int = 1) -> Chunk:
    chunk = Chunk(bytes(8), bytes(8), num_steps, (), 0, Mailbox(), 0, HISTORY, arrival)
    chunk.is_answered = True
    return chunk


def test_the_three_ways_to_observe_agree() -> None:
    """One chunk counted alone, in a list, and as a chunk of a single slice leaves the same histograms."""
    arrival, started, answered, run_seconds = 10.0, 10.0003, 10.002, 0.0012
    chunk = _chunk(arrival)
    chunk.done_steps = 1
    lone, listed, sliced = ModelStats(), ModelStats(), ModelStats()
    lone.observe_lone(arrival, started, answered, run_seconds)
    listed.observe_tick(1, run_seconds)
    listed.observe_chunks([chunk], started, answered)
    sliced.observe_tick(1, run_seconds)
    sliced.observe_slices([chunk], 1, started, answered)
    for name in ("tick_rows", "queue_delay", "latency", "run_time"):
        expected: Histogram = getattr(lone, name)
        for other in (listed, sliced):
            found: Histogram = getattr(other, name)
            assert found.counts == expected.counts, name
            assert found.total == pytest.approx(expected.total), name
    assert lone.queue_delay.total == pytest.approx(0.0003)
    assert lone.latency.total == pytest.approx(0.002)


def test_chunks_of_one_tick_are_counted_one_by_one() -> None:
    """Chunks that arrived at different times have each their own delay and latency."""
    stats = ModelStats()
    arrivals = np.array([1.0, 1.002, 1.004])
    stats.observe_chunks([_chunk(arrival) for arrival in arrivals.tolist()], 1.005, 1.010)
    assert sum(stats.queue_delay.counts) == sum(stats.latency.counts) == 3
    assert stats.queue_delay.total == pytest.approx((1.005 - arrivals).sum())
    assert stats.latency.total == pytest.approx((1.010 - arrivals).sum())


def test_a_sliced_chunk_waits_once_and_is_answered_once() -> None:
    """Of a chunk in two slices the first counts the delay, the last the latency."""
    stats, chunk = ModelStats(), _chunk(1.0, num_steps=8)
    chunk.done_steps, chunk.is_answered = 4, False
    stats.observe_slices([chunk], 4, 1.001, 1.002)
    assert (sum(stats.queue_delay.counts), sum(stats.latency.counts)) == (1, 0)
    assert stats.begun_seconds == pytest.approx(0.001)
    chunk.done_steps, chunk.is_answered = 8, True
    stats.observe_slices([chunk], 4, 1.003, 1.004)
    assert (sum(stats.queue_delay.counts), sum(stats.latency.counts)) == (1, 1)
    assert stats.queue_delay.total == pytest.approx(0.001)
    assert stats.latency.total == pytest.approx(0.004)
    assert stats.begun_seconds == 0.0


def test_calls_are_counted_by_method_and_code() -> None:
    """A call counts when it begins, and under its code when it ends."""
    calls = CallStats()
    calls.start("a/B")
    calls.start("a/B")
    calls.finish("a/B", "OK")
    assert calls.started == {"a/B": 2}
    assert calls.finished == {("a/B", "OK"): 1}
