"""Prometheus metrics.

Owns names, help texts and types. Reads plain totals when it is scraped, so that counting costs next to nothing on the
hot path and no metric is per session. Must not know where the totals come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

from eddy.service.histogram import Histogram


@dataclass(frozen=True, slots=True)
class ModelTotals:
    """Totals of one served model since start, and present sizes.

    Attributes:
        sessions: by state, attached or detached; tiers: the same by where their states are; ended_sessions: by cause.
    """

    model: str
    version: str
    sessions: Mapping[str, int]
    num_opened_sessions: int
    ended_sessions: Mapping[str, int]
    num_slots: int
    num_used_slots: int
    arena_bytes: int
    num_ticks: int
    num_row_steps: int
    num_queued: int
    num_replayed: int
    kept_reply_bytes: int
    num_forgotten: int
    num_generated_tokens: int
    num_restarted_sequences: int
    num_adopted_sessions: int
    num_prefix_hits: int
    num_prefix_misses: int
    num_cached_tokens: int
    num_prefix_evictions: int
    prefix_bytes: int
    tiers: Mapping[str, int]
    host_bytes: int
    num_page_ins: int
    num_page_outs: int
    page_time: Histogram
    tick_rows: Histogram
    queue_delay: Histogram
    latency: Histogram
    run_time: Histogram
    time_to_first_token: Histogram


@dataclass(frozen=True, slots=True)
class VersionTotals:
    """What became of one version of one model of the repository.

    Attributes:
        is_ready: new sessions are opened on it; is_stale: with files that were replaced by others that are not good.
        num_loads, num_failed_loads: files that were loaded, and refused; load_seconds: of the last.
        num_retiring, num_retiring_sessions: models that go when their sessions have ended, and these.
    """

    is_ready: bool
    is_stale: bool
    num_loads: int
    num_failed_loads: int
    load_seconds: float
    num_retiring: int
    num_retiring_sessions: int


@dataclass(frozen=True, slots=True)
class StoreTotals:
    """What was done with the durable state store since the start, if there is one, and how far behind it is.

    Attributes:
        is_working: it does not fail now; lag_seconds: how long the oldest change has waited to become durable.
        num_written: sessions, once for every time that one was written; checkpoint_time: seconds of a checkpoint.
        waiting: by model and version: sessions that have changed since they were written, and their steps since then.
    """

    is_working: bool
    lag_seconds: float
    num_written: int
    written_bytes: int
    num_fenced: int
    num_recalled: int
    num_failures: int
    checkpoint_time: Histogram
    waiting: Mapping[tuple[str, str], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals of the server.

    Attributes:
        models: those that are in memory; versions: every version of the repository, by model and version.
        refusals: by reason; calls_started: by method; calls_finished: by method and code.
    """

    models: tuple[ModelTotals, ...]
    versions: Mapping[tuple[str, str], VersionTotals]
    refusals: Mapping[str, int]
    calls_started: Mapping[str, int]
    calls_finished: Mapping[tuple[str, str], int]
    num_streams: int
    host_limit_bytes: int
    is_ready: bool
    is_repository_readable: bool
    store: StoreTotals


@dataclass(frozen=True, slots=True)
class Build:
    """What runs here; it does not change while the process lives."""

    version: str
    python: str
    onnxruntime: str
    provider: str


