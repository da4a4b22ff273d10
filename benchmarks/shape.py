"""The models that are measured, by their sizes.

Owns names and sizes only. Must not know ONNX, the wire or processes.

Dimension key: F features in, H hidden, L layers, O features out.
"""

from __future__ import annotations

from dataclasses import dataclass

INPUT = "x"
OUTPUT = "y"


@dataclass(frozen=True, slots=True)
class Shape:
    """An LSTM with a linear head: `x` float32 [B, T, F] -> `y` float32 [B, T, O], states `h` and `c` [B, L, H]."""

    name: str
    features: int
    hidden: int
    layers: int
    outputs: int = 8

    @property
    def state_bytes(self) -> int:
        """Bytes of one session's state."""
        return 2 * self.layers * self.hidden * 4


LSTM_128 = Shape("lstm-128x1", features=16, hidden=128, layers=1)
LSTM_512 = Shape("lstm-512x2", features=64, hidden=512, layers=2)
SHAPES = {shape.name: shape for shape in (LSTM_128, LSTM_512)}
