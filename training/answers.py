"""Answers: what a model file says to separate sequences, each from its initial state.

Owns: how sequences of different lengths are run together without one changing the other's answer. Must not know what
the answers are for.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from eddy.training.data import Array, Tensors
from eddy.training.errors import ContractError
from eddy.training.runtime import Runtime
from eddy.v1 import contract_pb2 as pb

# Rows of one run: enough to be quick, few enough that long sequences fit into memory side by side.
MAX_ROWS = 64
# Rows times steps of one run of a step graph: attention looks at a window of states for each of them.
MAX_PLACES = 4096


class Answers:
    """A model's answers: by the whole graph where it has one, which is exact, else by the step graph.

    grid: writes the same weights on another grid of blocks and returns the answers there; only training, which has the
    weights themselves, can.
    """

    def __init__(
        self, path: Path, contract: pb.ModelContract, grid: Callable[[int, int], "Answers"] | None = None
    ) -> None:
        self.path, self.contract = path, contract
        self.grid = grid
        self._is_whole = bool(contract.graphs.whole)
        self._runtime: Runtime | None = None  # Loaded by the first call.

    def __call__(self, sequences: Sequence[Tensors]) -> list[dict[str, Array]]:
        """Inputs by name, [T, ...] each, T of their own -> outputs by name, [T, ...], in the same order.

        Raises ContractError where the file cannot be run, or only together with a prime graph.
        """
        runtime = self._load()
        lengths = _lengths(sequences)
        found: list[dict[str, Array]] = [{} for _ in sequences]
        for rows in self._groups(lengths, is_equal=self._is_whole):
            inputs = _stack([sequences[row] for row in rows])
            outputs = runtime.run_whole(inputs) if self._is_whole else runtime.run(inputs, MAX_PLACES // len(rows))
            for i, row in enumerate(rows):
                found[row] = {port.name: outputs[port.name][i, : lengths[row]] for port in self.contract.outputs}
        return found

    def stream(self, sequences: Sequence[Tensors]) -> list[dict[str, Array]]:
        """The same by the step graph, as streams that end after the sequence. Raises ContractError."""
        runtime = self._load()
        if not (self.contract.ports.length and self.contract.ports.flush):
            return self(sequences)
        lengths = _lengths(sequences)
        found: list[dict[str, Array]] = [{} for _ in sequences]
        for rows in self._groups(lengths, is_equal=False):
            counts, ends = np.array([lengths[row] for row in rows], np.int64), np.ones(len(rows), np.bool_)
            inputs = _stack([sequences[row] for row in rows])
            outputs, _ = runtime.advance(inputs, runtime.start(len(rows)), lengths=counts, ends=ends)
            for i, row in enumerate(rows):
                found[row] = {port.name: outputs[port.name][i, : lengths[row]] for port in self.contract.outputs}
        return found

    def _load(self) -> Runtime:
        """The model, loaded once."""
        if self._runtime is None:
            if self.contract.graphs.prime:
                raise ContractError(
                    f"{self.path}: graphs.prime is set, expected a model that answers to one input alone"
                )
            if self.contract.ports.emitted and not self._is_whole:
                raise ContractError(f"{self.path}: graphs.whole: got none, expected one where outputs come late")
            self._runtime = Runtime(self.path, self.contract)
        return self._runtime

    @staticmethod
    def _groups(lengths: Sequence[int], *, is_equal: bool) -> list[list[int]]:
        """Rows that run together: of equal length in a whole graph, which reads to the end; else of similar ones."""
        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        groups: list[list[int]] = []
        for row in order:
            if not groups or len(groups[-1]) == MAX_ROWS or (is_equal and lengths[groups[-1][0]] != lengths[row]):
                groups.append([])
            groups[-1].append(row)
        return groups


def _lengths(sequences: Sequence[Tensors]) -> list[int]:
    return [len(next(iter(sequence.values()))) for sequence in sequences]


def _stack(sequences: Sequence[Tensors]) -> dict[str, Array]:
    """[T, ...] each -> [B, T, ...] by name, T the longest."""
    steps = max(_lengths(sequences))
    return {name: np.stack([_pad(sequence[name], steps) for sequence in sequences]) for name in sequences[0]}


def _pad(values: Array, steps: int) -> Array:
    """Zeros behind [T, ...] up to so many steps; a step graph's answers before them do not depend on them."""
    return np.pad(values, [(0, steps - len(values))] + [(0, 0)] * (values.ndim - 1))
