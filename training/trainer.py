"""Trainer: the weights on their way, and everything else that the next step depends on.

Owns: optimiser, learning rate, random numbers, the carried state, the place in the data, the best weights so far and
the losses of each epoch. `snapshot` hands all of it out as plain values; a trainer that `restore`s them goes on as if
it had never stopped, bit for bit. Must not know files, signals or ONNX.

Order within a step: reset some rows, run a window from the carried state, back-propagate, clip, update, detach. The
step that ends a pass also lowers the rate and measures the validation loss, so between two steps all is consistent.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eddy.training.curve import Epoch
from eddy.training.data import SeriesData, TextData
from eddy.training.errors import CheckpointError, TrainingError
from eddy.training.families.family import State, StreamingModel
from eddy.training.loss import evaluate, loss_sum, warmed_up
from eddy.training.recipe import Schedule
from eddy.training.windows import TEXT_EVALUATION_STREAMS, Windows


@dataclass(frozen=True, slots=True)
class Best:
    """The weights with the lowest validation loss so far; epoch 0 and no weights before the first."""

    loss: float
    epoch: int
    weights: dict[str, Tensor]


@dataclass(slots=True)
class _Pass:
    """One way through the training part: windows from `offset`, the next one's index, the state, the loss so far."""

    offset: int
    windows: Windows
    state: State
    next_window: int = 0
    total: float = 0.0
    count: int = 0


class Trainer:
    """Finds a model's weights, one window at a time."""

    def __init__(self, model: StreamingModel, data: TextData | SeriesData, plan: Schedule) -> None:
        """Raises TrainingError where the data is too short for the plan."""
        longest = len(data.train.inputs) // plan.streams
        if longest < 2:
            raise TrainingError(f"training.streams: got {plan.streams}, expected at most {len(data.train.inputs) // 2}")
        self.model, self.plan = model, plan
        self._train = data.train
        # A new offset each epoch moves the window borders, so no step is always far from a gradient's end.
        self._offsets = min(plan.steps, longest)
        is_text = isinstance(data, TextData)
        self._streams = TEXT_EVALUATION_STREAMS if is_text else 1
        self._validation = data.validation if is_text else warmed_up(data.validation)
        # What follows changes with every step, in `advance` and `restore` only; so do the model's weights.
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
        # Falls along a cosine to a twentieth: large steps find the region, small ones settle in it.
        self.decay = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, plan.epochs, plan.learning_rate / 20)
        self.rng = np.random.default_rng(plan.seed)
        self.steps = 0
        self.epochs: list[Epoch] = []
        self.best = Best(math.inf, 0, {})
        self._pass: _Pass | None = None

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
        """One window, one update; True where it ended an epoch. Raises TrainingError if the loss is not finite."""
        if self._pass is None:
            offset = int(self.rng.integers(self._offsets))
            self._pass = self._begin(offset, self.model.initial_state(self.plan.streams))
        now = self._pass
        self._update(now)
        now.next_window += 1
        self.steps += 1
        if now.next_window < len(now.windows):
            return False
        self._pass = None
        self._end_epoch(now)
        return True

    def _begin(self, offset: int, state: State) -> _Pass:
        return _Pass(offset, Windows(self._train, self.plan.streams, self.plan.steps, offset), state)

    def _update(self, now: _Pass) -> None:
        """Run one window and change the weights by its gradient; without targets only the state moves on."""
        plan, model = self.plan, self.model
        model.train()
        x, targets = (torch.from_numpy(a) for a in now.windows[now.next_window])
        state = _reset(now.state, model.initial_state(plan.streams), self.rng.random(plan.streams) < plan.reset_share)
        outputs, state = model(x.to(self._device), state)
        now.state = tuple(s.detach() for s in state)
        loss, number = loss_sum(model.spec, outputs, targets.to(self._device))
        if number == 0:
            return
        self.optimizer.zero_grad()
        torch.autograd.backward(loss / number)
        nn.utils.clip_grad_norm_(model.parameters(), plan.clip_norm)
        self.optimizer.step()
        now.total, now.count = now.total + float(loss.detach()), now.count + number

    def _end_epoch(self, done: _Pass) -> None:
        """Lower the rate, measure, and keep the weights if they are the best."""
        if done.count == 0:
            raise TrainingError("training part: no step has a target, expected at least one")
        rate = float(self.decay.get_last_lr()[0])
        self.decay.step()
        number = len(self.epochs) + 1
        loss = evaluate(self.model, self._validation, self._streams)
        if not math.isfinite(loss):
            raise TrainingError(f"epoch {number}: validation loss is {loss}; expected a finite one, lower the rate")
        if loss < self.best.loss:
            weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            self.best = Best(loss, number, weights)
        self.epochs.append(Epoch(number, self.steps, done.total / done.count, loss, rate))

    def snapshot(self) -> dict[str, Any]:
        """All that the next step depends on, as numbers, texts, lists and tensors on the CPU."""
        now = self._pass
        return {
            "weights": _on_cpu(self.model.state_dict()),
            "optimizer": _on_cpu(self.optimizer.state_dict()),
            "decay": self.decay.state_dict(),
            "rng": json.dumps(self.rng.bit_generator.state),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self._device.type == "cuda" else None,
            "steps": self.steps,
            "best": {"loss": self.best.loss, "epoch": self.best.epoch},
            "pass": now
            and {
                "offset": now.offset,
                "next_window": now.next_window,
                "state": [s.cpu() for s in now.state],
                "total": now.total,
                "count": now.count,
            },
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
            self._pass = now and self._begin(now["offset"], tuple(s.to(self._device) for s in now["state"]))
            if self._pass is not None:
                self._pass.next_window = now["next_window"]
                self._pass.total, self._pass.count = now["total"], now["count"]
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


def _reset(state: State, initial: State, rows: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> State:
    """The state with the marked rows at their initial values, which keep their gradient."""
    marked = torch.from_numpy(rows).to(state[0].device)
    return tuple(
        torch.where(marked.reshape(-1, *[1] * (s.dim() - 1)), i, s) for s, i in zip(state, initial, strict=True)
    )
