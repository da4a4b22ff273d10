"""Windows: a part of the data as equal pieces side by side, read a few steps at a time.

Owns: where each window begins. Any window can be asked for, so that a run can go on in the middle of a pass.
"""

import math
from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from eddy.training.data import Part

Array = npt.NDArray[np.generic]
Window = tuple[Array, Array]

# Steps of a window where a part is only measured.
EVALUATION_STEPS = 512


class Windows(Sequence[Window]):
    """A part cut into `streams` equal pieces, `steps` at a time, in order.

    An item is inputs [B, T, ...] and targets [B, T, ...] with B = streams and T <= steps; row i of one window goes on
    in row i of the next. The first `offset` steps are skipped, and so is what does not divide by `streams`.
    """

    def __init__(self, part: Part, streams: int, steps: int, offset: int = 0) -> None:
        self._steps = steps
        self._length = (len(part.inputs) - offset) // streams
        self._inputs, self._targets = (
            a[offset : offset + streams * self._length].reshape(streams, self._length, *a.shape[1:])
            for a in (part.inputs, part.targets)
        )

    def __len__(self) -> int:
        return math.ceil(self._length / self._steps)

    @overload
    def __getitem__(self, index: int) -> Window: ...

    @overload
    def __getitem__(self, index: slice) -> list[Window]: ...

    def __getitem__(self, index: int | slice) -> Window | list[Window]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = index * self._steps
        return self._inputs[:, start : start + self._steps], self._targets[:, start : start + self._steps]
