"""How inspection runs graphs: whoever inspects brings the runtime.

Owns the two protocols. Must not import a runtime: the service and the training have one each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx


class Program(Protocol):
    """A loaded graph. ONNX Runtime's `InferenceSession` is one."""

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, np.ndarray], /) -> list[Any]:
        """The named outputs. Raises whatever the runtime raises."""


# Loads a graph; raises whatever the runtime raises.
Loader = Callable[[onnx.ModelProto], Program]
