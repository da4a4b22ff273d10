"""What a client process saw, written as it is seen, so that nothing of it is lost with the process.

Owns the file: a line of JSON and the raw outputs behind it, for every call that was answered.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Entry:
    """One answered call.

    Attributes:
        workload, life, call: which; position: where it began.
        outputs: a list for each output of the model: an array [E, ...] for each row.
    """

    workload: int
    life: int
    call: int
    position: int
    outputs: list[list[np.ndarray]]


class Journal:
    """Writes the file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def write(self, place: tuple[int, int, int], position: int, outputs: Sequence[Sequence[np.ndarray]]) -> None:
        """Notes the outputs of a call, an array a row each."""
        arrays = [np.ascontiguousarray(row) for rows in outputs for row in rows]
        head = {
            "place": place,
            "position": position,
            "outputs": len(outputs),
            "arrays": [(array.dtype.str, array.shape) for array in arrays],
        }
        self._file.write(json.dumps(head).encode() + b"\n")
        for array in arrays:
            self._file.write(array.tobytes())

    def close(self) -> None:
        """Writes all of it."""
        self._file.close()


def read(path: Path) -> Iterator[Entry]:
    """The entries of a file; not the last one, where its client was killed while it wrote."""
    with path.open("rb") as file:
        while (line := file.readline()).endswith(b"\n"):
            head = json.loads(line)
            sizes = [int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in head["arrays"]]
            data = file.read(sum(sizes))
            if len(data) < sum(sizes):
                return
            arrays, begin = [], 0
            for (dtype, shape), size in zip(head["arrays"], sizes, strict=True):
                arrays.append(np.frombuffer(data[begin : begin + size], dtype).reshape(shape))
                begin += size
            num_rows = len(arrays) // head["outputs"]
            outputs = [arrays[at : at + num_rows] for at in range(0, len(arrays), num_rows)]
            yield Entry(*head["place"], head["position"], outputs)
