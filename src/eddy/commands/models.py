"""`eddy models`: what a repository folder holds, or what a running server says of its models.

Must not load ONNX Runtime: a folder is read from the contracts in its files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eddy.clients.flags import add_tls, tls_of
from eddy.commands.parser import fail, fail_call

if TYPE_CHECKING:
    import onnx

    from eddy.clients.sync import SyncClient
    from eddy.commands.parser import Commands
    from eddy.v1 import contract_pb2, models_pb2

_EXAMPLES = """\
examples:
  eddy models
  eddy models --model-repository models --json
  eddy models --target 127.0.0.1:8500
  eddy models load text-lstm --target 127.0.0.1:8500
  eddy models unload text-lstm
"""
_DEFAULT_TARGET = "127.0.0.1:8500"
_TASK_PREFIX = "TASK_"
# The task of a file without a contract: what it is, the server finds out.
_FOREIGN = "see eddy inspect"
# The table shows the first results of the training run, with JSON come all.
_BOOKKEEPING = {"parameters", "best_epoch", "validation_loss"}
_NUM_SHOWN_FIGURES = 2


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of one model in a folder.

    Attributes:
        refusal: why a server would not serve it, empty when it would; then the fields above it are empty.
        figures: the training run's, name -> value with unit; adopts: versions whose sessions go on with it.
        state_bytes: of one session; file_bytes: of the step graph.
    """

    name: str
    version: str
    file_bytes: int
    task: str = ""
    family: str = ""
    parameters: int = 0
    state_bytes: int = 0
    figures: tuple[tuple[str, str], ...] = ()
    adopts: tuple[str, ...] = ()
    refusal: str = ""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "models",
        help="list the models of a folder, or of a running server",
        description="Lists the models of a repository folder without running them, or asks a server for its own.",
        epilog=_EXAMPLES,
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--model-repository", type=Path, metavar="DIR", default=Path("models"), help="(default: models)")
    where.add_argument("--target", metavar="HOST:PORT", help="ask this server")
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_tls(parser)
    parser.set_defaults(func=_run)
    actions = parser.add_subparsers(metavar="", title="on a running server", required=False)
    for name, text in (
        ("load", "load what lies in a model's folder and is not served"),
        ("unload", "open no more sessions of a model; those that are open go on"),
    ):
        action = actions.add_parser(name, help=text, description=f"Has a server {text}.")
        action.add_argument("model")
        action.add_argument(
            "--target", metavar="HOST:PORT", default=_DEFAULT_TARGET, help=f"(default: {_DEFAULT_TARGET})"
        )
        action.add_argument("--json", action="store_true", help="as JSON")
        add_tls(action)
        action.set_defaults(func=_change, action=name)


def _run(options: argparse.Namespace) -> int:
    return _of_server(options) if options.target else _of_folder(options)


# A folder


def _of_folder(options: argparse.Namespace) -> int:
    from eddy.service.repository import RepositoryError

    try:
        models = list(stored_models(options.model_repository))
    except RepositoryError as error:
        return fail(error)
    if options.json:
        print(json.dumps([asdict(model) | {"figures": dict(model.figures)} for model in models], indent=2))
        return 0
    _show(
        ("model", "version", "task", "family", "parameters", "state a session", "file", "figures"),
        (
            (model.name, model.version, *(_refused(model.refusal) if model.refusal else _described(model)))
            for model in models
        ),
    )
    return 0


def _refused(why: str) -> tuple[str, ...]:
    return ("", "", "", "", "", f"not served: {why}")


def _described(model: Stored) -> tuple[str, ...]:
    results = [f"{name} {value}" for name, value in model.figures if name not in _BOOKKEEPING]
    adopts = [f"adopts {', '.join(model.adopts)}"] if model.adopts else []
    figures = ", ".join(results[:_NUM_SHOWN_FIGURES] + adopts)
    sizes = (f"{model.parameters:,}", f"{model.state_bytes:,} B", f"{model.file_bytes:,} B")
    return (model.task, model.family, *sizes, figures)


