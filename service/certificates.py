"""The server's certificate files, read again when they change.

Owns reading them and knowing whether they are good and belong together. Must not know gRPC or HTTP: both ask for the
latest good reading when a connection begins, so that new files count from the next connection on, without a restart.
"""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

_LOG = logging.getLogger(__name__)


class CertificateError(Exception):
    """A certificate file cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """One consistent reading of the files, PEM.

    Attributes:
        client_ca: authorities that clients' certificates must be signed by, None when clients need none.
        context: TLS for servers of Python's own, without asking for client certificates.
    """

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


class CertificateFiles:
    """The files that the configuration names.

    A reading that is not good (a file half-written, a key that belongs to another certificate, a file gone) is logged
    once and the last good one stays. The contents are compared, not times: rotations copy, rename and link.

    Args:
        certificate, key, client_ca: the files; no client_ca: clients need no certificate.

    Raises:
        CertificateError: the files are not good to begin with.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._paths = (certificate, key, client_ca)
        self._lock = threading.Lock()
        # Changed only by `latest`, under the lock: connections begin on several threads.
        self._raw = self._read()
        self._latest = self._check(self._raw)
        self._complaint = ""

    def latest(self) -> Certificates:
        """The latest good reading; the same object for as long as nothing new is good."""
        with self._lock:
            try:
                raw = self._read()
                if raw != self._raw:
                    self._latest, self._raw = self._check(raw), raw
                    _LOG.info("new certificates are in use, from %s", self._paths[0])
                self._complaint = ""
            except CertificateError as error:
                if str(error) != self._complaint:
                    _LOG.error("the certificates in use stay: %s", error)
                self._complaint = str(error)
            return self._latest

    def _read(self) -> tuple[bytes, bytes, bytes | None]:
        certificate, key, client_ca = self._paths
        return _bytes(certificate), _bytes(key), None if client_ca is None else _bytes(client_ca)

    def _check(self, raw: tuple[bytes, bytes, bytes | None]) -> Certificates:
        certificate, key, client_ca = self._paths
        _check_authorities(certificate, raw[0])
        if client_ca is not None and raw[2] is not None:
            _check_authorities(client_ca, raw[2])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password to give it would ask the terminal for one.
            context.load_cert_chain(certificate, key, password=lambda: "")
        except OSError as error:  # Also SSLError.
            if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
                raise CertificateError(f"{key}: the key does not belong to the certificate {certificate}") from error
            raise CertificateError(f"{key}: expected a private key in PEM form, without a passphrase") from error
        if self._read() != raw:
            raise CertificateError(f"{certificate}: the files change while they are read")
        return Certificates(*raw, context)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{path}: {error.strerror or error}") from error


def _check_authorities(path: Path, raw: bytes) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=raw.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise CertificateError(f"{path}: expected certificates in PEM form") from error
