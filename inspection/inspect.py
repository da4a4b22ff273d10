"""Inspection: a recurrent ONNX graph of any origin becomes one that streams, or one that says why it does not.

Owns the order of the steps. Must not know files, the service, or which runtime tries the graphs.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from eddy.inspection.attempt import Attempt, attempt
from eddy.inspection.canonical import whole_form
from eddy.inspection.describe import describe, found_states, found_tensors
from eddy.inspection.errors import InspectionError
from eddy.inspection.pairs import Pairing, find_pairs
from eddy.inspection.program import Loader
from eddy.inspection.report import Probes, Report
from eddy.inspection.settings import Settings
from eddy.inspection.source import Source, prepare
from eddy.inspection.walk import scope_of
from eddy.v1 import contract_pb2


@dataclass(frozen=True, slots=True)
class Inspection:
    """A model, ready to be served.

    Attributes:
        report: what was found.
        contract: as if the file had brought it; `contract.streaming.streamable` is the report's.
        step: the step graph: inputs [B, T, ...], states [B, ...] -> outputs [B, T, ...], next states [B, ...], named
            as the contract says; None where the model does not stream.
        whole: inputs [B, T, ...] -> outputs [B, T', ...] of whole sequences, without states, for a model that does not
            stream; None where it does.
    """

    report: Report
    contract: contract_pb2.ModelContract
    step: onnx.ModelProto | None
    whole: onnx.ModelProto | None


def inspect(model: onnx.ModelProto, load: Loader, settings: Settings, name: str) -> Inspection:
    """Finds the states of `model`, tries whether it streams, and rewrites a copy of it into the form that is served.

    Args:
        model: with all of its data inside; it is not changed. load: runs graphs. name: of the model, for the contract.

    Raises:
        InspectionError: the settings do not fit the graph, or it cannot be run at all.
    """
    source = prepare(model, settings)
    pairing = find_pairs(
        scope_of(source.model.graph), tuple(source.inputs.values()), tuple(source.outputs.values()), settings.states
    )
    found = _first_that_streams(source, pairing, load, settings)
    return _inspection(found, settings, name)


def _first_that_streams(source: Source, pairing: Pairing, load: Loader, settings: Settings) -> Attempt:
    """The attempt to be served."""
    first: Attempt | None = None
    for pairs in (pairing.certain, *((*pairing.certain, *more) for more in pairing.guesses)):
        found = attempt(source, pairs, load, settings)
        if found is not None and found.streams:
            return found
        first = first or found
    if first is None:
        raise InspectionError("no batch and time axes were found with which the graph runs")
    return first


def _inspection(found: Attempt, settings: Settings, name: str) -> Inspection:
    """The attempt as a report and a contract."""
    contract = describe(found.form, settings, name, found.limits, found.failure, found.tolerance)
    layout, source = found.layout, found.source
    report = Report(
        streamable=found.streams,
        reason=found.failure or "the laws hold",
        states=found_states(found.form, layout),
        inputs=found_tensors(layout.inputs, source.inputs),
        outputs=found_tensors(layout.outputs, source.outputs),
        max_batch=found.form.run_rows,
        probes=Probes(
            found.chunks.worst if found.chunks else None,
            found.rows.worst if found.rows else None,
        ),
    )
    if found.streams:
        return Inspection(report, contract, found.form.model, None)
    return Inspection(report, contract, None, whole_form(found.form))
