"""What a client knows of the server's models.

Owns contracts that were asked for, and the group of each model, in which its sessions share messages. Must not know
calls: it is given one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from eddy.clients.group import Group
from eddy.clients.tensors import Signature
from eddy.v1 import inference_pb2, models_pb2

# Asks the server for a model, by name, version and digest of its files; each may be empty.
GetModel = Callable[[str, str, str], Awaitable[models_pb2.GetModelResponse]]


class Catalog:
    """The models that were used.

    The files of a version may be replaced, so its name does not say what it is: the digest of its files does.
    """

    def __init__(self, get_model: GetModel) -> None:
        self._get_model = get_model
        # Changed only by the methods below, on one event loop. What a version was when it was asked for last.
        self._served: dict[tuple[str, str], models_pb2.GetModelResponse] = {}
        self._groups: dict[tuple[str, str, str], Group] = {}

    async def served(self, model: str, version: str) -> models_pb2.GetModelResponse:
        """A model's contract, limits, version and digest, as they were when last asked for.

        Raises:
            NotFound: no such model or version.
        """
        return self._served.get((model, version)) or await self.latest(model, version)

    async def latest(self, model: str, version: str) -> models_pb2.GetModelResponse:
        """The same, as they are now.

        Raises:
            NotFound: no such model or version.
        """
        served = await self._get_model(model, version, "")
        # Under its own version only: which one is the latest may change.
        self._served[model, served.status.version] = served
        return served

    async def group(self, model: str, version: str, package: str, limits: inference_pb2.Limits) -> Group:
        """Where sessions of a model share messages; `package`: the digest of its files."""
        key = (model, version, package)
        group = self._groups.get(key)
        if group is None:
            signature = Signature((await self._get_model(*key)).contract)
            # Another task may have been quicker while this one waited: all sessions must share one group.
            group = self._groups.setdefault(key, Group(signature, limits.max_rows, limits.max_message_bytes))
        return group
