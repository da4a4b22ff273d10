"""Comparison: two sets of tensors, the worst element by name, and whether they agree bit for bit.

Owns: what counts as far apart. Must not know where the tensors come from.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eddy.training.errors import VerificationError

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Difference:
    """The worst element of a comparison, by difference over max(1, |expected|, the tensor's root mean square).

    schedule: which run. index: row, then step or layer, and so on. relative: the difference that counts.
    """

    schedule: str
    tensor: str
    index: tuple[int, ...]
    got: float
    expected: float
    relative: float

    def __str__(self) -> str:
        place = ", ".join(map(str, self.index))
        return f"{self.tensor}[{place}] is {self.got!r}, expected {self.expected!r} ({self.schedule})"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One or more comparisons: the worst element, and the largest absolute difference of all elements."""

    worst: Difference
    largest: float

    def merge(self, earlier: "Comparison | None") -> "Comparison":
        """Both together; of two equally bad elements the earlier one stays."""
        if earlier is None:
            return self
        worst = self.worst if self.worst.relative > earlier.worst.relative else earlier.worst
        return Comparison(worst, max(self.largest, earlier.largest))


def compare(found: Mapping[str, Array], expected: Mapping[str, Array], schedule: str) -> Comparison:
    """Compare all expected tensors. Raises VerificationError on other shape or dtype.

    A NaN or an infinity on either side counts as infinitely far.
    """
    total: Comparison | None = None
    for name, wanted in expected.items():
        got = found[name]
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            came, hoped = f"{got.dtype} {list(got.shape)}", f"{wanted.dtype} {list(wanted.shape)}"
            raise VerificationError(f"{name}: got {came}, expected {hoped} ({schedule})")
        wide, wanted_wide = got.astype(np.float64), wanted.astype(np.float64)
        known = np.isfinite(wide) & np.isfinite(wanted_wide)
        absolute = np.full(wide.shape, np.inf)
        np.subtract(wide, wanted_wide, out=absolute, where=known)
        absolute = np.abs(absolute)
        size = float(np.sqrt(np.mean(np.square(wanted_wide[known])))) if known.any() else 0.0
        relative = np.full(wide.shape, np.inf)
        np.divide(absolute, np.maximum(max(1.0, size), np.abs(wanted_wide)), out=relative, where=known)
        index = tuple(map(int, np.unravel_index(np.argmax(relative), relative.shape)))
        worst = Difference(schedule, name, index, float(wide[index]), float(wanted_wide[index]), float(relative[index]))
        total = Comparison(worst, float(absolute.max())).merge(total)
    assert total is not None, "a model has at least one output"
    return total


def same_bits(one: Array, other: Array) -> bool:
    """True when two arrays hold the same bytes (so 0.0 and -0.0 differ, and a NaN equals itself)."""
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def check_finite(tensors: Mapping[str, Array]) -> None:
    """A reference with NaN or infinity in it proves nothing."""
    for name, value in tensors.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            index = tuple(map(int, np.argwhere(~np.isfinite(value))[0]))
            raise VerificationError(f"{name}{list(index)} is {value[index]}, expected finite values")
