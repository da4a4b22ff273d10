"""The family protocol: what training, export and verification need to know of an architecture.

Owns: the base classes of models and the protocol. Must not know any one family; `registry` lists them.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from eddy.training.spec import Spec
from eddy.v1 import contract_pb2 as pb

State = tuple[Tensor, ...]
Outputs = dict[str, Tensor]
Tensors = dict[str, npt.NDArray[np.generic]]


class Model(nn.Module):
    """A torch model of some family, built from its specification alone."""

    spec: Spec

    @abstractmethod
    def read(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> Outputs:
        """Whole separate sequences from the initial state, for training: every head's output, [B, T, ...], by its name.

        inputs: [B, T, ...] by the graph's input names; a prime graph's have their own T. lengths: int64 [B] for each,
        the valid steps of a row; what lies behind them is padding and changes nothing before it.
        """

    def hint_loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> Tensor:
        """What is added to the summed loss for targets that are no head's but hint at how to get there; 0 if none."""
        return torch.zeros(())


class StreamingModel(Model):
    """A model that reads step by step: its state is passed in and handed back."""

    def read(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> Outputs:
        """Padding comes last and nothing looks ahead, so lengths do not matter."""
        (x,) = inputs.values()
        outputs: Outputs = self(x, self.initial_state(len(x)))[0]
        return outputs

    @abstractmethod
    def initial_state(self, batch: int) -> State:
        """The state before the first step, one [batch, ...] tensor per state, on the model's device.

        Learned initial values come with their gradient.
        """

    @abstractmethod
    def forward(self, x: Tensor, state: State) -> tuple[Outputs, State]:
        """Run T steps of [B, T, ...] input; returns every head's output by its name, and the state after the last."""


S_contra = TypeVar("S_contra", bound=Spec, contravariant=True)
M = TypeVar("M", bound=Model)


class Family(Protocol[S_contra, M]):
    """One family of architectures. kind: its tag in checkpoints and in a recipe's [model] table."""

    kind: str

    def build(self, spec: S_contra) -> M:
        """A model with fresh weights, drawn from torch's generator."""

    def contract(self, model: M, name: str, description: str) -> pb.ModelContract:
        """What follows from the model: ports, states with their initial values, graphs, streaming.

        An empty description is replaced by one of the shape. The caller adds the meanings of the data.
        """

    def graphs(self, model: M) -> dict[str, onnx.ModelProto]:
        """File name -> graph, without metadata; STEP_FILE is the step graph, the contract's `graphs` names the rest."""

    def reference(self, model: M, inputs: Tensors, seen: Tensors | None = None) -> Tensors:
        """Torch's answer to whole inputs [B, T, ...] from the initial state.

        seen: the step graph's states after every step, [B, T, ...], by its output names; they settle what a model that
        rounds its states may round either way, and are nothing to others.
        Every output and final state under the step graph's output names. Raises ContractError for other inputs.
        """

    def exact(self, model: M, inputs: Tensors) -> Tensors:
        """Torch's answer by the whole graph's output names, to inputs [B, T, ...]; empty without such a graph."""

    def examples(self) -> Mapping[str, Spec]:
        """Small specifications of every variant, by a name that no other family uses: all laws hold for them."""


def count_parameters(model: nn.Module) -> int:
    """Number of trained values."""
    return sum(p.numel() for p in model.parameters())
