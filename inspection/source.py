"""Sources: somebody else's graph, made ready to be looked into.

Owns constant inputs, said or assumed, the opset, local functions and the check of the settings' names. Must not know
what axes mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import inliner, numpy_helper, version_converter

from eddy.inspection.declared import Declared, declared_inputs, declared_outputs
from eddy.inspection.errors import InspectionError
from eddy.inspection.layout import BATCH, TIME
from eddy.inspection.settings import Settings
from eddy.inspection.surgery import opset_of
from eddy.inspection.switches import default_constants, idle_constants
from eddy.inspection.walk import scope_of

# ScatterND, with which the server keeps states, and Slice with computed bounds are there from 11 on.
_LEAST_OPSET = 11
_NEW_OPSET = 13
# Before it, initializers had to be inputs as well.
_LEAST_IR = 8


@dataclass(frozen=True, slots=True)
class Source:
    """A graph without constant inputs.

    Attributes:
        inputs, outputs: its ports by name, in the graph's order; notes: what was assumed, for a person.
    """

    model: onnx.ModelProto
    inputs: Mapping[str, Declared]
    outputs: Mapping[str, Declared]
    notes: tuple[str, ...] = ()


def prepare(model: onnx.ModelProto, settings: Settings) -> Source:
    """A copy of `model` as inspection wants it.

    Raises:
        InspectionError: it is too old, or the settings name what is not there or does not fit.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if copy.functions:
        copy = inliner.inline_local_functions(copy)
    if opset_of(copy) < _LEAST_OPSET:
        copy = _converted(copy)
    copy.ir_version = max(copy.ir_version, _LEAST_IR)
    _drop_given_inputs(copy.graph)
    declared = {port.name: port for port in declared_inputs(copy.graph)}
    outputs = {port.name: port for port in declared_outputs(copy.graph)}
    _check_names(settings, declared, outputs)
    scope, free = scope_of(copy.graph), [port for port in declared.values() if port.name not in settings.constants]
    idle, switches = idle_constants(scope, free), default_constants(scope, free)
    constants = {**idle, **switches, **settings.constants}
    for name, values in constants.items():
        copy.graph.initializer.append(_constant(declared[name], values))
    _drop_given_inputs(copy.graph)
    inputs = {name: port for name, port in declared.items() if name not in constants}
    _check_sides(inputs, outputs, settings)
    notes = [f"{name!r} changes nothing: clients do not give it" for name in idle]
    notes += [
        f"{name!r} only chooses between branches: it is {values.item()}, which the graph compares it with, for all "
        "clients; `constants` in model.toml can say otherwise"
        for name, values in switches.items()
    ]
    return Source(copy, inputs, outputs, tuple(notes))


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return version_converter.convert_version(model, _NEW_OPSET)
    except Exception as error:  # the converter is C++ and raises what it likes
        raise InspectionError(
            f"the graph is written in opset {opset_of(model)}, at least {_LEAST_OPSET} is needed, and it cannot be "
            f"converted: {error}"
        ) from error


def _drop_given_inputs(graph: onnx.GraphProto) -> None:
    """Inputs that have a value are no inputs."""
    given = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in given]
    if len(kept) < len(graph.input):
        del graph.input[:]
        graph.input.extend(kept)


def _check_names(settings: Settings, inputs: Mapping[str, Declared], outputs: Mapping[str, Declared]) -> None:
    """What the settings name is there. Raises InspectionError."""
    ports = {**inputs, **outputs}
    for field, names, known, what in (
        ("context_steps", settings.context_steps, inputs, "input"),
        ("constants", settings.constants, inputs, "input"),
        ("axes", settings.axes, inputs, "input"),
        ("names", settings.names, ports, "input or output"),
    ):
        for name in names:
            if name not in known:
                raise InspectionError(f"{field}: {name!r} is no {what} of the graph, expected one of {sorted(known)}")
    for side in (inputs, outputs):
        called = [settings.names.get(name, name) for name in side]
        if repeated := sorted({name for name in called if called.count(name) > 1}):
            raise InspectionError(f"names: several tensors would be called {repeated}")
    for name in settings.context_steps:
        if name in settings.states or name in settings.constants:
            raise InspectionError(f"context_steps: {name!r} is a state or a constant, expected an input of clients'")
    for name, axes in settings.axes.items():
        _check_axes(name, axes, inputs[name])


def _check_axes(name: str, axes: tuple[str | int, ...], port: Declared) -> None:
    for axis in axes:
        is_size = isinstance(axis, int) and not isinstance(axis, bool) and axis > 0
        if not is_size and axis not in (BATCH, TIME):
            raise InspectionError(f'axes: {name!r} has {axis!r}, expected "batch", "time" or a size')
    if any(axes.count(role) > 1 for role in (BATCH, TIME)):
        raise InspectionError(f"axes: {name!r} has {list(axes)}, expected each of batch and time once at most")
    if port.dims is not None and len(port.dims) != len(axes):
        raise InspectionError(f"axes: {name!r} has {len(axes)} of them, the graph's input has {len(port.dims)}")


def _check_sides(inputs: Mapping[str, Declared], outputs: Mapping[str, Declared], settings: Settings) -> None:
    if not inputs:
        raise InspectionError("the graph has no input that clients could give")
    if not outputs:
        raise InspectionError("the graph has no output")
    if both := sorted(inputs.keys() & outputs.keys()):
        raise InspectionError(f"{both[0]!r} is an input and an output at once, expected outputs that nodes give")
    for port in inputs.values():
        if port.dims is None and port.name not in settings.axes:
            raise InspectionError(f"input {port.name!r} does not even say its rank: `axes` in model.toml must")


def _constant(port: Declared, values: np.ndarray) -> onnx.TensorProto:
    """The value of an input, in its dtype and rank. Raises InspectionError."""
    array = np.asarray(values)
    with np.errstate(all="ignore"):
        cast = array.astype(port.dtype)
    if not np.array_equal(cast.astype(array.dtype), array) and port.dtype.kind != "f":
        raise InspectionError(f"constants: {port.name!r} is {array.tolist()}, which is no {port.dtype}")
    if port.dims is not None:
        fits = len(port.dims) == array.ndim and all(
            dim == size for dim, size in zip(port.dims, array.shape, strict=True) if isinstance(dim, int)
        )
        if not fits and array.size == 1 and all(dim == 1 or not isinstance(dim, int) for dim in port.dims):
            cast, fits = cast.reshape((1,) * len(port.dims)), True
        if not fits:
            raise InspectionError(
                f"constants: {port.name!r} has shape {list(array.shape)}, the graph's input {list(port.dims)}"
            )
    return numpy_helper.from_array(np.ascontiguousarray(cast).reshape(cast.shape), port.name)
