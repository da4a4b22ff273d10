"""Answers: what a model file says to separate sequences, each from its initial state.

Owns: how sequences of different lengths are run together without one changing the other's answer. Must not know what
the answers are for.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eddy.training.data import Array, Tensors
from eddy.training.errors import ContractError
from eddy.training.runtime import Runtime
from eddy.v1 import contract_pb2 as pb

# Rows of one run: enough to be quick, few enough that long sequences fit into memory side by side.
MAX_ROWS = 64
# Steps of one run of a step graph.
CHUNK_STEPS = 1024


class Answers:
    """A model's answers: by the whole graph where it has one, which is exact, else by the step graph."""

    def __init__(self, path: Path, contract: pb.ModelContract) -> None:
        self.path, self.contract = path, contract
        self._is_whole = bool(contract.graphs.whole)
        self._runtime: Runtime | None = None  # Loaded by the first call.

    def __call__(self, sequences: Sequence[Tensors]) -> list[dict[str, Array]]:
        """Inputs by name, [T, ...] each, T of their own -> outputs by name, [T, ...], in the same order.

        Raises ContractError where the file cannot be run, or only together with a prime graph.
        """
        self._runtime = self._runtime or self._load()
        lengths = [len(next(iter(sequence.values()))) for sequence in sequences]
        found: list[dict[str, Array]] = [{} for _ in sequences]
        for rows in self._groups(lengths):
            steps = max(lengths[row] for row in rows)
            inputs = {
                name: np.stack([_pad(sequences[row][name], steps) for row in rows]) for name in sequences[rows[0]]
            }
            outputs = self._runtime.run(inputs, steps if self._is_whole else CHUNK_STEPS)
            for i, row in enumerate(rows):
                found[row] = {port.name: outputs[port.name][i, : lengths[row]] for port in self.contract.outputs}
        return found

    def _load(self) -> Runtime:
        """The graph that answers."""
        contract = self.contract
        if self._is_whole:
            alone = pb.ModelContract()
            alone.CopyFrom(contract)
            del alone.states[:]
            alone.ClearField("ports")
            return Runtime(self.path.with_name(contract.graphs.whole), alone)
        if contract.graphs.prime:
            raise ContractError(f"{self.path}: graphs.prime is set, expected a model that answers to one input alone")
        if contract.ports.emitted:
            raise ContractError(f"{self.path}: graphs.whole: got none, expected one where outputs come late")
        return Runtime(self.path, contract)

    def _groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Rows that run together: of equal length in the whole graph, which reads to the end; else of similar ones."""
        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        groups: list[list[int]] = []
        for row in order:
            if not groups or len(groups[-1]) == MAX_ROWS or (self._is_whole and lengths[groups[-1][0]] != lengths[row]):
                groups.append([])
            groups[-1].append(row)
        return groups


def _pad(values: Array, steps: int) -> Array:
    """Zeros behind [T, ...] up to so many steps; a step graph's answers before them do not depend on them."""
    return np.pad(values, [(0, steps - len(values))] + [(0, 0)] * (values.ndim - 1))