def stored_models(root: Path) -> Iterator[Stored]:
    """Every version of every model of a repository, in order.

    Raises:
        RepositoryError: the folder is missing, empty or not readable.
    """
    from eddy.service.repository import model_folders, model_name, version_folders

    for folder in model_folders(root):
        name = model_name(folder)
        try:
            versions = version_folders(folder)
        except OSError as error:
            yield Stored(name, "", 0, refusal=f"the folder cannot be read: {error.strerror or error}")
            continue
        if not versions:
            yield Stored(name, "", 0, refusal="the folder holds no version, expected 1/model.onnx")
        for version in versions:
            yield _stored(name, version)


def _stored(name: str, place: Path) -> Stored:
    from eddy.inspection.errors import InspectionError
    from eddy.inspection.external import read_plain_file
    from eddy.inspection.limits import Limits
    from eddy.inspection.reading import parse_model
    from eddy.service.contract import read_contract
    from eddy.service.errors import ModelError
    from eddy.service.package import carries_contract
    from eddy.service.repository import clash, graph_file, version_name

    path, version, raw = graph_file(place), version_name(place), b""
    try:
        if why := clash(place):
            return Stored(name, version, 0, refusal=why)
        raw = read_plain_file(path, Limits().max_file_bytes)
        if not carries_contract(raw, path.name):
            return Stored(name, version, len(raw), _FOREIGN)
        model = parse_model(raw, path.name)
        contract = read_contract(model)
    except (InspectionError, ModelError) as error:
        return Stored(name, version, len(raw), refusal=str(error))
    message = contract.message
    return Stored(
        name,
        version,
        len(raw),
        _task(message),
        message.family,
        message.training.parameters or _num_parameters(model),
        contract.state_bytes,
        tuple((figure.name, f"{figure.value:.4g} {figure.unit}".strip()) for figure in message.training.figures),
        tuple(message.adopts),
    )


def _task(contract: contract_pb2.ModelContract) -> str:
    from eddy.v1 import contract_pb2

    return contract_pb2.Task.Name(contract.task).removeprefix(_TASK_PREFIX).lower().replace("_", " ")


def _num_parameters(model: onnx.ModelProto) -> int:
    """Elements of the graph's floating-point initializers."""
    import math

    import onnx

    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type in floats)


# A server


def _of_server(options: argparse.Namespace) -> int:
    return _ask(options, lambda client: client.models())


def _change(options: argparse.Namespace) -> int:
    if options.action == "load":
        return _ask(options, lambda client: client.load_model(options.model))
    return _ask(options, lambda client: client.unload_model(options.model))


def _ask(options: argparse.Namespace, call: Callable[[SyncClient], list[models_pb2.ModelStatus]]) -> int:
    """Shows what a server answers."""
    from eddy import SyncClient, errors

    try:
        with SyncClient(options.target, tls=tls_of(options)) as client:
            statuses = call(client)
    except errors.EddyError as error:
        return fail_call(options.target, error)
    if options.json:
        from google.protobuf import json_format

        print(json.dumps([_status_document(json_format.MessageToDict, status) for status in statuses], indent=2))
        return 0
    _show(
        ("model", "version", "ready", "sessions", "retiring", "slots", "state a session", "provider"),
        (
            (
                status.name,
                status.version,
                _readiness(status),
                f"{status.num_sessions:,}",
                f"{sum(model.num_sessions for model in status.retiring):,}",
                f"{status.num_slots:,}",
                f"{status.state_bytes_per_session:,} B",
                status.provider,
            )
            for status in statuses
        ),
    )
    return 0


def _readiness(status: models_pb2.ModelStatus) -> str:
    if not status.ready:
        return f"no: {status.error.message}"
    return f"yes, with the files before: {status.error.message}" if status.HasField("error") else "yes"


def _status_document(as_dict: Any, status: models_pb2.ModelStatus) -> dict[str, Any]:
    document: dict[str, Any] = as_dict(
        status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    # A 64-bit number is a string in protobuf's JSON.
    return document | {"state_bytes_per_session": status.state_bytes_per_session}


def _show(columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    from rich.table import Table

    from eddy.commands.table import show

    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    show(table)
