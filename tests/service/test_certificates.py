"""TLS: certificate files, their replacement under a running server, client certificates, and HTTP beyond loopback."""

import asyncio
import logging
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from authority import Authority, Pair, encrypt
from loopback import configure
from prometheus_client.registry import CollectorRegistry

from eddy import Client, SyncClient, Tls
from eddy.clients.errors import Disconnected, InvalidInput
from eddy.service import polling
from eddy.service.address import Address
from eddy.service.certificates import CertificateError, CertificateFiles
from eddy.service.host import Host
from eddy.service.http import HttpServer
from eddy.service.server import Server


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    """Two authorities that do not know each other."""
    folder = tmp_path_factory.mktemp("authorities")
    return Authority(folder / "first"), Authority(folder / "second")


@pytest.fixture
def pair(authorities: tuple[Authority, Authority], tmp_path: Path) -> Pair:
    """A pair of the first authority, as files that a test may change."""
    return authorities[0].sign("server").copy(tmp_path)


@asynccontextmanager
async def _serving(repository: Path, files: CertificateFiles, **server: object) -> AsyncIterator[str]:
    """A server with TLS; gives its target."""
    config = configure(repository, server=server)
    host = Host(config)
    host.load()
    server = Server(config, host, files)
    await server.start()
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        await server.drain()


async def _greets(target: str, tls: Tls) -> bool:
    """Whether a new client with `tls` gets an answer."""
    async with Client(target, tls=tls) as client:
        try:
            await client.models()
        except Disconnected:
            return False
    return True


def _run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_new_files_count_for_new_connections(
    repository: Path, pair: Pair, authorities: tuple[Authority, Authority], caplog: pytest.LogCaptureFixture
) -> None:
    """Files replaced under a running server: new connections get the new certificate, a stream that is open goes on.

    Between the two writes the key does not belong to the certificate: the old pair stays, with one error in the log.
    """
    first, second = authorities
    other = second.sign("server")
    old, new = Tls(first.certificate), Tls(second.certificate)

    async def scenario() -> None:
        files = CertificateFiles(pair.certificate, pair.key, None)
        async with _serving(repository, files) as target, Client(target, tls=old) as client:
            session = await client.open("history")
            assert await session.step(1) == 1
            assert not await _greets(target, new)

            pair.certificate.write_bytes(other.certificate.read_bytes())
            assert await _greets(target, old)
            assert not await _greets(target, new)
            complaints = [record.message for record in caplog.records if record.levelno == logging.ERROR]
            assert len(complaints) == 1
            assert "the key does not belong to the certificate" in complaints[0]

            pair.key.write_bytes(other.key.read_bytes())
            assert await _greets(target, new)
            assert not await _greets(target, old)
            assert await session.step(2) == 12
            await session.close()

    with caplog.at_level(logging.INFO, "eddy.service.certificates"):
        _run(scenario())


