"""Reading a model file that somebody else made: no harm comes of it, whatever it holds.

Owns the order of the checks: cheap ones first, and nothing is read, followed or multiplied before it is bounded. Must
not know what the graph is for. What a graph does when it runs is bounded by whoever runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from eddy.inspection.errors import InspectionError
from eddy.inspection.external import bring_inside, read_plain_file
from eddy.inspection.functions import inline
from eddy.inspection.limits import Limits
from eddy.inspection.structure import all_tensors, check_structure

_LIMITS = Limits()
# What people bring instead of an ONNX file: its first bytes, and what to do.
_MISTAKEN = {
    b"PK\x03\x04": "a zip archive, as PyTorch and Keras 3 save models; export it to ONNX first",
    b"\x89HDF": "an HDF5 file, as Keras saves models; export it to ONNX first",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with `git lfs pull`",
    b"<!DOCTYPE": "a web page; the download went wrong",
    b"<html": "a web page; the download went wrong",
}


def read_model(path: Path, limits: Limits = _LIMITS) -> onnx.ModelProto:
    """Reads a model with all of its data inside, without functions, checked.

    Raises:
        InspectionError: the file is no ONNX file, damaged, beyond a limit, or refers to what is not its own.
    """
    raw = read_plain_file(path, limits.max_file_bytes)
    model = parse_model(raw, path.name)
    # Depth and number before anything walks the graph.
    model = inline(model, limits)
    bring_inside(all_tensors(model.graph), path.parent, limits.max_file_bytes - len(raw), limits)
    check_structure(model, limits)
    return model


def parse_model(raw: bytes, name: str) -> onnx.ModelProto:
    """The message in a file's bytes; `name` is the file's, for errors.

    Raises:
        InspectionError: it is none.
    """
    check_start(raw, name)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(raw)
    except DecodeError as error:
        raise InspectionError(f"{name} is not an ONNX file (truncated or corrupt): {error}") from error
    if not model.HasField("graph"):
        raise InspectionError(f"{name} is not an ONNX file: it holds no graph")
    if wrong := next(_no_text(model), None):
        raise InspectionError(f"{name} is corrupt: {wrong} is no text")
    return model


def check_start(raw: bytes, name: str) -> None:
    """Says what a file is that is clearly none of ONNX's, by its first bytes.

    Raises:
        InspectionError: it is such a one, or empty.
    """
    if not raw:
        raise InspectionError(f"{name} is empty")
    for start, what in _MISTAKEN.items():
        if raw.startswith(start):
            raise InspectionError(f"{name} is {what}")


def _no_text(message: Message) -> Iterator[str]:
    """Fields whose text is not UTF-8: protobuf lets them through, and what handles names may stumble."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING:
            for text in (value,) if isinstance(value, str | bytes) else value:
                if isinstance(text, bytes):
                    yield f"{field.name} {text[:50]!r}"
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in (value,) if isinstance(value, Message) else value:
                yield from _no_text(inner)
