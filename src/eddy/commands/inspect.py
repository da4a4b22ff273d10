"""`eddy inspect`: what a model file needs to stream, found out and shown.

Owns the arguments, the picture and the exit code. The file is inspected as the server does it, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from eddy.commands.parser import MISUSE, fail

if TYPE_CHECKING:
    from eddy.commands.parser import Commands
    from eddy.inspection.report import Report
    from eddy.v1 import contract_pb2

_EXAMPLES = """\
examples:
  eddy inspect model.onnx
  eddy inspect model.onnx --json
  eddy inspect model.onnx --write            # drafts model.toml beside it
  eddy inspect models/text-lstm
exit codes: 0 it can be served, 1 it is refused, 2 misuse
"""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "inspect",
        help="show what a model file needs to stream, and whether it does",
        description="Finds the states of an ONNX model of any origin, tries whether it streams, and says why or why "
        "not. Settings are read from model.toml (or NAME.toml) beside the file, where there is one.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a model file, or the folder of a version or a model")
    parser.add_argument(
        "--settings", type=Path, metavar="FILE", help="the settings, in place of those beside the model"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--write", action="store_true", help="draft the settings' file from what was found")
    parser.add_argument("--force", action="store_true", help="with --write: replace a file that is there")
    parser.set_defaults(func=_run)


def _run(options: argparse.Namespace) -> int:
    from eddy.commands.report import printable
    from eddy.inspection.errors import InspectionError

    try:
        return _carry_out(options)
    except _Misuse as error:
        return fail(error, MISUSE)
    except InspectionError as error:
        if not options.json:
            return fail(printable(f"{options.file} is refused: {error}"))
        print(json.dumps(_refused(str(error)).as_json(), indent=2))
        return 1


def _carry_out(options: argparse.Namespace) -> int:
    """Inspects, writes and shows.

    Raises:
        InspectionError: the model is refused.
    """
    from eddy.commands.report import show_report
    from eddy.service.repository import settings_file

    # 1. What is meant.
    path = _model_file(options.file)
    settings = options.settings or settings_file(path)
    is_there = settings.exists()
    if options.settings and not is_there and not options.write:
        raise _Misuse(f"--settings: {settings} is not there")
    if options.write and is_there and not options.force:
        raise _Misuse(f"--write: {settings} is there already; --force replaces it, and keeps what it says")
    # 2. What it is.
    contract = _contract_of(path)
    if contract is not None and (options.write or options.settings):
        raise _Misuse(f"{path} brings its contract: settings do not apply")
    report = _inspect(path, settings if is_there else None) if contract is None else _of_contract(contract)
    # 3. What is told.
    if options.write:
        _write_draft(settings, report, path)
    if options.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        note = "the file brings its contract: settings do not apply"
        if contract is None:
            note = f"settings: {settings}" if settings.exists() else f"no {settings.name} beside it: --write drafts one"
        show_report(report, path, note)
    return 0


class _Misuse(Exception):
    """The arguments do not fit together, or not to what is there."""


def _model_file(given: Path) -> Path:
    """The file meant by a file, a version's folder, or a model's folder, of which the latest version is taken."""
    from eddy.service.repository import graph_file, version_folders

    if not given.is_dir():
        return given
    try:
        if (given / "model.onnx").exists():
            return graph_file(given)
        places = [place for place in version_folders(given) if graph_file(place).exists()]
    except OSError as error:
        raise _Misuse(f"{given} cannot be read: {error.strerror or error}") from error
    if not places:
        raise _Misuse(f"{given}: the folder has neither model.onnx nor a version with one")
    return graph_file(places[-1])


def _contract_of(path: Path) -> contract_pb2.ModelContract | None:
    """The contract that a file brings, None where it brings none.

    Raises:
        InspectionError: the file cannot be read, or the contract contradicts itself.
    """
    from eddy.inspection.errors import InspectionError
    from eddy.inspection.external import read_plain_file
    from eddy.inspection.limits import Limits
    from eddy.inspection.reading import parse_model
    from eddy.service.contract import read_contract
    from eddy.service.errors import ModelError
    from eddy.service.package import carries_contract

    raw = read_plain_file(path, Limits().max_file_bytes)
    if not carries_contract(raw, path.name):
        return None
    try:
        return read_contract(parse_model(raw, path.name)).message
    except ModelError as error:
        raise InspectionError(error.message) from error


def _inspect(path: Path, settings: Path | None) -> Report:
    """The report of a file without a contract.

    Raises:
        InspectionError: it is refused.
    """
    from eddy.inspection.report import Report
    from eddy.service.config import InspectionConfig
    from eddy.service.isolation import inspect_file

    return Report.from_json(inspect_file(path, settings, path.stem, InspectionConfig(), wants_costs=True).report)


def _of_contract(contract: contract_pb2.ModelContract) -> Report:
    """What a contract says, as a report."""
    from eddy.inspection.report import FoundState, FoundTensor, Origin, Probes, Report

    streaming, numerics = contract.streaming, contract.numerics
    worst = 0.0 if numerics.bitwise else numerics.tolerance
    states = tuple(
        FoundState(
            state.name,
            state.next_name or "(never changes)",
            tuple(state.shape),
            _dtype(state.dtype),
            0,
            Origin.EXPLICIT,
            state.meaning or "the contract names it",
        )
        for state in contract.states
    )
    inputs, outputs = (
        tuple(FoundTensor(port.name, _dtype(port.dtype), ("batch", "time", *port.shape)) for port in ports)
        for ports in (contract.inputs, contract.outputs)
    )
    return Report(
        streaming.streamable,
        streaming.reason or "the file brings its contract",
        states,
        inputs,
        outputs,
        streaming.run_rows or None,
        Probes(worst, worst) if numerics.batches else Probes(),
        notes=tuple(filter(None, (contract.description, "the differences are those that the contract states"))),
    )


def _dtype(number: int) -> str:
    from eddy.service.contract import dtype_of

    return dtype_of(number, "contract").name


def _refused(why: str) -> Report:
    from eddy.inspection.report import Probes, Report

    return Report(False, why, (), (), (), None, Probes())


def _write_draft(settings: Path, report: Report, path: Path) -> None:
    from eddy.inspection.draft import draft
    from eddy.inspection.settings import Settings
    from eddy.inspection.settings_file import read_settings

    said = read_settings(settings) if settings.exists() else Settings()
    try:
        settings.write_text(draft(report, said, path.name), encoding="utf-8")
    except OSError as error:
        raise _Misuse(f"--write: {settings} cannot be written: {error.strerror or error}") from error
    print(f"eddy: wrote {settings}", file=sys.stderr)
