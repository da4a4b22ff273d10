"""The flags of commands that talk to a running server.

Owns the TLS flags and their reading.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eddy.clients.tls import Tls


def add_tls(parser: argparse.ArgumentParser) -> None:
    """Adds the TLS flags; `tls_of` reads them."""
    group = parser.add_argument_group("TLS to the server")
    group.add_argument("--tls", action="store_true", help="use TLS, with the public authorities")
    group.add_argument("--tls-ca", metavar="FILE", help="use TLS; PEM file of the authorities to trust")
    group.add_argument("--tls-certificate", metavar="FILE", help="use TLS; PEM file of this client's certificate")
    group.add_argument("--tls-key", metavar="FILE", help="PEM file of its private key")
    group.add_argument("--tls-server-name", default="", metavar="NAME", help="the name in the server's certificate")


def tls_of(options: argparse.Namespace) -> Tls | None:
    """The TLS that the flags ask for, None for plaintext.

    Raises:
        InvalidInput: they do not go together.
    """
    from eddy.clients.tls import Tls

    given = (options.tls, options.tls_ca, options.tls_certificate, options.tls_key, options.tls_server_name)
    if not any(given):
        return None
    return Tls(options.tls_ca, options.tls_certificate, options.tls_key, options.tls_server_name)
