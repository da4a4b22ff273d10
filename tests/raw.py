"""A client that speaks HTTP/2 by hand, well or badly.

Owns frames and the plainest header encoding (RFC 9113, RFC 7541: literals without indexing). Must not know gRPC's
messages; reads no headers, only whether a stream has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW = 4
_PATIENCE_SECONDS = 30.0


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def headers(pairs: Sequence[tuple[str, str]]) -> bytes:
    """A header block."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in pairs)


def _string(text: str) -> bytes:
    data = text.encode()
    length = bytes((len(data),)) if len(data) < 127 else b"\x7f" + varint(len(data) - 127)
    return length + data


def varint(value: int) -> bytes:
    """An integer by seven bits a byte, the lowest first: as HPACK goes on behind a prefix, and as protobuf has it."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))


def request(path: str, **others: str) -> bytes:
    """The header block of a gRPC call; `others` replace headers, with underscores for dashes."""
    pairs = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "127.0.0.1",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return headers(list((pairs | {name.replace("_", "-"): value for name, value in others.items()}).items()))


def message(data: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """A gRPC message as it stands in DATA frames."""
    return bytes((flag,)) + (len(data) if length is None else length).to_bytes(4, "big") + data


class Connection:
    """One connection, past the preface."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, window: int | None = None) -> Connection:
        """Connects; `window` is what the server may send on each stream before it is told to go on."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        settings = b"" if window is None else INITIAL_WINDOW.to_bytes(2, "big") + window.to_bytes(4, "big")
        writer.write(PREFACE + frame(SETTINGS, 0, 0, settings))
        return cls(reader, writer)

    async def send(self, data: bytes) -> None:
        """Writes frames, or what pretends to be some."""
        self.writer.write(data)
        await self.writer.drain()

    async def frames_until_end(self, stream: int) -> list[int]:
        """Kinds of the frames that come until the stream or the connection has ended."""
        kinds = []
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while True:
                    head = await self._reader.readexactly(9)
                    await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                    kind, flags, number = head[3], head[4], int.from_bytes(head[5:], "big")
                    kinds.append(kind)
                    is_last = kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM)
                    if (number == stream and is_last) or kind == GOAWAY:
                        return kinds
        except (asyncio.IncompleteReadError, ConnectionError):
            return kinds

    def abort(self) -> None:
        """Hangs up."""
        self.writer.transport.abort()
