"""What the clients of a crash test do: sessions whose every call is decided by the seed alone.

Owns the models, the kinds of sessions, and the calls of each, which client processes make and the judge makes again.
Must not know servers, stores or connections.

Dimension key: B sessions that are stepped together, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from graphs import Family, family, family_from_file, history_in

ROOT = Path(__file__).resolve().parents[2]
# The history in an odd base: modulo 2^64 no step of a session is ever forgotten, so any loss or repetition shows in
# every output after it.
_BASE = 6364136223846793005
_SHIPPED = ("forecast-lstm", "speech-gru", "speech-bigru")
TEXT_MODEL = "text-gru"
# Rare enough that most lives go through several crashes.
_FLUSH_SHARE = 0.1


class Kind(StrEnum):
    """How a session is used."""

    SINGLE = "single"  # one step after the other
    PIPELINED = "pipelined"  # several steps under way
    BATCH = "batch"  # many sessions as arrays
    RIVALS = "rivals"  # two clients that take the session from each other
    MOVED = "moved"  # goes on as a fork or a snapshot of itself, and begins anew by a reset
    TEXT = "text"  # generation


@dataclass(frozen=True)
class Workload:
    """Sessions of one kind and model, one after the other ("lives").

    Attributes:
        number: its place among its client's; rows: B; max_steps: T of a call at most.
    """

    number: int
    kind: Kind
    model: str
    rows: int = 1
    max_steps: int = 8
    max_in_flight: int = 1


@dataclass(frozen=True)
class Call:
    """One call of a session: the inputs of its steps, [B, T, ...] each, or the end of its stream.

    Attributes:
        num_positions: how far it moves the session.
    """

    inputs: tuple[np.ndarray, ...]
    is_end: bool
    num_positions: int


def batch_rows(*, is_small: bool) -> int:
    """Sessions of the largest batch of each model, which steps them all together."""
    return 32 if is_small else 128


def workloads(client: int, *, is_small: bool) -> list[Workload]:
    """What the client process of that number does."""
    rows = batch_rows(is_small=is_small)
    plans = [
        (Kind.BATCH, "history", rows, 8, 1),
        (Kind.SINGLE, "history", 1, 8, 1),
        (Kind.SINGLE, ("forecast-lstm", "speech-gru")[client % 2], 1, 8, 1),
        (Kind.PIPELINED, ("speech-gru", "history")[client % 2], 1, 6, 4),
        (Kind.PIPELINED, "look-ahead", 1, 6, 3),
        (Kind.BATCH, ("forecast-lstm", "speech-gru")[client % 2], rows, 4, 1),
        (Kind.BATCH, "speech-bigru", 8, 6, 1),
        (Kind.SINGLE, ("speech-bigru", "look-ahead")[client % 2], 1, 8, 1),
        (Kind.RIVALS, ("history", "forecast-lstm")[client % 2], 1, 6, 1),
        (Kind.TEXT, TEXT_MODEL, 1, 24, 1),
        (Kind.MOVED, "history", 1, 6, 1),
        (Kind.MOVED, ("speech-gru", "forecast-lstm")[client % 2], 1, 6, 1),
    ]
    return [Workload(number, *plan) for number, plan in enumerate(plans)]


def model_family(name: str) -> Family:
    """The model of that name."""
    if name == "history":
        return history_in(_BASE)
    if name in (*_SHIPPED, TEXT_MODEL):
        return family_from_file(ROOT / "models" / name / "1" / "model.onnx")
    return family(name)


def write_repository(folder: Path) -> Path:
    """A model repository of what the workloads use."""
    for name in ("history", "look-ahead", *_SHIPPED, TEXT_MODEL):
        version = folder / name / "1"
        version.mkdir(parents=True)
        if name in (*_SHIPPED, TEXT_MODEL):
            for path in (ROOT / "models" / name / "1").iterdir():
                (version / path.name).write_bytes(path.read_bytes())
        else:
            (version / "model.onnx").write_bytes(model_family(name).model().SerializeToString())
    return folder


def generator(seed: int, *place: int) -> np.random.Generator:
    """The random numbers of one place of a run."""
    return np.random.default_rng([seed, *place])


def num_calls(seed: int, client: int, workload: Workload, life: int) -> int:
    """Calls of a life."""
    return int(generator(seed, client, workload.number, life).integers(20, 400))


def call_of(model: Family, seed: int, client: int, workload: Workload, life: int, number: int) -> Call:
    """The call of that number of a life."""
    random = generator(seed, client, workload.number, life, number)
    if model.ends is not None and random.random() < _FLUSH_SHARE:
        return Call((), True, 1)
    num_steps = int(random.integers(1, workload.max_steps + 1))
    flat = model.example(random, workload.rows * num_steps)
    inputs = tuple(values.reshape(workload.rows, num_steps, *values.shape[1:]) for values in flat)
    return Call(inputs, False, num_steps)
