"""Inspection: a recurrent ONNX graph of any origin becomes one that streams, or one that says why it does not.

Owns the order of the steps. Must not know files, the service, or which runtime tries the graphs.

Dimension key: B batch, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from eddy.inspection.attempt import Attempt
from eddy.inspection.canonical import whole_form
from eddy.inspection.choice import choose
from eddy.inspection.describe import describe, found_states, found_tensors
from eddy.inspection.program import Loader
from eddy.inspection.report import Probes, Report
from eddy.inspection.settings import Settings
from eddy.inspection.source import prepare
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
    choice = choose(prepare(model, settings), load, settings)
    served, tried = choice.served, choice.tried
    reason = "" if choice.streams else choice.reason
    contract = describe(served.form, settings, name, served.limits, reason, served.tolerance)
    report = Report(
        streamable=choice.streams,
        reason=choice.reason,
        states=found_states(tried.form, tried.layout),
        inputs=found_tensors(served.layout.inputs, served.source.inputs),
        outputs=found_tensors(served.layout.outputs, served.source.outputs),
        max_batch=served.form.run_rows,
        probes=_probes(tried),
        warnings=choice.warnings,
        notes=choice.notes,
    )
    if choice.streams:
        return Inspection(report, contract, served.form.model, None)
    return Inspection(report, contract, None, whole_form(served.form))


def _probes(tried: Attempt) -> Probes:
    """The worst differences. Where a run takes one step, or one row, cutting changes nothing: the same run twice."""
    repeats = tried.repeats.worst if tried.repeats else None
    chunks = repeats if tried.form.max_run_steps == 1 else None
    rows = repeats if tried.form.run_rows is not None else None
    return Probes(tried.chunks.worst if tried.chunks else chunks, tried.rows.worst if tried.rows else rows)
