"""The stage: what every scene of the demo works with, and how a scene picks its models.

Owns the choice of models and the error when there is none. Must not know any one scene.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from eddy import Client
from eddy.v1 import contract_pb2
from examples.model import Model
from examples.screen import Screen
from examples.server import ServerProcess


class MissingModel(Exception):
    """The repository has no model that a scene needs."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What is there while the scenes play. models: those that are ready."""

    client: Client
    server: ServerProcess
    screen: Screen
    models: tuple[Model, ...]

    def choose(
        self, what: str, rank: Callable[[Model], float], accept: Callable[[contract_pb2.ModelContract], bool]
    ) -> list[Model]:
        """The models that `accept` takes, the one of the lowest `rank` first; `what` they are, for the error.

        Raises:
            MissingModel: there is none.
        """
        found = sorted((model for model in self.models if accept(model.contract)), key=rank)
        if not found:
            raise MissingModel(f"{self.server.models} has no {what} that is ready; see `make models`")
        return found
