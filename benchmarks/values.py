"""What is sent to a model: input values that it accepts, sources for its prime graph, and where its rows stand.

Owns the drawing, for the load generator and for the bare graph alike. Must not know the wire or ONNX Runtime.

Dimension key: B rows, one session each, one step (T = 1); S source steps.
"""

from __future__ import annotations

import numpy as np

from eddy.service.contract import Contract
from eddy.service.example import example

# Sources of a sentence or two, of any length between these.
_MIN_SOURCE_STEPS, _MAX_SOURCE_STEPS = 8, 32


def draw_inputs(contract: Contract, rows: int, seed: int = 0) -> list[np.ndarray]:
    """One [B, 1, ...] an input of the model."""
    return [example(port, rows, 1, seed) for port in contract.inputs]


def draw_sources(contract: Contract, rows: int, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """What sessions of a model with a prime graph begin with: one [B, S, ...] a prime input, and lengths int64 [B]."""
    most = min(_MAX_SOURCE_STEPS, contract.max_prime_steps)
    generator = np.random.default_rng(seed)
    lengths = generator.integers(min(_MIN_SOURCE_STEPS, most), most, rows, endpoint=True)
    return [example(port, rows, most, seed) for port in contract.prime_inputs], lengths


def phases_of(contract: Contract, rows: int) -> np.ndarray:
    """Steps that each row takes before the others join, int64 [B]; all 0 unless the model looks ahead.

    Streams begin when they like: each has the look-ahead and some part of a block, so that in every tick another share
    of the rows completes one.
    """
    streaming = contract.message.streaming
    return streaming.look_ahead_steps + np.arange(rows) % max(1, streaming.block_steps)
