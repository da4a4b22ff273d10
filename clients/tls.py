"""TLS of a client's connection.

Owns reading the PEM files and making gRPC's channel from them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from eddy.clients.errors import invalid


@dataclass(frozen=True, slots=True)
class Tls:
    """What a client trusts and who it is, as PEM files.

    Example:
        Client("eddy.example.org:8500", tls=Tls(ca="ca.pem"))

    Attributes:
        ca: authorities that may have signed the server's certificate; the public ones by default.
        certificate, key: the client's own, for servers that ask for one.
        server_name: the name in the server's certificate, where it is not the host of the target.

    Raises:
        InvalidInput: one of certificate and key without the other.
    """

    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            missing, other = ("key", "certificate") if self.key is None else ("certificate", "key")
            raise invalid("MISSING_FIELD", f"tls.{missing}", "none", f"the file that belongs to tls.{other}")


def open_channel(target: str, tls: Tls | None, options: tuple[tuple[str, Any], ...]) -> Any:
    """An asyncio channel to `target`, plaintext without `tls`.

    Raises:
        InvalidInput: a file of `tls` cannot be read.
    """
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(
        _read("ca", tls.ca), _read("key", tls.key), _read("certificate", tls.certificate)
    )
    if tls.server_name:
        options = (*options, ("grpc.ssl_target_name_override", tls.server_name))
    return grpc.aio.secure_channel(target, credentials, options=options)


def _read(field: str, path: str | os.PathLike[str] | None) -> bytes | None:
    if path is None:
        return None
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise invalid("MISSING_FIELD", f"tls.{field}", f"{path}: {error.strerror}", "a PEM file") from error
    if b"-----BEGIN " not in data:
        raise invalid("MALFORMED_MESSAGE", f"tls.{field}", f"{path}: no PEM block in it", "a PEM file")
    return data
