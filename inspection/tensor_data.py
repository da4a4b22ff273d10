"""Tensors in a model's file: their bytes are as many as shape and type say, and lie inside the message.

Owns the sizes of ONNX's types, and where the numbers of each stand. Must not know graphs or files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx

from eddy.inspection.errors import InspectionError
from eddy.inspection.limits import Limits

# Bits of an element; onnx.proto, `TensorProto.DataType`. The package may be older than the newest of them.
_BITS_BY_NAME = {
    **dict.fromkeys(("COMPLEX128",), 128),
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("INT8", "UINT8", "BOOL"), 8),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("INT2", "UINT2"), 2),
}
_NUMBERS = dict(onnx.TensorProto.DataType.items())
_BITS = {_NUMBERS[name]: bits for name, bits in _BITS_BY_NAME.items() if name in _NUMBERS}
_COMPLEX = {onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128}
# Where numbers stand that are not raw; all other types in int32_data.
_FIELDS: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float_data",
    onnx.TensorProto.COMPLEX64: "float_data",
    onnx.TensorProto.DOUBLE: "double_data",
    onnx.TensorProto.COMPLEX128: "double_data",
    onnx.TensorProto.INT64: "int64_data",
    onnx.TensorProto.UINT64: "uint64_data",
    onnx.TensorProto.UINT32: "uint64_data",
    onnx.TensorProto.STRING: "string_data",
}
_TYPED = sorted({*_FIELDS.values(), "int32_data"})


def check_shape(dims: Sequence[int], where: str, limits: Limits) -> None:
    """Sizes that a tensor can have.

    Raises:
        InspectionError: too many axes, a negative size, or too many elements.
    """
    if len(dims) > limits.max_rank:
        raise InspectionError(f"{where} has {len(dims)} axes, expected at most {limits.max_rank}")
    if any(size < 0 for size in dims):
        raise InspectionError(f"{where} has the shape {list(dims)}, expected no negative size")
    # An empty tensor may have any other sizes.
    if 0 not in dims and math.prod(dims) > limits.max_elements:
        raise InspectionError(f"{where} has the shape {list(dims)}, expected at most {limits.max_elements:,} elements")


def num_bytes(tensor: onnx.TensorProto, where: str, limits: Limits) -> int:
    """How many bytes `tensor`'s raw data has by its shape and type.

    Raises:
        InspectionError: the shape is absurd, or the type unknown or of no fixed size.
    """
    check_shape(tensor.dims, where, limits)
    if tensor.data_type not in _BITS:
        raise InspectionError(f"{where} has the type {type_name(tensor.data_type)}, whose data has no fixed size")
    return -(-math.prod(tensor.dims) * _BITS[tensor.data_type] // 8)


def type_name(number: int) -> str:
    """The name of an ONNX element type: "FLOAT"."""
    return next((name for name, known in _NUMBERS.items() if known == number), f"number {number}")


def check_data(tensor: onnx.TensorProto, where: str, limits: Limits) -> None:
    """The data inside of `tensor` is what its shape and type say, and stands in one place.

    Raises:
        InspectionError: it does not, with both numbers.
    """
    check_shape(tensor.dims, where, limits)
    held = [name for name in _TYPED if len(getattr(tensor, name))]
    if tensor.HasField("raw_data"):
        expected = num_bytes(tensor, where, limits)
        if held:
            raise InspectionError(f"{where} has its data twice, in raw_data and in {', '.join(held)}")
        if len(tensor.raw_data) != expected:
            raise InspectionError(
                f"{where} has {len(tensor.raw_data):,} bytes of data, expected {expected:,} "
                f"for {type_name(tensor.data_type)} {list(tensor.dims)}"
            )
        return
    field = _FIELDS.get(tensor.data_type, "int32_data")
    if tensor.data_type not in _BITS and field != "string_data":
        raise InspectionError(f"{where} has the type {type_name(tensor.data_type)}, expected one of ONNX's")
    count = math.prod(tensor.dims) * (2 if tensor.data_type in _COMPLEX else 1)
    if (bits := _BITS.get(tensor.data_type, 8)) < 8:
        count = -(-count * bits // 8)
    if set(held) - {field} or len(getattr(tensor, field)) != count:
        found = ", ".join(f"{len(getattr(tensor, name)):,} in {name}" for name in held) or "none"
        raise InspectionError(
            f"{where} has wrong data: {found}, expected {count:,} in {field} "
            f"for {type_name(tensor.data_type)} {list(tensor.dims)}"
        )
