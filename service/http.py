"""The HTTP port: /metrics, /healthz and /readyz.

Owns a small server on a thread of its own. Must not know what is measured: it is given a registry and two questions.
With certificates it speaks TLS, and asks for the latest ones at every connection.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry

from eddy.service.address import Address, family_of
from eddy.service.certificates import CertificateFiles

_LOG = logging.getLogger(__name__)

# A client that connects and says nothing must not hold a thread for ever.
_PATIENCE_SECONDS = 10.0


class HttpServer:
    """Serves one process's metrics and health.

    Args:
        address: where to listen, port 0 for a free one; `port` is then the one in use.
        registry: the metrics.
        explain_unready: why the server is not ready, empty when it is.
        certificates: for TLS, None for plain HTTP.

    Raises:
        OSError: the address is taken.
    """

    def __init__(
        self,
        address: Address,
        registry: CollectorRegistry,
        explain_unready: Callable[[], str],
        certificates: CertificateFiles | None = None,
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = _PATIENCE_SECONDS

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    self._answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
                elif path == "/healthz":
                    self._answer(200, b"ok\n")
                elif path == "/readyz":
                    reason = explain_unready()
                    self._answer(503 if reason else 200, (reason or "ready").encode() + b"\n")
                else:
                    self._answer(404, b"expected /metrics, /healthz or /readyz\n")

            def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
                """Scrapes are not logged."""

        class Listener(ThreadingHTTPServer):
            address_family = family_of(address.host)
            daemon_threads = True

            def finish_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any) -> None:
                """Answers a connection, on its own thread: a slow handshake holds nobody else."""
                if certificates is None:
                    super().finish_request(request, client_address)
                    return
                assert isinstance(request, socket.socket)
                request.settimeout(_PATIENCE_SECONDS)
                with certificates.latest().context.wrap_socket(request, server_side=True) as secure:
                    super().finish_request(secure, client_address)

            def handle_error(self, request: object, client_address: object) -> None:
                """A connection that broke, or that never spoke TLS, is its client's affair."""
                _LOG.debug("http connection from %s failed", client_address, exc_info=True)

        self._server = Listener((address.host, address.port), Handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="eddy-http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
