"""One `Generate` call on the wire.

Owns the call, and how its end reads: a typed error, or the end that the caller asked for. Must not know sessions.
"""

from __future__ import annotations

from typing import Any

import grpc

from eddy.clients.errors import Disconnected, EddyError, ModelUnavailable, ServerBusy, can_pass, from_rpc
from eddy.v1 import generation_pb2


class Attempt:
    """A call that was begun.

    Args:
        call: of `grpc.aio`.
    """

    def __init__(self, call: Any) -> None:
        self._call = call

    async def read(self) -> generation_pb2.GenerateResponse:
        """The next message.

        Raises:
            EddyError: the call was refused, or is cut off.
        """
        try:
            data = await self._call.read()
        except grpc.RpcError as error:
            raise from_rpc(error) from error
        if data is grpc.aio.EOF:
            raise cut_off()
        return generation_pb2.GenerateResponse.FromString(data)

    async def read_started(self) -> generation_pb2.GenerationStarted:
        """The first message."""
        response = await self.read()
        if not response.HasField("started"):
            raise cut_off()
        return response.started

    def cancel(self) -> None:
        """Stops the server, if it has not ended."""
        self._call.cancel()


def cut_off() -> Disconnected:
    """The server said no more."""
    return Disconnected("the generation was cut off before its end", "CANCELLED")


def may_pass(error: EddyError, *, is_again: bool) -> bool:
    """Another call may do better. `is_again`: the call followed a cut, when a server may still be filling up."""
    if can_pass(error):
        return True
    is_busy = isinstance(error, ServerBusy) and error.reason != "DEADLINE_EXCEEDED"
    is_loading = isinstance(error, ModelUnavailable) and error.reason == "MODEL_NOT_READY"
    return is_again and (is_busy or is_loading)
