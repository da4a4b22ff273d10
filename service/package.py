"""A model package: what one version's place in the repository holds, read and checked by itself.

Owns the reading of its files: a file with a contract as it is, one without as inspection finds it, in a process of its
own. Must not know the catalog, nor how models are run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from eddy.inspection.errors import InspectionError
from eddy.inspection.external import read_plain_file
from eddy.inspection.limits import Limits
from eddy.inspection.reading import check_start, parse_model
from eddy.service.config import InspectionConfig
from eddy.service.contract import METADATA_KEY, Contract, read_contract, refuse
from eddy.service.errors import ModelError
from eddy.service.fields import BYTES, FIXED32, FIXED64, VARINT, NotAMessageError, read_varint
from eddy.service.graph import ModelGraphs
from eddy.service.isolation import inspect_file
from eddy.service.repository import clash, graph_file, model_name, settings_file

_LIMITS = Limits()
_BOUNDS = InspectionConfig()
# Of a model's message: its graph, and a few words around it.
_MAX_FIELDS = 10_000
_METADATA_FIELD = onnx.ModelProto.DESCRIPTOR.fields_by_name["metadata_props"].number


@dataclass(frozen=True, slots=True)
class Package:
    """A model as its place gives it.

    Attributes:
        digest: SHA-256 of the model's own file, hexadecimal: the step graph's, where there is one.
        warnings: what inspection says that its users should know; none of a file with a contract.
    """

    graphs: ModelGraphs
    contract: Contract
    digest: str
    warnings: tuple[str, ...] = ()


class Unreadable(Exception):
    """A version's place that makes no model; the message says which file, and why.

    Attributes:
        digest: of the model's own file, empty where it cannot be read.
    """

    def __init__(self, message: str, digest: str) -> None:
        super().__init__(message)
        self.digest = digest


def read_package(place: Path, bounds: InspectionConfig = _BOUNDS) -> Package:
    """Reads a version: a folder, or a file of the repository's top.

    Takes seconds where the file has to be inspected, see `isolation`.

    Args:
        bounds: of the process that inspects.

    Raises:
        Unreadable: a file is missing, damaged or refused, or the contract contradicts itself.
    """
    path, digest = graph_file(place), ""
    try:
        if why := clash(place):
            raise refuse(why)
        raw = read_plain_file(path, _LIMITS.max_file_bytes)
        digest = hashlib.sha256(raw).hexdigest()
        if not carries_contract(raw, path.name):
            return _inspected(place, path, digest, bounds)
        model = parse_model(raw, path.name)
        contract = read_contract(model)
        names = contract.message.graphs
        prime, whole = (_beside(path, model, name) if name else None for name in (names.prime, names.whole))
    except InspectionError as error:
        raise Unreadable(str(error), digest) from error
    except ModelError as error:
        raise Unreadable(error.message, digest) from error
    # Of a model that does not stream the file is its whole graph, or stands there for its contract only.
    step = model if contract.is_streamable else None
    return Package(ModelGraphs(step, prime, whole), contract, digest)


def _beside(path: Path, model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The graph in the file `name` beside the model's own, which may be that one."""
    other = path.with_name(name)
    return model if other == path else parse_model(read_plain_file(other, _LIMITS.max_file_bytes), other.name)


def carries_contract(raw: bytes, name: str) -> bool:
    """Whether a file's metadata has a contract, found without reading its graph.

    Args:
        name: of the file, for errors.

    Raises:
        InspectionError: the bytes are no message, or none that a model could be.
    """
    check_start(raw, name)
    try:
        return any(_is_contract(entry) for entry in _metadata(raw))
    except (IndexError, NotAMessageError, DecodeError) as error:
        raise InspectionError(f"{name} is not an ONNX file (truncated or corrupt)") from error


def _metadata(raw: bytes) -> Iterator[bytes]:
    """The entries of a model's metadata, each a message; everything else is passed over."""
    at, end = 0, len(raw)
    for _ in range(_MAX_FIELDS):
        if at == end:
            return
        field, at = read_varint(raw, at)
        kind, size = field & 7, 0
        if kind == VARINT:
            at = read_varint(raw, at)[1]
        elif kind == BYTES:
            size, at = read_varint(raw, at)
            if field >> 3 == _METADATA_FIELD:
                yield raw[at : at + size]
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise NotAMessageError
        at += size
        if at > end:
            raise NotAMessageError
    raise NotAMessageError


def _is_contract(entry: bytes) -> bool:
    return onnx.StringStringEntryProto.FromString(entry).key == METADATA_KEY


def _inspected(place: Path, path: Path, digest: str, bounds: InspectionConfig) -> Package:
    """What inspection makes of a file without a contract."""
    settings = settings_file(place)
    name = model_name(place if place == path else place.parent)
    try:
        found = inspect_file(path, settings if settings.exists() else None, name, bounds)
    except InspectionError as error:
        raise InspectionError(f"the file carries no contract, and inspection refuses it: {error}") from error
    step, whole = (None if raw is None else parse_model(raw, name) for raw in (found.step, found.whole))
    carrier = whole if step is None else step
    assert carrier is not None, "inspection gives a step graph or a whole one"
    return Package(ModelGraphs(step, None, whole), read_contract(carrier), digest, tuple(found.report["warnings"]))
