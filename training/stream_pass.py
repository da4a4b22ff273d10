"""The stream pass: one long sequence, read in order with the state carried along.

Owns: truncated back-propagation through time: rows side by side, a window at a time, some rows begun anew. A new
offset each epoch moves the window borders, so no step is always far from a gradient's end. Must not know optimisers.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from eddy.training.data import StreamData
from eddy.training.errors import TrainingError
from eddy.training.families.family import State, StreamingModel
from eddy.training.loss import evaluate, loss_sum
from eddy.training.recipe import Schedule
from eddy.training.windows import Windows


class StreamReading:
    """Reads one long sequence; see `Reading`."""

    def __init__(self, model: StreamingModel, data: StreamData, plan: Schedule) -> None:
        """Raises TrainingError where the data is too short for the plan."""
        longest = len(data.train.inputs) // plan.streams
        if longest < 2:
            raise TrainingError(f"training.streams: got {plan.streams}, expected at most {len(data.train.inputs) // 2}")
        self._model, self._data, self._plan = model, data, plan
        self._offsets = min(plan.steps, longest)

    def begin(self, epoch: int, rng: np.random.Generator) -> "StreamPass":
        """From a drawn offset and the initial state."""
        offset = int(rng.integers(self._offsets))
        return StreamPass(self._model, self._windows(offset), self._plan, offset)

    def resume(self, epoch: int, values: dict[str, Any]) -> "StreamPass":
        """Offset, window and state as they were."""
        found = StreamPass(self._model, self._windows(values["offset"]), self._plan, values["offset"])
        found.next_window = values["next_window"]
        found.state = tuple(s.to(found.state[0].device) for s in values["state"])
        return found

    def validate(self) -> float:
        """Mean loss over the validation part, read as in service."""
        return evaluate(self._model, self._data.checked, self._data.evaluation_streams)

    def digest(self) -> str:
        """SHA-256 of the training part."""
        return self._data.train.digest()

    def _windows(self, offset: int) -> Windows:
        return Windows(self._data.train, self._plan.streams, self._plan.steps, offset)


class StreamPass:
    """One way through the sequence; see `Pass`."""

    def __init__(self, model: StreamingModel, windows: Windows, plan: Schedule, offset: int) -> None:
        self._model, self._windows, self._plan, self._offset = model, windows, plan, offset
        # What follows changes in `run` and where a pass is resumed.
        self.state: State = tuple(s.detach() for s in model.initial_state(plan.streams))
        self.next_window = 0

    @property
    def is_finished(self) -> bool:
        """True after the last window."""
        return self.next_window >= len(self._windows)

    def run(self, rng: np.random.Generator) -> tuple[Tensor, int]:
        """The next window, from the carried state, of which some rows begin anew."""
        plan, model = self._plan, self._model
        device = self.state[0].device
        x, targets = (torch.from_numpy(a).to(device) for a in self._windows[self.next_window])
        # A session starts from the initial state, so every pass does, with the gradient of what is learned of it.
        marked = rng.random(plan.streams) < plan.reset_share
        fresh = np.ones(plan.streams, np.bool_) if self.next_window == 0 else marked
        outputs, after = model(x, reset_rows(self.state, model.initial_state(plan.streams), fresh))
        self.state = tuple(s.detach() for s in after)
        self.next_window += 1
        (head,) = model.spec.heads
        return loss_sum(model.spec, outputs, {head.name: targets})

    def snapshot(self) -> dict[str, Any]:
        """Offset, window and state."""
        return {
            "offset": self._offset,
            "next_window": self.next_window,
            "state": [s.detach().cpu().clone() for s in self.state],
        }


def reset_rows(state: State, initial: State, rows: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> State:
    """The state with the marked rows at their initial values, which keep their gradient."""
    marked = torch.from_numpy(rows).to(state[0].device)
    return tuple(
        torch.where(marked.reshape(-1, *[1] * (s.dim() - 1)), i, s) for s, i in zip(state, initial, strict=True)
    )
