"""The yardstick: a bare `grpc.aio` server that answers every message with one of a given size.

`python -m benchmarks.echo` prints its port and serves until its standard input ends. Nothing is parsed, nothing is
checked: what it takes is what Python's gRPC takes.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import uvloop

METHOD = "/benchmarks.Echo/Stream"
# Call metadata: bytes of every reply of this stream.
REPLY_BYTES = "reply-bytes"


async def _echo(_: Any, context: Any) -> None:
    metadata = dict(context.invocation_metadata())
    reply = bytes(int(metadata[REPLY_BYTES]))
    while await context.read() is not grpc.aio.EOF:
        await context.write(reply)


async def _main() -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
    handler = grpc.stream_stream_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("benchmarks.Echo", {"Stream": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0.0)


if __name__ == "__main__":
    uvloop.run(_main())
