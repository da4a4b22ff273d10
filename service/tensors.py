"""Tensors of the wire: by name, and against what is expected of them.

Owns the errors for a tensor that is missing, unknown, twice there, or of the wrong dtype, shape or length. Must not
know which messages they come in, nor what their values may be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from eddy.service.errors import ClientError, Reason, invalid
from eddy.service.ports import Port, State
from eddy.v1 import contract_pb2, inference_pb2

# Longer shapes are not quoted.
_MAX_RANK = 32


def by_name(
    tensors: Iterable[inference_pb2.Tensor], known: Sequence[Port | State], where: str
) -> dict[str, inference_pb2.Tensor]:
    """The tensors by their names, each of which is one of `known`.

    Raises:
        ClientError: UNKNOWN_INPUT, also of a name that is there twice.
    """
    found: dict[str, inference_pb2.Tensor] = {}
    for tensor in tensors:
        if tensor.name in found or all(tensor.name != each.name for each in known):
            raise invalid(Reason.UNKNOWN_INPUT, where, repr(tensor.name), _listed(known))
        found[tensor.name] = tensor
    return found


def in_order(
    tensors: Iterable[inference_pb2.Tensor], known: Sequence[Port | State], where: str
) -> list[inference_pb2.Tensor]:
    """The tensors in the order of `known`, each there once.

    Raises:
        ClientError: UNKNOWN_INPUT or MISSING_FIELD.
    """
    found = by_name(tensors, known, where)
    for each in known:
        if each.name not in found:
            raise invalid(Reason.MISSING_FIELD, where, f"no {each.name!r}", _listed(known))
    return [found[each.name] for each in known]


def missing(known: Sequence[Port | State], where: str) -> ClientError:
    """The error for `where` not being there, which should hold all of `known`."""
    return invalid(Reason.MISSING_FIELD, where, "none", _listed(known))


def check_tensor(tensor: inference_pb2.Tensor, port: Port | State, shape: Sequence[int], where: str) -> None:
    """`tensor` has the dtype of `port`, and `shape`.

    Raises:
        ClientError: INVALID_DTYPE, INVALID_SHAPE or INVALID_BYTE_LENGTH.
    """
    if tensor.dtype != port.wire_dtype:
        raise invalid(Reason.INVALID_DTYPE, f"{where}.dtype", _dtype_name(tensor.dtype), _dtype_name(port.wire_dtype))
    if len(tensor.shape) > _MAX_RANK:
        raise invalid(Reason.INVALID_SHAPE, f"{where}.shape", f"{len(tensor.shape)} axes", list(shape))
    if list(tensor.shape) != list(shape):
        raise invalid(Reason.INVALID_SHAPE, f"{where}.shape", list(tensor.shape), list(shape))
    expected = port.dtype.itemsize * prod(shape)
    if len(tensor.data) != expected:
        raise invalid(Reason.INVALID_BYTE_LENGTH, f"{where}.data", f"{len(tensor.data)} bytes", f"{expected} bytes")


def _listed(known: Sequence[Port | State]) -> str:
    return f"each once: {', '.join(each.name for each in known)}"


def _dtype_name(number: int) -> str:
    if number in contract_pb2.DataType.values():
        return contract_pb2.DataType.Name(number).removeprefix("DATA_TYPE_")
    return str(number)
