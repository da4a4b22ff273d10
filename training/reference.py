"""The reference: a checkpoint's model, run by PyTorch, for those who otherwise run model files.

Owns: one run over whole inputs, for parity, and a stream of tokens. It is the bridge that keeps torch out of `verify`
and `generation`, so that both need no torch where there is no checkpoint.
"""

from dataclasses import replace
from pathlib import Path

import torch

from eddy.training.checkpoint import load_checkpoint
from eddy.training.data import Tokens, Vocabulary
from eddy.training.errors import CheckpointError
from eddy.training.families.family import StreamingModel, Tensors
from eddy.training.families.registry import family_of
from eddy.training.families.shapes import at_precision, on_grid
from eddy.training.generation import Logits
from eddy.v1 import contract_pb2 as pb


class TorchStream:
    """A checkpoint's character model, from its initial state on; its training need not have ended."""

    def __init__(self, checkpoint: Path) -> None:
        """Raises CheckpointError where the file cannot be read or is no character model."""
        source = load_checkpoint(checkpoint)
        if not source.symbols:
            raise CheckpointError(f"{checkpoint}: symbols: got none, expected a model of characters")
        self.vocabulary = Vocabulary(source.symbols)
        model = source.build()
        if not isinstance(model, StreamingModel):
            raise CheckpointError(f"{checkpoint}: got a {model.spec.kind} model, expected one that streams")
        self._model = model
        self._state = self._model.initial_state(1)  # Written by `read` only.

    @torch.no_grad()
    def read(self, tokens: Tokens) -> Logits:
        """Read on: int64 [T] token ids; returns the logits after each, float32 [T, V]."""
        outputs, self._state = self._model(torch.from_numpy(tokens)[None], self._state)
        logits: Logits = outputs[self._model.spec.heads[0].name][0].numpy()
        return logits


def run_reference(
    checkpoint: Path, inputs: Tensors, contract: pb.ModelContract, seen: Tensors | None = None
) -> tuple[Tensors, Tensors]:
    """Run a checkpoint's model over whole inputs [B, T, ...] from its initial state.

    contract: the exported model's, for the grid and the precision that it was exported in. seen: the step graph's
    states after every step, where it rounds them; see `Family.reference`.
    Returns what the step graph should answer, outputs and final states, and what the whole graph should; both by the
    names that the graphs give them, the second empty without such a graph. Raises CheckpointError for an unusable file,
    ContractError where the inputs are not this model's.
    """
    source, streaming = load_checkpoint(checkpoint), contract.streaming
    if streaming.block_steps:
        source = replace(source, spec=on_grid(source.spec, streaming.block_steps, streaming.look_ahead_steps))
    source = replace(source, spec=at_precision(source.spec, contract.precision))
    model = source.build()
    family = family_of(model.spec)
    return family.reference(model, inputs, seen), family.exact(model, inputs)
