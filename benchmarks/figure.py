"""A figure: one number that the service is held to.

Owns names, bars and how repetitions become one value (the median). Must not know how anything is measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Better(Enum):
    """Which way is better."""

    HIGHER = "at least"
    LOWER = "at most"


@dataclass(frozen=True, slots=True)
class Definition:
    """What a figure means.

    Attributes:
        bar: the value to reach, None where the figure is only a yardstick.
        digits: after the point, when printed.
    """

    name: str
    bar: float | None
    better: Better
    digits: int
    text: str


def _family(name: str, text: str) -> Definition:
    return Definition(f"packed_{name}", 0.70, Better.HIGHER, 3, f"share of the bare graph's steps/s: {text}")


_ALL = (
    Definition("ceiling_128", None, Better.HIGHER, 0, "steps/s, bare ONNX Runtime at the mean tick size, LSTM 128x1"),
    Definition("packed_128", 0.70, Better.HIGHER, 3, "share of the ceiling, 4 streams x 256 sessions, LSTM 128x1"),
    Definition("ceiling_512", None, Better.HIGHER, 0, "steps/s, bare ONNX Runtime at the mean tick size, LSTM 512x2"),
    Definition("packed_512", 0.90, Better.HIGHER, 3, "share of the ceiling, 4 streams x 256 sessions, LSTM 512x2"),
    Definition("singles_cpu_ratio", 1.4, Better.LOWER, 2, "server CPU a step over the echo's, 64 x one session"),
    Definition(
        "oip_cpu_ratio", 1.3, Better.LOWER, 2, "server CPU a step, Open Inference Protocol over eddy.v1's singles"
    ),
    Definition("latency_excess_us", 80.0, Better.LOWER, 1, "us, median of one session alone beyond echo + bare step"),
    Definition("latency_tail_ratio", 1.5, Better.LOWER, 2, "p99/p50 of one session alone over the echo's"),
    Definition("coalescing_gain", 3.0, Better.HIGHER, 2, "steps/s of 256 coroutines on one client over singles'"),
    Definition("checkpoint_cost", 0.05, Better.LOWER, 3, "steps/s lost to a checkpoint a second, 10,000 sessions"),
    Definition(
        "parked_throughput_ratio",
        0.9,
        Better.HIGHER,
        3,
        "steps/s of 1,000 sessions beside 1,000,000 parked over without",
    ),
    Definition("idle_session_bytes", 256.0, Better.LOWER, 0, "resident bytes a session beyond state and kept replies"),
    _family("rnn", "RNN 256, letters"),
    _family("gru", "GRU 192, letters"),
    _family("lstm", "LSTM 192, letters"),
    _family("residual", "4 layers of LSTM 128, residual, letters"),
    _family("learned_state", "2 layers of GRU 128, learned state, forecast"),
    _family("conv1d_gru", "2 causal convolutions, GRU 128, activity"),
    _family("conv2d_lstm", "2 convolutions of 16x16 frames, LSTM 128, video"),
    _family("attention", "LSTM 128, attention to the last 32 steps, letters"),
    _family("bidirectional", "2 layers of LSTM 128 both ways, blocks of 8, look-ahead 16, accents"),
    _family("translation", "GRU 160, attention to a primed source, 800 pieces"),
    Definition(
        "int8_speedup", 1.0, Better.HIGHER, 2, "steps/s of LSTM 512x2 in int8 over float32, 256 rows of one step"
    ),
    Definition("ready_seconds", 2.0, Better.LOWER, 2, "s from `eddy serve` to ready with the shipped models"),
)
DEFINITIONS = {definition.name: definition for definition in _ALL}


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured figure.

    Attributes:
        values: one a repetition.
    """

    definition: Definition
    values: tuple[float, ...]

    @property
    def value(self) -> float:
        """The median of the repetitions."""
        return statistics.median(self.values)

    @property
    def is_met(self) -> bool:
        """The value reaches the bar, or there is none."""
        bar = self.definition.bar
        if bar is None:
            return True
        return self.value >= bar if self.definition.better is Better.HIGHER else self.value <= bar


def figure(name: str, values: Sequence[float]) -> Figure:
    """A figure by its name."""
    return Figure(DEFINITIONS[name], tuple(values))


@dataclass(frozen=True, slots=True)
class Note:
    """What was seen besides a figure, for people."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """Figures measured together, and what was seen besides.

    Attributes:
        other_cores: cores that other programs kept busy meanwhile.
    """

    figures: tuple[Figure, ...]
    notes: tuple[Note, ...] = ()
    other_cores: float = 0.0
