"""Addresses to listen on: how they are written, whether they are this machine's own, and why one cannot be used.

Owns the words of a refused port. Must not know who listens.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass


class AddressError(Exception):
    """An address cannot be listened on; the message says why and which key to change."""


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def check(self, key: str) -> None:
        """Finds out, before anything is loaded, whether the address can be listened on.

        Args:
            key: of the port in the configuration, such as "grpc_port".

        Raises:
            AddressError: it cannot.
        """
        try:
            with socket.socket(family_of(self.host), socket.SOCK_STREAM) as probe:
                # As listening sockets do: a port whose last connections have just ended is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((self.host, self.port))
        except OSError as error:
            raise self.refusal(error, key) from error

    def refusal(self, error: OSError, key: str) -> AddressError:
        """The error that says what `error`, from listening here, means for who starts the server."""
        flag, host_key = f"--{key.replace('_', '-')}", "http_host or server.host" if key == "http_port" else "host"
        fix = f"choose another with {flag} (server.{key}), 0 for any free one"
        if error.errno == errno.EADDRINUSE:
            return AddressError(f"cannot listen on {self}: the port is in use; {fix}")
        if error.errno in (errno.EACCES, errno.EPERM):
            return AddressError(f"cannot listen on {self}: no permission for port {self.port}; {fix}")
        why = error.strerror or str(error)
        return AddressError(f"cannot listen on {self}: {why}; set server.{host_key} to an address of this machine")


def family_of(host: str) -> socket.AddressFamily:
    """IPv6 for addresses with colons, else IPv4."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. Names other than "localhost" count as reachable: they may be."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
