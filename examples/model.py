"""A served model as the scenes see it.

Owns what is known of one model: its name, its contract, and its folder with real input beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eddy.v1 import contract_pb2, models_pb2


@dataclass(frozen=True, slots=True)
class Model:
    """One version of one model, ready to serve. folder: where its card and its sample are."""

    status: models_pb2.ModelStatus
    contract: contract_pb2.ModelContract
    folder: Path

    @property
    def name(self) -> str:
        """The name to open sessions with."""
        return self.status.name

    @staticmethod
    def task_of(contract: contract_pb2.ModelContract) -> str:
        """What a model was trained to do, such as "TASK_FORECAST"."""
        return contract_pb2.Task.Name(contract.task)

    @property
    def origin(self) -> str:
        """Source and licence of its data, with markup."""
        training = self.contract.training
        return f"[bold]{training.data}[/], licence {training.data_licence}"

    @property
    def data(self) -> str:
        """The same, as a line of its own."""
        training = self.contract.training
        return f"[dim]Data: {training.data}; licence {training.data_licence}.[/]"

    def told(self, names: Mapping[str, str], form: str) -> str:
        """Figures of its training run, in a row: `names` are what to call them, by the figures' names."""
        values = {figure.name: figure.value for figure in self.contract.training.figures}
        return ", ".join(f"{text} {values[name]:{form}}" for name, text in names.items() if name in values)

    def figure(self, name: str, default: float = float("nan")) -> float:
        """A figure of its training run."""
        return next((figure.value for figure in self.contract.training.figures if figure.name == name), default)


def is_prose(text: str) -> bool:
    """Words and no more: no placeholders, no paths."""
    return all(character.isalpha() or character in " ,.'-?!" for character in text)
