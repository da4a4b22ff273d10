"""Messages of the load generator, built once and patched.

Owns the bytes of requests. Must not know connections or time. A step costs one vector addition and one copy, so
that the load generator takes as little as possible of the machine that the server needs.

Dimension key: B rows, one session each; every message is one step (T = 1).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import cycle

import numpy as np

from benchmarks.values import draw_inputs, draw_sources
from eddy.oip import grpc_service_pb2
from eddy.service.contract import Contract
from eddy.service.oip_tensors import datatype_of
from eddy.service.ports import Port
from eddy.v1 import inference_pb2

# One request is in flight at a time, so one tag will do.
TAG = 1
# Any number but 0.
_FIRST_SEQUENCE = 1000


class StepMessage:
    """The step request of B sessions, at rising positions.

    Args:
        handles: uint64 [B]; positions: int64 [B], where the sessions are; seed: of the input values.
    """

    def __init__(self, contract: Contract, handles: np.ndarray, positions: np.ndarray, seed: int = 0) -> None:
        num_rows = len(handles)
        marker = os.urandom(8 * num_rows)
        request = inference_pb2.StreamRequest(
            tag=TAG,
            step=inference_pb2.StepChunk(
                handles=handles.astype("<u8").tobytes(),
                positions=marker,
                num_steps=1,
                inputs=tensors(contract.inputs, draw_inputs(contract, num_rows, seed)),
            ),
        )
        data = request.SerializeToString()
        self._buffer = bytearray(data)
        # A view into the buffer, one step behind: `next` raises it first.
        self._positions = np.frombuffer(self._buffer, "<u8", num_rows, data.index(marker))
        self._positions[:] = positions.astype(np.uint64) - np.uint64(1)
        self._one = np.uint64(1)

    def next(self) -> bytes:
        """The request for the step after the last."""
        self._positions += self._one
        return bytes(self._buffer)


class Turns:
    """Step requests of one stream that take turns: each steps sessions of its own."""

    def __init__(self, messages: Sequence[StepMessage]) -> None:
        self._turns = cycle(messages)

    def next(self) -> bytes:
        """The request whose turn it is."""
        return next(self._turns).next()


class InferMessage:
    """The request of the Open Inference Protocol for one step of a sequence, as Triton's Python client writes it.

    Args:
        number: of the sequence, from 0, and the seed of the input values.
    """

    def __init__(self, contract: Contract, number: int, *, is_start: bool = False, is_end: bool = False) -> None:
        request = grpc_service_pb2.ModelInferRequest(model_name=contract.name)
        for port, values in zip(contract.inputs, draw_inputs(contract, 1, number), strict=True):
            request.inputs.add(name=port.name, datatype=datatype_of(port.dtype), shape=values.shape)
            request.raw_input_contents.append(values.tobytes())
        request.parameters["sequence_id"].int64_param = _FIRST_SEQUENCE + number
        request.parameters["sequence_start"].bool_param = is_start
        request.parameters["sequence_end"].bool_param = is_end
        self._data = request.SerializeToString()

    def next(self) -> bytes:
        """The request: it has no position."""
        return self._data


def open_message(contract: Contract, count: int, seed: int = 0) -> inference_pb2.OpenSessions:
    """The request to open sessions, each with a source to read where the model wants one."""
    message = inference_pb2.OpenSessions(model=contract.name, count=count)
    if contract.is_primed:
        sources, lengths = draw_sources(contract, count, seed)
        message.prime.inputs.extend(tensors(contract.prime_inputs, sources))
        message.prime.lengths = lengths.astype("<u4").tobytes()
    return message


def reply_sizes(contract: Contract, num_rows: int) -> frozenset[int]:
    """Bytes that the reply to a step of B rows may have when none is refused.

    One a number of steps emitted, and these with durable positions, too.
    """
    extra = max(port.extra_steps for port in contract.outputs)
    return frozenset(
        _reply_bytes(contract, num_rows, steps, is_durable=is_durable)
        for steps in range(0 if contract.emits else 1, extra + 2)
        for is_durable in (False, True)
    )


def _reply_bytes(contract: Contract, num_rows: int, num_steps: int, *, is_durable: bool) -> int:
    values = [np.zeros((num_rows, num_steps, *port.shape), port.dtype) for port in contract.outputs]
    result = inference_pb2.StepResult(outputs=tensors(contract.outputs, values))
    if contract.emits:
        result.emitted = bytes(8 * num_rows)
    if is_durable:
        result.durable_positions = bytes(8 * num_rows)
    return inference_pb2.StreamResponse(tag=TAG, step=result).ByteSize()


def tensors(ports: Sequence[Port], values: Sequence[np.ndarray]) -> list[inference_pb2.Tensor]:
    """Values of ports as they travel."""
    return [
        inference_pb2.Tensor(name=port.name, dtype=port.wire_dtype, shape=array.shape, data=array.tobytes())
        for port, array in zip(ports, values, strict=True)
    ]
