"""How long and how often to measure.

Owns the durations. At least five repetitions, so that a median means something; a quick run only shows that
everything works.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """Durations of one repetition.

    Attributes:
        packed_seconds: window under load, in throughput measurements; ceiling_seconds: each of two bare windows.
        singles_seconds: window under load; warm_up_seconds: before any window.
        latency_blocks: blocks of `latency_block_steps` steps each, for Eddy and the echo alike.
        checkpoint_seconds: window under load, in each of which several checkpoints fall.
        idle_sessions: sessions to open for their memory; parked_sessions: to open beside those that are measured.
        memory_repetitions, ready_repetitions: of the measurements that start a server each.
        family_repetitions: at most, of each of the many families.
    """

    repetitions: int = 7
    packed_seconds: float = 2.0
    ceiling_seconds: float = 0.7
    singles_seconds: float = 2.0
    checkpoint_seconds: float = 5.0
    warm_up_seconds: float = 0.5
    latency_blocks: int = 12
    latency_block_steps: int = 250
    idle_sessions: int = 100_000
    parked_sessions: int = 1_000_000
    memory_repetitions: int = 5
    ready_repetitions: int = 5
    family_repetitions: int = 5


QUICK = Plan(
    repetitions=2,
    packed_seconds=0.8,
    ceiling_seconds=0.3,
    singles_seconds=0.8,
    checkpoint_seconds=2.0,
    warm_up_seconds=0.3,
    latency_blocks=4,
    parked_sessions=100_000,
    memory_repetitions=1,
    ready_repetitions=2,
    family_repetitions=2,
)
