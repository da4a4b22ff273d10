"""Certificates for tests, made by the `openssl` command: an authority, and pairs that it signs.

Owns the commands. Must not know who uses the files.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, PEM files."""

    certificate: Path
    key: Path

    def replace(self, other: "Pair") -> None:
        """Puts another pair's contents into these files."""
        self.certificate.write_bytes(other.certificate.read_bytes())
        self.key.write_bytes(other.key.read_bytes())

    def copy(self, folder: Path) -> "Pair":
        """The same pair as files of its own."""
        return Pair(*(Path(shutil.copy(path, folder / f"copy-{path.name}")) for path in (self.certificate, self.key)))


class Authority:
    """A certificate authority with its files in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._pair = Pair(folder / "ca.pem", folder / "ca.key")
        self.certificate = self._pair.certificate
        _openssl("req", "-x509", *_KEY, "-subj", f"/CN={folder.name}", "-days", "2", *_out(self._pair))

    def sign(self, name: str) -> Pair:
        """A new pair for a server on this machine, or for a client."""
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        request, extension = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extension.write_text("subjectAltName=DNS:localhost,DNS:eddy.test,IP:127.0.0.1\n", encoding="utf-8")
        _openssl("req", "-new", *_KEY, "-subj", f"/CN={name}", "-out", str(request), "-keyout", str(pair.key))
        signer = ("-CA", str(self.certificate), "-CAkey", str(self._pair.key), "-CAcreateserial")
        options = ("-days", "2", "-extfile", str(extension), "-out", str(pair.certificate))
        _openssl("x509", "-req", "-in", str(request), *signer, *options)
        return pair


def encrypt(key: Path) -> None:
    """Puts a passphrase on a private key."""
    _openssl("ec", "-in", str(key), "-out", str(key), "-aes256", "-passout", "pass:secret")


def _out(pair: Pair) -> tuple[str, ...]:
    return ("-out", str(pair.certificate), "-keyout", str(pair.key))


def _openssl(*arguments: str) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: it makes the certificates")
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)  # noqa: S603, S607  our own
