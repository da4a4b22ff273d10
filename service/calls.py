"""Counts gRPC calls, by method and status code.

Owns the wrapping of method handlers. Must not know what the methods do. A call is touched when it begins and when it
ends: what passes on a stream in between is not. Only the few calls that are written as generators (health's `Watch`,
reflection) pass through here message by message.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from eddy.service.stats import CallStats

# Of calls to methods that do not exist. Their names are the client's invention and would be labels without end.
UNKNOWN_METHOD = "unknown"

# A client that breaks a stream off looks, to who reads it, like one that ended it; the cancellation comes right behind.
# Waiting for it this long once a stream tells the one from the other: it comes within 0.3 ms.
_CANCEL_SECONDS = 0.01

_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
_HANDLERS: dict[tuple[bool, bool], tuple[str, Any]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


class CallCounter(grpc.aio.ServerInterceptor):
    """Counts every call of a server.

    Args:
        stats: where to count.
    """

    def __init__(self, stats: CallStats) -> None:
        self._stats = stats
        # Handlers are wrapped once. Changed only on the event loop.
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """The handler of a call, wrapped; None where there is none."""
        method: str = handler_call_details.method
        known = self._wrapped.get(method)
        if known is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                self._stats.start(UNKNOWN_METHOD)
                self._stats.finish(UNKNOWN_METHOD, grpc.StatusCode.UNIMPLEMENTED.name)
                return None
            known = self._wrapped[method] = self._wrap(method.lstrip("/"), handler)
        return known

    def _wrap(self, method: str, handler: Any) -> Any:
        attribute, build = _HANDLERS[handler.request_streaming, handler.response_streaming]
        behavior = getattr(handler, attribute)
        if inspect.isasyncgenfunction(behavior):
            wrapped: Any = self._wrap_generator(method, behavior)
        else:
            wrapped = self._wrap_coroutine(method, behavior, is_stream=handler.request_streaming)
        return build(wrapped, handler.request_deserializer, handler.response_serializer)

    def _wrap_coroutine(
        self, method: str, behavior: Callable[[Any, Any], Awaitable[Any]], *, is_stream: bool
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def call(request: Any, context: Any) -> Any:
            with self._count(method, context):
                result = await behavior(request, context)
                if is_stream:
                    await asyncio.sleep(_CANCEL_SECONDS)
                return result

        return call

    def _wrap_generator(
        self, method: str, behavior: Callable[[Any, Any], AsyncIterator[Any]]
    ) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._count(method, context):
                async for response in behavior(request, context):
                    yield response

        return call

    @contextmanager
    def _count(self, method: str, context: Any) -> Iterator[None]:
        self._stats.start(method)
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._stats.finish(method, _code(context, error))


def _code(context: Any, error: BaseException | None) -> str:
    """The status code's name of a call that ended with `error`, or without one.

    Cases:
    1. the handler set a code (`abort` does): that one;
    2. it was cancelled, by its client, by its client's deadline, or by the end of the server;
    3. it returned: OK;
    4. it raised something else: gRPC answers UNKNOWN.
    """
    code = context.code()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else code
    if number:  # 1.
        return _CODES.get(number, grpc.StatusCode.UNKNOWN.name)
    if isinstance(error, asyncio.CancelledError | GeneratorExit):  # 2.
        remaining = context.time_remaining()
        is_late = remaining is not None and remaining <= 0
        return (grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED).name
    return (grpc.StatusCode.OK if error is None else grpc.StatusCode.UNKNOWN).name  # 3. 4.
