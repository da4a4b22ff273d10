"""What a graph declares of its inputs and outputs: hints, which may be wrong.

Owns reading declarations, and the copy of a model that declares nothing, so that a runtime believes nothing. Must not
know what axes mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from eddy.inspection.errors import InspectionError
from eddy.inspection.walk import all_graphs
from eddy.v1 import contract_pb2

MAX_PORTS = 512
MAX_RANK = 8

# Element types that a contract can say.
DTYPES: dict[int, contract_pb2.DataType] = {
    TensorProto.FLOAT: contract_pb2.DATA_TYPE_FLOAT32,
    TensorProto.DOUBLE: contract_pb2.DATA_TYPE_FLOAT64,
    TensorProto.FLOAT16: contract_pb2.DATA_TYPE_FLOAT16,
    TensorProto.INT32: contract_pb2.DATA_TYPE_INT32,
    TensorProto.INT64: contract_pb2.DATA_TYPE_INT64,
    TensorProto.UINT8: contract_pb2.DATA_TYPE_UINT8,
    TensorProto.BOOL: contract_pb2.DATA_TYPE_BOOL,
}

# A size, the name of one that is free, or None where nothing is said.
Dim = int | str | None


@dataclass(frozen=True, slots=True)
class Declared:
    """An input or output as its graph declares it.

    Attributes:
        dims: an axis each; None where the graph does not even say how many there are.
    """

    name: str
    element: int
    dims: tuple[Dim, ...] | None

    @property
    def dtype(self) -> np.dtype:
        """The numpy dtype."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.element))

    @property
    def wire_dtype(self) -> contract_pb2.DataType:
        """Its number in `eddy.v1.DataType`."""
        return DTYPES[self.element]


def declared_inputs(graph: onnx.GraphProto) -> tuple[Declared, ...]:
    """The inputs that somebody has to give: those that have no initializer.

    Raises:
        InspectionError: too many, or one that no contract can say.
    """
    given = {tensor.name for tensor in graph.initializer} | {tensor.values.name for tensor in graph.sparse_initializer}
    return _read("input", [value for value in graph.input if value.name not in given])


def declared_outputs(graph: onnx.GraphProto) -> tuple[Declared, ...]:
    """The outputs. Raises as `declared_inputs`."""
    return _read("output", list(graph.output))


def _read(kind: str, values: list[onnx.ValueInfoProto]) -> tuple[Declared, ...]:
    if len(values) > MAX_PORTS:
        raise InspectionError(f"the graph has {len(values)} {kind}s, at most {MAX_PORTS} are served")
    found = tuple(_declared(kind, value) for value in values)
    if repeated := sorted({port.name for port in found if [other.name for other in found].count(port.name) > 1}):
        raise InspectionError(f"the graph has several {kind}s of one name: {repeated}")
    return found


def _declared(kind: str, value: onnx.ValueInfoProto) -> Declared:
    if value.type.WhichOneof("value") != "tensor_type":
        raise InspectionError(f"{kind} {value.name!r} is a {value.type.WhichOneof('value')}, only tensors are served")
    tensor = value.type.tensor_type
    if tensor.elem_type not in DTYPES:
        names = ", ".join(TensorProto.DataType.Name(element) for element in DTYPES)
        raise InspectionError(
            f"{kind} {value.name!r} has element type {_element_name(tensor.elem_type)}, expected one of {names}"
        )
    if not tensor.HasField("shape"):
        return Declared(value.name, tensor.elem_type, None)
    dims = tuple(_dim(dim) for dim in tensor.shape.dim)
    if len(dims) > MAX_RANK:
        raise InspectionError(f"{kind} {value.name!r} has {len(dims)} axes, at most {MAX_RANK} are served")
    return Declared(value.name, tensor.elem_type, dims)


def _element_name(element: int) -> str:
    known = TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(element)) if element in known else str(element)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.WhichOneof("value") == "dim_param" and dim.dim_param:
        return str(dim.dim_param)
    # Some exporters write 0 or -1 where nothing is known.
    return int(dim.dim_value) if dim.WhichOneof("value") == "dim_value" and dim.dim_value > 0 else None


def without_declarations(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose inputs declare dtype and rank, whose outputs declare the dtype, and that says no shape between."""
    free = onnx.ModelProto()
    free.CopyFrom(model)
    given = {tensor.name for tensor in free.graph.initializer}
    for value in free.graph.input:
        if value.name not in given:
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                dim.Clear()
                dim.dim_param = f"{value.name}:{axis}"
    for value in free.graph.output:
        value.type.tensor_type.ClearField("shape")
    for graph in all_graphs(free.graph):
        del graph.value_info[:]
    return free
