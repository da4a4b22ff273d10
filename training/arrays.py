"""Arrays: a numpy file that holds a table of arrays, read without running anything in it.

Owns: the list of what such a file may name. Must not know what the arrays mean.
"""

import io
import pickle
from typing import Any

import numpy as np

from eddy.training.errors import DataError

# What arrays and their dtypes are made of; anything else in a pickle could be code.
_ALLOWED = frozenset(
    {
        ("numpy", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy", "scalar"),
        ("_codecs", "encode"),
    }
)


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """A part of numpy that arrays are made of."""
        if (module.partition(".")[0], name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"got {module}.{name}, expected arrays only")
        return super().find_class(module, name)


def read_object(content: bytes, source: str) -> dict[str, Any]:
    """The dictionary of arrays in a .npy file of one object. Raises DataError, in which `source` stands for it."""
    file = io.BytesIO(content)
    try:
        is_first = np.lib.format.read_magic(file) == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        read_header(file)
        table = _ArraysOnly(file, encoding="latin1").load().item()
    except (ValueError, EOFError, pickle.UnpicklingError, AttributeError) as error:
        raise DataError(f"{source}: not readable as arrays: {error}") from error
    if not isinstance(table, dict):
        raise DataError(f"{source}: got {type(table).__name__}, expected a table of arrays")
    return table
