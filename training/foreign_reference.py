"""The reference of a foreign module: what PyTorch answers to the inputs that verification draws.

Owns the way from the contract's tensors, [B, T, ...], to the module's own axes and back. Must not know ONNX.

Dimension key: B batch, T steps.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from eddy.inspection.report import FoundState, FoundTensor, Report
from eddy.training.flat import FlatModule
from eddy.training.runtime import initial_rows
from eddy.v1 import contract_pb2 as pb

Array = npt.NDArray[np.generic]
Tensors = dict[str, Array]
_LEADING = ("batch", "time")


class ForeignReference:
    """A module, callable with the inputs of its contract."""

    def __init__(self, flat: FlatModule, report: Report, contract: pb.ModelContract) -> None:
        """report, contract: of the same inspection; their tensors are in the same order."""
        self._flat, self._report, self._contract = flat, report, contract
        pairs = zip(report.states, contract.states, strict=True)
        self._explicit = [(found, spec) for found, spec in pairs if found.input in flat.input_names]

    def __call__(self, inputs: Tensors) -> Tensors:
        """[B, T, ...] inputs, by the contract's names, from the initial states on.

        Returns every output [B, T, ...] and every final state [B, ...] that the module itself gives, by the graph's
        output names.
        """
        batch, steps = next(iter(inputs.values())).shape[:2]
        states = {found.input: _placed(initial_rows(spec, batch), found) for found, spec in self._explicit}
        by_step = any(port.no_time_axis for port in self._contract.inputs)
        pieces: list[Tensors] = []
        for first in range(steps) if by_step else (0,):
            last = first + 1 if by_step else steps
            answers = self._run({name: value[:, first:last] for name, value in inputs.items()}, states)
            states = {found.input: answers[found.output] for found, _ in self._explicit}
            pieces.append(
                {
                    spec.name: _led(answers[found.name], found)
                    for found, spec in zip(self._report.outputs, self._contract.outputs, strict=True)
                }
            )
        outputs = {name: np.concatenate([piece[name] for piece in pieces], axis=1) for name in pieces[0]}
        finals = {spec.next_name: _rows(states[found.input], found) for found, spec in self._explicit}
        return outputs | finals

    def _run(self, inputs: Tensors, states: Mapping[str, Array]) -> Tensors:
        """One call of the module: inputs [B, T, ...] and states in its own axes."""
        given = {
            found.name: _own(inputs[spec.name], found)
            for found, spec in zip(self._report.inputs, self._contract.inputs, strict=True)
        }
        given |= states
        tensors = [torch.from_numpy(np.ascontiguousarray(given[name])) for name in self._flat.input_names]
        with torch.no_grad():
            answers = self._flat(*tensors)
        return {name: answer.numpy() for name, answer in zip(self._flat.output_names, answers, strict=True)}


def _own(value: Array, found: FoundTensor) -> Array:
    """[B, T, ...] in the order of the module's axes; one that it does not have is 1 long and goes."""
    absent = tuple(place for place, role in enumerate(_LEADING) if role not in found.shape)
    value = value.squeeze(absent)
    return np.moveaxis(value, range(2 - len(absent)), _places(found))


def _led(value: Array, found: FoundTensor) -> Array:
    """The other way: batch and time come first."""
    value = np.moveaxis(value, _places(found), range(len(_places(found))))
    absent = tuple(place for place, role in enumerate(_LEADING) if role not in found.shape)
    return np.expand_dims(value, absent)


def _places(found: FoundTensor) -> list[int]:
    return [found.shape.index(role) for role in _LEADING if role in found.shape]


def _placed(rows: Array, found: FoundState) -> Array:
    """[B, ...] with the batch axis where the module has it."""
    return np.moveaxis(rows, 0, found.batch_axis) if found.batch_axis is not None else rows[0]


def _rows(value: Array, found: FoundState) -> Array:
    return np.moveaxis(value, found.batch_axis, 0) if found.batch_axis is not None else value[None]