_MODEL_LABELS = ("model", "version")
_VERSION_GAUGES = {
    "is_ready": ("eddy_model_ready", "1 when the model is served."),
    "is_stale": ("eddy_model_stale", "1 when files that cannot be served have replaced those of the model."),
    "load_seconds": ("eddy_model_load_seconds", "Time that the last load took."),
    "num_retiring": ("eddy_retiring_models", "Models in memory that open no sessions any more."),
    "num_retiring_sessions": ("eddy_retiring_sessions", "Open sessions of those."),
}
_MODEL_GAUGES = {
    "num_slots": ("eddy_arena_slots", "State slots for sessions."),
    "num_used_slots": ("eddy_arena_used_slots", "State slots that sessions hold."),
    "arena_bytes": ("eddy_arena_bytes", "Size of the state arena on its device."),
    "host_bytes": ("eddy_host_state_bytes", "Size of states in the host's memory, of sessions without a slot."),
    "prefix_bytes": ("eddy_prefix_bytes", "Size of the kept states after known prompts."),
    "num_queued": ("eddy_queued_chunks", "Chunks that wait for a tick."),
    "kept_reply_bytes": ("eddy_kept_reply_bytes", "Size of replies kept for repeats."),
}
_MODEL_COUNTERS = {
    "num_opened_sessions": ("eddy_opened_sessions", "Sessions that were opened."),
    "num_ticks": ("eddy_ticks", "Runs of the model's graph."),
    "num_row_steps": ("eddy_steps", "Time steps of sessions carried out."),
    "num_page_ins": ("eddy_page_ins", "Sessions whose states came from the host's memory into a slot."),
    "num_page_outs": ("eddy_page_outs", "Sessions whose states left their slot for the host's memory."),
    "num_replayed": ("eddy_replayed_chunks", "Repeated chunks of sessions answered from their kept reply."),
    "num_forgotten": ("eddy_forgotten_replies", "Kept replies given up for want of memory."),
    "num_generated_tokens": ("eddy_generated_tokens", "Tokens sampled by the server."),
    "num_restarted_sequences": (
        "eddy_restarted_sequences",
        "Live sequences of the Open Inference Protocol that a START began anew.",
    ),
    "num_prefix_hits": ("eddy_prefix_hits", "New texts that began from the kept state of a known beginning."),
    "num_prefix_misses": ("eddy_prefix_misses", "New texts whose beginning was not known."),
    "num_cached_tokens": ("eddy_prefix_cached_tokens", "Tokens of prompts that were not fed, their state being known."),
    "num_prefix_evictions": ("eddy_prefix_evictions", "Kept states after prompts that went for others."),
    "num_adopted_sessions": ("eddy_adopted_sessions", "Sessions that came from another version, or other files."),
}
_MODEL_HISTOGRAMS = {
    "tick_rows": ("eddy_tick_rows", "Batch size: rows of a tick."),
    "queue_delay": ("eddy_queue_delay_seconds", "Arrival of a chunk to the start of its tick."),
    "latency": ("eddy_step_latency_seconds", "Arrival of a chunk to its answer, for chunks that ran."),
    "run_time": ("eddy_onnxruntime_run_seconds", "Time of a tick inside ONNX Runtime."),
    "page_time": ("eddy_page_move_seconds", "Time of copying states into and out of slots, a tick that had to."),
    "time_to_first_token": ("eddy_time_to_first_token_seconds", "Request to generate to its first token."),
}


_STORE_COUNTERS = {
    "num_written": ("eddy_stored_sessions", "Sessions written to the state store, each time."),
    "written_bytes": ("eddy_stored_bytes", "Size of what was written there."),
    "num_recalled": ("eddy_recalled_sessions", "Sessions brought back from the state store."),
    "num_fenced": ("eddy_fenced_sessions", "Sessions that another server has taken over."),
    "num_failures": ("eddy_store_failures", "Calls of the state store that failed."),
}


