"""The set pass: separate sequences, each from its initial state, in an order that chance draws for every epoch.

Owns: batches of similar length, padded, and the place among them. Must not know optimisers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eddy.training.batches import draw_order, join_examples
from eddy.training.data import Example, SetData, digest_examples
from eddy.training.errors import TrainingError
from eddy.training.families.family import Model
from eddy.training.loss import batch_loss, evaluate_examples
from eddy.training.recipe import Schedule


class SetReading:
    """Reads separate sequences; see `Reading`."""

    def __init__(self, model: Model, data: SetData, plan: Schedule) -> None:
        """Raises TrainingError where there is nothing to train on."""
        if not data.train.epoch(1) or not data.validation:
            raise TrainingError("data: got no sequences to train and to validate on, expected at least one of each")
        self._model, self._data, self._plan = model, data, plan

    def begin(self, epoch: int, rng: np.random.Generator) -> "SetPass":
        """From the first batch of a drawn order."""
        examples = self._data.train.epoch(epoch)
        return SetPass(self._model, examples, draw_order(examples, self._plan.batch, rng), self._plan)

    def resume(self, epoch: int, values: dict[str, Any]) -> "SetPass":
        """The same order, at the batch where it stood."""
        order = values["order"].numpy()
        found = SetPass(self._model, self._data.train.epoch(epoch), order, self._plan)
        found.next_batch = values["next_batch"]
        return found

    def validate(self) -> float:
        """Mean loss over the validation part."""
        device = next(self._model.parameters()).device
        return evaluate_examples(self._model, self._data.validation, self._plan.batch, device)

    def digest(self) -> str:
        """SHA-256 of the first epoch's examples."""
        return digest_examples(self._data.train.epoch(1))


class SetPass:
    """One way through the examples; see `Pass`."""

    def __init__(self, model: Model, examples: Sequence[Example], order: npt.NDArray[np.int64], plan: Schedule) -> None:
        self._model, self._examples, self._order = model, examples, order
        self._rows, self._smoothing = plan.batch, plan.label_smoothing
        # Changes in `run` and where a pass is resumed.
        self.next_batch = 0

    @property
    def is_finished(self) -> bool:
        """True after the last batch."""
        return self.next_batch * self._rows >= len(self._order)

    def run(self, rng: np.random.Generator) -> tuple[Tensor, int]:
        """The next batch."""
        rows = self._order[self.next_batch * self._rows : (self.next_batch + 1) * self._rows]
        self.next_batch += 1
        batch = join_examples([self._examples[row] for row in rows])
        return batch_loss(self._model, batch, next(self._model.parameters()).device, self._smoothing)

    def snapshot(self) -> dict[str, Any]:
        """Order and place."""
        return {"order": torch.from_numpy(self._order), "next_batch": self.next_batch}
