"""Prometheus metrics.

Owns names, help texts and types. Reads plain totals when it is scraped, so that counting costs nothing on the hot
path and no metric is per session. Must not know where the totals come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry


@dataclass(frozen=True, slots=True)
class ModelTotals:
    """Totals of one served model since start, and present sizes."""

    model: str
    version: str
    num_sessions: int
    num_slots: int
    num_ticks: int
    num_row_steps: int
    num_queued: int
    num_replayed: int
    kept_reply_bytes: int
    arena_bytes: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals of the server."""

    models: tuple[ModelTotals, ...]
    refusals: Mapping[str, int]
    num_expired: int
    is_ready: bool


_MODEL_GAUGES = {
    "num_sessions": ("eddy_sessions", "Open sessions."),
    "num_slots": ("eddy_arena_slots", "State slots for sessions."),
    "arena_bytes": ("eddy_arena_bytes", "Bytes of the state arena on its device."),
    "num_queued": ("eddy_queued_chunks", "Chunks that wait for a tick."),
    "kept_reply_bytes": ("eddy_kept_reply_bytes", "Bytes of replies kept for repeats."),
}
_MODEL_COUNTERS = {
    "num_ticks": ("eddy_ticks", "Runs of the model's graph."),
    "num_row_steps": ("eddy_steps", "Time steps of sessions carried out."),
    "num_replayed": ("eddy_replayed_chunks", "Repeated chunks answered from their kept reply."),
}


class ServiceCollector(Collector):
    """Turns totals into metrics at each scrape.

    Args:
        read: present totals; registry: where to register.
    """

    def __init__(self, read: Callable[[], Totals], registry: CollectorRegistry) -> None:
        self._read = read
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The metrics of one scrape."""
        totals = self._read()
        labels = ["model", "version"]
        for field, (name, text) in _MODEL_GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=labels)
            for model in totals.models:
                gauge.add_metric([model.model, model.version], getattr(model, field))
            yield gauge
        for field, (name, text) in _MODEL_COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=labels)
            for model in totals.models:
                counter.add_metric([model.model, model.version], getattr(model, field))
            yield counter
        refused = CounterMetricFamily("eddy_refusals", "Requests and rows answered with an error.", labels=["reason"])
        for reason, count in sorted(totals.refusals.items()):
            refused.add_metric([reason], count)
        yield refused
        yield CounterMetricFamily("eddy_expired_sessions", "Sessions ended for idleness.", value=totals.num_expired)
        yield GaugeMetricFamily("eddy_ready", "1 when the server takes requests.", value=float(totals.is_ready))