class ServiceCollector(Collector):
    """Turns totals into metrics at each scrape.

    Args:
        read: present totals; build: what runs here; registry: where to register.
    """

    def __init__(self, read: Callable[[], Totals], build: Build, registry: CollectorRegistry) -> None:
        self._read = read
        self._build = build
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The metrics of one scrape."""
        totals = self._read()
        build = self._build
        labels = {
            "version": build.version,
            "python": build.python,
            "onnxruntime": build.onnxruntime,
            "provider": build.provider,
        }
        info = GaugeMetricFamily("eddy_build_info", "Versions and execution provider; always 1.", labels=list(labels))
        info.add_metric(list(labels.values()), 1.0)
        yield info
        yield GaugeMetricFamily("eddy_ready", "1 when the server takes requests.", value=float(totals.is_ready))
        yield GaugeMetricFamily(
            "eddy_repository_readable",
            "1 when the model repository can be looked at.",
            value=float(totals.is_repository_readable),
        )
        yield from _version_metrics(totals.versions)
        yield from _model_metrics(totals.models)
        yield from _edge_metrics(totals)
        yield from _store_metrics(totals.store)


def _version_metrics(versions: Mapping[tuple[str, str], VersionTotals]) -> Iterator[Metric]:
    for field, (name, text) in _VERSION_GAUGES.items():
        gauge = GaugeMetricFamily(name, text, labels=_MODEL_LABELS)
        for names, version in versions.items():
            gauge.add_metric(names, float(getattr(version, field)))
        yield gauge
    loads = CounterMetricFamily(
        "eddy_model_loads", "Files of models that were loaded.", labels=(*_MODEL_LABELS, "result")
    )
    for names, version in versions.items():
        loads.add_metric([*names, "ok"], version.num_loads)
        loads.add_metric([*names, "failed"], version.num_failed_loads)
    yield loads


def _model_metrics(models: tuple[ModelTotals, ...]) -> Iterator[Metric]:
    sessions = GaugeMetricFamily("eddy_sessions", "Open sessions.", labels=(*_MODEL_LABELS, "state"))
    tiers = GaugeMetricFamily(
        "eddy_tier_sessions", "Open sessions by where their states are.", labels=(*_MODEL_LABELS, "tier")
    )
    ended = CounterMetricFamily("eddy_ended_sessions", "Sessions that ended.", labels=(*_MODEL_LABELS, "cause"))
    for model in models:
        for state, count in model.sessions.items():
            sessions.add_metric([model.model, model.version, state], count)
        for tier, count in model.tiers.items():
            tiers.add_metric([model.model, model.version, tier], count)
        for cause, count in model.ended_sessions.items():
            ended.add_metric([model.model, model.version, cause], count)
    yield sessions
    yield tiers
    yield ended
    for field, (name, text) in _MODEL_GAUGES.items():
        gauge = GaugeMetricFamily(name, text, labels=_MODEL_LABELS)
        for model in models:
            gauge.add_metric([model.model, model.version], getattr(model, field))
        yield gauge
    for field, (name, text) in _MODEL_COUNTERS.items():
        counter = CounterMetricFamily(name, text, labels=_MODEL_LABELS)
        for model in models:
            counter.add_metric([model.model, model.version], getattr(model, field))
        yield counter
    for field, (name, text) in _MODEL_HISTOGRAMS.items():
        family = HistogramMetricFamily(name, text, labels=_MODEL_LABELS)
        for model in models:
            histogram: Histogram = getattr(model, field)
            family.add_metric([model.model, model.version], _buckets(histogram), histogram.total)
        yield family


def _store_metrics(store: StoreTotals) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "eddy_store_working", "1 when the state store does what it is asked for.", value=float(store.is_working)
    )
    yield GaugeMetricFamily(
        "eddy_checkpoint_lag_seconds", "How long the oldest change waits to become durable.", value=store.lag_seconds
    )
    for field, (name, text) in _STORE_COUNTERS.items():
        yield CounterMetricFamily(name, text, value=getattr(store, field))
    family = HistogramMetricFamily("eddy_checkpoint_seconds", "Time of a checkpoint, from its beginning to its end.")
    family.add_metric([], _buckets(store.checkpoint_time), store.checkpoint_time.total)
    yield family
    sessions = GaugeMetricFamily(
        "eddy_undurable_sessions", "Sessions that have changed since they were stored.", labels=_MODEL_LABELS
    )
    steps = GaugeMetricFamily("eddy_undurable_steps", "Their steps since then.", labels=_MODEL_LABELS)
    for names, (num_sessions, num_steps) in store.waiting.items():
        sessions.add_metric(names, num_sessions)
        steps.add_metric(names, num_steps)
    yield sessions
    yield steps


def _buckets(histogram: Histogram) -> list[tuple[str, int]]:
    return list(zip([*map(floatToGoString, histogram.bounds), "+Inf"], histogram.cumulative(), strict=True))


def _edge_metrics(totals: Totals) -> Iterator[Metric]:
    refused = CounterMetricFamily("eddy_refusals", "Requests and rows answered with an error.", labels=["reason"])
    for reason, count in totals.refusals.items():
        refused.add_metric([reason], count)
    yield refused
    started = CounterMetricFamily("eddy_grpc_started_calls", "gRPC calls that came.", labels=["method"])
    for method, count in totals.calls_started.items():
        started.add_metric([method], count)
    yield started
    finished = CounterMetricFamily("eddy_grpc_finished_calls", "gRPC calls that ended.", labels=["method", "code"])
    for names, count in totals.calls_finished.items():
        finished.add_metric(names, count)
    yield finished
    yield GaugeMetricFamily(
        "eddy_host_state_limit_bytes",
        "Memory that states of sessions without a slot may take, over all models.",
        value=totals.host_limit_bytes,
    )
    yield GaugeMetricFamily("eddy_open_streams", "Stream calls that are open.", value=totals.num_streams)
