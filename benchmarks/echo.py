"""The yardstick: a bare `grpc.aio` server that answers every message with one of a given size.

`python -m benchmarks.echo` prints its port and serves until its standard input ends. Nothing is parsed, nothing is
checked: what it takes is what Python's gRPC takes. `python -m benchmarks.echo REPOSITORY MODEL` runs a step of the bare
graph, of always the same two rows, before it answers: what nobody who does so can go below.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import uvloop

METHOD = "/benchmarks.Echo/Stream"
# Call metadata: bytes of every reply of this stream.
REPLY_BYTES = "reply-bytes"
# Of a step, as the server never runs fewer.
MIN_ROWS = 2


class _Echo:
    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step

    async def serve(self, _: Any, context: Any) -> None:
        metadata = dict(context.invocation_metadata())
        reply = bytes(int(metadata[REPLY_BYTES]))
        while await context.read() is not grpc.aio.EOF:
            self._step()
            await context.write(reply)


def _nothing() -> None:
    return


async def _main(step: Callable[[], None]) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
    handler = grpc.stream_stream_rpc_method_handler(_Echo(step).serve)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("benchmarks.Echo", {"Stream": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0.0)


if __name__ == "__main__":
    if arguments := sys.argv[1:]:
        from benchmarks.ceiling import Ceiling

        uvloop.run(_main(Ceiling(Path(arguments[0])).step_of(arguments[1], MIN_ROWS)))
    else:
        uvloop.run(_main(_nothing))
