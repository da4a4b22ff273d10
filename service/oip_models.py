"""What the Open Inference Protocol tells of a server and its models: health, metadata, configuration, statistics.

Owns the answers. Must not know gRPC, nor how inference requests are carried out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from importlib import metadata

from eddy.oip import grpc_service_pb2 as oip
from eddy.service.entry import Entry, State
from eddy.service.errors import Reason, invalid
from eddy.service.host import Host
from eddy.service.model import ServedModel
from eddy.service.oip_infer import Inference
from eddy.service.oip_tensors import datatype_of
from eddy.service.stats import ModelStats

_PLATFORM, _BACKEND = "onnxruntime_onnx", "onnxruntime"
_STEP_GRAPH = "model.onnx"
_EXTENSIONS = ("sequence", "model_configuration", "model_repository", "statistics", "parameters")
_STATES = {
    State.LOADING: "LOADING",
    State.READY: "READY",
    State.REFUSED: "UNAVAILABLE",
    State.RETIRING: "UNLOADING",
    State.UNLOADED: "UNAVAILABLE",
}


class ModelAnswers:
    """Answers questions about `host`."""

    def __init__(self, host: Host, inference: Inference) -> None:
        self._host = host
        self._inference = inference

    async def live(self, _: oip.ServerLiveRequest) -> oip.ServerLiveResponse:
        """It answers, so it lives."""
        return oip.ServerLiveResponse(live=True)

    async def ready(self, _: oip.ServerReadyRequest) -> oip.ServerReadyResponse:
        """Whether it takes requests."""
        return oip.ServerReadyResponse(ready=not self._host.gate.is_draining)

    async def model_ready(self, request: oip.ModelReadyRequest) -> oip.ModelReadyResponse:
        """Whether a model takes requests; one that is not known does not."""
        entries = [entry for entry in self._host.catalog if entry.file.name == request.name]
        if request.version:
            entries = [entry for entry in entries if entry.file.version == request.version]
        return oip.ModelReadyResponse(ready=any(entry.model for entry in entries) and not self._host.gate.is_draining)

    async def server_metadata(self, _: oip.ServerMetadataRequest) -> oip.ServerMetadataResponse:
        """Name, version and extensions."""
        return oip.ServerMetadataResponse(name="eddy", version=metadata.version("eddy-serve"), extensions=_EXTENSIONS)

    async def metadata(self, request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
        """Inputs and outputs with their shapes."""
        model = self._inference.model(request.name, request.version)
        signature = self._inference.signature_of(model)
        response = oip.ModelMetadataResponse(
            name=request.name, versions=self._ready_versions(request.name), platform=_PLATFORM
        )
        for message, terminals in ((response.inputs, signature.inputs), (response.outputs, signature.outputs)):
            for terminal in terminals:
                message.add(name=terminal.port.name, datatype=terminal.datatype, shape=terminal.shape)
        return response

    def _ready_versions(self, name: str) -> list[str]:
        return [entry.file.version for entry in self._host.catalog if entry.file.name == name and entry.model]

    async def config(self, request: oip.ModelConfigRequest) -> oip.ModelConfigResponse:
        """The configuration that a server of this protocol would have been given by hand."""
        model = self._inference.model(request.name, request.version)
        signature = self._inference.signature_of(model)
        config = oip.ModelConfig(
            name=request.name,
            platform=_PLATFORM,
            backend=_BACKEND,
            version_policy=oip.ModelVersionPolicy(all=oip.ModelVersionPolicy.All()),
            max_batch_size=model.config.max_rows,
            default_model_filename=_STEP_GRAPH,
            model_transaction_policy=oip.ModelTransactionPolicy(decoupled=False),
        )
        for terminal in signature.inputs:
            config.input.add(name=terminal.port.name, data_type=_data_type(terminal.datatype), dims=terminal.dims)
        for terminal in signature.outputs:
            config.output.add(name=terminal.port.name, data_type=_data_type(terminal.datatype), dims=terminal.dims)
        if model.contract.message.streaming.streamable:
            self._write_batching(model, config.sequence_batching)
        return oip.ModelConfigResponse(config=config)

    def _write_batching(self, model: ServedModel, batching: oip.ModelSequenceBatching) -> None:
        """Sequences: batched as they come, each until it has been idle for too long; the states that they carry."""
        session = self._host.config.session
        limit = model.idle_timeout_seconds(session.idle_timeout_seconds, session.max_idle_timeout_seconds)
        batching.max_sequence_idle_microseconds = int(limit * 1e6)
        batching.oldest.max_candidate_sequences = model.slots.num_slots
        for state in model.contract.states:
            kind = _data_type(datatype_of(state.dtype))
            added = batching.state.add(
                input_name=state.name, output_name=state.next_name, data_type=kind, dims=state.shape
            )
            if not state.initial.any():
                added.initial_state.add(data_type=kind, dims=state.shape, zero_data=True, name="zero")

    async def statistics(self, request: oip.ModelStatisticsRequest) -> oip.ModelStatisticsResponse:
        """Of one version, of all of a model, or of all models."""
        response = oip.ModelStatisticsResponse()
        if request.name:
            self._inference.model(request.name, request.version)
        for entry in self._host.catalog:
            is_wanted = request.name in ("", entry.file.name) and request.version in ("", entry.file.version)
            if is_wanted and entry.model is not None:
                response.model_stats.append(self._statistics(entry.model))
        return response

    def _statistics(self, model: ServedModel) -> oip.ModelStatistics:
        """Of requests by every door: a request is a message's chunk, or one for whole sequences.

        Queue: arrival to the start of the run. Compute: from there to the answer, all of it told as inference:
        what is gathered and what is cut is within the run or as short as a clock's reading.
        """
        stats = model.stats
        success_ns = int((stats.latency.total + stats.whole_seconds) * 1e9)
        num_requests = sum(stats.latency.counts) + stats.num_whole_requests
        # Of those that are answered, so that no number ever goes back.
        queue_ns = min(int((stats.queue_delay.total - stats.begun_seconds) * 1e9), success_ns)
        nothing = oip.StatisticDuration(count=num_requests)
        return oip.ModelStatistics(
            name=model.file.name,
            version=model.file.version,
            last_inference=self._milliseconds(stats),
            inference_count=int(stats.tick_rows.total),
            execution_count=sum(int(count) for count, _ in stats.rows_run.values()),
            inference_stats=oip.InferStatistics(
                success=oip.StatisticDuration(count=num_requests, ns=success_ns),
                fail=_duration(stats.num_failed_requests, stats.failure_seconds),
                queue=oip.StatisticDuration(count=num_requests, ns=queue_ns),
                compute_input=nothing,
                compute_infer=oip.StatisticDuration(count=num_requests, ns=success_ns - queue_ns),
                compute_output=nothing,
                cache_hit=_duration(0, 0.0),
                cache_miss=_duration(0, 0.0),
            ),
            batch_stats=_batches(list(stats.rows_run.items())),
        )

    def _milliseconds(self, stats: ModelStats) -> int:
        if not stats.last_answered:
            return 0
        return int((time.time() - (self._host.clock() - stats.last_answered)) * 1e3)

    async def index(self, request: oip.RepositoryIndexRequest) -> oip.RepositoryIndexResponse:
        """Every version of every model of the repository, served or refused."""
        response = oip.RepositoryIndexResponse()
        for entry in self._host.repository_index():
            if entry.model is not None or not request.ready:
                response.models.append(_index(entry))
        return response

    async def load(self, request: oip.RepositoryModelLoadRequest) -> oip.RepositoryModelLoadResponse:
        """Loads what lies in a model's folder; sessions that are open stay where they are."""
        self._host.refuse_load_control()
        if request.parameters:
            names = ", ".join(sorted(request.parameters))[:100]
            raise invalid(Reason.UNKNOWN_INPUT, "parameters", names, "none: what is loaded is what lies in the folder")
        await self._host.load_model(request.model_name)
        return oip.RepositoryModelLoadResponse()

    async def unload(self, request: oip.RepositoryModelUnloadRequest) -> oip.RepositoryModelUnloadResponse:
        """Begins no more sequences of a model; those that live go on. `unload_dependents` has nothing to do here."""
        self._host.refuse_load_control()
        await self._host.unload_model(request.model_name)
        return oip.RepositoryModelUnloadResponse()


def _index(entry: Entry) -> oip.RepositoryIndexResponse.ModelIndex:
    return oip.RepositoryIndexResponse.ModelIndex(
        name=entry.file.name,
        version=entry.file.version,
        state=_STATES[entry.state],
        reason=_reason(entry),
    )


def _reason(entry: Entry) -> str:
    if entry.error is not None:
        return entry.error.message
    return "unloaded" if entry.state is State.UNLOADED else ""


def _duration(count: int, seconds: float) -> oip.StatisticDuration:
    return oip.StatisticDuration(count=count, ns=int(seconds * 1e9))


def _batches(rows_run: Iterable[tuple[int, list[float]]]) -> list[oip.InferBatchStatistics]:
    return [
        oip.InferBatchStatistics(
            batch_size=num_rows,
            compute_input=_duration(int(count), 0.0),
            compute_infer=_duration(int(count), seconds),
            compute_output=_duration(int(count), 0.0),
        )
        for num_rows, (count, seconds) in sorted(rows_run)
        if count
    ]


def _data_type(datatype: str) -> int:
    return oip.DataType.Value(f"TYPE_{datatype}")