@pytest.mark.parametrize("damage", ["half-written", "gone", "garbage"])
def test_a_bad_replacement_keeps_the_old_pair(
    repository: Path, pair: Pair, authorities: tuple[Authority, Authority], damage: str
) -> None:
    """A file that is cut off, missing or no certificate leaves the server with what it had."""

    async def scenario() -> None:
        files = CertificateFiles(pair.certificate, pair.key, None)
        async with _serving(repository, files) as target:
            assert await _greets(target, Tls(authorities[0].certificate))
            if damage == "gone":
                pair.certificate.unlink()
            else:
                raw = pair.certificate.read_bytes()
                pair.certificate.write_bytes(raw[: len(raw) // 2] if damage == "half-written" else b"nothing")
            assert await _greets(target, Tls(authorities[0].certificate))

    _run(scenario())


def test_clients_must_present_a_certificate(
    repository: Path, pair: Pair, authorities: tuple[Authority, Authority], tmp_path: Path
) -> None:
    """With a client CA: none and another authority's are turned away, its own are served; the CA may change, too."""
    first, second = authorities
    mine, foreign = first.sign("client"), second.sign("client")
    client_ca = tmp_path / "clients.pem"
    client_ca.write_bytes(first.certificate.read_bytes())

    async def scenario() -> None:
        files = CertificateFiles(pair.certificate, pair.key, client_ca)
        async with _serving(repository, files) as target:
            trusting = first.certificate
            assert not await _greets(target, Tls(trusting))
            assert not await _greets(target, Tls(trusting, foreign.certificate, foreign.key))
            assert await _greets(target, Tls(trusting, mine.certificate, mine.key))
            client_ca.write_bytes(second.certificate.read_bytes())
            assert await _greets(target, Tls(trusting, foreign.certificate, foreign.key))
            assert not await _greets(target, Tls(trusting, mine.certificate, mine.key))

    _run(scenario())


def test_plaintext_and_names(repository: Path, pair: Pair, authorities: tuple[Authority, Authority]) -> None:
    """A plaintext client gets no answer from a TLS server; a server name is checked against the certificate."""
    ca = authorities[0].certificate

    async def scenario() -> None:
        async with _serving(repository, CertificateFiles(pair.certificate, pair.key, None)) as target:
            async with Client(target) as client:
                with pytest.raises(Disconnected):
                    await client.models()
            assert await _greets(target, Tls(ca, server_name="eddy.test"))
            assert not await _greets(target, Tls(ca, server_name="other.test"))

    _run(scenario())


def test_the_clients_files(tmp_path: Path, pair: Pair) -> None:
    """A missing half of a pair, a missing file and a file without PEM are named before anything is sent."""
    with pytest.raises(InvalidInput, match=r"tls\.key: got none"):
        Tls(certificate=pair.certificate)
    with pytest.raises(InvalidInput, match=r"tls\.certificate: got none"):
        Tls(key=pair.key)
    (tmp_path / "empty").write_bytes(b"")
    for path, complaint in ((tmp_path / "none", "No such file"), (tmp_path / "empty", "no PEM block")):
        with pytest.raises(InvalidInput, match=complaint), SyncClient("127.0.0.1:1", tls=Tls(path)):
            pass


def test_bad_files_at_the_start(pair: Pair, authorities: tuple[Authority, Authority], tmp_path: Path) -> None:
    """Each of the three files, missing, garbage or not fitting, is named with the reason."""
    other = authorities[1].sign("other")
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\xff not PEM")
    locked = pair.copy(tmp_path)
    encrypt(locked.key)
    cases: list[tuple[Path, Path, Path | None, str]] = [
        (tmp_path / "none", pair.key, None, "none: No such file or directory"),
        (garbage, pair.key, None, "garbage: expected certificates in PEM form"),
        (pair.key, pair.key, None, "server.key: expected certificates in PEM form"),
        (pair.certificate, tmp_path / "none", None, "none: No such file or directory"),
        (pair.certificate, garbage, None, "garbage: expected a private key in PEM form"),
        (pair.certificate, other.key, None, "other.key: the key does not belong to the certificate"),
        (locked.certificate, locked.key, None, "expected a private key in PEM form, without a passphrase"),
        (pair.certificate, pair.key, tmp_path / "none", "none: No such file or directory"),
        (pair.certificate, pair.key, garbage, "garbage: expected certificates in PEM form"),
    ]
    for certificate, key, client_ca, complaint in cases:
        with pytest.raises(CertificateError, match=complaint):
            CertificateFiles(certificate, key, client_ca)


def test_a_closed_loop_is_polled_for(
    repository: Path, pair: Pair, authorities: tuple[Authority, Authority], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the event loop looks for a lone session's next step and never sleeps, TLS goes on, in both directions.

    Also the handshake of another client, whose session then takes its turns with the first one.
    """
    monkeypatch.setattr(polling, "_num_processors", lambda: 2)
    looks = [0]
    look = polling._let_others_run  # noqa: SLF001  what the event loop does instead of sleeping

    def counted() -> None:
        looks[0] += 1
        look()

    monkeypatch.setattr(polling, "_let_others_run", counted)
    tls = Tls(authorities[0].certificate)

    async def scenario() -> None:
        files = CertificateFiles(pair.certificate, pair.key, None)
        # Far longer than any step takes: from the second one on it does not sleep until the end.
        async with (
            _serving(repository, files, busy_poll_seconds=60.0) as target,
            Client(target, tls=tls) as client,
            Client(target, tls=tls) as other,
        ):
            session = await client.open("history")
            for position in range(1, 16):
                assert await session.step(1) == int("1" * position)
            before = looks[0]
            assert before, "it was not polled for"
            assert await session.step(1) == int("1" * 16)
            assert looks[0] > before
            second = await other.open("history")
            for position in range(1, 10):
                assert await second.step(2) == int("2" * position)
            assert await session.step(1) == int("1" * 17)
            large = await session.step([0] * 100)
            assert len(large) == 100

    _run(scenario())


def test_http_with_certificates(pair: Pair, authorities: tuple[Authority, Authority]) -> None:
    """The HTTP port speaks TLS with the latest certificate, and survives those who do not."""
    first, second = authorities
    files = CertificateFiles(pair.certificate, pair.key, None)
    http = HttpServer(Address("127.0.0.1", 0), CollectorRegistry(), str, files)
    url = f"127.0.0.1:{http.port}/readyz"
    try:
        for authority in (first, second):
            context = ssl.create_default_context(cafile=str(authority.certificate))
            with urllib.request.urlopen(f"https://{url}", timeout=10, context=context) as response:
                assert response.read() == b"ready\n"
            with pytest.raises(OSError, match=r"closed|reset"):
                urllib.request.urlopen(f"http://{url}", timeout=10)
            pair.replace(second.sign("server"))
        context = ssl.create_default_context(cafile=str(first.certificate))
        with pytest.raises(urllib.error.URLError, match="verify failed"):
            urllib.request.urlopen(f"https://{url}", timeout=10, context=context)
    finally:
        http.close()
