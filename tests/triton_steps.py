"""A client written for Triton, `tritonclient.grpc`, unchanged, on a server of ours.

Owns the building of its tensors and the waiting for its callbacks. The client blocks: it runs on a thread of its own,
`asyncio.to_thread`, beside the server.

Dimension key: T steps.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from loopback import PATIENCE_SECONDS, Loopback
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

HISTORY_INPUT, HISTORY_OUTPUT = "x", "y"


@contextmanager
def connect(loopback: Loopback) -> Iterator[triton.InferenceServerClient]:
    """A client with a connection of its own."""
    client = triton.InferenceServerClient(f"127.0.0.1:{loopback.server.port}")
    try:
        yield client
    finally:
        client.close()


def tensor(name: str, values: np.ndarray, library: Any = triton) -> Any:
    """An input as the client sends it."""
    found = library.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    found.set_data_from_numpy(values)
    return found


def history(*steps: int, library: Any = triton) -> list[Any]:
    """T steps for the model `history`."""
    return [tensor(HISTORY_INPUT, np.array([steps], np.int64), library)]


def answers(result: Any) -> list[int]:
    """What `history` answered, a number a step."""
    values: list[int] = result.as_numpy(HISTORY_OUTPUT)[0].tolist()
    return values


def step(client: triton.InferenceServerClient, *steps: int, **options: Any) -> list[int]:
    """One call to the model `history`."""
    return answers(client.infer("history", history(*steps), client_timeout=PATIENCE_SECONDS, **options))


def refusal(client: triton.InferenceServerClient, *steps: int, **options: Any) -> tuple[str, str]:
    """Code and text of a call that must be refused."""
    try:
        given = step(client, *steps, **options)
    except InferenceServerException as error:
        return str(error.status()).removeprefix("StatusCode."), error.message()
    raise AssertionError(f"the call was carried out: {given}")


class Inbox:
    """Takes what a stream's callback is told.

    Args:
        client: its stream is opened, and ended at the end of `with`.
    """

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self._client = client
        self._told: queue.SimpleQueue[tuple[Any, InferenceServerException | None]] = queue.SimpleQueue()

    def __enter__(self) -> Inbox:
        self._client.start_stream(lambda result, error: self._told.put((result, error)))
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop_stream()

    def send(self, *steps: int, **options: Any) -> None:
        """Writes a request for `history`."""
        self._client.async_stream_infer("history", history(*steps), **options)

    def take(self) -> tuple[Any, InferenceServerException | None]:
        """The next answer."""
        return self._told.get(timeout=PATIENCE_SECONDS)

    def take_answers(self) -> list[int]:
        """The next answer, which must be one of `history`'s."""
        result, error = self.take()
        assert error is None, error
        return answers(result)
