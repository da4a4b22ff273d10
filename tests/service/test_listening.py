"""Where a process listens and how: plaintext and TLS beyond loopback, client certificates, files that are replaced."""

import re
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from authority import Authority
from loopback import write_model

from eddy import SyncClient, Tls, errors

# Beyond what any start takes: a process that hangs is killed, and its test fails.
PATIENCE_SECONDS = 60.0
ANYWHERE = "0.0.0.0"  # noqa: S104  that is what these tests are about
# Of this machine and not the address that servers listen on by default; only a server that listens anywhere has it.
ELSEWHERE = "127.0.0.2"

needs_elsewhere = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model."""
    root = tmp_path_factory.mktemp("models")
    write_model(root, "history")
    return root


@contextmanager
def serving(repository: Path, *flags: str) -> Iterator[tuple[int, str, int]]:
    """A process on free ports; its gRPC port, the scheme of its HTTP port, and that."""
    ports = ("--grpc-port", "0", "--http-port", "0")
    process = subprocess.Popen(  # noqa: S603  our own command
        [sys.executable, "-m", "eddy.cli", "serve", "--model-repository", str(repository), *ports, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    overdue = threading.Timer(PATIENCE_SECONDS, process.kill)
    overdue.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"models on \S+:(\d+), metrics on (https?)://\S+:(\d+)/metrics", line)
        assert found, line
        yield int(found[1]), found[2], int(found[3])
        process.terminate()
        assert process.wait() == 0
    finally:
        overdue.cancel()
        process.kill()
        process.communicate()


def answers(target: str, tls: Tls | None = None) -> bool:
    """Whether a client with these certificates is served: three steps, the right ones."""
    with SyncClient(target, tls=tls) as client:
        try:
            with client.session("history") as session:
                assert [int(session.step(digit)) for digit in (1, 2, 3)] == [1, 12, 123]
        except errors.Disconnected:
            return False
    return True


@needs_elsewhere
def test_plaintext_beyond_loopback_only_when_asked_for(repository: Path) -> None:
    """Without the wish a server has its loopback address only; with it both ports are open; never by accident."""
    with serving(repository) as (port, *_):
        assert answers(f"127.0.0.1:{port}")
        assert not answers(f"{ELSEWHERE}:{port}")
    command = [sys.executable, "-m", "eddy.cli", "serve", "--model-repository", str(repository), "--host", ANYWHERE]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)  # noqa: S603
    assert (refused.returncode, refused.stdout) == (2, "")
    [said] = refused.stderr.splitlines()
    assert "--host: got '0.0.0.0' without TLS" in said
    assert "allow_plaintext" in said
    with serving(repository, "--host", ANYWHERE, "--allow-plaintext") as (port, scheme, http_port):
        assert answers(f"{ELSEWHERE}:{port}")
        assert scheme == "http"
        with urllib.request.urlopen(f"http://{ELSEWHERE}:{http_port}/readyz", timeout=10) as response:
            assert response.read() == b"ready\n"


@needs_elsewhere
def test_certificates_by_flags_alone(repository: Path, tmp_path: Path) -> None:
    """Beyond loopback with TLS: gRPC asks clients for certificates, HTTP speaks TLS and does not ask.

    All three files are replaced while the process serves, and count for whoever connects next.
    """
    first, second = Authority(tmp_path / "first"), Authority(tmp_path / "second")
    (tmp_path / "files").mkdir()
    pair = first.sign("server").copy(tmp_path / "files")
    client_ca = tmp_path / "files" / "clients.pem"
    client_ca.write_bytes(first.certificate.read_bytes())
    mine, other = first.sign("client"), second.sign("client")
    flags = ("--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key), "--tls-client-ca", str(client_ca))
    with serving(repository, "--host", ANYWHERE, *flags) as (port, scheme, http_port):
        target = f"localhost:{port}"

        def reads(authority: Authority) -> bytes:
            """What the HTTP port says to somebody without a certificate."""
            context = ssl.create_default_context(cafile=str(authority.certificate))
            context.check_hostname = False
            with urllib.request.urlopen(
                f"https://{ELSEWHERE}:{http_port}/readyz", timeout=10, context=context
            ) as response:
                return bytes(response.read())

        assert scheme == "https"
        assert answers(target, Tls(first.certificate, mine.certificate, mine.key))
        assert not answers(target, Tls(first.certificate, other.certificate, other.key))
        assert not answers(target, Tls(first.certificate))
        assert not answers(target)
        assert reads(first) == b"ready\n"
        pair.replace(second.sign("server"))
        client_ca.write_bytes(second.certificate.read_bytes())
        assert answers(target, Tls(second.certificate, other.certificate, other.key))
        assert not answers(target, Tls(second.certificate, mine.certificate, mine.key))
        assert reads(second) == b"ready\n"
