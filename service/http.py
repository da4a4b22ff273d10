"""The HTTP port: /metrics, /healthz and /readyz.

Owns a small server on a thread of its own, and how many connections it holds. Must not know what is measured: it is
given a registry and two questions. With certificates it speaks TLS, and asks for the latest ones at every connection.

A request is a connection (HTTP/1.0), served by a thread of its own. Probes must get through whatever else connects:
when `MAX_CONNECTIONS` are open, the one that has taken longest is dropped for the new one. A real one takes
milliseconds; one that sends nothing, or a byte now and then, is the one that is dropped.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry

from eddy.service.address import Address, family_of
from eddy.service.certificates import CertificateFiles

_LOG = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
# How long a client may take for each piece of its request and for reading the answer.
_TIMEOUT_SECONDS = 10.0


class HttpServer:
    """Serves one process's metrics and health.

    Args:
        address: where to listen, port 0 for a free one; `port` is then the one in use.
        registry: the metrics.
        explain_unready: why the server is not ready, empty when it is.
        certificates: for TLS, None for plain HTTP.
        explain_health: a line for /healthz of a process that lives.

    Raises:
        OSError: the address is taken.
    """

    def __init__(
        self,
        address: Address,
        registry: CollectorRegistry,
        explain_unready: Callable[[], str],
        certificates: CertificateFiles | None = None,
        explain_health: Callable[[], str] = lambda: "ok",
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = _TIMEOUT_SECONDS
            server_version = "eddy"
            sys_version = ""

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    self._answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
                elif path == "/healthz":
                    self._answer(200, explain_health().encode() + b"\n")
                elif path == "/readyz":
                    reason = explain_unready()
                    self._answer(503 if reason else 200, (reason or "ready").encode() + b"\n")
                else:
                    self._answer(404, b"expected /metrics, /healthz or /readyz\n")

            def do_HEAD(self) -> None:
                self.do_GET()

            def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
                """Scrapes are not logged."""

        self._server = _Listener(address, Handler, certificates)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="eddy-http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Listener(ThreadingHTTPServer):
    """Accepts connections, a bounded number at once."""

    daemon_threads = True
    # Connections that have not been accepted yet; with socketserver's 5 the next ones wait for a second.
    request_queue_size = 2 * MAX_CONNECTIONS

    def __init__(
        self, address: Address, handler: type[BaseHTTPRequestHandler], certificates: CertificateFiles | None
    ) -> None:
        self.address_family = family_of(address.host)
        self._certificates = certificates
        # Connections in the order of their coming, and the socket that each one is used through (under TLS another).
        # Changed by the accepting thread and each connection's own, under the lock.
        self._open: dict[Any, socket.socket] = {}
        self._lock = threading.Lock()
        super().__init__((address.host, address.port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = request
            if len(self._open) > MAX_CONNECTIONS:
                # Its thread finds the connection at an end, and closes it.
                _end(self._open.pop(next(iter(self._open))))
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answers a connection, on its own thread: a slow handshake holds nobody else."""
        if self._certificates is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(_TIMEOUT_SECONDS)
        context = self._certificates.latest().context
        with context.wrap_socket(request, server_side=True, do_handshake_on_connect=False) as secure:
            with self._lock:
                if request in self._open:
                    self._open[request] = secure
            secure.do_handshake()
            super().finish_request(secure, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if isinstance(sys.exception(), OSError):
            _LOG.debug("an HTTP client went away: %s", sys.exception())
        else:
            _LOG.exception("an HTTP request failed")


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # The client has ended it already.
        return
