"""The settings of a model that somebody else exported: what no graph says and only its user knows.

Owns their names and defaults. Must not know graphs. Everything has a default: a model without settings is inspected
with `Settings()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Settings:
    """What `model.toml` beside a model file says; tensors by the names of the file's graph.

    Attributes:
        description: for a person.
        states: state inputs and the outputs that replace them, where they are not found by themselves.
        context_steps: inputs of which the caller would have to keep the last values: how many of its last axis the
            server puts in front of each step's new ones. They become one more state.
        constants: inputs that clients do not give, and their values.
        names: inputs and outputs as clients shall call them.
        axes: what the axes of an input are ("batch", "time" or a size), where trying does not tell.
        idle_timeout_seconds: of sessions whose client asks for none; None for the server's.
        adopts: versions of this model whose sessions go on with this one; "*": all.
    """

    description: str = ""
    states: Mapping[str, str] = field(default_factory=dict)
    context_steps: Mapping[str, int] = field(default_factory=dict)
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    axes: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)
    idle_timeout_seconds: float | None = None
    adopts: tuple[str, ...] = ()
