"""The calls of `ModelService`: which models there are, and their contracts. Must not know gRPC."""

from __future__ import annotations

from typing import cast

from eddy.service import codec
from eddy.service.entry import Entry
from eddy.service.host import Host
from eddy.v1 import models_pb2


class ModelCalls:
    """Answers requests about models of `host`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._max_message_bytes = host.config.server.max_message_bytes

    async def list(self, request: models_pb2.ListModelsRequest) -> models_pb2.ListModelsResponse:
        """Every model of the repository, served or refused."""
        return models_pb2.ListModelsResponse(models=[_status(entry) for entry in self._host.repository_index()])

    async def get(self, request: models_pb2.GetModelRequest) -> models_pb2.GetModelResponse:
        """One model with its contract."""
        entry = self._host.catalog.find(request.name, request.version)
        model = entry.model
        if request.package_digest:
            model = entry.model_of_package(request.package_digest)
        response = models_pb2.GetModelResponse(status=_status(entry))
        if model is not None:
            response.contract.CopyFrom(model.contract.message)
            response.limits.CopyFrom(codec.limits_message(model.config, self._max_message_bytes))
        return response

    async def load(self, request: models_pb2.LoadModelRequest) -> models_pb2.LoadModelResponse:
        """Loads what lies in a model's folder."""
        self._host.refuse_load_control()
        entries = await self._host.load_model(request.name)
        return models_pb2.LoadModelResponse(models=[_status(entry) for entry in entries])

    async def unload(self, request: models_pb2.UnloadModelRequest) -> models_pb2.UnloadModelResponse:
        """Opens no more sessions of a model."""
        self._host.refuse_load_control()
        entries = await self._host.unload_model(request.name)
        return models_pb2.UnloadModelResponse(models=[_status(entry) for entry in entries])


def _status(entry: Entry) -> models_pb2.ModelStatus:
    status = models_pb2.ModelStatus(
        name=entry.file.name,
        version=entry.file.version,
        ready=entry.model is not None,
        digest=entry.file.digest,
        load_seconds=entry.load_seconds,
        state=cast("models_pb2.ModelState", int(entry.state)),
        package_digest=entry.file.package,
        retiring=[
            models_pb2.RetiringModel(
                package_digest=model.file.package, digest=model.file.digest, num_sessions=model.num_sessions
            )
            for model in entry.retiring
        ],
    )
    if entry.error is not None:
        status.error.CopyFrom(codec.error_detail(entry.error))
    if entry.model is not None:
        status.provider = entry.model.engine.provider
        status.num_slots = entry.model.slots.num_slots
        status.num_sessions = entry.model.num_sessions
        status.state_bytes_per_session = entry.model.contract.state_bytes
    return status
