"""What an inspection found, as plain values.

Owns their names and their form as JSON. Must not know graphs, how anything was found, or how it is shown.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Origin(StrEnum):
    """Where a state comes from."""

    # An input and an output of the file.
    EXPLICIT = "explicit"
    # Hidden in the file's graph; input and output were added.
    LIFTED = "lifted"


@dataclass(frozen=True, slots=True)
class FoundState:
    """One state.

    Attributes:
        input, output: graph tensors, of the file where `origin` is explicit.
        shape: of one row, without the batch axis; dtype: a numpy name: "float32".
        batch_axis: the position of the batch axis in the graph's tensor, None where it has none.
        how: how it was found, for a person: "the names h and hn; equal shapes".
    """

    input: str
    output: str
    shape: tuple[int, ...]
    dtype: str
    batch_axis: int | None
    origin: Origin
    how: str

    def as_json(self) -> dict[str, Any]:
        """Plain values; the shape is a list."""
        return {
            "input": self.input,
            "output": self.output,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "batch_axis": self.batch_axis,
            "origin": self.origin.value,
            "how": self.how,
        }


@dataclass(frozen=True, slots=True)
class FoundTensor:
    """One input or output that is no state.

    Attributes:
        name: of the file's graph; dtype: a numpy name.
        shape: as found by trying: "batch", "time", or a size, an axis each.
    """

    name: str
    dtype: str
    shape: tuple[str | int, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values; the shape is a list."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True, slots=True)
class Probes:
    """The worst absolute differences that trying the model has shown; None where it could not be tried.

    Attributes:
        chunk_max_difference: whole sequences against the same in chunks, outputs and final states.
        batch_max_difference: rows of a batch against each by itself.
    """

    chunk_max_difference: float | None = None
    batch_max_difference: float | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step takes: `seconds` a run of `rows` rows of one step, the median."""

    rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is told of a model.

    Attributes:
        streamable: it can be stepped; reason: why, or why not, with the node that prevents it.
        max_batch: the most rows of one run of the file's graph as it is served, None for any number.
        warnings: what costs its user something, with the reason: "served row by row: ...".
        notes: what was probed and found, for a person, in order.
    """

    streamable: bool
    reason: str
    states: tuple[FoundState, ...]
    inputs: tuple[FoundTensor, ...]
    outputs: tuple[FoundTensor, ...]
    max_batch: int | None
    probes: Probes
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    costs: tuple[Cost, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values, for programs."""
        return {
            "streamable": self.streamable,
            "reason": self.reason,
            "states": [state.as_json() for state in self.states],
            "inputs": [tensor.as_json() for tensor in self.inputs],
            "outputs": [tensor.as_json() for tensor in self.outputs],
            "max_batch": self.max_batch,
            "probes": {
                "chunk_max_difference": self.probes.chunk_max_difference,
                "batch_max_difference": self.probes.batch_max_difference,
            },
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "costs": [{"rows": cost.rows, "seconds": cost.seconds} for cost in self.costs],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Report:
        """The report whose JSON `values` are. Raises KeyError, TypeError or ValueError where they are none's."""
        probes = values["probes"]
        inputs, outputs = (
            tuple(FoundTensor(**{**port, "shape": tuple(port["shape"])}) for port in values[side])
            for side in ("inputs", "outputs")
        )
        return cls(
            bool(values["streamable"]),
            str(values["reason"]),
            tuple(
                FoundState(**{**state, "shape": tuple(state["shape"]), "origin": Origin(state["origin"])})
                for state in values["states"]
            ),
            inputs,
            outputs,
            values["max_batch"],
            Probes(probes["chunk_max_difference"], probes["batch_max_difference"]),
            tuple(values["warnings"]),
            tuple(values["notes"]),
            tuple(Cost(cost["rows"], cost["seconds"]) for cost in values["costs"]),
        )
