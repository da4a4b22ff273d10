"""`eddy serve`: one process from start to drained end.

Owns the order of things: answer health first, load models, open the port, run until SIGTERM or SIGINT, drain.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import platform
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import NoReturn

from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import CollectorRegistry

from eddy.service.address import Address, AddressError
from eddy.service.certificates import CertificateError, CertificateFiles
from eddy.service.config import Config, ServerConfig
from eddy.service.errors import Reason
from eddy.service.host import Host
from eddy.service.http import HttpServer
from eddy.service.lifecycle import Event, Status
from eddy.service.metrics import Build, ModelTotals, ServiceCollector, Totals
from eddy.service.repository import RepositoryError
from eddy.service.runtime import runtime_version
from eddy.service.server import PortInUse, Server

_LOG = logging.getLogger(__name__)

_CAUSES = {Event.CLOSE: "closed", Event.EXPIRE: "expired", Event.FAIL: "failed"}


def serve(config: Config) -> int:
    """Serves until told to stop; returns the process's exit code."""
    started = time.monotonic()
    # Until the loop takes over. As process 1 of a container, SIGTERM without a handler would be ignored.
    signal.signal(signal.SIGTERM, _end_before_serving)
    host = Host(config)
    readiness = _Readiness(host)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    ServiceCollector(lambda: totals(host, is_ready=not readiness.explain()), build(host), registry)
    try:
        certificates = _certificate_files(config.server)
        http = _listen(config.server, registry, readiness, certificates)
    except (CertificateError, AddressError) as error:
        print(f"eddy: {error}", file=sys.stderr)
        return 1
    try:
        # Before the models: a port that is taken shows at once.
        config.server.grpc_address.check("grpc_port")
        host.load()
        return _run(_serve(config, host, readiness, http, certificates, started))
    except (AddressError, RepositoryError, PortInUse) as error:
        print(f"eddy: {error}", file=sys.stderr)
        return 1
    finally:
        http.close()


def _end_before_serving(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  the signal module's call
    """No request was accepted yet: there is nothing to drain."""
    raise SystemExit(0)


def _certificate_files(config: ServerConfig) -> CertificateFiles | None:
    if not config.has_tls:
        return None
    client_ca = Path(config.tls_client_ca) if config.tls_client_ca else None
    return CertificateFiles(Path(config.tls_certificate), Path(config.tls_key), client_ca)


def _listen(
    config: ServerConfig, registry: CollectorRegistry, readiness: _Readiness, certificates: CertificateFiles | None
) -> HttpServer:
    address = config.http_address
    try:
        return HttpServer(address, registry, readiness.explain, certificates if config.has_http_tls else None)
    except OSError as error:
        raise address.refusal(error, "http_port") from error


def _run(main: object) -> int:
    try:
        import uvloop
    except ImportError:  # Not on Windows.
        return asyncio.run(main)  # type: ignore[arg-type]
    return uvloop.run(main)  # type: ignore[arg-type]


async def _serve(
    config: Config,
    host: Host,
    readiness: _Readiness,
    http: HttpServer,
    certificates: CertificateFiles | None,
    started: float,
) -> int:
    server = Server(config, host, certificates)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await server.start()
    # What is loaded stays; a collection must not walk it while streams wait.
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(config.server.busy_switch_seconds)
    readiness.is_serving = True
    num_ready = len(host.catalog.served)
    num_models = len(list(host.catalog))
    scheme = "https" if config.server.has_http_tls else "http"
    print(
        f"eddy: serving {num_ready} of {num_models} models on {Address(config.server.host, server.port)}, "
        f"metrics on {scheme}://{Address(config.server.http_address.host, http.port)}/metrics, "
        f"ready in {time.monotonic() - started:.2f} s",
        flush=True,
    )
    await stopped.wait()
    readiness.is_serving = False
    await server.drain()
    return 0


class _Readiness:
    """Whether the server takes requests, and why not."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.is_serving = False

    def explain(self) -> str:
        if self._host.is_draining:
            return "draining"
        if not self.is_serving:
            return "loading models"
        refused = [f"{entry.error.message}" for entry in self._host.catalog if entry.error is not None]
        return "\n".join(refused)


def build(host: Host) -> Build:
    """What runs here, for metrics."""
    return Build(version("eddy-serve"), platform.python_version(), runtime_version(), host.catalog.provider or "none")


def totals(host: Host, *, is_ready: bool) -> Totals:
    """Present totals of a host, for metrics. Called on the HTTP thread: reads, and copies what may change in size."""
    served = list(host.catalog.served)
    sessions = host.table.count_by_model(len(served))
    models = tuple(
        ModelTotals(
            model=model.file.name,
            version=model.file.version,
            sessions={state.name.lower(): int(counts[state]) for state in (Status.ATTACHED, Status.DETACHED)},
            num_opened_sessions=model.stats.num_opened_sessions,
            ended_sessions={_CAUSES[event]: count for event, count in model.stats.num_ended_sessions.items()},
            num_slots=model.slots.num_slots,
            num_used_slots=model.num_sessions,
            arena_bytes=model.engine.arena_bytes,
            num_ticks=model.scheduler.num_ticks,
            num_row_steps=model.scheduler.num_row_steps,
            num_queued=len(model.scheduler.queue),
            num_replayed=model.scheduler.num_replayed,
            kept_reply_bytes=model.replies.held_bytes,
            num_forgotten=model.replies.num_forgotten,
            num_generated_tokens=model.stats.num_generated_tokens,
            num_restarted_sequences=model.stats.num_restarted_sequences,
            tick_rows=model.stats.tick_rows,
            queue_delay=model.stats.queue_delay,
            latency=model.stats.latency,
            run_time=model.stats.run_time,
            time_to_first_token=model.stats.time_to_first_token,
        )
        for model, counts in zip(served, sessions, strict=True)
    )
    return Totals(
        models=models,
        models_ready={(entry.file.name, entry.file.version): entry.model is not None for entry in host.catalog},
        # All of them from the start: a counter that begins at 1 hides its first increase from `rate`.
        refusals={reason.name.lower(): host.refusals.get(reason, 0) for reason in Reason},
        calls_started=dict(host.calls.started),
        calls_finished=dict(host.calls.finished),
        num_streams=host.num_streams,
        is_ready=is_ready,
    )
