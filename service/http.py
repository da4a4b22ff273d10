"""The HTTP port: /metrics, /healthz and /readyz.

Owns a small server on a thread of its own. Must not know what is measured: it is given a registry and two questions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry


class HttpServer:
    """Serves one process's metrics and health.

    Args:
        host, port: where to listen, 0 for a free port; `port` is then the one in use.
        registry: the metrics.
        explain_unready: why the server is not ready, empty when it is.

    Raises:
        OSError: the address is taken.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, explain_unready: Callable[[], str]) -> None:
        class Handler(BaseHTTPRequestHandler):
            # A client that connects and says nothing must not hold a thread for ever.
            timeout = 10.0

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

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="eddy-http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
