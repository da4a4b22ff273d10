"""Examples: values that a model accepts, for trying it out at load.

Owns the drawing. Must not know what is done with them.

Dimension key: B rows, T steps.
"""

from __future__ import annotations

import numpy as np

from eddy.service.contract import END, Contract
from eddy.service.ports import Port


def example(port: Port, rows: int, num_steps: int, seed: int = 0) -> np.ndarray:
    """Values within the port's range, [B, T, ...], that differ between rows."""
    generator = np.random.default_rng(seed)
    shape = (rows, *port.row_shape(num_steps))
    if port.dtype.kind == "f":
        low = -1.0 if port.minimum is None else port.minimum
        high = 1.0 if port.maximum is None else port.maximum
        return generator.uniform(low, high, shape).astype(port.dtype)
    low_int = 0 if port.minimum is None else int(port.minimum)
    high_int = low_int + 1 if port.maximum is None else int(port.maximum)
    return generator.integers(low_int, high_int, shape, endpoint=True).astype(port.dtype)


def example_feeds(contract: Contract, rows: int, num_steps: int, seed: int = 0) -> list[np.ndarray]:
    """One [B, T, ...] a feed, no stream of which ends."""
    return [
        np.zeros((rows, num_steps), port.dtype) if port.name == END else example(port, rows, num_steps, seed)
        for port in contract.feeds
    ]
