"""A model package: what one version's folder of the repository holds, read and checked by itself.

Owns the reading of its files. Must not know the catalog, nor how models are run.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from eddy.service.contract import Contract, read_contract, refuse
from eddy.service.errors import ModelError
from eddy.service.graph import ModelGraphs
from eddy.service.repository import STEP_GRAPH


@dataclass(frozen=True, slots=True)
class Package:
    """A model as its folder gives it.

    Attributes:
        digest: SHA-256 of the step graph's file, hexadecimal.
    """

    graphs: ModelGraphs
    contract: Contract
    digest: str


class Unreadable(Exception):
    """A version's folder that makes no model; the message says which file, and why.

    Attributes:
        digest: of the step graph's file, empty where it cannot be read.
    """

    def __init__(self, message: str, digest: str) -> None:
        super().__init__(message)
        self.digest = digest


def read_package(folder: Path) -> Package:
    """Reads a version's folder.

    Raises:
        Unreadable: a file is missing or damaged, or the contract contradicts itself.
    """
    path = folder / STEP_GRAPH
    digest = ""
    try:
        raw = path.read_bytes()
        if not raw:
            raise Unreadable(f"{path.name} is empty", digest)
        digest = hashlib.sha256(raw).hexdigest()
        step = _parse(path, raw)
        contract = read_contract(step)
        names = contract.message.graphs
        others = [
            _parse(folder / name, (folder / name).read_bytes()) if name else None for name in (names.prime, names.whole)
        ]
    except OSError as error:
        name = Path(error.filename).name if error.filename else path.name
        raise Unreadable(f"{name} cannot be read: {error.strerror or error}", digest) from error
    except ModelError as error:
        raise Unreadable(error.message, digest) from error
    return Package(ModelGraphs(step, *others), contract, digest)


def _parse(path: Path, raw: bytes) -> onnx.ModelProto:
    try:
        return onnx.load_from_string(raw)
    except DecodeError as error:
        raise refuse(f"{path.name} is not an ONNX file (truncated or corrupt): {error}") from error
