"""Totals: what a host has done and holds, as the metrics are told.

Owns the adding up: a version of a model may have several models in memory, and have had others, and is one to who
reads its metrics. Called on the HTTP thread: reads, and copies what may change in size.
"""

from __future__ import annotations

import platform
from importlib.metadata import version

import numpy as np

from eddy.service.entry import Entry
from eddy.service.errors import Reason
from eddy.service.health import StoreStats
from eddy.service.host import Host
from eddy.service.lifecycle import Event, Status, Tier
from eddy.service.metrics import Build, ModelTotals, StoreTotals, Totals, VersionTotals
from eddy.service.runtime import runtime_version

_CAUSES = {
    Event.CLOSE: "closed",
    Event.EXPIRE: "expired",
    Event.FAIL: "failed",
    Event.RETIRE: "retired",
    Event.QUARANTINE: "quarantined",
    Event.FENCE: "fenced",
}


def build(host: Host) -> Build:
    """What runs here, for metrics."""
    return Build(version("eddy-serve"), platform.python_version(), runtime_version(), host.catalog.provider or "none")


def totals(host: Host, *, is_ready: bool) -> Totals:
    """Present totals of a host, for metrics."""
    entries = list(host.catalog)
    sessions = host.table.count_by_model(host.catalog.served.num_indices)
    return Totals(
        models=tuple(_model_totals(host, entry, sessions) for entry in entries if entry.model or entry.retiring),
        versions={(entry.file.name, entry.file.version): _version_totals(host, entry) for entry in entries},
        # All of them from the start: a counter that begins at 1 hides its first increase from `rate`.
        refusals={reason.name.lower(): host.refusals.get(reason, 0) for reason in Reason},
        calls_started=dict(host.calls.started),
        calls_finished=dict(host.calls.finished),
        num_streams=host.streams.num_streams,
        host_limit_bytes=host.config.state.host_bytes,
        is_ready=is_ready,
        is_repository_readable=not host.watcher.problem,
        store=_store_totals(host),
    )


def _store_totals(host: Host) -> StoreTotals:
    durability, table = host.durability, host.table
    stats = StoreStats() if durability is None else durability.health.stats
    rows = np.empty(0, np.int64) if durability is None else durability.checkpointer.dirty_rows()
    models = table.models_of(rows)
    steps = table.next_position[rows] - np.maximum(table.durable_position[rows], 0)
    waiting: dict[tuple[str, str], tuple[int, int]] = {}
    for model in host.catalog.served:
        mine, names = models == model.index, (model.file.name, model.file.version)
        num_sessions, num_steps = waiting.get(names, (0, 0))
        waiting[names] = (num_sessions + int(np.count_nonzero(mine)), num_steps + int(steps[mine].sum()))
    return StoreTotals(
        is_working=durability is None or not durability.health.problem,
        lag_seconds=0.0 if durability is None else durability.health.lag_seconds,
        num_written=stats.num_written,
        written_bytes=stats.written_bytes,
        num_fenced=stats.num_fenced,
        num_recalled=stats.num_recalled,
        num_failures=stats.num_failures,
        checkpoint_time=stats.checkpoint_time,
        waiting=waiting,
    )


def _version_totals(host: Host, entry: Entry) -> VersionTotals:
    history = host.catalog.history(entry)
    return VersionTotals(
        is_ready=entry.model is not None,
        is_stale=entry.model is not None and entry.error is not None,
        num_loads=history.num_loads,
        num_failed_loads=history.num_failed_loads,
        load_seconds=entry.load_seconds,
        num_retiring=len(entry.retiring),
        num_retiring_sessions=sum(model.num_sessions for model in entry.retiring),
    )


def _model_totals(host: Host, entry: Entry, sessions: np.ndarray) -> ModelTotals:
    """`sessions`: by model index and status, int64 [M, len(Status)]."""
    models = [*entry.retiring, *([entry.model] if entry.model else [])]
    history = host.catalog.history(entry)
    stats = history.stats
    counts = sum((sessions[model.index] for model in models if model.index < len(sessions)), np.zeros(len(Status), int))
    return ModelTotals(
        model=entry.file.name,
        version=entry.file.version,
        sessions={state.name.lower(): int(counts[state]) for state in (Status.ATTACHED, Status.DETACHED)},
        num_opened_sessions=stats.num_opened_sessions,
        ended_sessions={_CAUSES[event]: count for event, count in stats.num_ended_sessions.items()},
        num_slots=sum(model.slots.num_slots for model in models),
        num_used_slots=sum(model.slots.num_slots - model.slots.num_free for model in models),
        arena_bytes=sum(model.engine.arena_bytes for model in models),
        num_ticks=history.num_ticks + sum(model.scheduler.num_ticks for model in models),
        num_row_steps=history.num_row_steps + sum(model.scheduler.num_row_steps for model in models),
        num_queued=sum(len(model.scheduler.queue) for model in models),
        num_replayed=history.num_replayed + sum(model.scheduler.num_replayed for model in models),
        kept_reply_bytes=sum(model.replies.held_bytes for model in models),
        num_forgotten=history.num_forgotten + sum(model.replies.num_forgotten for model in models),
        num_generated_tokens=stats.num_generated_tokens,
        num_restarted_sequences=stats.num_restarted_sequences,
        num_adopted_sessions=stats.num_adopted_sessions,
        num_prefix_hits=stats.prefixes.num_hits,
        num_prefix_misses=stats.prefixes.num_misses,
        num_cached_tokens=stats.prefixes.num_cached_tokens,
        num_prefix_evictions=stats.prefixes.num_evictions,
        prefix_bytes=sum(cache.held_bytes for cache in map(host.prefixes.known, models) if cache is not None),
        tiers={tier.name.lower(): sum(model.residence.by_tier[tier] for model in models) for tier in Tier},
        host_bytes=sum(model.residence.cells.used_bytes for model in models),
        num_page_ins=stats.num_page_ins,
        num_page_outs=stats.num_page_outs,
        page_time=stats.page_time,
        tick_rows=stats.tick_rows,
        queue_delay=stats.queue_delay,
        latency=stats.latency,
        run_time=stats.run_time,
        time_to_first_token=stats.time_to_first_token,
    )
