"""The reference for parity: what PyTorch answers to the inputs that ONNX Runtime was given.

Owns: nothing but that one run. It is the bridge that keeps torch out of `verify`, so that verifying a model without
its checkpoint needs no torch.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from eddy.training.checkpoint import load_checkpoint
from eddy.training.errors import ContractError

Tensors = dict[str, npt.NDArray[np.generic]]


@torch.no_grad()
def run_reference(checkpoint: Path, inputs: Tensors) -> Tensors:
    """Run a checkpoint's model over whole inputs [B, T, ...] from its initial state.

    Returns the output and the final states under the names that the exported graph gives them. Raises
    CheckpointError for an unusable file, ContractError where the inputs are not this model's.
    """
    model = load_checkpoint(checkpoint).build()
    spec = model.spec
    if set(inputs) != {spec.input.name}:
        raise ContractError(f"{checkpoint}: the model file reads {sorted(inputs)}, the checkpoint {spec.input.name!r}")
    x = torch.from_numpy(inputs[spec.input.name])
    output, state = model(x, model.initial_state(len(x)))
    finals = {f"{name}_next": value.numpy() for name, value in zip(spec.state_names, state, strict=True)}
    return {spec.head.name: output.numpy()} | finals
