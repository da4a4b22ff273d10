"""gRPC's server credentials from certificate files that may change.

Owns nothing but the making. Must not know addresses or services.
"""

from __future__ import annotations

from typing import Any

import grpc

from eddy.service.certificates import CertificateFiles, Certificates


def server_credentials(files: CertificateFiles) -> Any:
    """Credentials that ask `files` for the latest certificates at every handshake.

    Clients must present a certificate if there is a client CA. Connections that are open go on with what they began.
    """
    first = files.latest()
    # Changed only by gRPC's handshakes.
    in_use = [first]

    def fetch() -> Any:
        latest = files.latest()
        if latest is in_use[0]:
            return None  # No change.
        in_use[0] = latest
        return _configuration(latest)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(first), fetch, require_client_authentication=first.client_ca is not None
    )


def _configuration(certificates: Certificates) -> Any:
    pair = (certificates.key, certificates.certificate)
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=certificates.client_ca)
