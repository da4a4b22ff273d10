"""Trainer: the weights on their way, and everything else that the next step depends on.

Owns: optimiser, learning rate, random numbers, the best weights so far and the losses of each epoch. `snapshot` hands
all of it out as plain values; a trainer that `restore`s them goes on as if it had never stopped, bit for bit. Must not
know files, signals or ONNX. What a step reads, and where in the data it stands, is the pass's: see `stream_pass` and
`set_pass`.

Order within a step: run what the pass reads next, back-propagate, clip, update. The step that ends a pass also lowers
the rate and measures the validation loss, so between two steps all is consistent.
"""

import json
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from eddy.training.curve import Epoch
from eddy.training.errors import CheckpointError, TrainingError
from eddy.training.families.family import Model
from eddy.training.recipe import Schedule


@dataclass(frozen=True, slots=True)
class Best:
    """The weights with the lowest validation loss so far; epoch 0 and no weights before the first."""

    loss: float
    epoch: int
    weights: dict[str, Tensor]


class Pass(Protocol):
    """One way through the training part."""

    @property
    def is_finished(self) -> bool:
        """True after its last step."""

    def run(self, rng: np.random.Generator) -> tuple[Tensor, int]:
        """The model's summed loss over what comes next, and the number of targets in it."""

    def snapshot(self) -> dict[str, Any]:
        """Where it stands, as plain values."""


class Reading(Protocol):
    """How a model reads a task's data: in order with its state carried along, or sequence by sequence."""

    def begin(self, epoch: int, rng: np.random.Generator) -> Pass:
        """The pass of an epoch, from 1 on, at its beginning."""

    def resume(self, epoch: int, values: dict[str, Any]) -> Pass:
        """A pass where its snapshot was taken."""

    def validate(self) -> float:
        """Mean loss over the validation part."""

    def digest(self) -> str:
        """SHA-256 of the training part."""


class Trainer:
    """Finds a model's weights, one update at a time."""

    def __init__(self, model: Model, reading: Reading, plan: Schedule) -> None:
        self.model, self.reading, self.plan = model, reading, plan
        # What follows changes with every step, in `advance` and `restore` only; so do the model's weights.
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
        # Falls along a cosine to a twentieth: large steps find the region, small ones settle in it.
        self.decay = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, plan.epochs, plan.learning_rate / 20)
        self.rng = np.random.default_rng(plan.seed)
        self.steps = 0
        self.epochs: list[Epoch] = []
        self.best = Best(math.inf, 0, {})
        self._pass: Pass | None = None
        self._total, self._count = 0.0, 0

    @property
    def is_finished(self) -> bool:
        """True after the last epoch, or when validation has not got better for `patience` epochs."""
        done = len(self.epochs)
        return done >= self.plan.epochs or (done > 0 and done - self.best.epoch >= self.plan.patience)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The best weights so far; the present ones before the first epoch has ended."""
        return self.best.weights or {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def advance(self) -> bool:
        """One step, one update; True where it ended an epoch. Raises TrainingError if the loss is not finite."""
        if self._pass is None:
            self._pass = self.reading.begin(len(self.epochs) + 1, self.rng)
            self._total, self._count = 0.0, 0
        self._update(self._pass)
        self.steps += 1
        if not self._pass.is_finished:
            return False
        self._pass = None
        self._end_epoch()
        return True

    def _update(self, now: Pass) -> None:
        """Run what comes next and change the weights by its gradient; without targets nothing changes."""
        plan, model = self.plan, self.model
        model.train()
        loss, number = now.run(self.rng)
        if number == 0:
            return
        self.optimizer.zero_grad()
        torch.autograd.backward(loss / number)
        nn.utils.clip_grad_norm_(model.parameters(), plan.clip_norm)
        self.optimizer.step()
        self._total, self._count = self._total + float(loss.detach()), self._count + number

    def _end_epoch(self) -> None:
        """Lower the rate, measure, and keep the weights if they are the best."""
        if self._count == 0:
            raise TrainingError("training part: no step has a target, expected at least one")
        rate = float(self.decay.get_last_lr()[0])
        self.decay.step()
        number = len(self.epochs) + 1
        loss = self.reading.validate()
        if not math.isfinite(loss):
            raise TrainingError(f"epoch {number}: validation loss is {loss}; expected a finite one, lower the rate")
        if loss < self.best.loss:
            weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            self.best = Best(loss, number, weights)
        self.epochs.append(Epoch(number, self.steps, self._total / self._count, loss, rate))

    def snapshot(self) -> dict[str, Any]:
        """All that the next step depends on, as numbers, texts, lists and tensors on the CPU."""
        return {
            "weights": _on_cpu(self.model.state_dict()),
            "optimizer": _on_cpu(self.optimizer.state_dict()),
            "decay": self.decay.state_dict(),
            "rng": json.dumps(self.rng.bit_generator.state),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self._device.type == "cuda" else None,
            "steps": self.steps,
            "best": {"loss": self.best.loss, "epoch": self.best.epoch},
            "pass": self._pass and self._pass.snapshot() | {"total": self._total, "count": self._count},
        }

    def restore(self, values: dict[str, Any], epochs: list[Epoch], best_weights: dict[str, Tensor]) -> None:
        """Go on from a snapshot, the epochs until then and the best weights. Raises CheckpointError."""
        try:
            self.model.load_state_dict(values["weights"])
            self.optimizer.load_state_dict(values["optimizer"])
            self.decay.load_state_dict(values["decay"])
            self.rng.bit_generator.state = json.loads(values["rng"])
            self.steps, self.epochs = values["steps"], list(epochs)
            best = values["best"]
            placed = {name: value.to(self._device) for name, value in best_weights.items()}
            self.best = Best(best["loss"], best["epoch"], placed if best["epoch"] else {})
            now = values["pass"]
            self._pass = now and self.reading.resume(len(epochs) + 1, now)
            self._total, self._count = (now["total"], now["count"]) if now else (0.0, 0)
            # Last: nothing above may draw from them.
            torch.set_rng_state(values["torch_rng"])
            if values["cuda_rng"] is not None:
                torch.cuda.set_rng_state(values["cuda_rng"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"progress: broken entry: {error}") from error

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def _on_cpu(values: Any) -> Any:
    """A nested structure with every tensor in it copied to the CPU."""
    if isinstance(values, Tensor):
        return values.detach().cpu().clone()
    if isinstance(values, dict):
        return {key: _on_cpu(value) for key, value in values.items()}
    return [_on_cpu(value) for value in values] if isinstance(values, list) else values
