"""A served model as the scenes see it.

Owns what is known of one model: its name, its contract, and its folder with real input beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eddy.v1 import contract_pb2, models_pb2
from examples.server import MODELS


@dataclass(frozen=True, slots=True)
class Model:
    """One version of one model, ready to serve."""

    status: models_pb2.ModelStatus
    contract: contract_pb2.ModelContract

    @property
    def name(self) -> str:
        """The name to open sessions with."""
        return self.status.name

    @property
    def task(self) -> str:
        """What it was trained to do, such as "TASK_FORECAST"."""
        return contract_pb2.Task.Name(self.contract.task)

    @property
    def folder(self) -> Path:
        """Where its card and its sample are."""
        return MODELS / self.status.name / self.status.version

    @property
    def origin(self) -> str:
        """Source and licence of its data, with markup."""
        training = self.contract.training
        return f"[bold]{training.data}[/], licence {training.data_licence}"

    def figure(self, name: str, default: float = float("nan")) -> float:
        """A figure of its training run."""
        return next((figure.value for figure in self.contract.training.figures if figure.name == name), default)
