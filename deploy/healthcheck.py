"""The container's health check: exits 0 when the server of this container says that it is ready.

Owns one question to /readyz, in plain HTTP and, where that is not what the port speaks, over TLS. Needs the standard
library only, because a slim image has no curl, and imports as little of it as it can, because it runs every few
seconds. The port is the first argument, else `EDDY_SERVER_HTTP_PORT`, else the server's default.
"""

import http.client
import os
import sys

HOST = "127.0.0.1"
PORT = "8501"
TIMEOUT_SECONDS = 2.0


def main() -> int:
    """Asks; 0 for ready, 1 for anything else, with the reason on stdout."""
    port = int(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("EDDY_SERVER_HTTP_PORT") or PORT)
    try:
        try:
            status, text = ask(http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_SECONDS))
        except (http.client.HTTPException, ConnectionResetError):
            status, text = ask(secure(port))
    except (OSError, http.client.HTTPException) as error:
        status, text = 0, f"no answer from port {port}: {error}"
    print(text)
    return 0 if status == http.client.OK else 1


def ask(connection: http.client.HTTPConnection) -> tuple[int, str]:
    """Status and text of /readyz."""
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status, answer.read().decode().strip()
    finally:
        connection.close()


def secure(port: int) -> http.client.HTTPSConnection:
    """A connection over TLS. The certificate names the service, not this loopback address: it is not checked."""
    import ssl

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(HOST, port, timeout=TIMEOUT_SECONDS, context=context)


if __name__ == "__main__":
    sys.exit(main())
