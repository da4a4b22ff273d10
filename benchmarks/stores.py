"""`python -m benchmarks.stores`: what a checkpoint of many sessions costs in each state store.

Owns the measurement: sessions of LSTM 128 (1,024 bytes of states, one kept reply of 96 bytes of inputs and outputs
that lies in one of forty blocks), encoded and written again under the same epoch, as a busy server does; then read. CPU
time is the calling thread's: what a Redis spends is not in it, the client's part is. Medians.

Dimension key: B sessions.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.machine import describe_machine
from eddy.service.kept import KeptColumns
from eddy.service.ports import Port, State
from eddy.service.record import Checkpoint, decode, encode
from eddy.service.record_model import Model, layout_of, ports_of
from eddy.service.stores import open_store

_FLOAT = np.dtype("<f4")
_STATES = [State(name, f"{name}_next", _FLOAT, 1, (1, 128), np.zeros((1, 128), _FLOAT), 512) for name in "hc"]
_PORTS = (Port("x", _FLOAT, 1, (16,), 64), Port("y", _FLOAT, 1, (8,), 32))
_NUM_BLOCKS = 40


def _checkpoint(num_sessions: int, expected_epoch: int, draw: np.random.Generator, ids: np.ndarray) -> Checkpoint:
    """All of `ids` uint8 [B, 16], with new states."""
    places = draw.permutation(num_sessions)
    rows = -(-num_sessions // _NUM_BLOCKS)
    ones = np.ones(num_sessions, np.int64)
    return Checkpoint(
        model=Model("lstm-128x1", "1", "0" * 64, "1.32.0", "x86_64 avx2", layout_of(_STATES), ports_of(_PORTS)),
        session_ids=ids,
        resume_tokens=ids,
        writer=1,
        epochs=ones.astype(np.uint32),
        expected_epochs=np.full(num_sessions, expected_epoch, np.uint32),
        next_positions=ones,
        max_in_flight=ones.astype(np.uint32),
        idle_timeout_seconds=np.full(num_sessions, 600.0),
        expires_at=np.full(num_sessions, time.time() + 600),
        written_at=time.time(),
        holders=np.zeros(num_sessions, np.uint64),
        has_own_start=np.zeros(num_sessions, np.bool_),
        is_initial=np.zeros(num_sessions, np.bool_),
        states=tuple(draw.standard_normal((num_sessions, 1, 128)).astype(_FLOAT) for _ in _STATES),
        replies=KeptColumns(
            counts=ones,
            positions=0 * ones,
            num_steps=ones,
            num_bytes=96 * ones,
            blocks=places // rows,
            rows=places % rows,
            parts=tuple(tuple(draw.bytes(rows * port.step_bytes) for port in _PORTS) for _ in range(_NUM_BLOCKS)),
            ports=_PORTS,
        ),
    )


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU milliseconds."""
    wall, cpu = time.perf_counter(), time.thread_time()
    work()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.thread_time() - cpu)


def _told(times: list[tuple[float, float]]) -> str:
    wall, cpu = (median(column) for column in zip(*times, strict=True))
    return f"{wall:8.2f} ms, CPU {cpu:7.2f} ms"


def measure(url: str, num_sessions: int, repetitions: int) -> None:
    """Prints the cost of each step for the store at `url`."""
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 256, (num_sessions, 16)).astype(np.uint8)
    raw_ids = [each.tobytes() for each in ids]
    store = open_store(url)
    assert store is not None, "memory is no store"
    first = _timed(lambda: store.write(encode(_checkpoint(num_sessions, 0, draw, ids))))
    encoding, writing = [], []
    for _ in range(repetitions):
        checkpoint = _checkpoint(num_sessions, 1, draw, ids)
        encoding.append(_timed(lambda: encode(checkpoint)))  # noqa: B023  called at once
        batch = encode(checkpoint)
        writing.append(_timed(lambda: store.write(batch)))  # noqa: B023
    one = encode(_checkpoint(1, 1, draw, ids[:1]))
    print(f"{url.partition(':')[0]}: {num_sessions} records of {batch.sizes.item(0)} bytes")
    print(f"  encode       {_told(encoding)}")
    print(f"  first write  {_told([first])} (encoding included)")
    print(f"  write again  {_told(writing)}")
    print(f"  write one    {_told([_timed(lambda: store.write(one)) for _ in range(100)])}")
    print(f"  read all     {_told([_timed(lambda: store.read(raw_ids)) for _ in range(repetitions)])}")
    print(f"  read one     {_told([_timed(lambda: store.read(raw_ids[:1])) for _ in range(100)])}")
    record = batch.record(0)
    print(f"  decode one   {_told([_timed(lambda: decode(record)) for _ in range(100)])}")
    store.delete(raw_ids, np.ones(num_sessions, np.uint32))
    store.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the arguments and measures each store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stores", description=__doc__)
    parser.add_argument("urls", nargs="*", help="stores; without any, SQLite in a folder that is removed afterwards")
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args(arguments)
    print(", ".join(f"{name} {value}" for name, value in describe_machine().items()))
    with tempfile.TemporaryDirectory() as folder:
        for url in options.urls or [f"sqlite:{Path(folder) / 'state.db'}"]:
            measure(url, options.sessions, options.repetitions)


if __name__ == "__main__":
    main()
