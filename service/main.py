"""`eddy serve`: one process from start to drained end.

Owns the order of things: answer health first, load models, open the port, run until SIGTERM or SIGINT, drain.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import time
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
from eddy.service.host import Host
from eddy.service.http import HttpServer
from eddy.service.metrics import ServiceCollector
from eddy.service.repository import RepositoryError
from eddy.service.server import PortInUse, Server
from eddy.service.store import StoreError
from eddy.service.totals import build, totals

_LOG = logging.getLogger(__name__)


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
    except (AddressError, RepositoryError, PortInUse, StoreError) as error:
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
        files = certificates if config.has_http_tls else None
        return HttpServer(address, registry, readiness.explain, files, readiness.explain_health)
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
    return 1 if host.num_unwritten else 0


class _Readiness:
    """Whether the server takes requests, and why not."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.is_serving = False

    def explain_health(self) -> str:
        """A line for /healthz: the process lives, and whether its state store fails."""
        durability = self._host.durability
        problem = "" if durability is None else durability.health.problem
        return f"ok; the state store fails: {problem}" if problem else "ok"

    def explain(self) -> str:
        if self._host.gate.is_draining:
            return "draining"
        if not self.is_serving:
            return "loading models"
        return "\n".join(self._host.catalog.refusals_at_start)
