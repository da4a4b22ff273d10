"""Messages of the load generator, built once and patched.

Owns the bytes of step messages. Must not know connections or time. A step costs one vector addition and one copy, so
that the load generator takes as little as possible of the machine that the server needs.

Dimension key: B rows, one session each; every message is one step (T = 1).
"""

from __future__ import annotations

import os

import numpy as np

from benchmarks.shape import INPUT, OUTPUT, Shape
from eddy.v1 import contract_pb2, inference_pb2

# One request is in flight at a time, so one tag will do, and every reply has the same length.
TAG = 1


class StepMessage:
    """The step request of B sessions, at rising positions.

    Args:
        handles: uint64 [B]; seed: of the input values, standard normal float32 [B, 1, F].
    """

    def __init__(self, shape: Shape, handles: np.ndarray, seed: int = 0) -> None:
        num_rows = len(handles)
        values = np.random.default_rng(seed).standard_normal((num_rows, 1, shape.features), np.float32)
        marker = os.urandom(8 * num_rows)
        request = inference_pb2.StreamRequest(
            tag=TAG,
            step=inference_pb2.StepChunk(
                handles=handles.astype("<u8").tobytes(),
                positions=marker,
                num_steps=1,
                inputs=[_tensor(INPUT, values)],
            ),
        )
        data = request.SerializeToString()
        self._buffer = bytearray(data)
        # A view into the buffer. The first message wraps it around to position 0.
        self._positions = np.frombuffer(self._buffer, "<u8", num_rows, data.index(marker))
        self._positions[:] = np.uint64(2**64 - 1)
        self._one = np.uint64(1)

    def next(self) -> bytes:
        """The request for the step after the last."""
        self._positions += self._one
        return bytes(self._buffer)


def reply_bytes(shape: Shape, num_rows: int) -> int:
    """Bytes of the reply to a step of B rows of which none is refused."""
    values = np.zeros((num_rows, 1, shape.outputs), np.float32)
    result = inference_pb2.StepResult(outputs=[_tensor(OUTPUT, values)])
    return inference_pb2.StreamResponse(tag=TAG, step=result).ByteSize()


def request_bytes(shape: Shape, num_rows: int) -> int:
    """Bytes of the request for a step of B rows."""
    return len(StepMessage(shape, np.zeros(num_rows, np.uint64)).next())


def _tensor(name: str, values: np.ndarray) -> inference_pb2.Tensor:
    return inference_pb2.Tensor(
        name=name, dtype=contract_pb2.DATA_TYPE_FLOAT32, shape=values.shape, data=values.astype("<f4").tobytes()
    )
