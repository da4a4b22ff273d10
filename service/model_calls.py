"""The calls of `ModelService`: which models there are, and their contracts. Must not know gRPC."""

from __future__ import annotations

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
        return models_pb2.ListModelsResponse(models=[_status(entry) for entry in self._host.catalog])

    async def get(self, request: models_pb2.GetModelRequest) -> models_pb2.GetModelResponse:
        """One model with its contract."""
        entry = self._host.catalog.find(request.name, request.version)
        response = models_pb2.GetModelResponse(status=_status(entry))
        if entry.model is not None:
            response.contract.CopyFrom(entry.model.contract.message)
            response.limits.CopyFrom(codec.limits_message(entry.model.config, self._max_message_bytes))
        return response


def _status(entry: Entry) -> models_pb2.ModelStatus:
    status = models_pb2.ModelStatus(
        name=entry.file.name,
        version=entry.file.version,
        ready=entry.model is not None,
        digest=entry.file.digest,
        load_seconds=entry.load_seconds,
    )
    if entry.error is not None:
        status.error.CopyFrom(codec.error_detail(entry.error))
    if entry.model is not None:
        status.provider = entry.model.engine.provider
        status.num_slots = entry.model.slots.num_slots
        status.num_sessions = entry.model.num_sessions
        status.state_bytes_per_session = entry.model.contract.state_bytes
    return status
