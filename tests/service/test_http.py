"""The HTTP port: probes answer whatever else connects, and what is not a probe is refused."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from prometheus_client import Counter
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from eddy.service.address import Address
from eddy.service.http import MAX_CONNECTIONS, HttpServer

PATIENCE_SECONDS = 10.0


class _Broken(Collector):
    """A collector that fails."""

    def collect(self) -> Iterator[object]:  # type: ignore[override]
        """Fails."""
        raise RuntimeError("no totals today")


@pytest.fixture
def server() -> Iterator[HttpServer]:
    """A server with one counter, ready."""
    registry = CollectorRegistry()
    Counter("probes", "A counter.", registry=registry).inc(3)
    http = HttpServer(Address("127.0.0.1", 0), registry, lambda: "")
    yield http
    http.close()


def _connect(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS)


def _everything(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def _exchange(server: HttpServer, request: bytes) -> bytes:
    """Everything that the server says to raw bytes, until it closes."""
    with _connect(server) as connection:
        connection.sendall(request)
        return _everything(connection)


def _status(answer: bytes) -> int:
    return int(answer.split(None, 2)[1])


def test_the_three_paths(server: HttpServer) -> None:
    """Metrics parse as Prometheus text, health and readiness answer 200, queries are ignored."""
    answer = _exchange(server, b"GET /metrics?name=x HTTP/1.0\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"text/plain; version=" in head
    samples = [sample for family in text_string_to_metric_families(body.decode()) for sample in family.samples]
    assert {sample.name: sample.value for sample in samples}["probes_total"] == 3.0
    assert _exchange(server, b"GET /healthz HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\nok\n")
    assert _exchange(server, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").endswith(b"\r\n\r\nready\n")


def test_unready_is_503_with_the_reason() -> None:
    """Not ready is told apart from not alive."""
    http = HttpServer(Address("127.0.0.1", 0), CollectorRegistry(), lambda: "loading models")
    try:
        answer = _exchange(http, b"GET /readyz HTTP/1.0\r\n\r\n")
        assert _status(answer) == 503
        assert answer.endswith(b"loading models\n")
        assert _status(_exchange(http, b"GET /healthz HTTP/1.0\r\n\r\n")) == 200
    finally:
        http.close()


@pytest.mark.parametrize("path", [b"/healthz", b"/readyz", b"/metrics", b"/nothing"])
def test_head_is_get_without_a_body(server: HttpServer, path: bytes) -> None:
    """HEAD has the status, type and length of GET, and nothing after the headers."""
    get, head = (_exchange(server, method + b" " + path + b" HTTP/1.0\r\n\r\n") for method in (b"GET", b"HEAD"))
    assert _status(head) == _status(get)
    headers, _, body = head.partition(b"\r\n\r\n")
    assert not body
    length = len(get.partition(b"\r\n\r\n")[2])
    assert b"Content-Length: %d" % length in headers


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /../../etc/passwd HTTP/1.0\r\n\r\n", 404),
        (b"GET /metrics/../../etc/passwd HTTP/1.0\r\n\r\n", 404),
        (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.0\r\n\r\n", 404),
        (b"GET //metrics/ HTTP/1.0\r\n\r\n", 404),
        (b"GET / HTTP/1.0\r\n\r\n", 404),
        (b"GET http://elsewhere/metrics HTTP/1.0\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.0\r\nContent-Length: 1000000000\r\n\r\n", 501),
        (b"DELETE /metrics HTTP/1.0\r\n\r\n", 501),
        (b"GET /healthz HTTP/9.9\r\n\r\n", 505),
        (b"GET /healthz NONSENSE\r\n\r\n", 400),
        (b"one two three four five\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 \x00 \xff\r\n\r\n", 400),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.0\r\n\r\n", 414),
        (b"GET /healthz HTTP/1.0\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
    ],
)
def test_what_is_no_probe_is_refused(server: HttpServer, request_bytes: bytes, status: int) -> None:
    """Other paths, methods and versions, and garbage, get an error, no file, and leave the server as it was."""
    answer = _exchange(server, request_bytes)
    assert f"HTTP/1.0 {status} ".encode() in answer or f"Error code: {status}".encode() in answer
    assert b"root:" not in answer
    assert b"Python" not in answer
    assert _status(_exchange(server, b"GET /healthz HTTP/1.0\r\n\r\n")) == 200


def test_a_client_that_leaves_early_is_no_matter(server: HttpServer, capfd: pytest.CaptureFixture[str]) -> None:
    """Connections closed before or within a request cost nothing and print nothing."""
    for data in (b"", b"GET /met", b"GET /metrics HTTP/1.0\r\n\r\n"):
        with _connect(server) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # Reset, no farewell.
            connection.sendall(data)
    assert _status(_exchange(server, b"GET /healthz HTTP/1.0\r\n\r\n")) == 200
    assert not capfd.readouterr().err


def test_slow_clients_do_not_keep_probes_out(server: HttpServer) -> None:
    """Four times as many silent connections as are held: probes answer, and the oldest of the silent are dropped."""
    with ExitStack() as stack:
        silent = [stack.enter_context(_connect(server)) for _ in range(4 * MAX_CONNECTIONS)]
        for number, connection in enumerate(silent[-MAX_CONNECTIONS // 2 :]):
            connection.sendall(b"GET /hea"[: number % 9])
        for path in (b"/healthz", b"/readyz", b"/metrics"):
            assert _status(_exchange(server, b"GET " + path + b" HTTP/1.0\r\n\r\n")) == 200
        for connection in silent[: 2 * MAX_CONNECTIONS]:
            assert not _everything(connection)
        silent[-1].sendall(b"GET /healthz"[number % 9 :] + b" HTTP/1.0\r\n\r\n")
        assert _status(_everything(silent[-1])) == 200


def test_many_clients_at_once_are_all_answered(server: HttpServer) -> None:
    """Many short requests side by side: each has its whole answer."""
    with ThreadPoolExecutor(MAX_CONNECTIONS // 2) as pool:
        answers = list(pool.map(lambda _: _exchange(server, b"GET /metrics HTTP/1.0\r\n\r\n"), range(500)))
    assert {_status(answer) for answer in answers} == {200}
    assert len({len(answer) for answer in answers}) == 1


def test_metrics_that_cannot_be_read_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A broken collector fails its scrape with a traceback in the log; health goes on."""
    registry = CollectorRegistry()
    registry.register(_Broken())
    http = HttpServer(Address("127.0.0.1", 0), registry, lambda: "")
    try:
        assert not _exchange(http, b"GET /metrics HTTP/1.0\r\n\r\n")
        assert _status(_exchange(http, b"GET /healthz HTTP/1.0\r\n\r\n")) == 200
    finally:
        http.close()
    [record] = [record for record in caplog.records if record.name == "eddy.service.http"]
    assert record.exc_info is not None
    assert "no totals today" in str(record.exc_info[1])
