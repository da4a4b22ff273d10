"""What a client knows of the server's models.

Owns contracts that were asked for, and the group of each model, in which its sessions share messages. Must not know
calls: it is given one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from eddy.clients.connection import Group
from eddy.clients.tensors import Signature
from eddy.v1 import inference_pb2, models_pb2

# Asks the server for a model, by name and version.
GetModel = Callable[[str, str], Awaitable[models_pb2.GetModelResponse]]


class Catalog:
    """The models that were used."""

    def __init__(self, get_model: GetModel) -> None:
        self._get_model = get_model
        # Changed only by the methods below, on one event loop.
        self._served: dict[tuple[str, str], models_pb2.GetModelResponse] = {}
        self._groups: dict[tuple[str, str], Group] = {}

    async def served(self, model: str, version: str) -> models_pb2.GetModelResponse:
        """A model's contract, limits and version.

        Raises:
            NotFound: no such model or version.
        """
        served = self._served.get((model, version))
        if served is None:
            served = await self._get_model(model, version)
            # Under its own version only: which one is the latest may change.
            self._served[model, served.status.version] = served
        return served

    async def group(self, model: str, version: str, limits: inference_pb2.Limits) -> Group:
        """Where sessions of a model share messages."""
        group = self._groups.get((model, version))
        if group is None:
            signature = Signature((await self.served(model, version)).contract)
            # Another task may have been quicker while this one waited: all sessions must share one group.
            group = self._groups.setdefault(
                (model, version), Group(signature, limits.max_rows, limits.max_message_bytes)
            )
        return group
