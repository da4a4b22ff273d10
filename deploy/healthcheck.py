"""The container's health check: exits 0 when the server of this container says that it is ready.

Owns one request to /readyz. Needs the standard library only, because a slim image has no curl, and imports as little
of it as it can, because it runs every few seconds. The port is the first argument, else `EDDY_SERVER_HTTP_PORT`, else
the server's default.
"""

import http.client
import os
import sys

HOST = "127.0.0.1"
PORT = "8501"
TIMEOUT_SECONDS = 2.0


def main() -> int:
    """Asks once; 0 for ready, 1 for anything else, with the reason on stdout."""
    port = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("EDDY_SERVER_HTTP_PORT") or PORT
    connection = http.client.HTTPConnection(HOST, int(port), timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        print(answer.read().decode().strip())
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer from http://{HOST}:{port}/readyz: {error}")
        return 1
    finally:
        connection.close()
    return 0 if answer.status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main())
